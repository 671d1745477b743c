"""Official result folders become model folders: same network, nothing executed, nothing written that does not fit."""

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba_seg.networks import Topology, build
from umamba_seg.train.checkpoints import load_checkpoint

TOPOLOGY = Topology((8, 16, 16), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 8, 8))
IO = {"input_channels": 1, "num_classes": 3}
DATASET = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1, "tumour": 2}, "file_ending": ".nii.gz"}


def old_configuration() -> dict:
    """A configuration as nnU-Net 2.1, which U-Mamba is built on, writes it."""
    resampling = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    shared = {"resampling_fn_data": resampling, "resampling_fn_seg": resampling | {"is_seg": True, "order": 1}}
    shared["resampling_fn_probabilities"] = resampling | {"order": 1}
    return {
        "data_identifier": "nnUNetPlans_3d_fullres",
        "preprocessor_name": "DefaultPreprocessor",
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "median_image_size_in_voxels": [10.0, 20.0, 18.0],
        "spacing": [2.0, 1.0, 1.0],
        "normalization_schemes": ["ZScoreNormalization"],
        "use_mask_for_norm": [False],
        "UNet_class_name": "PlainConvUNet",
        "UNet_base_num_features": 4,
        "n_conv_per_stage_encoder": [2, 2, 2],
        "n_conv_per_stage_decoder": [2, 2],
        "num_pool_per_axis": [1, 2, 2],
        "pool_op_kernel_sizes": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "conv_kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "unet_max_num_features": 8,
        **{key: "resample_data_or_seg_to_shape" for key in shared},
        **{f"{key}_kwargs": value for key, value in shared.items()},
        "batch_dice": False,
    }


def old_plans() -> dict:
    return {
        "dataset_name": "Dataset007_Small",
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [2.0, 1.0, 1.0],
        "original_median_shape_after_transp": [10, 20, 18],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "configurations": {"3d_fullres": old_configuration(), "2d": {"patch_size": [16, 16]}},
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {"mean": 1.0, "std": float("nan")}},
    }


def official_names(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The weights of our U-Mamba_Bot as the official network names them, aliases included."""
    state = {}
    for key, value in network.state_dict().items():
        name = re.sub(r"^encoder\.mamba_layers\.\d+\.", "mamba_layer.", key)
        names = [name, f"decoder.{name}"] if name.startswith("encoder.") else [name]
        for part, alias in ((".conv.", ".all_modules.0."), (".norm.", ".all_modules.1.")):
            names += [name.replace(part, alias) for name in names if part in name and "mamba_layer" not in name]
        state |= dict.fromkeys(names, value)
    return state


def official_checkpoint(weights: dict, trainer: str = "nnUNetTrainerUMambaBot") -> dict:
    """As nnU-Net's trainer saves it, with numpy's numbers in its logs."""
    return {
        "network_weights": weights,
        "optimizer_state": {"state": {0: {"momentum_buffer": torch.zeros(2)}}, "param_groups": [{"lr": 0.01}]},
        "grad_scaler_state": {"scale": 65536.0},
        "logging": {"mean_fg_dice": [np.float64(0.5)], "train_losses": [np.float32(-0.25)], "lrs": [0.01]},
        "_best_ema": np.float64(0.5),
        "current_epoch": 1000,
        "init_args": {
            "plans": old_plans(),
            "configuration": "3d_fullres",
            "fold": 0,
            "dataset_json": DATASET,
            "unpack_dataset": True,
            "device": torch.device("cuda"),
        },
        "trainer_name": trainer,
        "inference_allowed_mirroring_axes": (0, 1, 2),
    }


class Official:
    """A result folder that a test changes before it is converted."""

    def __init__(self, root: Path, weights: dict):
        self.folder = root / "nnUNetTrainerUMambaBot__nnUNetPlans__3d_fullres"
        self.file = self.folder / "fold_0" / "checkpoint_final.pth"
        self.file.parent.mkdir(parents=True)
        self.checkpoint = official_checkpoint(weights)
        self.plans, self.dataset = old_plans(), dict(DATASET)
        self.save()

    def save(self) -> None:
        torch.save(self.checkpoint, self.file)
        (self.folder / "plans.json").write_text(json.dumps(self.plans))
        (self.folder / "dataset.json").write_text(json.dumps(self.dataset))


@pytest.fixture(scope="module")
def network() -> torch.nn.Module:
    torch.manual_seed(0)
    return build("umamba_bot", **IO, topology=TOPOLOGY).eval()


@pytest.fixture
def official(tmp_path, network) -> Official:
    return Official(tmp_path, official_names(network))


@pytest.fixture
def convert(umamba_seg, tmp_path, official):
    """``convert()`` runs the command line on the official folder as the test has changed it."""

    def run(*words):
        official.save()
        return umamba_seg("convert", "checkpoint", official.file, tmp_path / "model", *words, "--json")

    return run


@pytest.fixture
def refusal(convert, tmp_path):
    """``refusal()`` is the message of a conversion that must not write anything."""

    def run(*words) -> str:
        done = convert(*words)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert not (tmp_path / "model").exists()
        return done.err

    return run


def converted(model: Path) -> SimpleNamespace:
    plans = json.loads((model / "plans.json").read_text())
    return SimpleNamespace(plans=plans, configuration=plans["configurations"].get("3d_fullres"))


def rewritten(path: Path, change) -> None:
    """A checkpoint with its pickle changed."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, change(data) if name.endswith("data.pkl") else data)


def test_official_model_predicts_after_its_conversion(convert, umamba_seg, official, network, tmp_path):
    from umamba_seg.predict.predictor import Predictor

    (official.folder / "dataset_fingerprint.json").write_text('{"spacings": [[2.0, 1.0, 1.0]]}')
    result = convert().succeeded().result
    model = tmp_path / "model"
    assert result == {
        "model_folder": str(model),
        "network": "umamba_bot",
        "configuration": "3d_fullres",
        "fold": 0,
        "checkpoint": str(model / "fold_0" / "checkpoint_final.pth"),
    }
    assert sorted(path.name for path in model.rglob("*") if path.is_file()) == [
        "checkpoint_final.pth",
        "dataset.json",
        "dataset_fingerprint.json",
        "plans.json",
    ]

    predictor = Predictor.load(model, ["0"], "cpu")
    x = torch.randn(2, 1, 8, 16, 16)
    with torch.inference_mode():
        torch.testing.assert_close(predictor.networks[0](x), network(x))
    assert predictor.flips[-1].axes == (0, 1, 2)

    (tmp_path / "images").mkdir()
    image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(10, 20, 18)).astype(np.float32))
    image.SetSpacing((1.0, 1.0, 2.0))
    sitk.WriteImage(image, str(tmp_path / "images" / "case_0000.nii.gz"))
    words = ("-i", tmp_path / "images", "-o", tmp_path / "out", "-device", "cpu", "--disable_tta")
    umamba_seg("predict", "-m", model, *words).succeeded()
    segmentation = sitk.ReadImage(str(tmp_path / "out" / "case.nii.gz"))
    assert segmentation.GetSize() == image.GetSize()
    assert len(np.unique(sitk.GetArrayFromImage(segmentation))) > 1


