"""Plans that are taken over from another data set, whose fingerprint and images are small and made up."""

import json
import math
from dataclasses import replace

import pytest
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.errors import UserError
from umamba_seg.networks import find
from umamba_seg.paths import resolve
from umamba_seg.plan import architecture, planner
from umamba_seg.plan.adopt import adopt_plans, match_channels, match_names
from umamba_seg.plan.budgets import cpu_budget
from umamba_seg.plan.planner import plan_dataset
from umamba_seg.plan.plans import PLANS_TABLE
from umamba_seg.plan.recipes import Recipe
from umamba_seg.train.pretrained import Source

KEPT = (
    "architecture", "topology", "output_strides", "patch_size", "batch_size", "spacing", "resampling_fn_data",
    "resampling_fn_data_kwargs", "resampling_fn_seg", "resampling_fn_probabilities", "preprocessor_name", "batch_dice",
)  # fmt: skip
SHAPE, SPACING = (14, 32, 36), (6.0, 2.5, 2.5)  # (z, y, x)


@pytest.fixture(autouse=True)
def no_network_is_run(monkeypatch):
    """Memory is in proportion to what goes in and comes out, and there is one output: traces take seconds."""
    monkeypatch.setenv("nnUNet_n_proc_DA", "1")

    def peak(_architecture, setting, *_how):
        voxels = setting.batch_size * math.prod(setting.topology.patch_size)
        return 2**20 + 400 * voxels * (setting.input_channels + setting.num_classes)

    monkeypatch.setattr(planner, "_peak", peak)
    monkeypatch.setattr(architecture, "output_strides", lambda _architecture, patch_size: [[1] * len(patch_size)])


@pytest.fixture
def data_set(tmp_path):
    """``data_set(1, ["CT"])`` makes raw data and its fingerprint; answers with its preprocessed folder."""
    folders = resolve(tmp_path).export()

    def make(number, channels, shape=SHAPE, spacing=SPACING, flat=False):
        size = (
            {"shape": (36, 32), "spacing": (1.0, 1.0)} if flat else {"shape": (36, 32, 14), "spacing": (2.5, 2.5, 6.0)}
        )
        raw = make_dataset(
            folders.raw, number, "Small", train_cases=1, test_cases=0, seed=number, channels=len(channels), **size
        )
        description = json.loads((raw / "dataset.json").read_text())
        description["channel_names"] = {str(i): name for i, name in enumerate(channels)}
        (raw / "dataset.json").write_text(json.dumps(description))
        preprocessed = folders.preprocessed / raw.name
        preprocessed.mkdir(parents=True)
        fingerprint = {
            "spacings": [spacing],
            "shapes_after_crop": [shape],
            "foreground_intensity_properties_per_channel": {str(i): statistics(number) for i in range(len(channels))},
            "median_relative_size_after_cropping": 1.0,
        }
        (preprocessed / "dataset_fingerprint.json").write_text(json.dumps(fingerprint))
        return preprocessed

    return make


def statistics(number: int) -> dict:
    return {"mean": 100.0 * number, "std": 10.0, "percentile_00_5": -1e6, "percentile_99_5": 1e6}


def source_of(preprocessed, configuration="3d_fullres", network="plain_conv_unet") -> Source:
    """A model that was planned for a data set; its weights do not count here."""
    plans = plan_dataset(preprocessed.name, find(network), cpu_budget(), network)
    plans = json.loads((preprocessed / f"{network}.json").read_text())
    description = json.loads((preprocessed / "dataset.json").read_text())
    model = preprocessed / "model"
    return Source(model, model / "fold_0" / "checkpoint_final.pth", plans, description, configuration, {})


def adopted(source, preprocessed, name="new", **how) -> tuple[dict, dict]:
    """The plans as they stand in the file, and their configuration."""
    adopt_plans(source, preprocessed, name, **how)
    plans = json.loads((preprocessed / f"{name}.json").read_text())
    assert list(plans["configurations"]) == [source.configuration]
    return plans, plans["configurations"][source.configuration]


