"""Step 6: segmentations + references -> summary.json and a table of Dice, by nnU-Net's evaluation."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median

from umamba_seg.datasets.images import read_image
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import read_json
from umamba_seg.log import progress, quiet, table
from umamba_seg.text import shorten


def evaluate_folder(
    references: Path,
    predictions: Path,
    dataset_json: dict,
    output: Path,
    processes: int,
    *,
    allow_missing: bool = False,
) -> dict:
    """Compare two folders of segmentations and write nnU-Net's summary.json.

    Args:
        references: Folder of reference segmentations ``CASE.ending``.
        predictions: Folder of predictions of the same names.
        dataset_json: Labels, regions and file ending.
        output: The summary to write.
        processes: Worker processes.
        allow_missing: Evaluate the cases that were predicted; otherwise a missing one is an error.

    Returns:
        The summary as written: ``metric_per_case``, ``mean``, ``foreground_mean``. A metric of a class that neither
        segmentation of a case holds is NaN. nnU-Net's mean of a class leaves it out; a class without any score makes
        the foreground mean NaN.

    Raises:
        UserError: Nothing to compare, predictions are missing, or one has another shape than its reference.
    """
    from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
    from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
    from nnunetv2.utilities.label_handling.label_handling import LabelManager

    ending = dataset_json["file_ending"]
    predicted, expected = _cases(predictions, ending), _cases(references, ending)
    unknown, missing = sorted(predicted - expected), sorted(expected - predicted)
    if unknown:
        raise UserError(references, f"holds no reference for {shorten(unknown)}", "name the folder that does")
    if missing and not allow_missing:
        raise UserError(predictions, f"predictions of {shorten(missing)} are missing", "predict them, or --chill")
    for name in progress(sorted(predicted), "reading"):
        _require_same_shape(references / f"{name}{ending}", predictions / f"{name}{ending}")
    labels = LabelManager(dataset_json["labels"], dataset_json.get("regions_class_order"))
    with quiet():
        reader = determine_reader_writer_from_dataset_json(dataset_json, str(references / f"{min(predicted)}{ending}"))
        compute_metrics_on_folder(
            str(references),
            str(predictions),
            str(output),
            reader(),
            ending,
            labels.foreground_regions if labels.has_regions else labels.foreground_labels,
            labels.ignore_label,  # type: ignore[arg-type]  (None for none, against its hint)
            processes,
        )
    return read_json(output)


def _cases(folder: Path, ending: str) -> set[str]:
    hidden = [path.name for path in folder.glob(f".*{ending}")]
    if hidden:
        raise UserError(folder, f"nnU-Net would take hidden files for cases: {shorten(hidden)}", "delete them")
    names = {path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}")}
    if not names:
        raise UserError(folder, f"holds no files ending in {ending}", "name the folder of segmentations")
    return names


def _require_same_shape(reference: Path, prediction: Path) -> None:
    wanted, found = (read_image(path).array.shape for path in (reference, prediction))
    if found != wanted:
        raise UserError(prediction, f"has shape {found}, its reference {wanted}", "compare segmentations of one grid")


def class_metrics(metrics: dict[str, dict], labels: Labels) -> dict[str, dict]:
    """The metrics of a summary by class name; nnU-Net's keys are values (``"1"``) and regions (``"(1, 2)"``)."""
    by_values = {frozenset(int(value) for value in re.findall(r"\d+", key)): found for key, found in metrics.items()}
    return {
        name: by_values[frozenset(value if isinstance(value, tuple) else (value,))]
        for name, value in labels.foreground.items()
    }


def summary_table(summary: dict, labels: Labels) -> str:
    """Dice per class: mean, median, extremes and how many cases could not be scored."""
    cases = [class_metrics(case["metrics"], labels) for case in summary["metric_per_case"]]
    rows = []
    for name in labels.foreground:
        scores = [case[name]["Dice"] for case in cases]
        known = sorted(score for score in scores if not math.isnan(score))
        rows.append([name, *_statistics(known), len(known), len(scores) - len(known)])
    rows.append(["mean", summary["foreground_mean"]["Dice"]])
    shown = table(rows, ["Dice", "mean", "median", "min", "max", "cases", "both empty"])
    return f"{shown}\n(both empty: neither segmentation holds the class; such a case has no Dice and is left out)"


def _statistics(scores: Sequence[float]) -> list[float]:
    return [mean(scores), median(scores), scores[0], scores[-1]] if scores else [math.nan] * 4
