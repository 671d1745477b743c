"""Plans for data sets that are only a fingerprint."""

import json
import math
import pydoc

import pytest

from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.errors import UserError
from umamba_seg.networks import find
from umamba_seg.paths import resolve
from umamba_seg.plan.budgets import cpu_budget, gpu_budget
from umamba_seg.plan.planner import plan_dataset
from umamba_seg.plan.plans import require_network, topology_of

KINDS = {  # shape (z, y, x), spacing in mm, channels
    "large isotropic CT": ((320, 512, 512), (1.0, 0.8, 0.8), 1),
    "anisotropic cardiac": ((10, 256, 216), (10.0, 1.56, 1.56), 1),
    "4-modality brain": ((138, 170, 138), (1.0, 1.0, 1.0), 4),
    "tiny": ((14, 32, 36), (6.0, 2.5, 2.5), 1),
}


@pytest.fixture
def plan(tmp_path):
    """``plan(kind, budget, network=...)`` plans a data set of 100 cases of one kind."""

    def run(kind, budget, name="p", network="umamba_bot"):
        shape, spacing, channels = KINDS[kind]
        folders = resolve(tmp_path).export()
        raw = folders.raw / "Dataset001_Kind"
        if not raw.exists():
            make_dataset(
                folders.raw, 1, "Kind", train_cases=1, test_cases=0, shape=(36, 32, 14), spacing=(2.5, 2.5, 6.0), seed=0
            )
        description = json.loads((raw / "dataset.json").read_text())
        description |= {"numTraining": 100, "channel_names": {str(i): f"MR {i}" for i in range(channels)}}
        (raw / "dataset.json").write_text(json.dumps(description))
        preprocessed = folders.preprocessed / "Dataset001_Kind"
        preprocessed.mkdir(parents=True, exist_ok=True)
        fingerprint = {
            "spacings": [spacing] * 100,
            "shapes_after_crop": [shape] * 100,
            "foreground_intensity_properties_per_channel": {
                str(i): {"mean": 1.0, "std": 1.0, "percentile_00_5": 0.0, "percentile_99_5": 2.0}
                for i in range(channels)
            },
            "median_relative_size_after_cropping": 1.0,
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        plan_dataset("Dataset001_Kind", find(network), budget, name)
        return json.loads((preprocessed / f"{name}.json").read_text())

    return run


@pytest.mark.parametrize("kind", KINDS)
def test_cpu_plans_are_small_and_buildable(plan, kind):
    plans = plan(kind, cpu_budget())
    for configuration in plans["configurations"].values():
        if "inherits_from" in configuration:
            continue
        arguments = configuration["architecture"]["arch_kwargs"]
        assert arguments["features"][:3] == [8, 16, 32][: len(arguments["features"])]
        assert max(arguments["features"]) <= 64
        assert configuration["batch_size"] >= 2
        voxels = configuration["batch_size"]
        for extent, strides in zip(configuration["patch_size"], zip(*arguments["strides"], strict=True), strict=True):
            voxels *= extent
            assert extent % math.prod(strides) == 0
        assert voxels <= (1.2e6 if len(configuration["patch_size"]) == 2 else 6e5)


def test_plans_name_the_network_and_only_nnunets_own_parts_beside_it(plan):
    plans = plan("tiny", gpu_budget(8))
    assert plans["umamba_seg"]["network"] == "umamba_bot"
    assert plans["umamba_seg"]["training"]["optimizer"] == "SGD"
    configuration = plans["configurations"]["3d_fullres"]
    assert configuration["architecture"]["network_class_name"] == "umamba_seg.networks.umamba.UMamba"
    assert configuration["architecture"]["_kw_requires_import"] == []
    assert configuration["architecture"]["arch_kwargs"]["features"][0] == 32
    assert configuration["preprocessor_name"] == "DefaultPreprocessor"


def test_memory_target_gives_nnunets_own_patch_strides_and_batch(plan, tmp_path):
    from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner

    ours = plan("4-modality brain", gpu_budget(8))["configurations"]["3d_fullres"]
    theirs = ExperimentPlanner("Dataset001_Kind", 8, plans_name="theirs").plan_experiment()["configurations"][
        "3d_fullres"
    ]
    assert ours["patch_size"] == list(theirs["patch_size"])
    assert ours["batch_size"] == theirs["batch_size"]
    strides = [list(map(int, steps)) for steps in theirs["architecture"]["arch_kwargs"]["strides"]]
    assert ours["architecture"]["arch_kwargs"]["strides"] == strides


@pytest.mark.parametrize(
    ("network", "planner"),
    [
        ("plain_conv_unet", "default_experiment_planner.ExperimentPlanner"),
        ("residual_encoder_unet", "residual_unets.residual_encoder_unet_planners.ResEncUNetPlanner"),
    ],
)
def test_nnunets_own_networks_are_built_as_its_planners_build_them(plan, network, planner):
    plan("4-modality brain", gpu_budget(8))  # leaves the data set behind
    their_planner = pydoc.locate(f"nnunetv2.experiment_planning.experiment_planners.{planner}")
    for theirs in their_planner("Dataset001_Kind", 8, plans_name="theirs").plan_experiment()["configurations"].values():
        if "inherits_from" not in theirs:
            arguments = json.loads(json.dumps(theirs["architecture"]["arch_kwargs"]))
            table = arguments | {"features": arguments["features_per_stage"]}
            topology = topology_of({"patch_size": theirs["patch_size"], "topology": table})
            assert find(network).planned(topology) == arguments
            assert find(network).network == theirs["architecture"]["network_class_name"]
            assert find(network).imports == tuple(theirs["architecture"]["_kw_requires_import"])


def test_data_is_named_after_what_shapes_it_not_after_the_plan(plan):
    small, large = plan("tiny", cpu_budget(), "a"), plan("tiny", gpu_budget(24), "b")
    names = {plans["configurations"]["3d_fullres"]["data_identifier"] for plans in (small, large)}
    assert len(names) == 1
    assert next(iter(names)).startswith("6x2.5x2.5mm_ZScore_")
    assert plan("4-modality brain", cpu_budget())["configurations"]["3d_fullres"]["data_identifier"] not in names


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("network", "step"), [("segmamba", 16), ("nnmamba_ds", 16), ("lightmunet_noscan", 8)])
def test_networks_of_fixed_depth_get_nnunets_patch_and_batch_as_near_as_they_can(plan, kind, network, step):
    theirs = plan(kind, cpu_budget(), "theirs")["configurations"]["3d_fullres"]
    ours = plan(kind, cpu_budget(), "ours", network)["configurations"]["3d_fullres"]
    for extent, wished in zip(ours["patch_size"], theirs["patch_size"], strict=True):
        assert extent % step == 0
        assert abs(extent - wished) <= step / 2 or extent in (step, 2 * step)
    assert ours["batch_size"] >= 2
    voxels, wished = (math.prod(plan["patch_size"]) * plan["batch_size"] for plan in (ours, theirs))
    assert voxels <= wished or ours["batch_size"] == 2


