"""The house tests itself: which room may import what, and what loads nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "nnunetv2", "SimpleITK", "skimage", "matplotlib", "pydicom", "highdicom", "scipy", "pandas", "dask"}
GROUND = tuple(
    f"umamba_seg.{room}" for room in ("errors", "config", "files", "locks", "log", "paths", "settings", "text")
)
NNUNET_ROOMS = {
    "fingerprint",
    "plan.planner",
    "plan.losses",
    "plan.topology",
    "preprocess",
    "train.base",
    "train.data",
    "train.validation",
    "predict.label_files",
    "predict.predictor",
    "predict.preprocessing",
    "predict.resampling",
    "predict.window",
    "predict.writing",
    "select.postprocessing",
}


def modules() -> dict[str, Path]:
    files = [*ROOT.glob("umamba_seg/**/*.py"), *ROOT.glob("kernels/umamba_kernels/**/*.py")]
    names = {path: path.relative_to(ROOT).with_suffix("").as_posix().removeprefix("kernels/") for path in files}
    return {name.replace("/", ".").removesuffix(".__init__"): path for path, name in names.items()}


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def ours(names: set[str]) -> set[str]:
    return {name for name in names if name.split(".")[0] in ("umamba_seg", "umamba_kernels") and name in modules()}


def tops(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def rooms(prefix: str) -> list[str]:
    return [name for name in modules() if name == prefix or name.startswith(f"{prefix}.")]


def test_kernels_know_torch_and_nothing_of_the_house():
    for name in rooms("umamba_kernels"):
        outside = tops(imports(modules()[name])) - set(sys.stdlib_module_names)
        assert outside <= {"torch", "triton", "umamba_kernels"}, name


@pytest.mark.parametrize("name", GROUND)
def test_ground_floor_imports_only_itself(name):
    assert ours(imports(modules()[name])) <= {"umamba_seg", *GROUND}


def test_networks_know_kernels_and_torch_but_not_nnunet():
    for name in rooms("umamba_seg.networks"):
        found = imports(modules()[name])
        assert "nnunetv2" not in tops(found), name
        assert all(
            item in GROUND or item.startswith(("umamba_seg.networks", "umamba_kernels")) for item in ours(found)
        ), name


def test_datasets_know_neither_torch_nor_nnunet():
    for name in rooms("umamba_seg.datasets"):
        assert not tops(imports(modules()[name])) & {"torch", "nnunetv2", "umamba_kernels"}, name


def test_nnunet_is_leaned_on_in_the_steps_only():
    leaning = {name for name in rooms("umamba_seg") if "nnunetv2" in tops(imports(modules()[name]))}
    assert leaning == {f"umamba_seg.{room}" for room in NNUNET_ROOMS}


def test_only_the_quickstart_and_the_door_know_the_command_line():
    for name in rooms("umamba_seg"):
        if not name.startswith(("umamba_seg.quickstart", "umamba_seg.__main__", "umamba_seg.cli", "umamba_seg.verbs")):
            found = ours(imports(modules()[name]))
            assert not {item for item in found if item.startswith(("umamba_seg.cli", "umamba_seg.verbs"))}, name


@pytest.mark.parametrize(
    "code",
    [
        "import umamba_seg",
        "import umamba_seg.networks; umamba_seg.networks.find('umamba_bot')",
        "import umamba_seg.cli; umamba_seg.cli.build_parser().format_help()",
        "import umamba_seg.quickstart, umamba_seg.__main__",
    ],
)
def test_light_doors_load_nothing_heavy(code):
    check = f"{code}\nimport sys; print(*({HEAVY} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_no_net_that_catches_everything():
    for name, path in modules().items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ExceptHandler):
                assert node.type is not None, name
                caught = {item.id for item in ast.walk(node.type) if isinstance(item, ast.Name)}
                assert not caught & {"Exception", "BaseException", "ImportError"}, name
