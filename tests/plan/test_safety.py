"""Plans that would do harm, or that hold something else than is expected, are refused before anything is imported."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nnunetv2
import pytest
from nnunetv2.preprocessing.normalization import default_normalization_schemes
from nnunetv2.utilities.find_class_by_name import recursive_find_python_class

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, all_networks, find
from umamba_seg.plan.plans import read_plans
from umamba_seg.plan.safety import inherited, require_safe

TOPOLOGY = Topology((8, 16), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (4, 8))
RESAMPLING = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}


def a_configuration() -> dict:
    keys = [f"resampling_fn_{kind}" for kind in ("data", "seg", "probabilities")]
    return {
        "data_identifier": "1x1mm_ZScore_7afd391a",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16],
        "median_image_size_in_voxels": [50.0, 35.0],
        "spacing": [1.0, 0.5],
        "normalization_schemes": ["ZScoreNormalization", "CTNormalization"],
        "use_mask_for_norm": [False, True],
        **dict.fromkeys(keys, "resample_data_or_seg_to_shape"),
        **{f"{key}_kwargs": RESAMPLING for key in keys},
        "architecture": find("plain_conv_unet").architecture(find("plain_conv_unet").planned(TOPOLOGY)),
        "topology": {"strides": [[1, 1], [2, 2]], "kernel_sizes": [[3, 3], [3, 3]], "features": [4, 8]},
        "batch_dice": True,
        "output_strides": [[1, 1]],
    }


@pytest.fixture
def plans() -> dict:
    return {
        "dataset_name": "Dataset007_Small",
        "plans_name": "umamba_bot_8gb",
        "image_reader_writer": "SimpleITKIO",
        "label_manager": "LabelManager",
        "experiment_planner_used": "Planner",
        "transpose_forward": [0, 1],
        "transpose_backward": [0, 1],
        "configurations": {"2d": a_configuration(), "2d_bs4": {"inherits_from": "2d", "batch_size": 4}},
        "umamba_seg": {"network": "plain_conv_unet", "budget": "8gb", "training": {}},
    }


def refusal(plans: dict) -> str:
    with pytest.raises(UserError) as refused:
        require_safe(plans, "plans.json")
    return str(refused.value)


def test_plans_as_they_are_written_are_let_through(plans):
    require_safe(plans, "plans.json")
    plans["configurations"]["2d"] |= {"previous_stage": None, "next_stage": ["3d_cascade_fullres"], "mine": object()}
    require_safe(plans, "plans.json")


@pytest.mark.parametrize("spec", all_networks(), ids=lambda spec: spec.name)
def test_every_network_of_the_catalog_is_let_through(plans, spec):
    plans["configurations"]["2d"]["architecture"] = spec.architecture({key: None for key in spec.imports})
    require_safe(plans, "plans.json")


PATHS = ("../../x", "/etc/x", "..", "", "a/b", "a\\b", "x\n", ".hidden")


@pytest.mark.parametrize("name", PATHS)
def test_names_that_lead_to_other_folders_are_refused(plans, name):
    for key in ("dataset_name", "plans_name"):
        assert re.match(rf"plans.json: {key} = .*becomes part of a path", refusal(plans | {key: name}))
    assert "becomes part of a path" in refusal(plans | {"configurations": {name: {}}})
    for key in ("data_identifier", "previous_stage", "next_stage"):
        changed = {"2d": a_configuration() | {key: name}}
        assert f"configurations.2d.{key}" in refusal(plans | {"configurations": changed})
    several = {"2d": a_configuration() | {"next_stage": ["2d", name]}}
    assert "becomes part of a path" in refusal(plans | {"configurations": several})


@pytest.mark.parametrize("parent", ["3d_fullres", "../2d", "2d"])
def test_what_inherits_from_nothing_or_itself_is_refused(plans, parent):
    plans["configurations"]["2d"]["inherits_from"] = parent
    message = "inherits from itself" if parent == "2d" else f"there is no '{parent}' among 2d, 2d_bs4"
    assert refusal(plans).startswith(f"plans.json, configuration 2d: {message}")


def test_longer_circles_are_refused(plans):
    plans["configurations"]["2d"]["inherits_from"] = "2d_bs4"
    assert "inherits from itself" in refusal(plans)


def test_a_configuration_has_what_it_inherits(plans):
    found = inherited(plans["configurations"], "2d_bs4", "plans.json")
    assert (found["batch_size"], found["patch_size"]) == (4, [8, 16])


# Each could be found in nnU-Net's modules, which import it.
@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("preprocessor_name", "shutil"),
        ("preprocessor_name", "nnunetv2.preprocessing.preprocessors.default_preprocessor.DefaultPreprocessor"),
        ("preprocessor_name", "example_test_case_preprocessing"),
        ("normalization_schemes", ["ZScoreNormalization", "np"]),
        ("resampling_fn_data", "OrderedDict"),
        ("resampling_fn_seg", "resize"),
        ("resampling_fn_probabilities", "os.system"),
    ],
)
def test_parts_that_nnunet_does_not_define_are_refused(plans, key, name):
    plans["configurations"]["2d"][key] = name
    message = refusal(plans)
    assert message.startswith(f"plans.json: configurations.2d.{key}")
    assert "nnU-Net has " in message


@pytest.mark.parametrize("key", ["image_reader_writer", "label_manager"])
def test_parts_of_the_whole_plans_are_nnunets_too(plans, key):
    assert f"{key} = 'os': Value error, nnU-Net has " in refusal(plans | {key: "os"})


def test_nnunet_itself_would_take_what_its_modules_import():
    folder = str(Path(nnunetv2.__path__[0]) / "preprocessing" / "normalization")
    found = recursive_find_python_class(folder, "np", "nnunetv2.preprocessing.normalization")
    assert found is default_normalization_schemes.np


@pytest.mark.parametrize(
    "layer",
    [
        "os.system",
        "torch.nn.modules.module.torch.os.system",
        "torch.nn.init.torch.os.system",
        "torch.nn.functional.conv3d",
        "torch.nn.modules.module.OrderedDict",
        "torch.nnx.Conv3d",
        "dynamic_network_architectures.building_blocks.helper.np.save",
        "umamba_seg.networks.umamba.UMamba",
        3,
        ["torch.nn.ReLU"],
    ],
)
def test_layers_that_are_none_are_refused(plans, layer):
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["nonlin"] = layer
    assert re.search("which is no layer of torch.nn|no source file|defines no class", refusal(plans))


@pytest.mark.parametrize("layer", ["torch.nn.GELU", "torch.nn.modules.batchnorm.BatchNorm2d", None])
def test_other_layers_of_torch_are_let_through(plans, layer):
    plans["configurations"]["2d"]["architecture"]["arch_kwargs"]["norm_op"] = layer
    require_safe(plans, "plans.json")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("patch_size", [0, 16]),
        ("patch_size", [-8, 16]),
        ("patch_size", [8.5, 16]),
        ("patch_size", ["8", 16]),
        ("patch_size", [True, 16]),
        ("patch_size", [8]),
        ("patch_size", [8] * 4),
        ("batch_size", 0),
        ("batch_size", "2"),
        ("spacing", [0.0, 1.0]),
        ("spacing", [float("inf"), 1.0]),
        ("spacing", [float("nan"), 1.0]),
        ("data_identifier", None),
        ("inherits_from", ["2d"]),
        ("architecture", "umamba"),
        ("architecture", {"network_class_name": "umamba_seg.networks.umamba.UMamba"}),
        ("topology", {"strides": 1}),
        ("resampling_fn_data_kwargs", []),
        ("pool_op_kernel_sizes", [[2, 0]]),
        ("UNet_base_num_features", "32"),
    ],
)
def test_values_of_another_kind_are_refused(plans, key, value):
    plans["configurations"]["2d"][key] = value
    assert f"configurations.2d.{key}" in refusal(plans)


@pytest.mark.parametrize("key", ["configurations", "umamba_seg", "dataset_name", "plans_name", "transpose_forward"])
def test_entries_of_another_kind_are_refused(plans, key):
    assert refusal(plans | {key: 3}).startswith(f"plans.json: {key} = 3: ")
    assert "configurations.2d = [1]" in refusal(plans | {"configurations": {"2d": [1]}})


def test_what_is_found_is_quoted_in_short(plans):
    assert len(refusal(plans | {"plans_name": "/" * 10**6})) < 400


def test_reading_plans_looks_at_them(plans, tmp_path):
    plans["configurations"]["2d"]["data_identifier"] = "../../x"
    (tmp_path / "p.json").write_text(json.dumps(plans))
    for name in ("p", None):
        with pytest.raises(UserError, match=r"p\.json: configurations\.2d\.data_identifier = '\.\./\.\./x'"):
            read_plans(tmp_path, name)


def test_nothing_is_imported_to_find_out(plans, tmp_path):
    (tmp_path / "plans.json").write_text(json.dumps(plans))
    code = (
        "import json, sys; from umamba_seg.plan.safety import require_safe\n"
        "require_safe(json.load(open('plans.json')), 'plans.json')\n"
        "print(*{'torch', 'nnunetv2', 'dynamic_network_architectures'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.split() == []
