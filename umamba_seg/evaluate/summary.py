"""nnU-Net's summary.json and a table of Dice."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean, median

import numpy as np

from umamba_seg.datasets.labels import Labels
from umamba_seg.evaluate.folder import CaseScores, score_folder
from umamba_seg.evaluate.metrics import Counts, ratio
from umamba_seg.evaluate.protocols import choose_protocol
from umamba_seg.files import write_json
from umamba_seg.log import table

_METRICS = ("Dice", "FN", "FP", "IoU", "TN", "TP", "n_pred", "n_ref")


def evaluate_folder(
    references: Path,
    predictions: Path,
    dataset_json: dict,
    output: Path,
    processes: int,
    *,
    allow_missing: bool = False,
) -> dict:
    """Compare two folders of segmentations and write nnU-Net's summary.json, without loading nnU-Net.

    Args:
        references: Folder of reference segmentations ``CASE.ending``.
        predictions: Folder of predictions of the same names.
        dataset_json: Labels, regions and file ending.
        output: The summary to write.
        processes: Worker processes.
        allow_missing: Evaluate the cases that were predicted; otherwise a missing one is an error.

    Returns:
        The summary as written, see :func:`write_summary`.

    Raises:
        UserError: As :func:`~umamba_seg.evaluate.folder.score_folder`.
    """
    protocol = replace(choose_protocol(), metrics=())  # the counts of voxels alone
    cases = score_folder(references, predictions, dataset_json, protocol, processes, allow_missing=allow_missing)
    return write_summary(cases, references, predictions, dataset_json, output)


def write_summary(
    cases: Sequence[CaseScores], references: Path, predictions: Path, dataset_json: dict, output: Path
) -> dict:
    """Write nnU-Net's summary.json: its keys and its numbers, from our counts of voxels.

    Returns:
        The summary as written: ``metric_per_case``, ``mean``, ``foreground_mean``. A metric of a class that neither
        segmentation of a case holds is NaN. nnU-Net's mean of a class leaves it out; a class without any score makes
        the foreground mean NaN.
    """
    keys, ending = _keys(dataset_json), dataset_json["file_ending"]
    found = [{key: _numbers(case.classes[name].counts) for name, key in keys.items()} for case in cases]
    means = {key: {metric: _nanmean([case[key][metric] for case in found]) for metric in _METRICS} for key in found[0]}
    summary = {
        "foreground_mean": {
            metric: float(np.mean([metrics[metric] for metrics in means.values()])) for metric in _METRICS
        },
        "mean": means,
        "metric_per_case": [
            {
                "metrics": metrics,
                "prediction_file": str(predictions / f"{case.case}{ending}"),
                "reference_file": str(references / f"{case.case}{ending}"),
            }
            for case, metrics in zip(cases, found, strict=True)
        ],
    }
    write_json(output, summary)
    return summary


def _keys(dataset_json: dict) -> dict[str, str]:
    """What nnU-Net calls each class: its value, or in a data set with regions the tuple as dataset.json has it."""
    foreground = {name: value for name, value in dataset_json["labels"].items() if name not in ("background", "ignore")}
    regions = any(isinstance(value, list) and len(value) > 1 for value in foreground.values())
    if regions:
        return {name: str(tuple(value) if isinstance(value, list) else value) for name, value in foreground.items()}
    return {name: str(value[0] if isinstance(value, list) else value) for name, value in foreground.items()}


def _numbers(counts: Counts) -> dict[str, float]:
    tp, fp, fn, tn = counts
    ratios = {key: float(ratio(metric, np.array(counts))) for key, metric in (("Dice", "dice"), ("IoU", "iou"))}
    return ratios | {"FN": fn, "FP": fp, "TN": tn, "TP": tp, "n_pred": fp + tp, "n_ref": fn + tp}


def _nanmean(values: list[float]) -> float:
    known = [value for value in values if not math.isnan(value)]
    return float(np.mean(known)) if known else math.nan


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