def test_plans_and_checkpoint_are_in_our_form(convert, tmp_path):
    convert().succeeded()
    found = converted(tmp_path / "model")
    assert list(found.plans["configurations"]) == ["3d_fullres"]
    assert found.plans["plans_name"] == "nnUNetPlans"
    assert found.plans["umamba_seg"]["network"] == "umamba_bot"
    assert found.plans["umamba_seg"]["budget"] == "official"
    assert found.plans["umamba_seg"]["training"]["epochs"] == 1000
    assert found.configuration["architecture"]["network_class_name"] == "umamba_seg.networks.umamba.UMamba"
    assert found.configuration["output_strides"] == [[1, 1, 1], [1, 2, 2]]
    assert found.configuration["topology"] == {
        "strides": [[1, 1, 1], [1, 2, 2], [2, 2, 2]],
        "kernel_sizes": [[1, 3, 3], [3, 3, 3], [3, 3, 3]],
        "features": [4, 8, 8],
    }
    checkpoint = load_checkpoint(tmp_path / "model" / "fold_0" / "checkpoint_final.pth")
    assert set(checkpoint) == {"network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes"}
    assert checkpoint["init_args"] == {"configuration": "3d_fullres", "fold": 0}
    assert checkpoint["trainer_name"] == "nnUNetTrainer"


def test_weights_in_other_precisions_and_wrappers(convert, official, network, tmp_path):
    weights = official.checkpoint["network_weights"]
    official.checkpoint["network_weights"] = {f"module._orig_mod.{key}": w.double() for key, w in weights.items()}
    convert().succeeded()
    found = load_checkpoint(tmp_path / "model" / "fold_0" / "checkpoint_final.pth")["network_weights"]
    assert {key: weight.dtype for key, weight in found.items()} == dict.fromkeys(network.state_dict(), torch.float32)


def test_numbers_of_numpy_1_and_2_are_read(umamba_seg, official, tmp_path):
    for i, module in enumerate((b"numpy.core.multiarray", b"numpy._core.multiarray")):
        rewritten(official.file, lambda data, new=module: re.sub(rb"numpy\._?core\.multiarray", new, data))
        umamba_seg("convert", "checkpoint", official.file, tmp_path / f"model{i}").succeeded()


