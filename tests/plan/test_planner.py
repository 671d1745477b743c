"""Plans for data sets that are only a fingerprint, and beside nnU-Net's own planner."""

import json
import math
import pydoc
import shutil
from dataclasses import replace

import pytest
import torch

from umamba_seg.datasets import msd
from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.errors import UserError
from umamba_seg.fingerprint import extract_fingerprint
from umamba_seg.networks import find
from umamba_seg.paths import resolve
from umamba_seg.plan import planner
from umamba_seg.plan.budgets import cpu_budget, gpu_budget, vram_budget
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.planner import plan_dataset
from umamba_seg.plan.plans import require_network, topology_of
from umamba_seg.plan.recipes import Recipe, read_recipe
from umamba_seg.plan.step import Measurement

KINDS = {  # shape (z, y, x), spacing in mm, channels, cases
    "large isotropic CT": ((512, 512, 512), (0.8, 0.8, 0.8), 1, 100),
    "anisotropic cardiac": ((10, 256, 216), (10.0, 1.56, 1.56), 1, 100),
    "4-modality brain": ((138, 170, 138), (1.0, 1.0, 1.0), 4, 100),
    "hippocampus": ((36, 50, 35), (1.0, 1.0, 1.0), 1, 260),
    "tiny": ((14, 32, 36), (6.0, 2.5, 2.5), 1, 100),
}
NAME = "Dataset001_Kind"