def test_a_plan_of_segmamba_has_the_planes_of_its_patch_as_slices(plan):
    configuration = plan("large isotropic CT", gpu_budget(24), network="segmamba")["configurations"]["3d_fullres"]
    assert configuration["architecture"]["arch_kwargs"] == {
        "features_per_stage": [48, 96, 192, 384],
        "hidden_size": 768,
        "slices": [configuration["patch_size"][0] // step for step in (2, 4, 8, 16)],
    }
    assert configuration["output_strides"] == [[1, 1, 1]]


def test_a_plan_keeps_the_configurations_whose_dimensions_the_network_has(plan):
    assert set(plan("anisotropic cardiac", cpu_budget())["configurations"]) == {"2d", "3d_fullres"}
    assert set(plan("anisotropic cardiac", cpu_budget(), "s", "segmamba")["configurations"]) == {"3d_fullres"}


def test_plans_of_another_network_are_not_written_over(plan):
    plan("tiny", cpu_budget())
    with pytest.raises(UserError, match=r"p\.json: holds plans for umamba_bot; .* -p"):
        plan("tiny", cpu_budget(), network="lightmunet")
    assert plan("tiny", gpu_budget(8))["umamba_seg"]["budget"] == "8gb"


def test_plans_tell_at_which_resolutions_a_network_answers(plan):
    plans = plan("anisotropic cardiac", cpu_budget(), network="nnmamba_ds")
    assert plans["configurations"]["3d_fullres"]["output_strides"] == [[n] * 3 for n in (1, 2, 4, 8)]


def test_a_plan_of_a_network_with_channel_tokens_is_tied_to_its_patch(plan):
    configuration = plan("4-modality brain", gpu_budget(8), network="umamba_enc")["configurations"]["3d_fullres"]
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


def test_a_network_may_have_learning_rates_of_its_own(plan):
    on_cpu, on_gpu = plan("tiny", cpu_budget(), "a", "nnmamba"), plan("tiny", gpu_budget(8), "b", "nnmamba")
    assert (on_cpu["umamba_seg"]["training"]["optimizer"], on_cpu["umamba_seg"]["training"]["initial_lr"]) == (
        "AdamW",
        1e-3,
    )
    assert on_gpu["umamba_seg"]["training"]["initial_lr"] == 1e-4
    assert plan("tiny", cpu_budget())["umamba_seg"]["training"]["initial_lr"] == 3e-3
