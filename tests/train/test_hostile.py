"""Files made to do harm: nothing of them is executed, nothing is written elsewhere, and the reason is told."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba_seg.networks import Topology, build_from, find
from umamba_seg.train.checkpoints import save_pth, write_checkpoint

TOPOLOGY = Topology((8, 16, 16), ((1, 1, 1), (1, 2, 2), (2, 2, 2)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 8, 8))
RESAMPLING = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
PATHS = ("../../x", "/etc/x")


class TouchesAFile:
    """Pickled, it is an order to run a command."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


class Folder:
    """A model folder, and images for it, in a folder of their own; a test changes the parts before it predicts."""

    def __init__(self, root: Path, run: Callable):
        self.root, self.run, self.model, self.mark = root, run, root / "results" / "model", root / "executed"
        resampling = {f"resampling_fn_{kind}": "resample_data_or_seg_to_shape" for kind in ("data", "seg")}
        resampling["resampling_fn_probabilities"] = "resample_data_or_seg_to_shape"
        spec = find("plain_conv_unet")
        self.architecture = spec.architecture(spec.planned(TOPOLOGY))
        self.configuration = {
            "data_identifier": "data",
            "preprocessor_name": "DefaultPreprocessor",
            "batch_size": 2,
            "patch_size": [8, 16, 16],
            "spacing": [1.0, 1.0, 1.0],
            "normalization_schemes": ["ZScoreNormalization"],
            "use_mask_for_norm": [False],
            **resampling,
            **{f"{key}_kwargs": RESAMPLING for key in resampling},
            "architecture": self.architecture,
            "batch_dice": False,
            "output_strides": [[1, 1, 1], [1, 2, 2]],
        }
        self.plans = {
            "dataset_name": "Dataset007_Small",
            "plans_name": "p",
            "image_reader_writer": "SimpleITKIO",
            "label_manager": "LabelManager",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "foreground_intensity_properties_per_channel": {"0": {"mean": 0.0, "std": 1.0}},
            "configurations": {"3d_fullres": self.configuration},
            "umamba_seg": {"network": spec.name, "budget": "cpu", "training": {}},
        }
        self.dataset = {
            "channel_names": {"0": "CT"},
            "labels": {"background": 0, "liver": 1},
            "numTraining": 1,
            "file_ending": ".nii.gz",
        }
        network = build_from(self.architecture, input_channels=1, num_classes=2, deep_supervision=False)
        self.weights = network.state_dict()
        self.checkpoint = {
            "network_weights": self.weights,
            "init_args": {"configuration": "3d_fullres", "fold": 0},
            "trainer_name": "nnUNetTrainer",
            "inference_allowed_mirroring_axes": None,
        }
        (self.model / "fold_0").mkdir(parents=True)
        (root / "images").mkdir()
        image = sitk.GetImageFromArray(np.random.default_rng(0).normal(size=(8, 16, 16)).astype(np.float32))
        sitk.WriteImage(image, str(root / "images" / "case_0000.nii.gz"))

    @property
    def pth(self) -> Path:
        return self.model / "fold_0" / "checkpoint_final.pth"

    def write(self) -> None:
        """The files that the test has not written itself."""
        if not self.pth.exists():
            save_pth(self.pth, self.checkpoint)
        for name, content in (("plans.json", self.plans), ("dataset.json", self.dataset)):
            if not (self.model / name).exists():
                (self.model / name).write_text(json.dumps(content))

    def predict(self, checkpoint: str = "checkpoint_final.pth") -> SimpleNamespace:
        self.write()
        return self.run(
            "predict", "-i", self.root / "images", "-o", self.root / "out", "-m", self.model,
            "-device", "cpu", "-chk", checkpoint,
        )  # fmt: skip

    def refusal(self, *checkpoint: str) -> str:
        """Why the prediction is refused, with nothing executed and no file written."""
        done = self.predict(*checkpoint)
        assert done.code == 2, done.err
        assert "Traceback" not in done.err
        assert not self.mark.exists()
        assert sorted(path.name for path in self.root.iterdir()) == ["images", "results"]
        return done.err


@pytest.fixture
def folder(tmp_path, umamba_seg, monkeypatch) -> Folder:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    return Folder(tmp_path, umamba_seg)


def test_the_folder_predicts_as_it_is(folder):
    folder.predict().succeeded()
    assert (folder.root / "out" / "case.nii.gz").is_file()


# -------------------------------------------------------------------------------------------------------- checkpoints