@pytest.fixture
def plan(tmp_path):
    """``plan(kind, budget, network=...)`` plans a data set of cases of one kind."""

    def run(kind, budget, name="p", network="umamba_bot", spacing=None, device=None, recipe=None, like=None):
        shape, usual, channels, cases = KINDS[kind]
        folders = resolve(tmp_path).export()
        raw = folders.raw / NAME
        if not raw.exists():
            make_dataset(
                folders.raw, 1, "Kind", train_cases=1, test_cases=0, shape=(36, 32, 14), spacing=(2.5, 2.5, 6.0), seed=0
            )
        description = json.loads((raw / "dataset.json").read_text())
        description |= {"numTraining": cases, "channel_names": {str(i): f"MR {i}" for i in range(channels)}}
        (raw / "dataset.json").write_text(json.dumps(description))
        preprocessed = folders.preprocessed / NAME
        preprocessed.mkdir(parents=True, exist_ok=True)
        fingerprint = {
            "spacings": [spacing or usual] * cases,
            "shapes_after_crop": [shape] * cases,
            "foreground_intensity_properties_per_channel": {
                str(i): {"mean": 1.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 2.0}
                for i in range(channels)
            },
            "median_relative_size_after_cropping": 1.0,
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        plan_dataset(NAME, find(network), budget, name, device, recipe, like)
        return json.loads((preprocessed / f"{name}.json").read_text())

    return run


@pytest.fixture(autouse=True)
def an_augmentation_worker(monkeypatch):
    """nnU-Net's own planner gives torch as many threads, and a training on a CPU may have set none before."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")


@pytest.fixture
def by_voxels(monkeypatch):
    """Memory in proportion to voxels and channels, for tests that are not about memory: traces take seconds."""

    def peak(_architecture, setting, _device_type, _options):
        topology = setting.topology
        return 2**26 + 40 * setting.batch_size * math.prod(topology.patch_size) * topology.features[0]

    monkeypatch.setattr(planner, "_peak", peak)


def planned(plans):
    """The configurations that were searched for."""
    return {name: found for name, found in plans["configurations"].items() if "inherits_from" not in found}


# ------------------------------------------------------------------------------------------------------------- budgets


def test_cpu_plan_is_the_one_whose_iteration_was_measured(plan):
    configuration = planned(plan("hippocampus", cpu_budget()))["3d_fullres"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([40, 56, 40], 4)
    assert configuration["topology"]["features"] == [8, 16, 32, 64]


def test_more_memory_never_gives_a_smaller_patch_times_batch(plan):
    voxels = []
    for gigabytes in (4, 8):
        configuration = planned(plan("tiny", vram_budget(gigabytes)))["3d_fullres"]
        reasons = configuration["planning"]
        assert reasons["estimated_bytes"] <= reasons["limit_bytes"] <= gigabytes * 2**30
        voxels.append(math.prod(configuration["patch_size"]) * reasons["batch_by_memory"])
    assert voxels[1] > 2 * voxels[0]


def test_a_network_that_takes_more_gets_less(plan):
    room = {
        network: planned(plan("tiny", vram_budget(8), network, network))["3d_fullres"]["planning"]["batch_by_memory"]
        for network in ("plain_conv_unet", "umamba_bot")
    }
    assert room["plain_conv_unet"] > 2 * room["umamba_bot"]


@pytest.mark.usefixtures("by_voxels")
def test_five_percent_of_the_data_are_the_most_that_a_batch_holds(plan):
    """260 cases, as in the original release of MSD's hippocampus."""
    configuration = planned(plan("hippocampus", gpu_budget(8), network="plain_conv_unet"))["3d_fullres"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([40, 56, 40], 9)
    assert len(configuration["topology"]["strides"]) == 4
    assert configuration["planning"]["batch_by_data"] == pytest.approx(0.05 * 260 * 36 * 50 * 35 / (40 * 56 * 40))


def test_budget_too_small_for_any_patch(plan):
    with pytest.raises(UserError, match=r"budget vram0\.7gb: segmamba takes .* GiB for 2 samples .*; give more"):
        plan("tiny", vram_budget(0.7), network="segmamba")


@pytest.mark.parametrize("spacing", [(0.0, 1.0, 1.0), (1.0, -1.0, 1.0), (1.0, 1.0, math.nan)])
def test_impossible_spacing(plan, spacing):
    with pytest.raises(UserError, match=r"Dataset001_Kind, synth_000: spacing .* positive number; correct"):
        plan("tiny", cpu_budget(), spacing=spacing)


# ------------------------------------------------------------------------------------------------------ beside nnU-Net


def assert_nnunet_plans_the_same(dataset_name):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    with torch.device("meta"):  # it builds a network for every patch that it tries
        theirs = ExperimentPlanner(dataset_name, 8, plans_name="theirs").plan_experiment()["configurations"]
    ours = plan_dataset(dataset_name, find("plain_conv_unet"), gpu_budget(8), "ours")["configurations"]
    assert set(ours) == set(theirs)
    for name, wanted in planned({"configurations": json.loads(json.dumps(theirs, default=float))}).items():
        arguments = wanted["architecture"]["arch_kwargs"]
        assert ours[name]["patch_size"] == wanted["patch_size"]
        assert ours[name]["batch_size"] == wanted["batch_size"]
        assert ours[name]["topology"]["strides"] == arguments["strides"]
        assert ours[name]["topology"]["kernel_sizes"] == arguments["kernel_sizes"]
        assert ours[name]["architecture"]["arch_kwargs"] == arguments


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["large isotropic CT", "anisotropic cardiac", "4-modality brain"])
def test_nnunets_target_gives_its_own_network_its_own_plan(plan, kind):
    plan(kind, gpu_budget(8), network="plain_conv_unet")  # leaves the data set behind
    assert_nnunet_plans_the_same(NAME)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["openms_mni", "msd_spleen2_crop", "sunnybrook_2d"])
def test_nnunets_target_gives_its_own_network_its_own_plan_on_images(shared_data, tmp_path, name):
    folders = resolve(tmp_path).export()
    shutil.copytree(shared_data(name), folders.raw / f"Dataset002_{name}")
    extract_fingerprint(f"Dataset002_{name}", 2)
    assert_nnunet_plans_the_same(f"Dataset002_{name}")


