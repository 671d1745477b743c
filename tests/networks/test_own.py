"""Networks of the user's own."""

import sys

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, build, find
from umamba_seg.networks.own import require_class
from umamba_seg.plan.architecture import describe

TOPOLOGY = Topology((8, 16), ((1, 1), (2, 2), (1, 2)), ((3, 3),) * 3, (4, 8, 8))
MODULE = """
from torch import nn

from umamba_seg.networks import NetworkSpec


class Plain(nn.Module):
    def __init__(self, input_channels, num_classes, *, strides, features, deep_supervision=False):
        super().__init__()
        self.strides, self.head = strides, nn.Conv2d(input_channels, num_classes, 1)

    def forward(self, x):
        return self.head(x)


class Halved(Plain):
    def forward(self, x):
        return self.head(x)[..., ::2]


class Flat(Plain):
    dims = (2,)


class Unfit(nn.Module):
    def __init__(self, channels):
        super().__init__()


SPEC = NetworkSpec(
    name="mine", network=f"{__name__}.Plain", arguments=lambda topology: {"strides": [], "features": []}, dims=(2,),
    paper="none",
)
NUMBER = 3
Made = type("Made", (Plain,), {})
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's, in the current folder; returns its name."""
    name = f"mine_{tmp_path.name}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name


def test_a_class_is_built_with_what_its_signature_names(mine):
    network = build(f"{mine}:Plain", input_channels=3, num_classes=2, topology=TOPOLOGY)
    assert network.strides == [[1, 1], [2, 2], [1, 2]]
    assert network(torch.zeros(1, 3, 8, 16)).shape == (1, 2, 8, 16)


def test_the_plan_names_it_by_its_dotted_path_and_knows_its_outputs(mine):
    planned = describe(find(f"{mine}:Plain"), TOPOLOGY)
    assert planned == {
        "architecture": {
            "network_class_name": f"{mine}.Plain",
            "arch_kwargs": {"strides": [[1, 1], [2, 2], [1, 2]], "features": [4, 8, 8]},
            "_kw_requires_import": [],
        },
        "output_strides": [[1, 1]],
    }
    require_class(f"{mine}.Plain")


def test_an_entry_of_its_own_is_taken_as_it_is(mine):
    spec = find(f"{mine}:SPEC")
    assert (spec.name, spec.dims) == ("mine", (2,))


def test_a_class_may_say_which_dimensions_it_has(mine):
    assert find(f"{mine}:Plain").dims == (2, 3)
    assert find(f"{mine}:Flat").dims == (2,)


def test_a_network_that_does_not_run_on_its_patch_is_found_while_planning(mine):
    volume = Topology((8, 8, 16), ((1, 1, 1), (2, 2, 2)), ((3, 3, 3),) * 2, (4, 8))
    with pytest.raises(UserError, match=r"does not run on a patch of 8×8×16 voxels: .* which dimensions"):
        describe(find(f"{mine}:Plain"), volume)


@pytest.mark.parametrize(
    ("attribute", "message"),
    [
        ("Missing", "has no Missing"),
        ("NUMBER", "is of type int"),
        ("Unfit", "lacks input_channels, num_classes, deep_supervision"),
        ("Made", "defines no class 'Made'"),
    ],
)
def test_what_is_no_network_is_refused(mine, attribute, message):
    with pytest.raises(UserError, match=message):
        find(f"{mine}:{attribute}")


def test_an_output_that_is_not_as_large_as_the_patch_is_found_while_planning(mine):
    with pytest.raises(UserError, match=r"8×16 voxels and 2 classes with \[\(2, 2, 8, 8\)\]"):
        describe(find(f"{mine}:Halved"), TOPOLOGY)


def test_a_module_that_is_not_there_is_refused():
    with pytest.raises(UserError, match=r"network ':Net': is not of the form package\.module:NAME"):
        find(":Net")
    with pytest.raises(UserError, match="no module no_such_package"):
        find("no_such_package.module:Net")
    with pytest.raises(UserError, match=r"network no_such_package\.Net: no source file of a module 'no_such_package'"):
        require_class("no_such_package.Net")


# ------------------------------------------------------------------------------------------- classes that plans name


@pytest.fixture
def hostile(tmp_path, monkeypatch):
    """A module in the current folder that leaves a mark when it is imported; returns its name and the mark."""
    name, mark = f"hostile_{tmp_path.name}", tmp_path / "imported"
    (tmp_path / name).mkdir()
    code = f"from pathlib import Path\nPath({str(mark)!r}).touch()\n"
    (tmp_path / name / "__init__.py").write_text(code)
    body = "import os\nclass Bare: pass\nclass Other(dict): pass\ndef Function(**_): os.abort()\n"
    (tmp_path / name / "inner.py").write_text(code + body)
    (tmp_path / name / "broken.py").write_text("class Net(dict:")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return name, mark


@pytest.mark.parametrize(
    ("inside", "message"),
    [
        ("Net", "defines no class 'Net' that has a base class"),
        ("inner.Net", "defines no class 'Net'"),
        ("inner.Bare", "defines no class 'Bare'"),
        ("inner.Function", "defines no class 'Function'"),
        ("inner.os.system", "no source file of a module"),
        ("inner.Other.fromkeys", "no source file of a module"),
        ("missing.Net", "no source file of a module"),
        ("broken.Net", "is no Python"),
    ],
)
def test_a_module_without_such_a_class_is_not_imported(hostile, inside, message):
    name, mark = hostile
    before = set(sys.modules)
    with pytest.raises(UserError, match=message):
        require_class(f"{name}.{inside}")
    assert set(sys.modules) == before
    assert not mark.exists()


@pytest.mark.parametrize(
    "path",
    [
        "os.system",
        "subprocess.Popen",
        "builtins.eval",
        "antigravity.x",
        "idlelib.run.Executive",
        "__main__.Net",
        "umamba_seg.__main__.main",
        "umamba_seg.networks.own.importlib",
        "torch.nn.Linear",
        "Net",
        "",
        ".",
        "../x.Net",
        "a b.Net",
    ],
)
def test_paths_of_other_things_are_refused_and_nothing_is_imported(path):
    before = set(sys.modules)
    with pytest.raises(UserError, match=r"no source file of a module|defines no class"):
        require_class(path)
    assert set(sys.modules) == before


def test_a_class_that_is_no_module_of_torch_is_refused(hostile):
    with pytest.raises(UserError, match=r"inner\.Other: is no torch\.nn\.Module"):
        require_class(f"{hostile[0]}.inner.Other")


def test_a_class_is_refused_that_is_not_built_as_networks_are(mine):
    with pytest.raises(UserError, match=r"is not built as networks are: .*'input_channels'"):
        require_class("torch.nn.modules.linear.Linear")
    require_class(f"{mine}.Plain", {"strides": [], "features": []})
    with pytest.raises(UserError, match=r"is not built as networks are: .*'depths'"):
        require_class(f"{mine}.Plain", {"depths": 3})


def test_a_class_that_a_package_hands_on_is_named_where_it_is_defined(mine, tmp_path):
    (tmp_path / f"front_{mine}.py").write_text(f"from {mine} import Plain")
    assert find(f"front_{mine}:Plain").network == f"{mine}.Plain"
