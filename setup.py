"""Builds the shared library of umamba_kernels.native, where a C++ compiler is found, and takes datasets.md along.

The rest is in pyproject.toml.

The library is optional: without a compiler, or if the compilation fails, one line says so and the installation goes on.
It has a plain C interface, so that one build serves every version of Python and torch, and the wheel is tagged for the
platform only. Compiler and flags are taken from CXX (or CC), CXXFLAGS and LDFLAGS.
"""

from __future__ import annotations

import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

from setuptools import Command, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build import build
from setuptools.command.build_py import build_py

PACKAGE = Path("kernels/umamba_kernels/native")
SOURCES = PACKAGE / "src"
LIBRARY = "libumamba_native.so"  # on macOS as well: neither ctypes nor the system asks for a name there

# No C++ library is used, so none is linked; without exceptions there is nothing to unwind either.
FLAGS = [
    *("-std=c++17", "-O3", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-fno-threadsafe-statics"),
    *("-ffp-contract=fast", "-fno-math-errno"),
]
AVX2 = ["-mavx2", "-mfma"]
VARIANTS = {
    "x86_64": {
        "baseline": [],
        "avx2": AVX2,
        "avx512": [*AVX2, *(f"-mavx512{part}" for part in ("f", "bw", "dq", "vl")), "-mprefer-vector-width=512"],
    },
    "other": {"baseline": []},  # NEON is the baseline of 64-bit ARM
}


class CannotBuildError(Exception):
    """Why there will be no library."""


def compiler() -> list[str]:
    """The command of the C++ compiler.

    Raises:
        CannotBuildError: There is none.
    """
    if sys.platform == "win32":
        raise CannotBuildError("it cannot be built on Windows yet")
    named = os.environ.get("CXX") or os.environ.get("CC")
    command = shlex.split(named) if named else [next(filter(shutil.which, ("c++", "g++", "clang++")), "")]
    if not shutil.which(command[0]):
        raise CannotBuildError(f"the compiler {named} was not found" if named else "no C++ compiler was found")
    return command


def run(command: list[str], **options) -> str:
    """Output of a command.

    Raises:
        CannotBuildError: It failed.
    """
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    except OSError as error:
        raise CannotBuildError(f"{command[0]} cannot be run: {error}") from error
    if result.returncode:
        print(result.stderr, file=sys.stderr)
        raise CannotBuildError(f"{shlex.join(command)} failed")
    return result.stdout


def compile_library(target: Path) -> None:
    """Compile the kernels once per instruction set and link all into one shared library.

    Raises:
        CannotBuildError: There is no compiler, or it failed.
    """
    command = [*compiler(), *FLAGS, *shlex.split(os.environ.get("CXXFLAGS", ""))]
    if sys.platform == "darwin":
        command += ["-arch", platform.machine()]
    macros = run([*command, "-dM", "-E", "-x", "c++", "-"], input="")
    variants = VARIANTS["x86_64" if "__x86_64__" in macros else "other"]
    with tempfile.TemporaryDirectory() as folder:
        objects = [os.path.join(folder, f"{name}.o") for name in (*variants, "library")]
        steps = [
            [*command, f"-DUMAMBA_KERNELS=umamba_{name}", *flags, "-c", str(SOURCES / "kernels.cpp")]
            for name, flags in variants.items()
        ]
        steps.append([*command, "-c", str(SOURCES / "library.cpp")])
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            list(pool.map(lambda step, to: run([*step, "-o", to]), steps, objects))
        lean = ["-Wl,--as-needed", "-static-libgcc"] if sys.platform == "linux" else []
        linked = os.path.join(folder, LIBRARY)
        libraries = ["-lm", "-pthread", *shlex.split(os.environ.get("LDFLAGS", ""))]
        run([*command, "-shared", *lean, *objects, *libraries, "-o", linked])
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(linked, target)


class BuildNative(Command):
    """``build_native``: a step of ``build``, which setuptools also runs for editable installations and sdists."""

    description = "build the shared library of umamba_kernels.native"
    user_options = []  # noqa: RUF012 (setuptools' own name)
    editable_mode = False
    build_lib: str | None

    def initialize_options(self) -> None:
        self.build_lib = None

    def finalize_options(self) -> None:
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    @property
    def target(self) -> Path:
        return PACKAGE / LIBRARY if self.editable_mode else Path(*self.get_outputs())

    def run(self) -> None:
        self.target.unlink(missing_ok=True)  # one of an earlier build would be taken for the new one
        try:
            compile_library(self.target)
        except CannotBuildError as error:
            print(f"umamba_kernels: no native CPU backend, {error}; 'chunked' is used instead", file=sys.stderr)

    def get_outputs(self) -> list[str]:
        return [os.path.join(self.build_lib or "", "umamba_kernels", "native", LIBRARY)]

    def get_output_mapping(self) -> dict[str, str]:
        return {}

    def get_source_files(self) -> list[str]:
        return sorted(path.as_posix() for path in SOURCES.iterdir())


class BuildPython(build_py):
    """Takes datasets.md along, which ``umamba-seg reproduce`` quotes; in a clone it is read where it stands."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            shutil.copy("datasets.md", self.packaged)

    @property
    def packaged(self) -> str:
        return os.path.join(self.build_lib, "umamba_seg", "configs", "datasets.md")

    def get_outputs(self, include_bytecode: bool = True) -> list[str]:
        return [*super().get_outputs(include_bytecode), self.packaged]

    def get_source_files(self) -> list[str]:
        return [*super().get_source_files(), "datasets.md"]


class PlatformWheel(bdist_wheel):
    """Tagged py3-none-<platform> if the library is in it, py3-none-any if not."""

    def run(self) -> None:
        self.run_command("build_native")
        native = cast(BuildNative, self.get_finalized_command("build_native"))
        self.root_is_pure = not native.target.exists()
        self.distribution.has_ext_modules = lambda: not self.root_is_pure  # decides between purelib and platlib
        super().run()

    def get_tag(self) -> tuple[str, str, str]:
        if self.root_is_pure:
            return super().get_tag()
        machine_only = super().get_tag()[2].replace("universal2", platform.machine())
        return "py3", "none", machine_only


build.sub_commands.append(("build_native", None))
setup(cmdclass={"build_native": BuildNative, "build_py": BuildPython, "bdist_wheel": PlatformWheel})