@pytest.mark.slow
def test_nnunets_target_on_hippocampus(shared_data, tmp_path):
    folders = resolve(tmp_path).export()
    name = msd.convert(shared_data("hippocampus"), folders.raw, 4, None).name
    extract_fingerprint(name, 2)
    assert_nnunet_plans_the_same(name)
    configuration = json.loads((folders.preprocessed / name / "ours.json").read_text())["configurations"]["3d_fullres"]
    assert (configuration["patch_size"], configuration["batch_size"]) == ([40, 56, 40], 7)


@pytest.mark.usefixtures("by_voxels")
@pytest.mark.parametrize(
    ("network", "planner"),
    [
        ("plain_conv_unet", "default_experiment_planner.ExperimentPlanner"),
        ("residual_encoder_unet", "residual_unets.residual_encoder_unet_planners.ResEncUNetPlanner"),
    ],
)
def test_nnunets_own_networks_are_built_as_its_planners_build_them(plan, network, planner):
    plan("tiny", vram_budget(8), network="plain_conv_unet")  # leaves the data set behind
    their_planner = pydoc.locate(f"nnunetv2.experiment_planning.experiment_planners.{planner}")
    with torch.device("meta"):
        plans = their_planner(NAME, 8, plans_name="theirs").plan_experiment()
    for theirs in plans["configurations"].values():
        if "inherits_from" not in theirs:
            arguments = json.loads(json.dumps(theirs["architecture"]["arch_kwargs"]))
            table = arguments | {"features": arguments["features_per_stage"]}
            topology = topology_of({"patch_size": theirs["patch_size"], "topology": table})
            assert find(network).planned(topology) == arguments
            assert find(network).network == theirs["architecture"]["network_class_name"]
            assert find(network).imports == tuple(theirs["architecture"]["_kw_requires_import"])


# ------------------------------------------------------------------------------------------------------ what is written


@pytest.mark.usefixtures("by_voxels")
def test_plans_name_the_network_and_only_nnunets_own_parts_beside_it(plan):
    plans = plan("tiny", vram_budget(8))
    assert plans["umamba_seg"]["network"] == "umamba_bot"
    assert plans["umamba_seg"]["training"]["optimizer"] == "SGD"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"] == "umamba_seg.networks.umamba.UMamba"
    assert configuration["architecture"]["_kw_requires_import"] == []
    assert configuration["architecture"]["arch_kwargs"]["features"][0] == 32
    assert configuration["preprocessor_name"] == "DefaultPreprocessor"


@pytest.mark.usefixtures("by_voxels")
def test_data_is_named_after_what_shapes_it_not_after_the_plan(plan):
    kinds = {
        plan("tiny", budget, f"{network}_{budget.name}", network)["configurations"]["3d_fullres"]["data_identifier"]
        for network, budget in (
            ("plain_conv_unet", gpu_budget(8)),
            ("plain_conv_unet", vram_budget(8)),
            ("umamba_bot", vram_budget(8)),
            ("segmamba", vram_budget(8)),
        )
    }
    assert len(kinds) == 1
    assert next(iter(kinds)).startswith("6x2.5x2.5mm_ZScore_")
    other = plan("hippocampus", gpu_budget(8), "other", "plain_conv_unet")
    assert other["configurations"]["3d_fullres"]["data_identifier"] not in kinds


@pytest.mark.usefixtures("by_voxels")
@pytest.mark.parametrize(("network", "step"), [("segmamba", 16), ("lightmunet_noscan", 8)])
def test_networks_of_fixed_depth_get_patches_that_their_levels_divide(plan, network, step):
    configuration = planned(plan("tiny", vram_budget(8), network=network))["3d_fullres"]
    assert configuration["planning"]["fixed_depth"]
    assert all(extent % step == 0 for extent in configuration["patch_size"])


