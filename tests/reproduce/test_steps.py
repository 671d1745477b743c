"""What a job lacks, told by files alone, and the measuring."""

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba_seg.errors import UserError
from umamba_seg.evaluate.results import read_case_metrics
from umamba_seg.reproduce.steps import (
    Machine,
    convert_step,
    fold_step,
    is_measured,
    measure,
    plan_step,
    predict_step,
    require_test_cases,
)

LABELS = {"channel_names": {"0": "MR"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
FOLDS = [{"train": ["b"], "val": ["a"]}, {"train": ["a"], "val": ["b"]}]
BOTH = "folds = [0, 1]"
TEST = 'scored = "test"'


def touch(path: Path, text: str = "") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def mask(path: Path, extent: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.zeros((6, 6, 6), np.uint8)
    array[1:extent] = 1
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))


def validated(job) -> None:
    """As if the folds were trained: b is segmented less well than a."""
    touch(job.raw / "dataset.json", json.dumps(LABELS | {"numTraining": 2}))
    touch(job.preprocessed / "splits_final.json", json.dumps(FOLDS))
    for fold, (case, extent) in enumerate((("a", 4), ("b", 3))):
        if fold in job.dataset.folds:
            mask(job.model / f"fold_{fold}" / "validation" / f"{case}.nii.gz", extent)
    for case in "ab":
        mask(job.preprocessed / "gt_segmentations" / f"{case}.nii.gz", 4)


def test_the_command_that_converts(small_job, tmp_path):
    job = small_job(dataset='convert = ["amos", "--modality", "mr"]')
    step = convert_step(job, tmp_path)
    assert step.command == (
        "convert", "amos", "--modality", "mr", "-i", str(tmp_path), "-d", "901", "--name", "Tiny",
    )  # fmt: skip
    job.raw.mkdir(parents=True)
    assert convert_step(job, tmp_path) is None


def test_a_data_set_that_is_missing(small_job, tmp_path):
    with pytest.raises(UserError, match="no such data set; give --source liver=FOLDER"):
        convert_step(small_job(), None)
    with pytest.raises(UserError, match="there is no converter for this data set"):
        convert_step(small_job(), tmp_path)


def test_the_command_that_plans(small_job):
    command = plan_step(small_job(), Machine(processes=2)).command
    assert command[:3] == ("plan_and_preprocess", "-d", "Dataset901_Tiny")
    assert command[-4:-2] == ("--budget", "cpu")
    assert command[command.index("-np") :][:2] == ("-np", "2")


def test_plans_of_a_data_set_that_is_yet_to_be_converted_again(small_job):
    """Its raw form was removed, and the release is at hand."""
    job = small_job()
    touch(job.preprocessed / f"{job.plans}.json", "{}")
    assert plan_step(job, Machine()) is not None


def test_a_fold_is_trained_then_gone_on_with_then_validated(small_job):
    job, machine = small_job(training="epochs = 3\nseeds = [5]"), Machine("cpu")
    folder = job.model / "fold_0"
    first = fold_step(job, 0, machine)
    assert first.command[-6:] == ("--seed", "5", "--epochs", "3", "-device", "cpu")
    touch(folder / "checkpoint_latest.safetensors")
    assert "--c" in fold_step(job, 0, machine).command
    touch(folder / "checkpoint_final.pth")
    assert "--val" in fold_step(job, 0, machine).command
    touch(folder / "validation" / "summary.json")
    assert fold_step(job, 0, machine) is None


def test_where_test_cases_are_scored_a_fold_needs_no_validation(small_job):
    job = small_job(dataset=TEST)
    touch(job.model / "fold_0" / "checkpoint_final.pth")
    assert fold_step(job, 0, Machine()) is None


@pytest.mark.parametrize(("name", "found"), [("seed", 4), ("epochs", 9), ("iterations_per_epoch", 1)])
@pytest.mark.parametrize("training", ["", "epochs = 3"])
def test_a_fold_that_was_trained_otherwise_is_refused(small_job, training, name, found):
    job = small_job(training=training)  # its recipe has 1 epoch of 2 iterations
    asked = {"seed": 0, "epochs": 3 if training else 1, "iterations_per_epoch": 2}
    run = touch(job.model / "fold_0" / "run.json", json.dumps({"training": asked}))
    assert fold_step(job, 0, Machine()) is not None
    run.write_text(json.dumps({"training": asked | {name: found}}))
    with pytest.raises(UserError, match=f"was trained with {name} {found}, and the table asks for"):
        fold_step(job, 0, Machine())


def test_test_cases_are_predicted_once(small_job):
    job = small_job(dataset=TEST)
    touch(job.model / "fold_0" / "checkpoint_final.pth")
    touch(job.raw / "dataset.json", json.dumps(LABELS))
    touch(job.raw / "imagesTs" / "a_0000.nii.gz")
    assert predict_step(job, Machine()).command[0] == "predict"
    manifest = touch(job.predictions / "manifest.json", json.dumps({"cases": {"a": {"status": "done"}}}))
    assert predict_step(job, Machine()) is None
    touch(job.raw / "imagesTs" / "b_0000.nii.gz")
    assert predict_step(job, Machine()) is not None  # a case was added
    manifest.write_text(json.dumps({"cases": {"a": {"status": "done"}, "b": {"status": "waiting"}}}))
    assert predict_step(job, Machine()) is not None


def test_a_model_that_was_trained_again_predicts_again(small_job):
    job = small_job(dataset=TEST)
    touch(job.raw / "dataset.json", json.dumps(LABELS))
    touch(job.raw / "imagesTs" / "a_0000.nii.gz")
    manifest = touch(job.predictions / "manifest.json", json.dumps({"cases": {"a": {"status": "done"}}}))
    checkpoint = touch(job.model / "fold_0" / "checkpoint_final.pth")
    assert predict_step(job, Machine()) is None
    older(manifest, checkpoint)
    assert "--resume" not in predict_step(job, Machine()).command


def test_a_test_image_that_was_replaced_is_predicted_again(small_job):
    job = small_job(dataset=TEST)
    touch(job.raw / "dataset.json", json.dumps(LABELS))
    touch(job.model / "fold_0" / "checkpoint_final.pth")
    image = touch(job.raw / "imagesTs" / "a_0000.nii.gz")
    manifest = touch(job.predictions / "manifest.json", json.dumps({"cases": {"a": {"status": "done"}}}))
    assert predict_step(job, Machine()) is None
    older(manifest, image)
    assert "--resume" not in predict_step(job, Machine()).command


def older(file: Path, other: Path) -> None:
    """As if it was written a second before the other one."""
    times = other.stat().st_mtime_ns - 10**9
    os.utime(file, ns=(times, times))


def test_test_cases_without_references_are_named_before_anything_is_trained(small_job):
    job = small_job(dataset=TEST)
    touch(job.raw / "dataset.json", json.dumps(LABELS))
    with pytest.raises(
        UserError, match="imagesTs: no such folder, and the table scores test cases; put the test cases"
    ):
        require_test_cases(job)
    touch(job.raw / "imagesTs" / "a_0000.nii.gz")
    with pytest.raises(UserError, match="imagesTs and labelsTs are not of the same cases: a"):
        require_test_cases(job)
    touch(job.raw / "labelsTs" / "a.nii.gz")
    require_test_cases(job)


def test_nothing_is_predicted_where_held_out_cases_are_measured(small_job):
    assert predict_step(small_job(), Machine()) is None


def test_held_out_cases_of_several_folds_are_measured_together(small_job):
    job = small_job(dataset=BOTH)
    validated(job)
    assert not is_measured(job)
    measure(job, 1)
    assert is_measured(job)
    found = read_case_metrics(job.segmentations)
    assert set(found.values) == {"a", "b"}
    assert found.values["a"]["liver"]["dice"] == 1
    assert found.values["b"]["liver"]["dice"] == pytest.approx(0.8)


def test_a_case_that_was_not_validated_is_named(small_job):
    job = small_job(dataset=BOTH)
    validated(job)
    (job.model / "fold_1" / "validation" / "b.nii.gz").unlink()
    with pytest.raises(UserError, match=r"its validation left no \.nii\.gz of b"):
        measure(job, 1)


def test_other_rules_and_newer_segmentations_are_measured_anew(small_job):
    job = small_job()
    validated(job)
    measure(job, 1)
    assert is_measured(job)
    for other in ({"metrics": "dice"}, {"protocol": "segmamba_brats", "metrics": None}):
        assert not is_measured(replace(job, dataset=job.dataset.model_copy(update=other)))
    segmentation = job.segmentations / "a.nii.gz"
    later = (job.segmentations / "metrics.json").stat().st_mtime_ns + 10**9
    os.utime(segmentation, ns=(later, later))
    assert not is_measured(job)
