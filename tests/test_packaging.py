"""What pip installs is what the folders hold."""

import tomllib
from pathlib import Path

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
