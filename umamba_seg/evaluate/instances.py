"""Step 6 for cells: instance masks + references -> F1 of cells that were found, one to one, by their overlap.

Dice of interior and boundary says little about cells: two that melt into one cost it a few pixels.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import reduce
from importlib.metadata import version
from operator import add
from pathlib import Path
from typing import Any

import numpy as np

import umamba_seg
from umamba_seg.datasets.folder import MASK_SUFFIX
from umamba_seg.datasets.images import PICTURE_ENDINGS
from umamba_seg.datasets.instances import RULE_FILE, Survey, number_instances, read_instances, survey
from umamba_seg.datasets.raw import visible_files
from umamba_seg.errors import UserError
from umamba_seg.evaluate import statistics
from umamba_seg.evaluate.metrics import Metric
from umamba_seg.evaluate.results import FORMAT, NAME, write_results
from umamba_seg.files import read_json
from umamba_seg.log import logger, progress, table
from umamba_seg.text import shorten, times

CLASS = "cells"
THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


METRICS: Mapping[str, Metric] = {
    "instance_f1": Metric(
        "higher", "", "2 matched / (reference + predicted); a matched pair has an IoU of 0.5 or more"
    ),
    "instance_f1_mean": Metric("higher", "", "mean of the F1 at an IoU of 0.5, 0.55, ..., 0.95"),
    "instance_precision": Metric("higher", "", "matched / predicted, at an IoU of 0.5"),
    "instance_recall": Metric("higher", "", "matched / reference, at an IoU of 0.5"),
    "reference_cells": Metric(None, "", "cells of the reference"),
    "predicted_cells": Metric(None, "", "cells of the prediction"),
    "matched_cells": Metric(None, "", "pairs of them, one to one, with an IoU of 0.5 or more"),
}


@dataclass(frozen=True)
class Counts:
    """How many cells there are, and how many are found.

    Attributes:
        reference: Cells in the reference.
        predicted: Cells in the prediction.
        matched: For each threshold, how many pairs of them overlap by at least as much.
    """

    reference: int
    predicted: int
    matched: tuple[int, ...]

    def __add__(self, other: Counts) -> Counts:
        matched = tuple(one + two for one, two in zip(self.matched, other.matched, strict=True))
        return Counts(self.reference + other.reference, self.predicted + other.predicted, matched)

    @property
    def state(self) -> str:
        """As metrics.json calls it."""
        if self.reference and self.predicted:
            return "present"
        return "missed" if self.reference else "invented" if self.predicted else "both_empty"

    def values(self) -> dict[str, float]:
        """Every metric; NaN where it divides by no cell at all."""
        both, found = self.reference + self.predicted, self.matched[0]
        f1 = [2 * pairs / both if both else math.nan for pairs in self.matched]
        return {
            "instance_f1": f1[0],
            "instance_f1_mean": sum(f1) / len(f1),
            "instance_precision": found / self.predicted if self.predicted else math.nan,
            "instance_recall": found / self.reference if self.reference else math.nan,
            "reference_cells": self.reference,
            "predicted_cells": self.predicted,
            "matched_cells": found,
        }


def match(reference: np.ndarray, prediction: np.ndarray, thresholds: Sequence[float] = THRESHOLDS) -> Counts:
    """Pair instances one to one, so that as many pairs as possible have an IoU of at least the threshold.

    From 0.5 on no instance has a choice (two that share one cannot both cover more than half of it; at exactly 0.5 one
    of two is taken), so a greedy or an optimal assignment counts the same.

    Args:
        reference: (y, x) or more axes; 0 for background, any other whole number for an instance.
        prediction: Of the same shape.
        thresholds: Of intersection over union, above 0.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    reference, prediction = number_instances(reference), number_instances(prediction)
    sizes, predicted_sizes = np.bincount(reference.ravel()), np.bincount(prediction.ravel())
    both = (reference > 0) & (prediction > 0)
    pairs = reference[both].astype(np.int64) * len(predicted_sizes) + prediction[both]
    found, overlaps = np.unique(pairs, return_counts=True)
    rows, columns = np.divmod(found, len(predicted_sizes))
    overlap = overlaps / (sizes[rows] + predicted_sizes[columns] - overlaps)
    matched = []
    for threshold in thresholds:
        enough = overlap >= threshold
        graph = coo_array((enough[enough], (rows[enough], columns[enough])), shape=(len(sizes), len(predicted_sizes)))
        matched.append(int(np.count_nonzero(maximum_bipartite_matching(graph.tocsr()) >= 0)))
    return Counts(len(sizes) - 1, len(predicted_sizes) - 1, tuple(matched))


@dataclass(frozen=True)
class InstanceProtocol:
    """How instances are scored.

    Attributes:
        name: What ``--protocol`` calls it; ``instances`` makes cells by the rule of the same name.
        source: Whose protocol it is.
        notes: What differs from the default.
        border: Cells that touch the outermost pixels of this number are left out, in reference and prediction.
        large: Images of at least this many pixels are scored in patches.
        patch: Side of these patches; background is added to fill the last.
    """

    name: str
    source: str
    notes: tuple[str, ...] = ()
    border: int = 0
    large: float = float("inf")
    patch: int = 0