def test_what_the_weights_are_bound_to_is_kept_and_what_follows_from_the_images_is_not(data_set):
    source = source_of(data_set(1, ["MRI"]))
    new = data_set(2, ["MRI", "PET"], shape=(7, 64, 72), spacing=(12.0, 1.25, 1.25))
    plans, configuration = adopted(source, new)
    assert {key: configuration[key] for key in KEPT} == {key: source.planned[key] for key in KEPT}
    assert configuration["median_image_size_in_voxels"] == list(SHAPE)  # of 7×64×72 at the source's spacing
    assert plans["original_median_spacing_after_transp"] == [12.0, 1.25, 1.25]
    assert plans["original_median_shape_after_transp"] == [7, 64, 72]
    assert (plans["dataset_name"], plans["plans_name"]) == ("Dataset002_Small", "new")
    table = plans[PLANS_TABLE]
    assert table["pretrained"] == {
        "model": str(source.model),
        "dataset": "Dataset001_Small",
        "configuration": "3d_fullres",
    }
    kept = ("network", "budget", "budget_meaning", "training")
    assert {key: table[key] for key in kept} == {key: source.plans[PLANS_TABLE][key] for key in kept}
    assert json.loads((new / "dataset.json").read_text())["channel_names"] == {"0": "MRI", "1": "PET"}


def test_memory_is_estimated_for_the_new_channels(data_set, caplog):
    source = source_of(data_set(1, ["MRI"]))
    source.planned["planning"]["measured"] = {"bytes": 1, "seconds": 1.0, "device": "x"}
    planning = adopted(source, data_set(2, ["MRI"]), "same")[1]["planning"]
    assert planning == {key: value for key, value in source.planned["planning"].items() if key != "measured"}
    assert not caplog.records
    source.planned["planning"]["limit_bytes"] = source.planned["planning"]["estimated_bytes"]
    planning = adopted(source, data_set(3, ["MRI", "PET", "T2"]), "more")[1]["planning"]
    assert planning["estimated_bytes"] > planning["limit_bytes"] == source.planned["planning"]["limit_bytes"]
    assert "with 3 channels and 4 classes, and" in caplog.text


def test_the_plan_of_an_official_checkpoint_has_no_limit(data_set):
    source = source_of(data_set(1, ["MRI"]))
    del source.planned["planning"], source.plans[PLANS_TABLE]["budget_meaning"]
    plans, configuration = adopted(source, data_set(2, ["MRI"]))
    assert set(configuration["planning"]) == {"estimated_bytes", "batch_by_data", "data_voxels"}
    assert plans[PLANS_TABLE]["budget_meaning"] == "the plan of an official checkpoint"


def test_a_recipe_replaces_the_training_of_the_source(data_set):
    source = source_of(data_set(1, ["MRI"]))
    recipe = Recipe("mine", "a paper", {"initial_lr": 1e-5})
    table = adopted(source, data_set(2, ["MRI"]), recipe=recipe)[0][PLANS_TABLE]
    before = source.plans[PLANS_TABLE]["training"]
    assert table["training"] == before | {"initial_lr": 1e-5, "recipe": "mine"}
    assert table["recipe_source"] == "a paper"
    source.plans[PLANS_TABLE] = table
    again = adopted(source, data_set(3, ["MRI"]))[0][PLANS_TABLE]
    assert (again["training"], again["recipe_source"]) == (table["training"], "a paper")


# -------------------------------------------------------------------------------------------------------- normalisation


def test_a_channel_is_normalised_as_the_one_that_it_stands_for(data_set):
    source = source_of(data_set(1, ["CT"]))
    source.planned["use_mask_for_norm"] = [True]
    plans, configuration = adopted(source, data_set(2, ["PET", "ct"]))
    assert configuration["normalization_schemes"] == ["ZScoreNormalization", "CTNormalization"]
    assert configuration["use_mask_for_norm"] == [False, True]
    found = plans["foreground_intensity_properties_per_channel"]
    assert (found["0"]["mean"], found["1"]["mean"]) == (200.0, 100.0)


def test_hounsfield_units_are_not_looked_for_in_mr(data_set):
    source = source_of(data_set(1, ["CT"]))
    plans, configuration = adopted(source, data_set(2, ["MRI"]))
    assert configuration["normalization_schemes"] == ["ZScoreNormalization"]
    assert plans["foreground_intensity_properties_per_channel"]["0"]["mean"] == 200.0


def test_ct_looks_as_the_mr_that_the_source_knows(data_set):
    source = source_of(data_set(1, ["MRI"]))
    assert adopted(source, data_set(2, ["CT"]))[1]["normalization_schemes"] == ["ZScoreNormalization"]


def test_nnunet_preprocesses_by_the_adopted_plans(data_set):
    """The source's mean of 100 and deviation of 10 normalise the new images."""
    source = source_of(data_set(1, ["CT"]))
    new = data_set(2, ["CT"])
    adopt_plans(source, new, "new")
    case = load_raw_dataset(new.parents[1] / "nnUNet_raw" / new.name).cases[0]
    manager = PlansManager(str(new / "new.json"))
    configuration = manager.get_configuration("3d_fullres")
    preprocessor = configuration.preprocessor_class(verbose=False)
    files = [str(path) for path in case.images]
    description = json.loads((new / "dataset.json").read_text())
    data, labels, _ = preprocessor.run_case(files, str(case.label), manager, configuration, description)
    assert labels.shape == data.shape
    assert data.min() >= -10.001  # (0 - 100) / 10
    assert data.max() > 10


