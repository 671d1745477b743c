"""Weights of one network as the beginning of another: what fits is checked by what the networks compute."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import nn

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import write_json
from umamba_seg.networks import Topology, build_from, find
from umamba_seg.plan.architecture import describe
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import PLANS_TABLE
from umamba_seg.train.checkpoints import save_pth
from umamba_seg.train.pretrained import Report, Source, class_names, load_pretrained

PATCH = (16, 16, 32)
OPEN_DEPTH = Topology(PATCH, ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 8, 8))
NETWORKS = ("umamba_bot", "segmamba", "nnmamba_ds", "lightmunet", "plain_conv_unet")
ORGANS = {"background": 0, "liver": 1, "tumour": 2}


pytestmark = pytest.mark.usefixtures("one_thread")


@cache
def planned(name: str, topology: Topology | None = None) -> dict:
    """What a plan holds of a small network."""
    spec = find(name)
    default = spec.levels.topology(PATCH, width=0.25) if spec.levels else OPEN_DEPTH
    topology = topology or default
    return describe(spec, topology) | {"patch_size": list(topology.patch_size)}


def network_of(configuration: dict, channels: int, classes: int, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    network = build_from(
        configuration["architecture"],
        input_channels=channels,
        num_classes=classes,
        deep_supervision=len(configuration["output_strides"]) > 1,
    )
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # as trained ones, whose statistics differ by channel
            module.running_mean.normal_()
    return network.double().eval()


def description(channels: list[str], labels: dict, **more) -> dict:
    return {"channel_names": {str(i): name for i, name in enumerate(channels)}, "labels": labels, **more}


class Pair:
    """A trained network and a new one of the same plan, with the report on what the new one was given."""

    def __init__(self, name: str, old: dict, new: dict):
        self.configuration = planned(name)
        labels = Labels.from_json(new, Path("dataset.json"))
        counts = [
            (len(item["channel_names"]), Labels.from_json(item, Path("dataset.json")).num_classes)
            for item in (old, new)
        ]
        self.old, self.new = (network_of(self.configuration, *count, seed) for seed, count in enumerate(counts))
        self.before = {key: tensor.clone() for key, tensor in self.new.state_dict().items()}
        self.source = Source(
            Path("model"),
            Path("model/fold_0/checkpoint_final.pth"),
            {"dataset_name": "Dataset001_Old", "configurations": {"3d_fullres": self.configuration}},
            old,
            "3d_fullres",
            self.old.state_dict(),
        )
        names = list(new["channel_names"].values())
        self.report: Report = load_pretrained(self.new, self.source, labels=labels, channel_names=names)

    def outputs(self, network: nn.Module, *channels: torch.Tensor) -> list[torch.Tensor]:
        with torch.inference_mode():
            result = network(torch.stack(channels, dim=1))
        return result if isinstance(result, list) else [result]


def own_tensors(network: nn.Module) -> list[torch.Tensor]:
    """Each once, although nnU-Net's networks list some of them several times."""
    return [*network.parameters(), *network.buffers()]