@pytest.mark.parametrize("place", ["weights", "arguments", "beside"])
def test_a_pickle_that_runs_a_command_is_refused(folder, place):
    payload = TouchesAFile(folder.mark)
    changes = {
        "weights": {"network_weights": folder.weights | {"x": payload}},
        "arguments": {"init_args": {"configuration": payload}},
        "beside": {"extra": payload},
    }
    torch.save(folder.checkpoint | changes[place], folder.pth)
    assert "(posix.system), and loading that could execute anything" in folder.refusal()


def test_a_pickle_alone_is_refused(folder):
    torch.save(TouchesAFile(folder.mark), folder.pth)
    assert "could execute anything" in folder.refusal()


def test_a_pickle_before_torchs_own_form_is_refused(folder):
    torch.save(folder.checkpoint | {"x": TouchesAFile(folder.mark)}, folder.pth, _use_new_zipfile_serialization=False)
    assert "is damaged, or no checkpoint at all" in folder.refusal()


def test_the_payload_would_have_run(folder):
    torch.save(TouchesAFile(folder.mark), folder.pth)
    torch.load(folder.pth, weights_only=False)
    assert folder.mark.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"init_args": {"configuration": "../../x"}},
        {"init_args": {"configuration": ["3d_fullres"]}},
        {"init_args": {}},
        {"init_args": "3d_fullres"},
        {"network_weights": [1]},
        {"network_weights": {1: 2}},
        {"network_weights": {"x": "y"}},
        {"inference_allowed_mirroring_axes": "abc"},
        {"inference_allowed_mirroring_axes": [[0]]},
        {"inference_allowed_mirroring_axes": (0, 7)},
    ],
)
def test_a_checkpoint_with_other_values_is_refused(folder, change):
    torch.save(folder.checkpoint | change, folder.pth)
    assert f"{folder.pth}: " in folder.refusal()


@pytest.mark.parametrize("prediction", [{}, {"init_args": {"configuration": 3}}])
def test_a_checkpoint_of_ours_with_other_values_is_refused(folder, prediction):
    ours = folder.pth.with_suffix(".safetensors")
    beside = {"trainer_name": "nnUNetTrainer", "inference_allowed_mirroring_axes": None}
    write_checkpoint(ours, folder.weights, {"prediction": beside | prediction})
    assert f"{ours}: is no checkpoint of umamba-seg" in folder.refusal(ours.name)


def test_a_configuration_that_the_plans_do_not_hold_is_named(folder):
    folder.checkpoint["init_args"]["configuration"] = "2d"
    assert f"is of the configuration '2d', which {folder.model / 'plans.json'} does not hold" in folder.refusal()


def test_a_pickle_by_the_name_of_our_own_form_is_refused(folder):
    ours = folder.pth.with_suffix(".safetensors")
    torch.save(TouchesAFile(folder.mark), ours)
    assert f"{ours}: is damaged" in folder.refusal(ours.name)


# -------------------------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("path", ["os.system", "subprocess.Popen", "antigravity.x", "torch.nn.Linear", "evil.Net"])
def test_a_class_that_is_no_network_is_refused(folder, path):
    (folder.root / "results" / "evil.py").write_text(f"open({str(folder.mark)!r}, 'w')")
    os.chdir(folder.root / "results")  # where it would be found
    folder.architecture["network_class_name"] = path
    folder.architecture["arch_kwargs"] = {"command": f"touch {folder.mark}"}
    assert f"network {path}: " in folder.refusal()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("umamba_seg.errors.UserError", "is no torch.nn.Module"),
        ("torch.nn.modules.linear.Linear", "is not built as networks are"),
    ],
)
def test_a_class_of_another_kind_is_not_called(folder, path, message):
    folder.architecture |= {"network_class_name": path, "_kw_requires_import": []}
    assert message in folder.refusal()


def test_a_layer_that_runs_a_command_is_refused(folder):
    # Built as nonlin(**nonlin_kwargs).
    folder.architecture["arch_kwargs"] |= {
        "nonlin": "torch.nn.modules.module.torch.os.system",
        "nonlin_kwargs": {"command": f"touch {folder.mark}"},
    }
    assert "torch.nn.modules.module.torch.os.system" in folder.refusal()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("key", ["dataset_name", "plans_name"])
def test_names_of_the_plans_lead_nowhere_else(folder, key, path):
    folder.plans[key] = path
    assert f"{key} = {path!r}: Value error, becomes part of a path" in folder.refusal()


@pytest.mark.parametrize("path", PATHS)
def test_names_of_configurations_and_their_data_lead_nowhere_else(folder, path):
    folder.configuration["data_identifier"] = path
    assert f"data_identifier = {path!r}: Value error, becomes part of a path" in folder.refusal()


