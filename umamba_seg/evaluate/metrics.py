"""The metrics by name: what each is, in which unit, and which way is better."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from umamba_seg.errors import UserError

Better = Literal["higher", "lower", "zero"]

DEFAULT_METRICS = (
    "dice",
    "iou",
    "nsd@1mm",
    "hd95",
    "assd",
    "volume_error",
    "reference_ml",
    "prediction_ml",
)
DEFAULT_WORDS = "dice,iou,nsd@1mm,hd95,assd,volume"

GROUPS: Mapping[str, tuple[str, ...]] = {
    "volume": ("volume_error", "reference_ml", "prediction_ml"),
    "lesion": ("lesion_f1", "lesions_found", "lesions_missed", "lesions_false"),
}
"""Words that stand for several metrics."""


@dataclass(frozen=True)
class Metric:
    """A metric. R is the reference's mask of a class, P the prediction's, without what the reference ignores.

    Attributes:
        better: Which values are better; ``"zero"``: those nearer to zero; None: the number only describes.
        unit: ``"mm"`` (``"px"`` under a protocol that ignores spacing), ``"ml"``, or nothing.
        definition: What it is, exactly.
    """

    better: Better | None
    unit: str
    definition: str


_BORDER = "between border voxels (voxels of a mask with a face neighbour outside of it or of the image)"

METRICS: Mapping[str, Metric] = {
    "dice": Metric("higher", "", "2 |R and P| / (|R| + |P|)"),
    "iou": Metric("higher", "", "|R and P| / |R or P|"),
    "precision": Metric("higher", "", "|R and P| / |P|"),
    "sensitivity": Metric("higher", "", "|R and P| / |R|"),
    "specificity": Metric("higher", "", "share of what lies outside of R that lies outside of P"),
    "accuracy": Metric("higher", "", "share of voxels in both masks or in none"),
    "nsd": Metric(
        "higher",
        "",
        "share of the area of both surfaces (of surface elements at voxel corners, by marching cubes) that is no "
        "farther than the tolerance from the other surface (a millionth of it is rounding)",
    ),
    "hd95": Metric(
        "lower",
        "mm",
        f"distances {_BORDER}: the larger of the two directed 95th percentiles (interpolated linearly)",
    ),
    "hd": Metric("lower", "mm", f"distances {_BORDER}: the largest of both directions"),
    "assd": Metric("lower", "mm", f"distances {_BORDER}: the mean over the border voxels of both masks together"),
    "asd": Metric("lower", "mm", f"distances {_BORDER}: the mean over the border voxels of the prediction"),
    "volume_error": Metric("zero", "", "(|P| - |R|) / |R|"),
    "reference_ml": Metric(None, "ml", "volume of R; undefined for files of two axes"),
    "prediction_ml": Metric(None, "ml", "volume of P; undefined for files of two axes"),
    "lesion_f1": Metric(
        "higher",
        "",
        "2 found / (2 found + missed + false): lesions are connected components (26 neighbours, in 2-D 8); one of R is "
        "found if P holds a voxel of it, one of P is false if it holds no voxel of R",
    ),
    "lesions_found": Metric(None, "", "lesions of R that were found"),
    "lesions_missed": Metric(None, "", "lesions of R that were not found"),
    "lesions_false": Metric(None, "", "lesions of P that hold no voxel of R"),
}

OTHER_DEFINITIONS: Mapping[tuple[str, str], str] = {
    ("hd95", "pooled"): f"distances {_BORDER}: the 95th percentile (interpolated linearly) of both directions together",
    ("nsd", "halves"): f"distances {_BORDER}: the mean of the two shares that are no larger than the tolerance",
}
"""(Metric, the protocol's way of computing it) -> definition, where it is not the house's."""

_TOLERANCE = re.compile(r"nsd@(\d+(?:\.\d+)?)mm")


class Counts(NamedTuple):
    """Voxels of both masks, of the prediction alone, of the reference alone, and of none of them."""

    tp: int
    fp: int
    fn: int
    tn: int


def ratio(metric: str, counts: np.ndarray) -> np.ndarray:
    """A metric that is a ratio of voxel counts (tp, fp, fn, tn; more axes may follow); NaN for 0 / 0."""
    tp, fp, fn, tn = counts
    above, below = {
        "dice": (2 * tp, 2 * tp + fp + fn),
        "iou": (tp, tp + fp + fn),
        "precision": (tp, tp + fp),
        "sensitivity": (tp, tp + fn),
        "specificity": (tn, tn + fp),
        "accuracy": (tp + tn, tp + fp + fn + tn),
    }[metric]
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below != 0)


RATIOS = frozenset({"dice", "iou", "precision", "sensitivity", "specificity", "accuracy"})


def tolerance_in(metric: str) -> float:
    """The tolerance in a name such as ``nsd@1.5mm`` or, in a protocol, ``nsd@2px``."""
    return float(metric.partition("@")[2].removesuffix("mm").removesuffix("px"))


def parse_metrics(words: Iterable[str]) -> tuple[str, ...]:
    """Names of metrics, groups replaced by what they stand for, each name once.

    Raises:
        UserError: No such metric, an NSD without a tolerance in mm, or nothing at all.
    """
    names = [name for word in words for name in GROUPS.get(word, (word,))]
    for name in names:
        _require_known(name)
    if not names:
        raise UserError("--metrics", "names no metric", f"name some, for example {DEFAULT_WORDS}")
    return tuple(dict.fromkeys(names))


def _require_known(name: str) -> None:
    if name.startswith("nsd"):
        match = _TOLERANCE.fullmatch(name)
        if match is None or float(match[1]) == 0:
            raise UserError(f"--metrics {name}", "no tolerance above 0 in mm", "write it behind an @, as in nsd@1.5mm")
    elif name not in METRICS:
        known = ", ".join([*(metric for metric in METRICS if metric != "nsd"), "nsd@1mm", *GROUPS])
        raise UserError(f"--metrics {name}", "no such metric", f"choose among {known}")
