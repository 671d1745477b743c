"""The cost card: counts of the official networks and of one's own, and the two verbs."""

import json
import sys
from types import SimpleNamespace

import psutil
import pytest
import torch

from umamba_seg.cost import Counts, card, count
from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, find
from umamba_seg.plan.memory import training_memory
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.step import Setting
from umamba_seg.plan.topology import topology_for

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
CT = topology_for((40, 224, 192), spacing=(2.5, 0.8, 0.8))
ISOTROPIC = topology_for((128, 128, 128))


def levels(name: str, *patch: int) -> Topology:
    fixed = find(name).levels
    assert fixed is not None
    return fixed.topology(patch)


def counts_of(name: str, topology: Topology, input_channels: int, num_classes: int) -> Counts:
    return count(find(name), Setting(topology, input_channels, num_classes, batch_size=2), CPU)


# Parameters, multiply-adds in G, FLOPs of the scan in G and number of scans, as counted in the official code.
OFFICIAL = [
    ("umamba_bot", CT, (1, 14), (41_945_158, 788.8, 0.02, 1)),
    ("umamba_enc", CT, (1, 14), (42_842_798, 826.1, 26.7, 6)),
    ("plain_conv_unet", CT, (1, 14), (30_713_158, 461.5, 0, 0)),
    ("umamba_enc", ISOTROPIC, (1, 16), (42_762_192, 1003.0, 26.1, 6)),
    ("umamba_bot", topology_for((320, 320)), (1, 14), (47_533_012, 41.1, 0.0037, 1)),
    ("umamba_enc", topology_for((320, 320)), (1, 14), (47_015_538, 43.1, 1.26, 4)),
    ("segmamba", levels("segmamba", 128, 128, 128), (4, 4), (67_416_196, 1468.7, 29.3, 24)),
    ("nnmamba_ds", levels("nnmamba_ds", 128, 128, 128), (4, 4), (15_859_266, 105.9, 1.6, 6)),
    ("nnmamba_cls", levels("nnmamba_cls", 128, 128, 128), (1, 1), (12_876_321, 45.0, 1.24, 1)),
    ("nnmamba_land", levels("nnmamba_land", 128, 128, 128), (1, 6), (15_191_312, 108.4, 2.45, 1)),
    ("lightmunet", levels("lightmunet", 128, 128, 128), (1, 3), (5_015_766, 154.5, 91.9, 21)),
    ("lightmunet", levels("lightmunet", 512, 512), (1, 2), (5_011_683, 47.7, 19.0, 21)),
]


@pytest.mark.parametrize(
    ("name", "topology", "channels", "official"),
    OFFICIAL,
    ids=[f"{case[0]} {'x'.join(map(str, case[1].patch_size))}" for case in OFFICIAL],
)
def test_counts_are_those_of_the_official_code(name, topology, channels, official):
    counts = counts_of(name, topology, *channels)
    parameters, multiply_adds, scan, scans = official
    assert counts.parameters == parameters
    assert counts.multiply_adds / 1e9 == pytest.approx(multiply_adds, abs=0.05)
    assert counts.scan_flops / 1e9 == pytest.approx(scan, rel=0.02)
    assert counts.scans == scans


def test_scans_that_share_their_projections_save_products():
    """nnMamba's four scans of an image are two pairs here. The official code projects for each of them: 151.0 G."""
    counts = counts_of("nnmamba", levels("nnmamba", 128, 128, 128), 1, 16)
    saved = sum(4 * 6 * width**2 * extent**3 for width, extent in ((64, 32), (128, 16), (256, 8)))
    assert counts.parameters == 15_959_598
    assert (counts.multiply_adds + saved) / 1e9 == pytest.approx(151.0, abs=0.05)
    assert counts.scan_flops / 1e9 == pytest.approx(6.4, abs=0.05)
    assert counts.scans == 24


OWN = """
import torch
from torch import nn

from umamba_kernels import causal_conv1d, selective_scan


class Net(nn.Module):
    def __init__(self, input_channels, num_classes, *, deep_supervision):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(num_classes, 3))
        self.A = nn.Parameter(-torch.rand(num_classes, 5))
        self.head = nn.Conv2d(input_channels, num_classes, 1)

    def forward(self, x):
        u = causal_conv1d(self.head(x).flatten(2), self.weight)
        states = u.new_ones(u.shape[0], 5, u.shape[2])
        return selective_scan(u, u, self.A, states, states).view(*u.shape[:2], *x.shape[2:])
"""


def test_own_networks_with_our_ops_are_counted(tmp_path, monkeypatch):
    (tmp_path / "own_to_count.py").write_text(OWN)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    counts = counts_of("own_to_count:Net", topology_for((16, 16)), 2, 4)
    assert counts.parameters == 4 * 3 + 4 * 5 + 4 * 2 + 4
    assert counts.multiply_adds == 16 * 16 * (4 * 3 + 4 * 2)
    assert counts.scan_flops == 16 * 16 * 4 * (9 * 5 + 2)
    assert counts.scans == 1


def test_memory_is_what_plans_reckon_with():
    spec, setting = find("umamba_bot"), Setting(topology_for((32, 32), base_features=4), 2, 3, batch_size=2)
    architecture = spec.architecture(spec.planned(setting.topology))
    for device in ("cpu", "cuda"):
        counted = count(spec, setting, torch.device(device)).training_bytes
        assert counted == training_memory(architecture, setting, device, TrainingOptions()).peak


def test_network_that_does_not_run_on_its_patch_is_named():
    topology = Topology((2, 2), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (4, 8))
    with pytest.raises(UserError, match=r"PlainConvUNet: does not run on a patch of 2×2: Expected more than 1"):
        counts_of("plain_conv_unet", topology, 1, 2)


