"""One case: two label arrays -> the value of every metric for every class."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from scipy.ndimage import find_objects

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate.lesions import Lesions, match_lesions
from umamba_seg.evaluate.metrics import RATIOS, Counts, ratio, tolerance_in
from umamba_seg.evaluate.protocols import DEFAULT_PROTOCOL, Protocol, Target, choose_protocol, targets_of
from umamba_seg.evaluate.surfaces import Distances, Planes, surfel_distances, voxel_distances
from umamba_seg.log import logger
from umamba_seg.text import times

State = Literal["present", "both_empty", "missed", "invented"]
Box = tuple[slice, ...]

_SLACK = 1e-6
"""A distance may be larger than the tolerance by this share: NIfTI stores a spacing of 0.8 as 0.800000012."""


@dataclass(frozen=True)
class ClassScores:
    """What was measured of a class in a case.

    Attributes:
        state: Whether both masks hold something, neither, only the reference (missed), or only the prediction
            (invented).
        counts: Voxels, as nnU-Net counts them.
        values: Metric -> value. NaN: undefined; infinity: a distance to nothing.
    """

    state: State
    counts: Counts
    values: dict[str, float]


_MOST_UNNAMED = 20
"""With more values that no label has, an array is taken for an image."""


def evaluate_case(
    reference: np.ndarray,
    prediction: np.ndarray,
    spacing: Iterable[float],
    labels: Labels | Mapping[str, int | Sequence[int]],
    metrics: str | Iterable[str] | None = None,
    protocol: str | Protocol = DEFAULT_PROTOCOL,
) -> dict[str, ClassScores]:
    """Measure a segmentation.

    Args:
        reference: Whole numbers, (z, y, x) or (y, x). A volume of one slice is measured as a 2-D image.
        prediction: The same shape.
        spacing: Size of a voxel along each axis in mm, in the order of the array's axes.
        labels: Name -> value, or the values that form a region; without the background. Voxels where the reference
            holds ``Labels.ignore`` are in no mask and not counted. Values without a name are background, with a
            warning.
        metrics: As ``--metrics`` takes them, ``["dice", "nsd@1mm", "lesion"]`` or ``"dice,nsd@1mm,lesion"`` (default:
            the protocol's).
        protocol: Its name, or a protocol itself, which then says what is measured.

    Returns:
        The scores of every class; ``"(all labels)"`` is one more for protocols that measure all labels as one.

    Raises:
        UserError: Shapes differ, an array does not hold labels, spacing or labels make no sense, or the protocol does
            not fit the metrics or the classes.
    """
    if not isinstance(labels, Labels):
        labels = Labels({name: _value(name, value) for name, value in labels.items()}, None, None)
    if not isinstance(protocol, Protocol):
        protocol = choose_protocol(protocol, metric_words(metrics))
    case = Case(reference, prediction, tuple(map(float, spacing)), labels, protocol)
    if case.unnamed:
        logger.warning("the values %s have no label; they count as background", case.unnamed)
    return case.scores()


class Case:
    """Two label arrays that are measured class by class, each class in the box that it fills.

    Attributes:
        unnamed: Values that no label has.
    """

    def __init__(
        self,
        reference: np.ndarray,
        prediction: np.ndarray,
        spacing: tuple[float, ...],
        labels: Labels,
        protocol: Protocol,
    ):
        """Arguments and errors as :func:`evaluate_case`."""
        _require_comparable(reference, prediction, spacing)
        self._protocol, self._targets, self._ignore = protocol, targets_of(protocol, labels), labels.ignore
        self._voxel_ml = math.prod(spacing) / 1000 if len(spacing) == 3 else math.nan
        if len(reference) == 1 and reference.ndim == 3:  # or every voxel would be a border voxel
            reference, prediction, spacing = reference[0], prediction[0], spacing[1:]
        self._spacing = spacing if protocol.spacing else (1.0,) * len(spacing)
        highest = labels.values[-1]
        self._reference, unnamed = _whole_numbers(reference, highest, "reference")
        self._prediction, more = _whole_numbers(prediction, highest, "prediction")
        self.unnamed = sorted(unnamed | more)
        self._boxes = find_objects(self._reference, highest), find_objects(self._prediction, highest)
        ignored = 0 if labels.ignore is None else np.count_nonzero(self._reference == labels.ignore)
        self._voxels = self._reference.size - int(ignored)

    def scores(self) -> dict[str, ClassScores]:
        """The scores of every class that is a target of the protocol."""
        return {name: self._measure(target) for name, target in self._targets.items()}

    def _measure(self, target: Target) -> ClassScores:
        whole = self._pair(target)
        pair = whole
        if target.reference_slices and whole.state in ("present", "missed"):
            pair = whole.cut(_up_to_last_slice(whole.reference))
        if not pair.reference.size:  # the reference has one slice alone
            return ClassScores(whole.state, whole.counts, dict.fromkeys(target.metrics, math.nan))
        return ClassScores(pair.state, whole.counts, {metric: pair.value(metric) for metric in target.metrics})

    def _pair(self, target: Target) -> _Pair:
        """The masks of a class on the planes that they touch and their neighbours, without what is ignored."""
        axes = self._reference.ndim
        box = _union([boxes[value - 1] for boxes in self._boxes for value in target.values if value], axes)
        if 0 in target.values:  # a region may hold the background
            box = tuple(slice(0, length) for length in self._reference.shape)
        reference, prediction = (_mask(array[box], target.values) for array in (self._reference, self._prediction))
        if self._ignore is not None:
            annotated = self._reference[box] != self._ignore
            reference, prediction = reference & annotated, prediction & annotated
        kept = _touched_planes(reference | prediction)
        if any(len(planes) < length for planes, length in zip(kept, reference.shape, strict=True)):
            reference, prediction = reference[np.ix_(*kept)], prediction[np.ix_(*kept)]
        planes = [planes + along.start for planes, along in zip(kept, box, strict=True)]
        return _Pair(
            reference, prediction, planes, self._voxels, self._spacing, self._voxel_ml, self._protocol, target.tolerance
        )


@dataclass(frozen=True, eq=False)
class _Pair:
    """The two masks of a class, and what is computed once for several metrics.

    Attributes:
        reference: Boolean, in a part of the image beyond which both masks are empty.
        prediction: Boolean, the same part.
        planes: Of each plane of the arrays along each axis, its place in the image.
        voxels: Of the whole image, without those that the reference ignores.
        spacing: In the unit of distances, along each axis.
        voxel_ml: Volume of a voxel; NaN for a file of two axes.
        protocol: How metrics are defined.
        tolerance: Of the metric ``nsd``, if it is this class's own.
    """

    reference: np.ndarray
    prediction: np.ndarray
    planes: Planes
    voxels: int
    spacing: tuple[float, ...]
    voxel_ml: float
    protocol: Protocol
    tolerance: float | None

    def cut(self, part: slice) -> _Pair:
        """A part along the first axis."""
        planes = [self.planes[0][part], *self.planes[1:]]
        return replace(self, reference=self.reference[part], prediction=self.prediction[part], planes=planes)

    @cached_property
    def counts(self) -> Counts:
        tp = int(np.count_nonzero(self.reference & self.prediction))
        fp, fn = (int(np.count_nonzero(mask)) - tp for mask in (self.prediction, self.reference))
        return Counts(tp, fp, fn, self.voxels - tp - fp - fn)

    @cached_property
    def state(self) -> State:
        tp, fp, fn, _ = self.counts
        if tp + fn:
            return "present" if tp + fp else "missed"
        return "invented" if tp + fp else "both_empty"

    @cached_property
    def borders(self) -> Distances:
        return voxel_distances(self.reference, self.prediction, self.spacing, self.planes)

    @cached_property
    def surfels(self) -> Distances:
        return surfel_distances(self.reference, self.prediction, self.spacing, self.planes)

    @cached_property
    def lesions(self) -> Lesions:
        return match_lesions(self.reference, self.prediction)

    def value(self, metric: str) -> float:
        """The metric as the protocol defines it."""
        value = float(self._value(metric))
        return value if self.protocol.digits is None else round(value, self.protocol.digits)

    def _value(self, metric: str) -> float | np.ndarray:
        name = metric.partition("@")[0]
        if self.state != "present" and name in self.protocol.empty:
            return getattr(self.protocol.empty[name], self.state)
        if name in RATIOS:
            return ratio(name, np.array(self.counts))
        if name == "nsd":
            return self._nsd(self.tolerance if metric == "nsd" else tolerance_in(metric))
        return _DEFINITIONS[name](self)

    def _nsd(self, tolerance: float | None) -> float:
        assert tolerance is not None, "the protocol has one for each class"
        tolerance *= 1 + _SLACK
        if self.protocol.nsd == "halves":
            shares = [np.mean(directed <= tolerance) for directed in (self.borders.reference, self.borders.prediction)]
            return float(np.mean(shares))
        found = self.surfels
        within = found.reference_sizes[found.reference <= tolerance].sum()
        within += found.prediction_sizes[found.prediction <= tolerance].sum()
        return within / (found.reference_sizes.sum() + found.prediction_sizes.sum())


def _hd95(pair: _Pair) -> float:
    directed = pair.borders.reference, pair.borders.prediction
    if pair.protocol.hd95 == "pooled":
        return np.percentile(np.concatenate(directed), 95)
    return max(np.percentile(distances, 95) for distances in directed)


def _assd(pair: _Pair) -> float:
    return np.concatenate([pair.borders.reference, pair.borders.prediction]).mean()


def _lesion_f1(pair: _Pair) -> float:
    found, missed, false = pair.lesions
    return 2 * found / (2 * found + missed + false)


_DEFINITIONS: Mapping[str, Callable[[_Pair], float]] = {
    "hd95": _hd95,
    "hd": lambda pair: max(pair.borders.reference.max(), pair.borders.prediction.max()),
    "assd": _assd,
    "asd": lambda pair: pair.borders.prediction.mean(),
    "volume_error": lambda pair: (pair.counts.fp - pair.counts.fn) / (pair.counts.tp + pair.counts.fn),
    "reference_ml": lambda pair: (pair.counts.tp + pair.counts.fn) * pair.voxel_ml,
    "prediction_ml": lambda pair: (pair.counts.tp + pair.counts.fp) * pair.voxel_ml,
    "lesion_f1": _lesion_f1,
    "lesions_found": lambda pair: pair.lesions.found,
    "lesions_missed": lambda pair: pair.lesions.missed,
    "lesions_false": lambda pair: pair.lesions.false,
}


def metric_words(metrics: str | Iterable[str] | None) -> Iterable[str] | None:
    """Metrics that may be written as one text, separated by commas."""
    return [word.strip() for word in metrics.split(",") if word.strip()] if isinstance(metrics, str) else metrics


def _value(name: str, given: int | Sequence[int]) -> int | tuple[int, ...]:
    """The value of a label, or the values of a region."""
    values = list(given) if isinstance(given, Sequence) else [given]
    whole = [isinstance(value, int | np.integer) and not isinstance(value, bool) and value >= 0 for value in values]
    if name == "background" or not values or not all(whole) or values == [0]:
        what = f"{name!r} is {given!r}"
        raise UserError("labels", what, "give each class a whole number above 0, or a list of them; no background")
    unique = sorted({int(value) for value in values})
    return tuple(unique) if len(unique) > 1 else unique[0]


def _require_comparable(reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...]) -> None:
    if prediction.shape != reference.shape:
        what = f"has the shape {times(prediction.shape)}, its reference {times(reference.shape)}"
        raise UserError("prediction", what, "compare segmentations of one grid")
    if reference.ndim not in (2, 3):
        raise UserError("reference", f"has {reference.ndim} axes", "give (z, y, x) or (y, x)")
    if len(spacing) != reference.ndim or not all(0 < size < math.inf for size in spacing):
        what = f"{times(spacing)} mm for an image of {reference.ndim} axes"
        raise UserError("spacing", what, "give one positive number for each axis")


def _whole_numbers(array: np.ndarray, highest: int, name: str) -> tuple[np.ndarray, set[int]]:
    """Labels in the smallest type that holds them, and the values that no label has, which become background.

    Slice by slice: labels are also stored as 64-bit numbers, and volumes are large.
    """
    labels, unnamed = np.zeros(array.shape, np.min_scalar_type(highest)), set()
    for source, target in zip(array, labels, strict=True):
        if not (np.isfinite(source).all() and (source == np.trunc(source)).all()):
            raise UserError(name, "holds numbers that are not whole", "give labels, not probabilities or an image")
        named = (source >= 0) & (source <= highest)
        target[named] = source[named]
        if not named.all():
            unnamed.update(np.unique(source[~named]).astype(int).tolist())
        if len(unnamed) > _MOST_UNNAMED:
            some = ", ".join(map(str, sorted(unnamed)[:3]))
            what = f"holds no labels: more than {_MOST_UNNAMED} values that have no name, such as {some}"
            raise UserError(name, what, "give labels, not an image")
    return labels, unnamed


def _mask(labels: np.ndarray, values: tuple[int, ...]) -> np.ndarray:
    mask = labels == values[0]
    for value in values[1:]:
        mask |= labels == value
    return mask


def _union(boxes: Sequence[Box | None], axes: int) -> Box:
    """The box around boxes; one voxel where there are none."""
    there = [box for box in boxes if box is not None]
    if not there:
        return (slice(0, 1),) * axes
    edges = np.array([[(along.start, along.stop) for along in box] for box in there])
    return tuple(map(slice, edges[..., 0].min(axis=0), edges[..., 1].max(axis=0)))


def _touched_planes(mask: np.ndarray) -> list[np.ndarray]:
    """Along each axis the planes that hold something of the mask, and those beside them.

    Of a gap between two parts at least one plane stays, so that they touch no more than before. A few stray voxels in
    the corners of a large volume then cost nothing.
    """
    kept = []
    for axis in range(mask.ndim):
        there = np.asarray(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        beside = there.copy()
        beside[1:] |= there[:-1]
        beside[:-1] |= there[1:]
        kept.append(np.flatnonzero(beside))
    return kept if all(map(len, kept)) else [np.arange(1)] * mask.ndim


def _up_to_last_slice(reference: np.ndarray) -> slice:
    """From its first slice to the last but one; nothing of an image of two axes."""
    if reference.ndim == 2:
        return slice(0, 0)
    slices = np.flatnonzero(reference.any(axis=(1, 2)))
    return slice(slices[0], slices[-1])