_MADE_OF_INTERIOR = "The protocol's are of interior alone, without the boundary."

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        InstanceProtocol("default", "umamba-seg"),
        InstanceProtocol(
            "umamba_cells",
            "U-Mamba (arXiv 2401.04722), evaluation/compute_cell_metric.py",
            (
                "Cells are made of interior alone, without the boundary.",
                "Cells that reach into the two outermost pixels of an image are left out, on both sides.",
                "Images of 25,000,000 pixels and more are scored in patches of 2000x2000, whose counts are added.",
            ),
            border=2,
            large=25_000_000,
            patch=2000,
        ),
    )
}


def score(reference: np.ndarray, prediction: np.ndarray, protocol: InstanceProtocol) -> Counts:
    """The counts of an image (y, x) under a protocol."""
    counts = Counts(0, 0, (0,) * len(THRESHOLDS))
    for one, other in _parts(reference, prediction, protocol):
        counts += match(_without_border(one, protocol.border), _without_border(other, protocol.border))
    return counts


def _parts(
    reference: np.ndarray, prediction: np.ndarray, protocol: InstanceProtocol
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The whole of both images, or their patches where they are large."""
    if reference.size < protocol.large:
        yield reference, prediction
        return
    side = protocol.patch
    missing = [(0, -length % side) for length in reference.shape]
    reference, prediction = np.pad(reference, missing), np.pad(prediction, missing)
    for y in range(0, reference.shape[0], side):
        for x in range(0, reference.shape[1], side):
            window = np.s_[y : y + side, x : x + side]
            yield reference[window], prediction[window]


def _without_border(instances: np.ndarray, border: int) -> np.ndarray:
    frame = np.ones(instances.shape, bool)
    frame[(slice(border, -border or None),) * instances.ndim] = False
    return np.where(np.isin(instances, np.unique(instances[frame])), 0, instances)


def evaluate_instances(
    references: Path,
    predictions: Path,
    *,
    protocol: str = "default",
    output: Path | None = None,
    allow_missing: bool = False,
) -> dict:
    """Score a folder of instance masks, and write metrics.json and metrics.csv as ``evaluate`` does for classes.

    Args:
        references: Folder of reference masks, such as ``instancesTr``; ``CASE_label.tif`` belongs to ``CASE`` as well.
        predictions: Folder of predicted masks.
        protocol: Name of one of :data:`PROTOCOLS`.
        output: The JSON file (default: metrics.json among the predictions).
        allow_missing: Score the images that were predicted; otherwise a missing one is an error.

    Returns:
        The content of metrics.json, with one class, ``cells``, and one more entry: ``pooled``, the metrics of the
        cells of all images together.

    Raises:
        UserError: Nothing to score, masks are missing, unreadable, of another shape than their reference, of classes
            instead of cells, or made by another rule than the protocol's.
    """
    if protocol not in PROTOCOLS:
        what = "no such protocol for instances"
        raise UserError(f"--protocol {protocol}", what, f"choose one of {', '.join(PROTOCOLS)}")
    rules = _as_made(predictions, PROTOCOLS[protocol])
    pairs = _pairs(references, predictions, allow_missing)
    counts, pixels = _score_all(pairs, references, predictions, rules)
    about = {
        "references": str(references.resolve()),
        "predictions": str(predictions),
        "endings": list(PICTURE_ENDINGS),
        "missing": sorted({_case_of(name, pairs) for name in _masks(references)} - pairs.keys()),
    }
    results = _results(counts, pixels, rules, about)
    write_results(results, output or predictions / NAME)
    return results


def _as_made(predictions: Path, protocol: InstanceProtocol) -> InstanceProtocol:
    """The protocol with what is known of how the masks were made: a paper's includes that, and ours say it."""
    file = predictions / RULE_FILE
    if protocol.name == "default":
        return protocol
    if not file.is_file():
        note = f"It is not known how these cells were made: there is no {RULE_FILE} beside them. {_MADE_OF_INTERIOR}"
        return replace(protocol, notes=(note, *protocol.notes[1:]))
    rule = read_json(file).get("rule")
    if rule != protocol.name:
        what = f"these instances were made by the rule {rule!r}, which is not that of {protocol.name}"
        raise UserError(predictions, what, f"make them with `umamba-seg instances --protocol {protocol.name}`")
    return protocol


def _pairs(references: Path, predictions: Path, allow_missing: bool) -> dict[str, tuple[Path, Path]]:
    predicted = _masks(predictions)
    expected = {_case_of(name, predicted): path for name, path in _masks(references).items()}
    if unknown := sorted(predicted.keys() - expected.keys()):
        raise UserError(references, f"holds no reference for {shorten(unknown)}", "name the folder that does")
    missing = sorted(expected.keys() - predicted.keys())
    if missing and not allow_missing:
        raise UserError(predictions, f"predictions of {shorten(missing)} are missing", "predict them, or --chill")
    if missing:
        logger.warning("%d cases were not predicted and are left out: %s", len(missing), shorten(missing))
    return {case: (expected[case], predicted[case]) for case in sorted(predicted)}


def _case_of(name: str, predicted: Container[str]) -> str:
    """The case of a reference."""
    return name if name in predicted else MASK_SUFFIX.sub("", name)


def _masks(folder: Path) -> dict[str, Path]:
    """Case -> mask."""
    paths = [folder / name for name in visible_files(folder)]
    masks = {path.stem: path for path in paths if path.suffix.lower() in PICTURE_ENDINGS}
    if not masks:
        what = f"holds no instance masks ({', '.join(PICTURE_ENDINGS)})"
        raise UserError(folder, what, "name the folder of masks; `umamba-seg instances` makes them of segmentations")
    return masks


def _score_all(
    pairs: Mapping[str, tuple[Path, Path]], references: Path, predictions: Path, protocol: InstanceProtocol
) -> tuple[dict[str, Counts], dict[str, int]]:
    """The counts of every image, and how many pixels its reference's cells have."""
    found, counts, pixels = {references: Survey(), predictions: Survey()}, {}, {}
    for case, paths in progress(pairs.items(), "evaluating", len(pairs)):
        reference, prediction = map(read_instances, paths)
        if reference.shape != prediction.shape:
            what = f"has the shape {times(prediction.shape)}, its reference {times(reference.shape)}"
            raise UserError(paths[1], what, "compare masks of one size")
        found[references] += survey(reference)
        found[predictions] += survey(prediction)
        counts[case], pixels[case] = score(reference, prediction, protocol), int(np.count_nonzero(reference))
    for folder, there in found.items():
        there.refuse_classes(folder)
    return counts, pixels


def _results(
    counts: Mapping[str, Counts], pixels: Mapping[str, int], protocol: InstanceProtocol, about: dict[str, Any]
) -> dict[str, Any]:
    scores = {case: found.values() for case, found in counts.items()}
    numbers = {metric: _statistics([values[metric] for values in scores.values()]) for metric in METRICS}
    together = reduce(add, counts.values())
    states = [found.state for found in counts.values()]
    return {
        "format": FORMAT,
        "protocol": asdict(protocol) | {"large": protocol.large if math.isfinite(protocol.large) else None},
        "settings": about | {"interval": {"confidence": statistics.CONFIDENCE, "method": statistics.METHOD}},
        "versions": {"umamba_seg": umamba_seg.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "scikit-image")},
        "classes": [CLASS],
        "metrics": {name: asdict(metric) for name, metric in METRICS.items()},
        "counts": {
            CLASS: {"cases": len(states)}
            | {state: states.count(state) for state in ("both_empty", "missed", "invented")}
        },
        "statistics": {CLASS: numbers},
        "overall": {metric: {key: found[key] for key in ("mean", "low", "high")} for metric, found in numbers.items()},
        "pooled": together.values() | {"pairs": dict(zip(map(str, THRESHOLDS), together.matched, strict=True))},
        "cases": [
            {"case": case, "classes": {CLASS: {"state": counts[case].state, "n_ref": pixels[case]} | values}}
            for case, values in scores.items()
        ],
    }