def test_a_step_that_memory_does_not_hold_is_counted_but_not_timed(monkeypatch):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=10**6))
    found = card(find("umamba_bot"), Setting(topology_for((64, 64)), 1, 2, batch_size=2), CPU)["networks"]
    assert all(costs["seconds"] is None and costs["training_bytes"] > 10**6 for costs in found.values())


def test_card_of_a_patch(umamba_seg):
    words = ("umamba_bot", "--patch", 16, 18, "--features", 4, "--channels", 3, "-device", "cpu")
    done = umamba_seg("cost", *words, "--json").succeeded()
    assert "rounded up to 16×20" in done.err
    facts = done.result
    assert facts["setting"] == {"patch_size": [16, 20], "batch_size": 2, "input_channels": 3, "num_classes": 2}
    assert list(facts["networks"]) == ["umamba_bot", "umamba_bot_noscan", "residual_encoder_unet"]
    assert [costs["scans"] for costs in facts["networks"].values()] == [1, 0, 0]
    for costs in facts["networks"].values():
        assert costs["features"] == [4, 8, 16]
        assert costs["seconds"] > 0
    shown = umamba_seg("cost", *words).succeeded().out
    for part in ("umamba_bot_noscan", "multiply-adds", "GiB", "×)", "published: nnMamba's README", torch.__version__):
        assert part in shown


@pytest.fixture
def planned(tmp_path, monkeypatch):
    """As if data set 7, with regions and two channels, had been planned in 2-D for U-Mamba; returns its root."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "nnUNet_preprocessed" / "Dataset007_Small"
    folder.mkdir(parents=True)
    topology = {"strides": [[1, 1], [2, 2]], "kernel_sizes": [[3, 3], [3, 3]], "features": [8, 16]}
    configuration = {
        "patch_size": [20, 16],
        "batch_size": 3,
        "topology": topology,
        "architecture": find("umamba_bot").architecture({}),
        "output_strides": [[1, 1]],
    }
    plans = {"dataset_name": folder.name, "plans_name": "p", "configurations": {"2d": configuration}, "umamba_seg": {}}
    (folder / "p.json").write_text(json.dumps(plans))
    description = {
        "channel_names": {"0": "T1", "1": "T2"},
        "labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "rim": 3},
        "regions_class_order": [1, 2, 3],
    }
    (folder / "dataset.json").write_text(json.dumps(description))
    return tmp_path


def test_card_of_a_planned_data_set_in_the_levels_of_the_network(umamba_seg, planned):
    words = ("-d", 7, "--root", planned, "-c", "2d", "-device", "cpu", "--json")
    done = umamba_seg("cost", "lightmunet", *words).succeeded()
    assert "patch: 16×16, as the levels of lightmunet divide it" in done.err
    facts = done.result
    assert facts["setting"] == {"patch_size": [16, 16], "batch_size": 3, "input_channels": 2, "num_classes": 3}
    features = {name: costs["features"] for name, costs in facts["networks"].items()}
    assert features == {
        "lightmunet": [8, 16, 32, 64],
        "lightmunet_noscan": [8, 16, 32, 64],
        "residual_encoder_unet": [8, 16],
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("unet", "--patch", 32, 32), "network 'unet': unknown"),
        (("segmamba", "--patch", 32, 32), "network segmamba: 2-D was asked for; this network is 3-D only"),
        (("umamba_bot", "--patch", 32), "1-D was asked for"),
        (("umamba_bot", "--patch", 6, 6), "patch 6×6"),
        (("umamba_bot", "--patch", 32, 0), "'0' is not a positive whole number"),
        (("umamba_bot",), "give -d DATASET and -c CONFIGURATION, or --patch"),
        (("umamba_bot", "-d", 7), "give -d DATASET and -c CONFIGURATION, or --patch"),
        (("umamba_bot", "--classes", 3), "give -d DATASET and -c CONFIGURATION, or --patch"),
        (("umamba_bot", "--patch", 32, 32, "-d", 7), "-d and --patch exclude each other"),
        (("umamba_bot", "-d", 7, "-c", "2d", "--batch", 4), "-d and --batch exclude each other"),
        (("umamba_bot", "-d", 7, "-c", "3d_fullres"), "choose one of 2d"),
        (("segmamba", "-d", 7, "-c", "2d"), "network segmamba: 2-D was asked for"),
        (("umamba_bot", "-d", 8, "-c", "2d"), "no such data set"),
    ],
)
def test_impossible_requests_are_refused_in_one_sentence(umamba_seg, planned, monkeypatch, words, message):
    monkeypatch.setenv("nnUNet_preprocessed", str(planned / "nnUNet_preprocessed"))
    monkeypatch.setenv("nnUNet_raw", str(planned / "nnUNet_raw"))
    monkeypatch.setenv("nnUNet_results", str(planned / "nnUNet_results"))
    done = umamba_seg("cost", *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err


def test_networks_are_listed_with_their_parameters(umamba_seg):
    found = {entry["name"]: entry for entry in umamba_seg("networks", "--json").succeeded().result}
    assert found["lightmunet"] == {
        "name": "lightmunet",
        "task": "segmentation",
        "dims": [2, 3],
        "parameters": 5_015_766 - 33,  # official with three classes; a class is 32 weights and a bias
        "paper": "Liao et al.: LightM-UNet, arXiv:2403.05246",
    }
    assert all(found[name]["parameters"] > found[f"{name}_noscan"]["parameters"] for name in ("segmamba", "nnmamba"))
    shown = umamba_seg("networks").succeeded().out
    assert all(name in shown for name in found)
    assert "3-D patch of 128×128×128" in shown
