"""The final validation: what prediction gives, what nnU-Net's own validation leaves, and cases that fail."""

import json
import pickle
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.evaluate import evaluate_folder
from umamba_seg.predict.ensemble import average_cases
from umamba_seg.predict.label_files import read_labels
from umamba_seg.predict.predictor import Predictor
from umamba_seg.train import validation
from umamba_seg.train.distributed import Group
from umamba_seg.train.trainer import UMambaSegTrainer

CASES = [f"synth_{number:03d}" for number in range(3)]
MIRRORING = {"axes": [2], "swap": None, "reason": "a test"}


@pytest.fixture
def mirroring() -> dict:
    return MIRRORING


@pytest.fixture
def model(trained, mirroring, tmp_path) -> Path:
    """``trained`` with two looks at each tile instead of eight."""
    copy = tmp_path / "trained"
    shutil.copytree(trained.model, copy)
    plans = json.loads((copy / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["mirroring"] = mirroring
    (copy / "plans.json").write_text(json.dumps(plans))
    return copy


@pytest.fixture
def trainer(trained, model, make_trainer) -> UMambaSegTrainer:
    """With the weights of the model, as a fold that holds out three cases; it writes into a folder of its own."""
    made = make_trainer(trained.root, json.loads((model / "plans.json").read_text()), "3d_fullres", "all")
    made.load_checkpoint(str(model / "fold_0" / "checkpoint_final.safetensors"))
    made.inference_allowed_mirroring_axes = tuple(MIRRORING["axes"])
    made.do_split = lambda: ([], list(CASES))
    return made


@pytest.fixture
def output(trainer) -> Path:
    return Path(trainer.output_folder) / "validation"


def alike(one: Path, other: Path) -> float:
    """The share of voxels with the same label, of two files that lie in the same place."""
    images = [sitk.ReadImage(str(path)) for path in (one, other)]
    for get in ("GetSpacing", "GetOrigin", "GetDirection"):
        np.testing.assert_allclose(*(getattr(image, get)() for image in images), atol=1e-5)
    first, second = map(sitk.GetArrayFromImage, images)
    return float((first == second).mean())


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize(
    "mirroring", [MIRRORING, MIRRORING | {"swap": {"axis": 2, "pairs": [[1, 2]]}}], ids=["plain", "sides"]
)
def test_it_segments_as_prediction_does(trainer, trained, model, output):
    """Also where labels change places with the sides."""
    trainer.perform_actual_validation()
    assert names(output) == sorted([*(f"{case}.nii.gz" for case in CASES), "summary.json"])
    assert names(output.parent) == ["validation"]
    predictor = Predictor.load(model, ["0"], "cpu")
    assert [flip.axes for flip in predictor.flips] == [(), (2,)]
    images = {case.identifier: case.images for case in load_raw_dataset(trained.raw).cases}
    for case in CASES:
        predicted = predictor.predict(images[case]).segmentation
        assert len(np.unique(predicted)) > 1
        assert (read_labels(output / f"{case}.nii.gz") == predicted).mean() >= 0.999


def test_it_leaves_what_nnunets_leaves(trainer, nnunets_validation, output, tmp_path):
    trainer.perform_actual_validation(save_probabilities=True)
    ours, summary = output.rename(tmp_path / "ours"), json.loads((tmp_path / "ours" / "summary.json").read_text())
    nnunets_validation(trainer)
    assert names(ours) == names(output)
    for case in CASES:
        assert alike(ours / f"{case}.nii.gz", output / f"{case}.nii.gz") >= 0.999
        found, wanted = (np.load(folder / f"{case}.npz")["probabilities"] for folder in (ours, output))
        assert found.dtype == np.float16
        np.testing.assert_allclose(found.astype(np.float32), wanted, atol=2e-3)
        kept, expected = (pickle.loads((folder / f"{case}.pkl").read_bytes()) for folder in (ours, output))
        assert kept.keys() == expected.keys()
    theirs = json.loads((output / "summary.json").read_text())
    assert summary.keys() == theirs.keys()
    assert summary["mean"].keys() == theirs["mean"].keys()
    assert summary["foreground_mean"]["Dice"] == pytest.approx(theirs["foreground_mean"]["Dice"], abs=1e-3)
    for one, other in zip(summary["metric_per_case"], theirs["metric_per_case"], strict=True):
        assert {key: one[key] for key in ("prediction_file", "reference_file")} == {
            key: other[key] for key in ("prediction_file", "reference_file")
        }
        assert one["metrics"].keys() == other["metrics"].keys()


def test_the_summary_is_that_of_the_files(trainer, output, tmp_path):
    trainer.perform_actual_validation()
    references = Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"
    written = tmp_path / "again.json"
    again = evaluate_folder(references, output, trainer.dataset_json, written, 1, allow_missing=True)
    assert json.loads((output / "summary.json").read_text()) == json.loads(json.dumps(again))


def test_ensembles_read_its_probabilities(trainer, output, tmp_path):
    trainer.perform_actual_validation(save_probabilities=True)
    files = {case: [output / f"{case}.npz"] * 2 for case in CASES}
    written, failures = average_cases(files, trainer.dataset_json, tmp_path / "mean")
    assert not failures
    assert [alike(path, output / path.name) >= 0.999 for path in written] == [True] * len(CASES)


@pytest.mark.parametrize("training", [False, True])
def test_the_network_is_left_as_it_was(trainer, monkeypatch, training):
    seen = []
    segment = Predictor.segment_for_stages

    def look(self, *args, **how):
        network = trainer.network
        seen.append((network.training, network.decoder.deep_supervision))
        return segment(self, *args, **how)

    monkeypatch.setattr(Predictor, "segment_for_stages", look)
    trainer.network.train(training)
    weights = {name: value.clone() for name, value in trainer.network.state_dict().items()}
    trainer.perform_actual_validation()
    assert set(seen) == {(False, False)}
    assert trainer.enable_deep_supervision
    assert trainer.network.decoder.deep_supervision
    assert {module.training for module in trainer.network.modules()} == {training}
    assert all(torch.equal(value, weights[name]) for name, value in trainer.network.state_dict().items())


# ---------------------------------------------------------------------------------------------------- what goes wrong


def test_a_broken_off_validation_leaves_whole_files_and_can_be_repeated(trainer, output, monkeypatch):
    write, calls = validation.write_prediction, []

    def interrupted(prediction, folder, scratch, *args, **how):
        calls.append(prediction.name)
        if len(calls) == 2:
            (scratch / "half.nii.gz").write_bytes(b"half")
            raise KeyboardInterrupt
        return write(prediction, folder, scratch, *args, **how)

    with monkeypatch.context() as patch:
        patch.setattr(validation, "write_prediction", interrupted)
        with pytest.raises(KeyboardInterrupt):
            trainer.perform_actual_validation(save_probabilities=True)
    assert calls == CASES[:2]
    assert f"{CASES[0]}.nii.gz" in names(output)
    assert not {f"{CASES[1]}.nii.gz", "summary.json"} & set(names(output))
    killed = output.parent / ".validation_0.part"
    assert not killed.exists()
    killed.mkdir()
    (killed / "half.nii.gz").write_bytes(b"half")
    trainer.perform_actual_validation()
    assert names(output.parent) == ["validation"]
    assert "summary.json" in names(output)


@pytest.fixture
def own_data(trainer, tmp_path) -> Path:
    """The preprocessed data as a copy that may be damaged."""
    base = Path(trainer.preprocessed_dataset_folder_base)
    copy = tmp_path / base.name
    shutil.copytree(base, copy)
    trainer.preprocessed_dataset_folder_base = str(copy)
    trainer.preprocessed_dataset_folder = str(copy / Path(trainer.preprocessed_dataset_folder).name)
    return copy


def test_a_case_that_cannot_be_read_is_named(trainer, own_data):
    file = Path(trainer.preprocessed_dataset_folder) / f"{CASES[1]}.b2nd"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(UserError, match=rf"{CASES[1]}.b2nd: this preprocessed file cannot be read"):
        trainer.perform_actual_validation()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (Path.unlink, rf"gt_segmentations/{CASES[2]}.nii.gz: no such file"),
        (
            lambda path: sitk.WriteImage(sitk.ReadImage(str(path))[:, :, :3], str(path)),
            rf"validation/{CASES[2]}.nii.gz: has the shape .*, but .*gt_segmentations/{CASES[2]}.nii.gz has 3×",
        ),
        (
            lambda path: sitk.WriteImage(sitk.Cast(sitk.ReadImage(str(path)), sitk.sitkFloat32) + 0.5, str(path)),
            rf"^{CASES[2]}, reference: holds numbers that are not whole; give labels",
        ),
    ],
)
def test_a_reference_that_does_not_fit_is_named(trainer, own_data, damage, message):
    damage(own_data / "gt_segmentations" / f"{CASES[2]}.nii.gz")
    with pytest.raises(UserError, match=message):
        trainer.perform_actual_validation()


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), f"^{CASES[0]}: memory ran out when it was validated; close what else .* with --val$"),
        (torch.OutOfMemoryError("CUDA out of memory"), f"^{CASES[0]}: memory ran out when it was validated"),
        (UserError("image", "is odd", "look at it"), f"^{CASES[0]}, image: is odd; look at it$"),
    ],
)
def test_a_case_that_cannot_be_segmented_is_named(trainer, monkeypatch, error, message):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(Predictor, "segment_for_stages", fail)
    with pytest.raises(UserError, match=message):
        trainer.perform_actual_validation()
    assert trainer.network.decoder.deep_supervision