class RunsACommand:
    def __reduce__(self):
        return os.system, (f"touch {self.flag}",)


def test_checkpoint_that_would_execute_something_is_refused(refusal, official, tmp_path):
    payload = RunsACommand()
    payload.flag = tmp_path / "executed"
    official.checkpoint["logging"] = payload
    error = refusal()
    assert "(posix.system), and loading that could execute anything; if you trust it" in error
    assert not payload.flag.exists()


@pytest.mark.parametrize(
    ("extra", "named"),
    [(Path("x"), r"\(pathlib\S+\)"), (np.zeros(2), r"\(numpy\S+_reconstruct\)"), (np.complex64(1), "")],
)
def test_what_nnunet_has_no_need_of_is_refused(refusal, official, extra, named):
    official.checkpoint["logging"]["extra"] = extra
    assert re.search(rf"more than tensors and plain values ?{named}, and loading", refusal())


@pytest.mark.parametrize("content", [{"state_dict": {}}, {"network_weights": {}}, [1], {"network_weights": [1]}])
def test_checkpoint_of_something_else_is_refused(refusal, official, content):
    official.checkpoint = content
    assert "name the checkpoint of an official result folder" in refusal()


def test_files_that_are_missing_are_named_before_torch_is_loaded(official, tmp_path):
    (official.folder / "plans.json").unlink()
    code = (
        "import sys; from umamba_seg.__main__ import main\n"
        f"for file in ({str(official.file)!r}, {str(tmp_path / 'nothing.pth')!r}):\n"
        "    assert main(['convert', 'checkpoint', file, 'model']) == 2\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "plans.json: no such file; leave the checkpoint in its result folder" in done.stderr
    assert "nothing.pth: no such file" in done.stderr


def test_unknown_trainer_is_refused_and_the_network_can_be_named(refusal, convert, official):
    official.checkpoint["trainer_name"] = "nnUNetTrainerMine"
    error = refusal()
    for part in ("'nnUNetTrainerMine'", "nnUNetTrainerUMambaBot", "nnUNetTrainerLightMUNet", "--network"):
        assert part in error
    assert "choose one of umamba_bot" in refusal("--network", "unet")
    assert convert("--network", "umamba_bot").succeeded().result["network"] == "umamba_bot"


def test_weights_that_do_not_fit_are_refused_with_their_names(refusal, official):
    official.plans["configurations"]["3d_fullres"]["unet_max_num_features"] = 16
    official.checkpoint["network_weights"]["surplus"] = torch.zeros(1)
    error = refusal()
    for part in ("checkpoint_final.pth", "surplus", "of another shape", "--network"):
        assert part in error
    assert "missing in the checkpoint" in refusal("--network", "umamba_enc")


def test_fixed_depth_takes_the_arguments_of_the_official_trainer(convert, official, tmp_path):
    lightmunet = build("lightmunet", **IO, spatial_dims=3)
    official.checkpoint = official_checkpoint(lightmunet.state_dict(), "nnUNetTrainerLightMUNet")
    official.plans["configurations"]["3d_fullres"]["patch_size"] = [16, 24, 16]
    convert().succeeded()
    found = converted(tmp_path / "model").configuration
    assert found["architecture"]["arch_kwargs"] == {"spatial_dims": 3}
    assert found["output_strides"] == [[1, 1, 1]]
    assert found["topology"]["features"] == [32, 64, 128, 256]


@pytest.mark.parametrize(
    ("name", "patch", "message"),
    [
        ("lightmunet", [8, 20, 16], "patch_size (8, 20, 16) is not divisible"),
        ("segmamba", [48, 48, 48], "SegMamba: does not run on a patch of 48×48×48 voxels: stage 2: slices = 16"),
        ("segmamba", [48, 48], "this network is 3-D only"),
    ],
)
def test_network_that_the_patch_does_not_suit_is_refused(refusal, official, name, patch, message):
    official.plans["configurations"]["3d_fullres"]["patch_size"] = patch
    assert message in refusal("--network", name)


@pytest.mark.parametrize("class_name", ["PlainConvUNet", "ResidualEncoderUNet"])
def test_stock_trainer_trains_the_network_of_the_plans(convert, official, tmp_path, class_name):
    name = {"PlainConvUNet": "plain_conv_unet", "ResidualEncoderUNet": "residual_encoder_unet"}[class_name]
    official.checkpoint = official_checkpoint(build(name, **IO, topology=TOPOLOGY).state_dict(), "nnUNetTrainer")
    official.plans["configurations"]["3d_fullres"]["UNet_class_name"] = class_name
    assert convert().succeeded().result["network"] == name
    architecture = converted(tmp_path / "model").configuration["architecture"]

    # Plans since nnU-Net 2.4 hold the whole of the network, which may differ from what nnU-Net's planners write.
    architecture["arch_kwargs"]["nonlin"] = "torch.nn.ReLU"
    shutil.rmtree(tmp_path / "model")
    old = official.plans["configurations"]["3d_fullres"]
    new = {key: value for key, value in old.items() if not re.search("UNet|unet|conv_|_conv|pool", key)}
    official.plans["configurations"]["3d_fullres"] = new | {"architecture": architecture}
    convert().succeeded()
    assert converted(tmp_path / "model").configuration["architecture"] == architecture


def test_network_of_unknown_plans_is_refused(refusal, official):
    official.checkpoint["trainer_name"] = "nnUNetTrainer"
    official.plans["configurations"]["3d_fullres"]["UNet_class_name"] = "MyNet"
    assert "'MyNet'; known are PlainConvUNet, ResidualEncoderUNet; say with --network" in refusal()


def test_inheritance_is_resolved(convert, official, tmp_path):
    official.plans["configurations"]["bs4"] = {"inherits_from": "3d_fullres", "batch_size": 4, "next_stage": "x"}
    official.checkpoint["init_args"]["configuration"] = "bs4"
    convert().succeeded()
    found = converted(tmp_path / "model").plans["configurations"]
    assert list(found) == ["bs4"]
    assert found["bs4"]["batch_size"] == 4
    assert found["bs4"]["patch_size"] == [8, 16, 16]
    assert not {"inherits_from", "next_stage"} & set(found["bs4"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inherits_from": "3d_fullres"}, "inherits from itself"),
        ({"inherits_from": "gone"}, "there is no 'gone' among 3d_fullres, 2d"),
        ({"previous_stage": "3d_lowres"}, "second stage of a cascade"),
        (
            {"architecture": {"network_class_name": "x.Net", "arch_kwargs": {}, "_kw_requires_import": []}},
            "has no 'strides'",
        ),
    ],
)
def test_configurations_that_cannot_be_read_are_refused(refusal, official, change, message):
    official.plans["configurations"]["3d_fullres"] |= change
    error = refusal()
    assert message in error
    assert "plans.json, configuration 3d_fullres" in error


def test_configuration_without_a_patch_is_refused(refusal, official):
    del official.plans["configurations"]["3d_fullres"]["patch_size"]
    assert "has no 'patch_size'" in refusal()


@pytest.mark.parametrize(
    ("change", "message"),
    [({"channel_names": None}, 'no "channel_names"'), ({"labels": {"0": "background"}}, "turn it round")],
)
def test_dataset_json_that_cannot_be_read_is_refused(refusal, official, change, message):
    official.dataset |= change
    assert message in refusal()


def test_regions_have_one_output_each(convert, official):
    official.dataset |= {
        "labels": {"background": 0, "all": [1, 2, 3], "core": [2, 3], "edge": 3},
        "regions_class_order": [1, 2, 3],
    }
    convert().succeeded()  # three outputs, as the three labels of the other tests


def test_without_init_args_the_folders_say_what_it_is(convert, official):
    del official.checkpoint["init_args"], official.checkpoint["inference_allowed_mirroring_axes"]
    result = convert().succeeded().result
    assert (result["configuration"], result["fold"]) == ("3d_fullres", 0)


@pytest.mark.parametrize("fold", ["../../elsewhere", None, -1])
def test_fold_that_is_none_is_refused(refusal, official, fold):
    official.checkpoint["init_args"]["fold"] = fold
    assert f"its fold is {fold!r}; put it into a folder named fold_0" in refusal()


def test_folds_add_up_and_are_never_overwritten(convert, official, tmp_path):
    convert().succeeded()
    before = (tmp_path / "model" / "fold_0" / "checkpoint_final.pth").read_bytes()
    again = convert()
    assert again.code == 2
    assert "is there already" in again.err

    official.checkpoint["init_args"]["fold"] = "all"
    convert().succeeded()
    assert sorted(path.name for path in (tmp_path / "model").glob("fold_*")) == ["fold_0", "fold_all"]
    assert (tmp_path / "model" / "fold_0" / "checkpoint_final.pth").read_bytes() == before

    official.checkpoint["init_args"]["fold"] = 1
    official.plans["configurations"]["3d_fullres"]["spacing"] = [3.0, 1.0, 1.0]
    other = convert()
    assert other.code == 2
    assert "plans.json: belongs to another model" in other.err
    assert not (tmp_path / "model" / "fold_1").exists()