# ------------------------------------------------------------------------------------------------------ shared data


def test_preprocessed_data_is_shared_where_it_is_the_same(data_set):
    own = data_set(1, ["CT"])
    source = source_of(own)
    assert adopted(source, own)[1]["data_identifier"] == source.planned["data_identifier"]
    new = data_set(2, ["CT"])
    names = {
        adopted(source_of(own, network=network), new, network)[1]["data_identifier"]
        for network in ("plain_conv_unet", "residual_encoder_unet")
    }
    names.add(source_of(new, network="umamba_bot").planned["data_identifier"])
    assert len(names) == 2  # two networks share it; the new data set's own statistics are others


# ----------------------------------------------------------------------------------------------------------- dimensions


def test_a_3d_model_does_not_take_flat_images(data_set):
    source = source_of(data_set(1, ["MRI"]))
    flat = data_set(2, ["grey"], shape=(1, 32, 36), spacing=(999.0, 1.0, 1.0), flat=True)
    with pytest.raises(UserError, match=r"is a 3-D model, and the images of Dataset002_Small have 1×32×36 voxels"):
        adopt_plans(source, flat, "new")
    assert not (flat / "new.json").exists()


def test_a_2d_model_takes_flat_images_whatever_plane_it_knows(data_set):
    source = source_of(data_set(1, ["MRI"], shape=(36, 32, 14), spacing=(2.5, 2.5, 6.0)), "2d")
    assert source.plans["transpose_forward"] == [2, 0, 1]
    flat = data_set(2, ["grey"], shape=(1, 32, 36), spacing=(999.0, 2.5, 2.5), flat=True)
    plans, configuration = adopted(source, flat)
    assert (plans["transpose_forward"], plans["transpose_backward"]) == ([0, 1, 2], [0, 1, 2])
    assert configuration["median_image_size_in_voxels"] == [32, 36]
    assert plans["image_reader_writer"] == "NaturalImage2DIO"


def test_the_axes_of_images_are_turned_as_the_source_turned_its_own(data_set):
    source = source_of(data_set(1, ["MRI"], shape=(36, 32, 14), spacing=(2.5, 2.5, 6.0)))
    plans, configuration = adopted(source, data_set(2, ["MRI"], shape=(30, 20, 10), spacing=(2.5, 2.5, 6.0)))
    assert plans["transpose_forward"] == [2, 0, 1]
    assert configuration["median_image_size_in_voxels"] == [10, 30, 20]


def test_resampling_to_quite_another_scale_is_told(data_set, caplog):
    source = source_of(data_set(1, ["MRI"]))
    adopt_plans(source, data_set(2, ["MRI"], spacing=(6.0, 1.5, 1.5)), "new")
    assert not caplog.records
    adopt_plans(source, data_set(3, ["MRI"], spacing=(6.0, 1.0, 1.0)), "new")
    assert "the images have 6×1×1 mm (median), and are resampled to the 6×2.5×2.5 mm of the source" in caplog.text


def test_plans_of_another_origin_are_not_written_over(data_set):
    own, new = data_set(1, ["MRI"]), data_set(2, ["MRI"])
    source = source_of(own)
    adopt_plans(source, new, "new")
    adopt_plans(source, new, "new")
    with pytest.raises(UserError, match=r"holds plans that do not come from .*elsewhere; choose another name with -p"):
        adopt_plans(replace(source, model=own / "elsewhere"), new, "new")


# -------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("source", "target", "matched"),
    [
        (["T1", "T2"], ["t2", "T1"], [1, 0]),
        (["CT"], ["MRI"], [0]),
        (["T1", "T2"], ["T2", "FLAIR"], [1, 0]),
        (["T1", "T2"], ["T2", "FLAIR", "T1"], [1, None, 0]),
        (["T1", "T2"], ["FLAIR"], [None]),
        (["MRI"], ["MRI", "MRI"], [0, None]),
        (["MRI", "MRI"], ["MRI", "MRI"], [0, 1]),
    ],
)
def test_channels_are_matched_by_name_then_by_order(source, target, matched):
    assert match_channels(source, target) == matched


def test_classes_are_matched_by_name_alone():
    assert match_names(["background", "Liver"], ["background", "spleen"]) == [0, None]
