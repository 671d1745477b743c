"""What pip installs is what the folders hold."""

import os
import platform
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from umamba_seg.config import configs_folder, read_quickstart

ROOT = Path(__file__).parents[1]


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    folders = {path.parent for base in ("umamba_seg", "kernels/umamba_kernels") for path in (ROOT / base).rglob("*.py")}
    found = {folder.relative_to(ROOT).as_posix().removeprefix("kernels/").replace("/", ".") for folder in folders}
    assert listed == found | {"umamba_seg.configs"}


def test_configs_are_found():
    assert (configs_folder() / "quickstart.toml").is_file()
    assert read_quickstart(None).plan.network == "umamba_bot"


LIBRARY = "umamba_kernels/native/libumamba_native.so"
COMPILER = shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")


@pytest.fixture
def build(tmp_path):
    """``build("wheel", CXX=...)`` builds a copy of the project and returns the file and what the build printed."""
    setuptools = pytest.importorskip("setuptools")
    if int(setuptools.__version__.split(".")[0]) < 77:
        pytest.skip(f"setuptools {setuptools.__version__} is older than the 77 of pyproject.toml")
    clone = tmp_path / "clone"
    ignored = shutil.ignore_patterns("__pycache__", "libumamba_native.so")
    for name in ("configs", "kernels", "umamba_seg"):
        shutil.copytree(ROOT / name, clone / name, ignore=ignored)
    for name in ("LICENSE", "README.md", "datasets.md", "pyproject.toml", "setup.py"):
        shutil.copy(ROOT / name, clone)

    def run(kind: str, **environment: str) -> tuple[Path, str]:
        code = f"from setuptools import build_meta; build_meta.build_{kind}('dist')"
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=clone, env=os.environ | environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        (built,) = (clone / "dist").iterdir()
        return built.rename(tmp_path / built.name), done.stdout + done.stderr

    return run


@pytest.mark.slow
@pytest.mark.skipif(not COMPILER or sys.platform == "win32", reason="the native library is not built here")
def test_wheel_with_a_compiler_and_then_without(build):
    with_library, output = build("wheel")
    assert "no native CPU backend" not in output
    system = sysconfig.get_platform().replace("-", "_").replace(".", "_").replace("universal2", platform.machine())
    assert with_library.name.endswith(f"-py3-none-{system}.whl")
    names = zipfile.ZipFile(with_library).namelist()
    assert {LIBRARY, "umamba_seg/configs/datasets.md"} <= set(names)
    assert not any(name.endswith((".h", ".cpp")) for name in names)

    without, output = build("wheel", CXX="/nonexistent")  # in the same folder: the library just built is not picked up
    assert "umamba_kernels: no native CPU backend, the compiler /nonexistent was not found" in output
    assert without.name.endswith("-py3-none-any.whl")
    assert sorted(zipfile.ZipFile(without).namelist()) == sorted(name for name in names if name != LIBRARY)


def test_wheel_with_a_compiler_that_fails(build):
    wheel, output = build("wheel", CXX=f"{sys.executable} -c 1/0")
    assert "umamba_kernels: no native CPU backend" in output
    assert "failed; 'chunked' is used instead" in output or sys.platform == "win32"
    assert wheel.name.endswith("-py3-none-any.whl")


def test_source_distribution_holds_the_sources_of_the_library(build):
    with tarfile.open(build("sdist")[0]) as archive:
        names = archive.getnames()
    sources = [path.relative_to(ROOT).as_posix() for path in (ROOT / "kernels/umamba_kernels/native/src").iterdir()]
    assert sources
    missing = [name for name in ("setup.py", *sources) if not any(found.endswith(f"/{name}") for found in names)]
    assert not missing