@pytest.mark.usefixtures("by_voxels")
def test_a_plan_of_segmamba_has_the_planes_of_its_patch_as_slices(plan):
    configuration = plan("tiny", vram_budget(8), network="segmamba")["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"] == {
        "features_per_stage": [48, 96, 192, 384],
        "hidden_size": 768,
        "slices": [configuration["patch_size"][0] // step for step in (2, 4, 8, 16)],
    }
    assert configuration["output_strides"] == [[1, 1, 1]]


@pytest.mark.usefixtures("by_voxels")
def test_a_plan_keeps_the_configurations_whose_dimensions_the_network_has(plan):
    assert set(plan("tiny", vram_budget(8), "p", "umamba_bot")["configurations"]) == {"2d", "3d_fullres"}
    assert set(plan("tiny", vram_budget(8), "s", "segmamba")["configurations"]) == {"3d_fullres"}


@pytest.mark.usefixtures("by_voxels")
@pytest.mark.parametrize("network", ["umamba_bot", "segmamba"])
def test_a_twin_may_take_the_plan_of_its_network(plan, monkeypatch, network):
    own = plan("hippocampus", cpu_budget(), "own", network=network)
    voxels = planner._peak
    monkeypatch.setattr(planner, "_peak", lambda *setting: voxels(*setting) // 3)
    alike = plan("hippocampus", cpu_budget(), "alike", network=f"{network}_noscan", like=own)
    for name, found in planned(alike).items():
        wanted = own["configurations"][name]
        assert [found[key] for key in ("patch_size", "batch_size", "topology")] == [
            wanted[key] for key in ("patch_size", "batch_size", "topology")
        ]
        assert found["planning"]["like"] == "own"
        assert found["planning"]["estimated_bytes"] < wanted["planning"]["estimated_bytes"]
    assert set(planned(alike)) == set(planned(own))


@pytest.mark.usefixtures("by_voxels")
def test_a_network_of_other_levels_cannot_take_a_plan(plan):
    own = plan("hippocampus", cpu_budget(), "own")
    with pytest.raises(UserError, match="segmamba has levels of its own, which plans own do not have"):
        plan("hippocampus", cpu_budget(), "other", network="segmamba", like=own)


@pytest.mark.usefixtures("by_voxels")
def test_plans_of_another_network_are_not_written_over(plan):
    plan("tiny", vram_budget(8))
    with pytest.raises(UserError, match=r"p\.json: holds plans for umamba_bot; .* -p"):
        plan("tiny", vram_budget(8), network="lightmunet")
    assert plan("tiny", vram_budget(4))["umamba_seg"]["budget"] == "vram4gb"


@pytest.mark.usefixtures("by_voxels")
def test_plans_tell_at_which_resolutions_a_network_answers(plan):
    plans = plan("tiny", vram_budget(8), network="nnmamba_ds")
    assert plans["configurations"]["3d_fullres"]["output_strides"] == [[n] * 3 for n in (1, 2, 4, 8)]


@pytest.mark.usefixtures("by_voxels")
def test_a_plan_of_a_network_with_channel_tokens_is_tied_to_its_patch(plan):
    configuration = plan("tiny", vram_budget(8), network="umamba_enc")["configurations"]["3d_fullres"]
    arguments = configuration["architecture"]["arch_kwargs"]
    assert arguments["patch_size"] == configuration["patch_size"]
    assert "channels" in arguments["mamba_tokens"]
    require_network(configuration, "plans")
    configuration["patch_size"] = [size // 2 for size in configuration["patch_size"]]
    with pytest.raises(UserError, match=r"can be built for .* only: channels are tokens"):
        require_network(configuration, "plans")


def test_plans_of_another_version_are_refused():
    with pytest.raises(UserError, match="was not planned by this version"):
        require_network({"patch_size": [8, 8]}, "plans")


def test_a_classifier_is_not_planned():
    with pytest.raises(UserError, match="nnmamba_cls: is a network for classification"):
        find("nnmamba_cls").require_segmentation()


@pytest.mark.usefixtures("by_voxels")
def test_a_network_may_have_learning_rates_of_its_own(plan):
    assert plan("tiny", vram_budget(8), network="nnmamba_ds")["umamba_seg"]["training"]["initial_lr"] == 1e-4
    on_cpu = replace(cpu_budget(), limit=2.0**30)
    training = plan("tiny", on_cpu, "on_cpu", "nnmamba_ds")["umamba_seg"]["training"]
    assert (training["optimizer"], training["initial_lr"]) == ("AdamW", 1e-3)


@pytest.mark.usefixtures("by_voxels")
def test_a_recipe_replaces_the_options_of_the_budget_and_the_rate_of_the_network(plan):
    recipe = Recipe("mine", "a paper", {"optimizer": "Adam", "initial_lr": 0.02})
    on_cpu = replace(cpu_budget(), limit=2.0**30)
    table = plan("tiny", on_cpu, network="nnmamba_ds", recipe=recipe)["umamba_seg"]
    usual = on_cpu.training.model_dump() | {"recipe": "mine", "optimizer": "Adam", "initial_lr": 0.02}
    assert TrainingOptions.read(table["training"], "plans") == TrainingOptions(**usual)
    assert table["recipe_source"] == "a paper"
    assert plan("tiny", on_cpu, "usual", "nnmamba_ds")["umamba_seg"]["recipe_source"] is None


def test_a_network_is_planned_for_the_memory_that_its_recipe_takes_within_what_the_budget_allows(plan, monkeypatch):
    traced = []

    def peak(architecture, setting, _device_type, options):
        traced.append(("umamba" in architecture, options))
        return 2**26 + 40 * setting.batch_size * math.prod(setting.topology.patch_size)

    monkeypatch.setattr(planner, "_peak", peak)
    plan("tiny", gpu_budget(8), recipe=read_recipe("lightmunet"))
    recipe, budget = read_recipe("lightmunet").applied(TrainingOptions()), TrainingOptions()
    assert set(traced) == {(True, recipe), (False, budget)}


@pytest.mark.usefixtures("by_voxels")
def test_a_new_plan_leaves_nothing_of_the_old_one_but_what_was_added_by_hand(plan, tmp_path):
    plans = plan("tiny", vram_budget(8), network="plain_conv_unet")
    old = plans["configurations"]["3d_fullres"]
    by_hand = {key: value for key, value in old.items() if key != "planning"}
    plans["configurations"] |= {"3d_lowres": old, "mine": by_hand}
    (resolve(tmp_path).preprocessed / NAME / "p.json").write_text(json.dumps(plans))
    new = plan("tiny", vram_budget(4), network="plain_conv_unet")
    assert set(new["configurations"]) == {"2d", "3d_fullres", "mine"}


# ------------------------------------------------------------------------------------------------------------ cascades


def stages(plans):
    """First stage, the one of full resolution alone, second stage."""
    return (plans["configurations"][name] for name in ("3d_lowres", "3d_fullres", "3d_cascade_fullres"))


def test_a_second_stage_is_the_full_resolution_that_also_sees_the_labels_of_the_first(plan, monkeypatch):
    asked = set()

    def peak(_architecture, setting, _device_type, _options):
        asked.add(setting.input_channels)
        return 2**26 + (1000 + setting.input_channels) * setting.batch_size * math.prod(setting.topology.patch_size)

    monkeypatch.setattr(planner, "_peak", peak)
    first, alone, second = stages(plan("large isotropic CT", vram_budget(8), network="plain_conv_unet"))
    assert (first["next_stage"], second["previous_stage"]) == ("3d_cascade_fullres", "3d_lowres")
    assert asked == {1, 1 + 3}  # liver, kidneys, aorta
    more = second["planning"]["estimated_bytes"] - alone["planning"]["estimated_bytes"]
    assert more == 3 * alone["batch_size"] * math.prod(alone["patch_size"])
    assert second["planning"]["as_in"] == "3d_fullres"
    own = ("previous_stage", "planning")
    assert {key: value for key, value in second.items() if key not in own} == {
        key: value for key, value in alone.items() if key not in own
    }


def test_a_second_stage_whose_input_takes_too_much_is_planned_smaller(plan, monkeypatch):
    def peak(_architecture, setting, _device_type, _options):
        return setting.batch_size * math.prod(setting.topology.patch_size) * (100 + 100 * setting.input_channels)

    monkeypatch.setattr(planner, "_peak", peak)
    _, alone, second = stages(plan("large isotropic CT", vram_budget(8), network="plain_conv_unet"))
    assert math.prod(second["patch_size"]) < math.prod(alone["patch_size"])
    assert second["planning"]["estimated_bytes"] <= second["planning"]["limit_bytes"]
    assert "as_in" not in second["planning"]
    assert list(topology_of(second).patch_size) == second["patch_size"]
    _, alone, second = stages(plan("large isotropic CT", gpu_budget(8), "target", "plain_conv_unet"))
    assert (second["patch_size"], second["batch_size"]) == (alone["patch_size"], alone["batch_size"])
    assert second["planning"]["estimated_bytes"] > second["planning"]["limit_bytes"]


@pytest.mark.usefixtures("by_voxels")
def test_a_second_stage_is_probed_with_all_its_channels(plan, monkeypatch):
    seen = {}

    def measured(configuration, input_channels, num_classes, _options, _device):
        seen[configuration.get("previous_stage"), len(configuration["patch_size"])] = input_channels
        share = 1.3 if "previous_stage" in configuration else 1
        setting = planner.Setting(topology_of(configuration), input_channels, num_classes, configuration["batch_size"])
        return Measurement(seconds=0.5, bytes=round(share * planner._peak("", setting, "cuda", None)), device="a GPU")

    monkeypatch.setattr(planner, "measure_plan", measured)
    cuda = torch.device("cuda")
    _, alone, second = stages(plan("large isotropic CT", vram_budget(8), network="plain_conv_unet", device=cuda))
    assert seen == {(None, 2): 1, (None, 3): 1, ("3d_lowres", 3): 4}
    assert math.prod(second["patch_size"]) < math.prod(alone["patch_size"])
    for configuration in (alone, second):
        planning = configuration["planning"]
        assert planning["measured"]["bytes"] == pytest.approx(planning["estimated_bytes"], rel=0.1)


# -------------------------------------------------------------------------------------------------------------- probes


@pytest.mark.usefixtures("by_voxels")
def test_a_gpu_that_takes_more_than_the_estimate_gets_less(plan, monkeypatch):
    def measured(configuration, input_channels, num_classes, options, device):
        assert (input_channels, num_classes, options.optimizer, device.type) == (1, 4, "SGD", "cuda")
        setting = planner.Setting(topology_of(configuration), input_channels, num_classes, configuration["batch_size"])
        return Measurement(seconds=0.5, bytes=round(1.4 * planner._peak("", setting, "cuda", options)), device="a GPU")

    estimated = planned(plan("tiny", vram_budget(4), "a", "plain_conv_unet"))["3d_fullres"]
    monkeypatch.setattr(planner, "measure_plan", measured)
    probed = planned(plan("tiny", vram_budget(4), "b", "plain_conv_unet", device=torch.device("cuda")))["3d_fullres"]
    found = probed["planning"]["measured"]
    assert found["bytes"] == pytest.approx(probed["planning"]["estimated_bytes"], rel=0.1)
    assert found["bytes"] <= probed["planning"]["limit_bytes"] * 1.1
    assert (found["device"], found["seconds"]) == ("a GPU", 0.5)
    assert probed["planning"]["batch_by_memory"] < estimated["planning"]["batch_by_memory"]


@pytest.mark.usefixtures("by_voxels")
def test_a_probe_on_a_cpu_only_measures(plan):
    small = replace(cpu_budget(), base_features=2, limit=2.0**27)
    estimated = planned(plan("tiny", small, "a", "plain_conv_unet"))
    probed = planned(plan("tiny", small, "b", "plain_conv_unet", device=torch.device("cpu")))
    for name, configuration in probed.items():
        assert configuration["batch_size"] == estimated[name]["batch_size"]
        assert configuration["planning"]["measured"]["seconds"] > 0
