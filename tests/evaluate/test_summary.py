"""Writing and reading nnU-Net's summaries."""

import json
import math
import multiprocessing.dummy
import warnings
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
from nnunetv2.evaluation import evaluate_predictions as theirs
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.utilities.label_handling.label_handling import LabelManager

from umamba_seg.datasets.labels import Labels
from umamba_seg.evaluate import class_metrics, evaluate_folder, summary_table

LABELS = Labels({"tumour": (1, 2, 3), "core": 3}, ignore=None, regions_class_order=(1, 3))


def metrics(tumour: float, core: float) -> dict:
    return {"(3, 1, 2)": {"Dice": tumour}, "(3,)": {"Dice": core}}


def test_classes_are_found_whatever_order_their_values_have():
    assert class_metrics(metrics(0.5, 0.25), LABELS) == {"tumour": {"Dice": 0.5}, "core": {"Dice": 0.25}}


def test_table_counts_what_has_no_dice():
    cases = [{"metrics": metrics(0.5, math.nan)}, {"metrics": metrics(1.0, 0.25)}]
    summary = {"metric_per_case": cases, "foreground_mean": {"Dice": 0.5}}
    tumour, core = (line.split() for line in summary_table(summary, LABELS).splitlines()[2:4])
    assert tumour == ["tumour", "0.7500", "0.7500", "0.5000", "1.0000", "2", "0"]
    assert core == ["core", "0.2500", "0.2500", "0.2500", "0.2500", "1", "1"]


def save(path, array):
    nibabel.save(nibabel.Nifti1Image(array.astype(np.uint8), np.eye(4)), path)


@pytest.mark.parametrize(
    "description",
    [
        {"labels": {"background": 0, "b": 2, "a": 1, "c": 3}},
        {"labels": {"background": 0, "a": 1, "b": [2], "ignore": 3}},
        {
            "labels": {"background": 0, "whole": [3, 1, 2], "b": [2], "c": 3, "ignore": 4},
            "regions_class_order": [1, 2, 3],
        },
    ],
    ids=["labels", "ignore", "regions"],
)
def test_the_summary_is_nnunets(description, tmp_path, monkeypatch):
    """Every key and every number, with empty masks, a class that nobody has, and what the reference ignores."""
    references, predictions = tmp_path / "r", tmp_path / "p"
    references.mkdir()
    predictions.mkdir()
    rng = np.random.default_rng(0)
    for name in ("a", "a-b", "c"):  # sorted as files, a-b comes before a
        r, p = rng.integers(0, 5, (2, 6, 7, 8))
        r[r == 2] = 0
        p[(p == 2) & (rng.random() < 0.5)] = 0
        for folder, array in ((references, r), (predictions, p)):
            save(folder / f"{name}.nii.gz", array if name != "c" else np.zeros_like(array))
    description |= {"file_ending": ".nii.gz"}
    ours = evaluate_folder(references, predictions, description, tmp_path / "ours.json", 1)
    monkeypatch.setattr(theirs, "multiprocessing", SimpleNamespace(get_context=lambda _: multiprocessing.dummy))
    labels = LabelManager(description["labels"], description.get("regions_class_order"))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        theirs.compute_metrics_on_folder(
            str(references),
            str(predictions),
            str(tmp_path / "theirs.json"),
            SimpleITKIO(),
            ".nii.gz",
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,  # type: ignore[arg-type]
            1,
        )
    found, expected = (json.loads((tmp_path / name).read_text()) for name in ("ours.json", "theirs.json"))
    assert json.dumps(found, sort_keys=True) == json.dumps(expected, sort_keys=True)
    assert json.dumps(ours, sort_keys=True) == json.dumps(found, sort_keys=True)