def _statistics(values: Sequence[float]) -> dict[str, float]:
    known = [value for value in values if not math.isnan(value)]
    mean, low, high = statistics.bootstrap_mean(np.array(values))
    spread = (np.median(known), min(known), max(known)) if known else (math.nan,) * 3
    return {
        "mean": mean,
        "low": low,
        "high": high,
        **dict(zip(("median", "min", "max"), map(float, spread), strict=True)),
        "cases": len(known),
        "undefined": len(values) - len(known),
    }


def instances_table(results: Mapping[str, Any]) -> str:
    """F1, precision and recall: the mean over images with its interval, and of all cells together."""
    shown = {
        "instance_f1": "F1 at IoU 0.5",
        "instance_f1_mean": "F1, mean over IoU 0.5 to 0.95",
        "instance_precision": "precision at IoU 0.5",
        "instance_recall": "recall at IoU 0.5",
    }
    rows = []
    for metric, words in shown.items():
        one = results["statistics"][CLASS][metric]
        rows.append(
            [words, *(one[key] for key in ("mean", "low", "high", "median", "min", "max")), results["pooled"][metric]]
        )
    if len(results["cases"]) == 1:  # the interval of one image says nothing
        rows = [[*row[:2], "–", "–", *row[4:]] for row in rows]
    headers = ["cells", "mean of images", "95 % from", "to", "median", "min", "max", "all cells together"]
    together, empty = results["pooled"], results["counts"][CLASS]["both_empty"]
    notes = [
        f"({together['reference_cells']} cells in {len(results['cases'])} references, {together['predicted_cells']} "
        f"predicted, {together['matched_cells']} matched at IoU 0.5; {empty} images without any cell have no F1)",
        *results["protocol"]["notes"],
    ]
    if missing := results["settings"]["missing"]:
        notes.append(f"{len(missing)} images were not predicted and left out: {shorten(missing)}")
    return "\n".join([table(rows, headers), *notes])