def image(seed: int) -> torch.Tensor:
    return torch.randn(1, *PATCH, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def assert_close(found: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


# -------------------------------------------------------------------------------------------------------------- agrees


@pytest.mark.parametrize("name", NETWORKS)
def test_the_same_data_gives_the_same_network(name):
    pair = Pair(name, description(["CT"], ORGANS), description(["ct"], ORGANS))
    assert all(torch.equal(tensor, pair.source.weights[key]) for key, tensor in pair.new.state_dict().items())
    assert pair.report.values == pair.report.of == sum(weight.numel() for weight in own_tensors(pair.new))
    assert pair.report.first == pair.report.heads == pair.report.not_loaded == pair.report.left_over == []


@pytest.mark.parametrize("name", NETWORKS)
def test_channels_and_labels_in_another_order_are_found_by_name(name):
    swapped = {"background": 0, "Tumour": 1, "Liver": 2}
    pair = Pair(name, description(["T1", "T2"], ORGANS), description(["t2", "t1"], swapped))
    one, two = image(0), image(1)
    wanted = [out[:, [0, 2, 1]] for out in pair.outputs(pair.old, one, two)]
    assert_close(pair.outputs(pair.new, two, one), wanted)
    assert pair.report.channels == [("t2", "T2"), ("t1", "T1")]
    assert pair.report.values == pair.report.of


def test_as_many_channels_of_other_names_keep_their_order():
    pair = Pair("plain_conv_unet", description(["T1", "T2"], ORGANS), description(["T2", "FLAIR"], ORGANS))
    one, two = image(0), image(1)
    assert_close(pair.outputs(pair.new, two, one), pair.outputs(pair.old, one, two))
    assert pair.report.channels == [("T2", "T2"), ("FLAIR", "T1")]


# ------------------------------------------------------------------------------------------------------------ channels


@pytest.mark.parametrize("name", NETWORKS)
def test_a_channel_more_that_shows_the_same_changes_nothing(name):
    pair = Pair(name, description(["T1"], ORGANS), description(["T2", "T1"], ORGANS))
    assert_close(pair.outputs(pair.new, image(0), image(0)), pair.outputs(pair.old, image(0)))
    assert pair.report.channels == [("T2", None), ("T1", "T1")]
    assert pair.report.scale == 0.5


@pytest.mark.parametrize("name", ["segmamba", "plain_conv_unet"])
def test_one_channel_in_the_place_of_two_is_taken_for_both(name):
    pair = Pair(name, description(["T1", "T2"], ORGANS), description(["CT"], ORGANS))
    assert_close(pair.outputs(pair.new, image(0)), pair.outputs(pair.old, image(0), image(0)))
    assert pair.report.left_over == ["T1", "T2"]


@pytest.mark.parametrize("name", ["plain_conv_unet", "lightmunet"])
def test_a_channel_less_leaves_the_others_their_weights(name):
    """LightM-UNet filters each channel by itself, then sums: only the sum is scaled."""
    pair = Pair(name, description(["T1", "T2"], ORGANS), description(["T2"], ORGANS))
    first = {key: (pair.new.state_dict()[key], pair.source.weights[key]) for key in pair.report.first}
    summed = [(new, old[:, 1:]) for new, old in first.values() if new.shape[0] == old.shape[0]]
    single = [(new, old[1:]) for new, old in first.values() if new.shape[0] != old.shape[0]]
    assert (len(summed), len(single)) == {"plain_conv_unet": (1, 0), "lightmunet": (1, 1)}[name]
    assert all(torch.equal(new, 2 * old) for new, old in summed)
    assert all(torch.equal(new, old) for new, old in single)


def test_every_convolution_that_reads_the_input_is_found():
    def first(name):
        return set(Pair(name, description(["T1"], ORGANS), description(["T1", "T2"], ORGANS)).report.first)

    assert first("segmamba") == {
        "encoder.stages.0.downsample.0.weight",
        "skip_blocks.0.conv1.weight",
        "skip_blocks.0.conv3.weight",
    }
    assert first("umamba_bot") == {"encoder.stem.0.conv1.weight", "encoder.stem.0.conv3.weight"}
    assert len(first("plain_conv_unet")) == 1  # although nnU-Net's network lists it four times


def test_a_tensor_that_depends_on_the_number_of_channels_keeps_its_initialisation():
    """With as many channels in as out, SegMamba's first residual block has no convolution on its skip."""
    width = planned("segmamba")["architecture"]["arch_kwargs"]["features_per_stage"][0]
    many = [f"b{i}" for i in range(width)]
    pair = Pair("segmamba", description(many, ORGANS), description(["b0"], ORGANS))
    assert pair.report.not_loaded == ["skip_blocks.0.conv3.weight"]
    assert torch.equal(pair.new.state_dict()["skip_blocks.0.conv3.weight"], pair.before["skip_blocks.0.conv3.weight"])
    assert "skip_blocks.0.conv3.weight" in pair.report.as_text()


# ------------------------------------------------------------------------------------------------------------- classes


@pytest.mark.parametrize("name", ["umamba_bot", "lightmunet", "plain_conv_unet"])
def test_known_classes_are_told_apart_as_before_and_new_ones_start_afresh(name):
    labels = {"background": 0, "spleen": 1, "TUMOUR": 2, "kidney": 3}
    pair = Pair(name, description(["CT"], ORGANS), description(["CT"], labels))
    found, wanted = pair.outputs(pair.new, image(0)), pair.outputs(pair.old, image(0))
    assert_close([out[:, [0, 2]] for out in found], [out[:, [0, 2]] for out in wanted])
    assert pair.report.classes == [
        ("background", "background"),
        ("spleen", None),
        ("TUMOUR", "tumour"),
        ("kidney", None),
    ]
    assert pair.report.left_over == ["liver"]
    after = pair.new.state_dict()
    assert all(torch.equal(after[key][[1, 3]], pair.before[key][[1, 3]]) for key in pair.report.heads)


def test_weights_between_two_classes_need_both():
    """nnMamba's last convolution maps features of classes to logits, behind a norm with statistics for each."""
    labels = {"background": 0, "spleen": 1, "tumour": 2}
    pair = Pair("nnmamba_ds", description(["CT"], ORGANS), description(["CT"], labels))
    assert (
        len(pair.report.heads) == 2 * 6 + 2 * 3
    )  # two convolutions, each with a norm, and three heads under deep supervision
    after, before, old = pair.new.state_dict(), pair.before, pair.source.weights
    key, known = "decoder.head.3.weight", torch.tensor([0, 2])
    assert torch.equal(after[key][known][:, known], old[key][known][:, known])
    assert torch.equal(after[key][1], before[key][1])
    assert torch.equal(after[key][:, 1], before[key][:, 1])
    assert torch.equal(after["decoder.head.1.running_mean"][known], old["decoder.head.1.running_mean"][known])


def test_regions_are_classes_without_a_background():
    regions = {"background": 0, "tumour": [1, 2], "core": 2}
    new = description(["CT"], regions, regions_class_order=[1, 2])
    assert class_names(Labels.from_json(new, Path("dataset.json"))) == ["tumour", "core"]
    pair = Pair("umamba_bot", description(["CT"], ORGANS), new)
    found, wanted = pair.outputs(pair.new, image(0)), pair.outputs(pair.old, image(0))
    assert_close([out[:, 0] for out in found], [out[:, 2] for out in wanted])
    assert pair.report.classes == [("tumour", "tumour"), ("core", None)]
    assert pair.report.left_over == ["background", "liver"]


def test_labels_are_in_the_order_of_their_values():
    labels = Labels.from_json(description(["CT"], {"b": 2, "background": 0, "a": 1}), Path("dataset.json"))
    assert class_names(labels) == ["background", "a", "b"]


# -------------------------------------------------------------------------------------------------------------- report


def test_the_report_tells_what_came_from_where():
    pair = Pair(
        "umamba_bot", description(["T1"], ORGANS), description(["T1", "T2"], {"background": 0, "liver": 1, "x": 2})
    )
    text = pair.report.as_text()
    assert "T1 from T1, T2 from the mean of all; times 0.5 (in encoder.stem.0.conv1.weight" in text
    assert "background from background, liver from liver, x new (in decoder.seg_layers.0.weight" in text
    assert "not needed: tumour" in text
    assert json.loads(json.dumps(pair.report.as_json()))["classes"][2] == ["x", None]
    assert 0 < pair.report.of - pair.report.values < 100


def test_layout_and_random_numbers_stay_as_they_were():
    pair = Pair("umamba_bot", description(["T1"], ORGANS), description(["T1", "T2"], ORGANS))
    pair.new.to(memory_format=torch.channels_last_3d)
    state = torch.get_rng_state()
    load_pretrained(
        pair.new, pair.source, labels=Labels({"liver": 1, "tumour": 2}, None, None), channel_names=["a", "b"]
    )
    assert torch.equal(torch.get_rng_state(), state)
    weight = pair.new.encoder.stages[1][0].conv1.weight
    assert weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert not weight.is_contiguous()


# ------------------------------------------------------------------------------------------------------------ refusals


def refusal(network: nn.Module, source: Source) -> str:
    labels = Labels({"liver": 1, "tumour": 2}, None, None)
    before = [tensor.clone() for tensor in network.state_dict().values()]
    with pytest.raises(UserError) as error:
        load_pretrained(network, source, labels=labels, channel_names=["CT"])
    assert all(torch.equal(*pair) for pair in zip(before, network.state_dict().values(), strict=True))
    return str(error.value)


def test_another_network_is_refused():
    source = Pair("umamba_bot", description(["CT"], ORGANS), description(["CT"], ORGANS)).source
    other = network_of(planned("plain_conv_unet"), 1, 3, seed=0)
    assert "holds a UMamba, and the network is a PlainConvUNet; plan the data set with" in refusal(other, source)

    wider = replace(OPEN_DEPTH, features=(4, 8, 16))
    message = refusal(network_of(planned("umamba_bot", wider), 1, 3, seed=0), source)
    assert "encoder.stages.2.0.conv1.weight (16, 8, 3, 3, 3) for (8, 8, 3, 3, 3)" in message

    scanless = network_of(planned("umamba_bot_noscan"), 1, 3, seed=0)
    assert "encoder.mamba_layers.2.norm.weight missing for (8,)" in refusal(scanless, source)


def test_weights_that_do_not_belong_to_the_plans_are_refused():
    pair = Pair("umamba_bot", description(["CT"], ORGANS), description(["CT"], ORGANS))
    cut = replace(pair.source, weights=dict(list(pair.source.weights.items())[1:]))
    assert "use the plans.json and dataset.json that it came with" in refusal(pair.new, cut)


def test_other_strides_of_the_same_weights_are_another_network():
    source = Pair("umamba_bot", description(["CT"], ORGANS), description(["CT"], ORGANS)).source
    source.require_same_network(planned("umamba_bot"), "the plans")
    other = planned("umamba_bot", replace(OPEN_DEPTH, strides=((1, 1, 1), (2, 2, 2), (2, 2, 2))))
    with pytest.raises(UserError, match="the plans: its network is not that of model: strides differ; plan the data"):
        source.require_same_network(other, "the plans")
    with pytest.raises(UserError, match="network_class_name differ"):
        source.require_same_network(planned("plain_conv_unet"), "the plans")


class Doubled(nn.Module):
    """Reads its input twice: twice as many weights as channels."""

    def __init__(self, input_channels, num_classes, *, deep_supervision=False):
        super().__init__()
        self.conv = nn.Conv3d(2 * input_channels, num_classes, 1)

    def forward(self, x):
        return self.conv(torch.cat((x, x), dim=1))


def test_a_dependence_that_is_not_understood_is_refused(monkeypatch):
    monkeypatch.setattr("pydoc.locate", lambda _path: Doubled)
    configuration = {
        "architecture": {"network_class_name": "mine.Doubled", "arch_kwargs": {}, "_kw_requires_import": []},
        "output_strides": [[1, 1, 1]],
    }
    plans = {"dataset_name": "Dataset001_Old", "configurations": {"3d_fullres": configuration}}
    data = description(["T1", "T2"], ORGANS)
    source = Source(Path("m"), Path("m/c.pth"), plans, data, "3d_fullres", Doubled(2, 3).state_dict())
    assert "conv.weight (3, 4, 1, 1, 1) for (3, 2, 1, 1, 1); give the data set as many channels" in refusal(
        Doubled(1, 3), source
    )


# -------------------------------------------------------------------------------------------------------- model folders


@pytest.fixture
def model(tmp_path) -> Path:
    """``model(folds)``: a folder as training and conversion write it."""
    configuration = planned("umamba_bot")
    table = {"network": "umamba_bot", "budget": "cpu", "training": TrainingOptions().model_dump()}
    plans = {
        "dataset_name": "Dataset001_Old",
        "plans_name": "p",
        "configurations": {"3d_fullres": configuration},
        PLANS_TABLE: table,
    }
    write_json(tmp_path / "plans.json", plans)
    write_json(tmp_path / "dataset.json", description(["CT"], ORGANS) | {"file_ending": ".nii.gz"})
    return tmp_path


def save(path: Path, seed: int) -> None:
    path.parent.mkdir(exist_ok=True)
    weights = network_of(planned("umamba_bot"), 1, 3, seed).state_dict()
    arguments = {"configuration": "3d_fullres", "fold": 0}
    save_pth(
        path,
        {
            "network_weights": weights,
            "init_args": arguments,
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": None,
        },
    )


def test_a_model_folder_gives_its_best_choice_and_a_checkpoint_itself(model):
    for order, name in enumerate(("fold_3/checkpoint_best.pth", "fold_3/checkpoint_final.pth")):
        save(model / name, order)
        assert Source.read(model).checkpoint == model / name
    save(model / "fold_1/checkpoint_final.pth", 2)
    with pytest.raises(UserError, match=r"holds fold_1, fold_3; name one, as .*fold_1/checkpoint_final\.pth"):
        Source.read(model)
    for order, name in enumerate(("fold_0/checkpoint_final.pth", "fold_all/checkpoint_final.pth"), 3):
        save(model / name, order)
        assert Source.read(model).checkpoint == model / name
    source = Source.read(model / "fold_3" / "checkpoint_best.pth")
    assert source.model == model
    assert source.origin == {"model": str(model), "dataset": "Dataset001_Old", "configuration": "3d_fullres"}
    network = network_of(planned("umamba_bot"), 1, 3, seed=9)
    load_pretrained(network, source, labels=Labels({"liver": 1, "tumour": 2}, None, None), channel_names=["CT"])
    wanted = network_of(planned("umamba_bot"), 1, 3, seed=0).state_dict()
    assert all(torch.equal(tensor, wanted[key]) for key, tensor in network.state_dict().items())


def test_what_is_no_trained_model_is_refused(model):
    with pytest.raises(UserError, match=r"no fold_\*/checkpoint_final.pth or checkpoint_best.pth is there"):
        Source.read(model)
    with pytest.raises(UserError, match="no such folder"):
        Source.read(model / "none")