def test_a_network_that_gives_nan_is_named_with_the_case(trainer):
    with torch.no_grad():
        next(trainer.network.parameters()).fill_(float("nan"))
    with pytest.raises(UserError, match=f"^{CASES[0]}: the network's output is NaN or infinite in float32"):
        trainer.perform_actual_validation()


def test_other_errors_are_ours(trainer, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("shape mismatch")

    monkeypatch.setattr(Predictor, "segment_for_stages", fail)
    with pytest.raises(RuntimeError, match="shape mismatch"):
        trainer.perform_actual_validation()


# ------------------------------------------------------------------------------------------------- several processes


def test_each_process_takes_its_share_and_the_first_sums_up(trainer, output, monkeypatch):
    given = []
    monkeypatch.setattr(Group, "gather", lambda self, value: given.append(value) or given)
    trainer.network = SimpleNamespace(module=trainer.network)  # as a distributed training wraps it
    trainer.group = Group(rank=1, size=2)
    trainer.perform_actual_validation()
    assert names(output) == [f"{case}.nii.gz" for case in CASES[1::2]]
    trainer.group = Group(rank=0, size=2)
    trainer.perform_actual_validation()
    assert names(output) == sorted([*(f"{case}.nii.gz" for case in CASES), "summary.json"])
    scored = json.loads((output / "summary.json").read_text())["metric_per_case"]
    assert [Path(case["prediction_file"]).name for case in scored] == [f"{case}.nii.gz" for case in CASES]