def test_a_function_that_nnunets_modules_import_is_refused(folder):
    folder.configuration["resampling_fn_data"] = "OrderedDict"
    assert "resampling_fn_data = 'OrderedDict'" in folder.refusal()


@pytest.mark.parametrize("name", ["plans.json", "dataset.json"])
@pytest.mark.parametrize("text", ["[" * 10**6 + "]" * 10**6, '{"a":' * 10**6, "[]", "\x00", "{"])
def test_json_of_another_kind_is_refused(folder, name, text):
    (folder.model / name).write_text(text)
    assert f"{folder.model / name}: " in folder.refusal()


# ------------------------------------------------------------------------------------------------- what data sets say


@pytest.mark.parametrize("ending", ["/../../x.nii.gz", "", 3, [".nii.gz"], ".sh"])
def test_an_ending_that_is_none_of_images_is_refused(folder, ending):
    folder.dataset["file_ending"] = ending
    assert f'"file_ending" is {ending!r}, which is none of' in folder.refusal()


@pytest.mark.parametrize("change", [{"labels": {"background": []}}, {"labels": 3}, {"channel_names": ["CT"]}])
def test_a_description_of_another_kind_is_refused(folder, change):
    folder.dataset |= change
    assert f"{folder.model / 'dataset.json'}: " in folder.refusal()


@pytest.fixture
def raw(tmp_path) -> Path:
    """A raw data set of one case that dataset.json lists."""
    folder = tmp_path / "nnUNet_raw" / "Dataset007_Small"
    folder.mkdir(parents=True)
    for name in ("image.nii.gz", "label.nii.gz"):
        (folder / name).write_bytes(b"")
    return folder


@pytest.mark.parametrize("case", ["../../x", "/etc/x", "a\\..\\b", ".."])
def test_cases_that_are_named_as_paths_are_refused(folder, raw, case):
    listed = {"dataset": {case: {"images": ["image.nii.gz"], "label": "label.nii.gz"}}}
    (raw / "dataset.json").write_text(json.dumps(folder.dataset | listed))
    done = folder.run("plan_and_preprocess", "-d", 7, "--root", raw.parents[1], "--network", "umamba_bot")
    assert done.code == 2
    assert f'"dataset" names cases by paths: {case}' in done.err


@pytest.mark.parametrize("case", ["../../x", "/etc/x"])
def test_folds_whose_cases_are_paths_are_refused(folder, case):
    preprocessed = folder.root / "nnUNet_preprocessed" / "Dataset007_Small"
    preprocessed.mkdir(parents=True)
    (preprocessed / "p.json").write_text(json.dumps(folder.plans))
    (preprocessed / "splits_final.json").write_text(json.dumps([{"train": [case], "val": ["a"]}]))
    done = folder.run("train", "-d", 7, "--root", folder.root, "-c", "3d_fullres", "-f", 0, "-device", "cpu")
    assert done.code == 2
    assert f"fold 0 names cases by paths: {case}" in done.err


# ----------------------------------------------------------------------------------------------- other commands' plans


def test_plans_to_train_with_are_looked_at(folder):
    preprocessed = folder.root / "nnUNet_preprocessed" / "Dataset007_Small"
    preprocessed.mkdir(parents=True)
    folder.architecture["network_class_name"] = "os.system"
    (preprocessed / "p.json").write_text(json.dumps(folder.plans))
    common = ("-d", 7, "--root", folder.root, "-c", "3d_fullres")
    for words in (
        ("train", *common, "-f", 0),
        ("plan", "show", "-d", 7, "--root", folder.root),
        ("cost", "umamba_bot", *common),
    ):
        done = folder.run(*words)
        assert done.code == 2
        assert "network os.system: no source file" in done.err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data_identifier": "../../x"}, "becomes part of a path"),
        ({"patch_size": "8"}, "patch_size = '8'"),
        ({"inherits_from": "3d_fullres"}, "inherits from itself"),
    ],
)
def test_official_plans_are_looked_at_before_they_are_converted(folder, change, message):
    folder.configuration |= change
    folder.write()
    done = folder.run("convert", "checkpoint", folder.pth, folder.root / "converted")
    assert done.code == 2
    assert message in done.err
    assert not (folder.root / "converted").exists()


def test_layers_of_official_plans_are_looked_at(folder):
    folder.architecture["arch_kwargs"] |= {
        "nonlin": "torch.nn.modules.module.torch.os.system",
        "nonlin_kwargs": {"command": f"touch {folder.mark}"},
    }
    folder.write()
    done = folder.run("convert", "checkpoint", folder.pth, folder.root / "converted")
    assert done.code == 2
    assert not folder.mark.exists()
    assert not (folder.root / "converted").exists()
