"""Which axes training mirrors, and which labels change places when it does.

A mirrored patient has a right kidney where the left one was. If the labels stay, training contradicts itself, and no
network can learn the sides. So the values of paired labels are exchanged when the axis that runs from left to right is
flipped, or that axis is not flipped. Pairs are those that dataset.json lists as ``mirror_pairs``, or labels

* whose names differ in the words for left and right alone (:func:`paired_names`);
* that are not the two sides of one organ, which keep their names in a mirrored patient: a mirrored left ventricle has
  the thick wall still. Names rule out heart and liver, and where names are silent, so do the next two: the chambers of
  the heart lie obliquely to each other, the lobes of the liver differ in size;
* that lie side by side in nearly all cases, the same way round, and are of a size. Volumes and centroids are taken
  from a few cases, the axis from the directions in all headers.

What is named like a pair but fails the last test is a reason not to flip the axis along which its labels lie apart.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_seg.datasets.images import PICTURE_ENDINGS, read_image
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.log import logger

Pair = tuple[str, str]

_RIGHT_OF = {"left": "right", "l": "r", "lh": "rh", "lt": "rt", "sinister": "dexter"}
_ONE_ORGAN = re.compile(
    r"\b(heart|cardiac|(?<!lateral )ventric[a-z]*\b(?! lateral)|atri(um|a|al)\b|myocard|coronary|liver|hepat)"
)
_SPREAD = 20  # cases whose voxels are read
_FEWEST = 3  # cases with both labels; fewer may lie side by side by chance
_NEARLY_ALL = 0.9  # of these cases
_ALONG = 0.9  # cosine of the angle between an axis and the way from one centroid to the other
_LARGEST_RATIO = 1.5  # of volumes, in the median; kidneys and lungs have up to 1.2, the lobes of a liver about 2
_SAME_AXIS = 0.99  # of all cases; training bears the few others
_HORIZONTAL = 2  # of the axes z, y, x: left-right in pictures, which have no directions, and once nnU-Net reorients
_AXES = (0, 1, 2)


@dataclass(frozen=True)
class Sides:
    """What the labels of a data set say about left and right.

    Attributes:
        reason: Why, as a sentence.
        axis: The axis from left to right, of the array (z, y, x) as nnU-Net reads the images; None without ``swap``.
        swap: Pairs of label values that change places when ``axis`` is flipped.
        left_out: Axes that must not be flipped.
    """

    reason: str
    axis: int | None = None
    swap: tuple[tuple[int, int], ...] = ()
    left_out: tuple[int, ...] = ()


def mirroring_table(sides: Sides, transpose_forward: Sequence[int], patch_size: Sequence[int]) -> dict:
    """The entry ``mirroring`` of a configuration.

    Args:
        sides: Of the data set.
        transpose_forward: As in the plans: which axis of the images becomes each axis of the preprocessed ones.
        patch_size: Of two or three axes; two are the last ones.

    Returns:
        ``axes``: the axes of a patch that training flips. ``swap``: None, or the ``axis`` whose flip exchanges the
        label values in ``pairs``. ``reason``: a sentence.
    """
    dims = len(patch_size)

    def placed(axis: int) -> int:
        """The axis in a patch; negative if the slices of a 2-D configuration lie across it."""
        return list(transpose_forward).index(axis) - (3 - dims)

    reason, swap = sides.reason, None
    left_out = {placed(axis) for axis in sides.left_out}
    if sides.axis is not None and placed(sides.axis) >= 0:
        swap = {"axis": placed(sides.axis), "pairs": [list(pair) for pair in sides.swap]}
    elif sides.axis is not None:
        reason += ", which the slices do not have"
    careful = left_out | ({swap["axis"]} if swap else set())
    turned = turned_axes(patch_size)
    if careful & turned and turned - careful:
        left_out |= turned - careful
        reason += (
            "; training turns that plane by up to 180°, so that a flip of its other axis may be one of left and right "
            "and is left out"
        )
    return {"axes": [axis for axis in range(dims) if axis not in left_out], "swap": swap, "reason": reason}


def turned_axes(patch_size: Sequence[int]) -> set[int]:
    """The axes of the plane in which nnU-Net's augmentation turns patches by up to 180°; empty if it turns them less.

    A flip of one of these axes is a flip of the other one, turned by 180°: after any angle they are not two things.
    Source: ``configure_rotation_dummyDA_mirroring_and_inital_patch_size`` of nnunetv2 2.8.1's trainer.
    """
    if len(patch_size) == 2:
        return {0, 1} if max(patch_size) / min(patch_size) <= 1.5 else set()
    return {1, 2} if max(patch_size) / patch_size[0] > 3 else set()


def find_sides(description: dict, files: Sequence[Path], where: Path) -> Sides:
    """Decide how left and right are treated, and log it. Label files are opened only where names suggest pairs.

    Args:
        description: The content of dataset.json.
        files: The label files of the training cases.
        where: The path of dataset.json, for messages.

    Raises:
        UserError: ``mirror_pairs`` is malformed, or its regions cannot be exchanged.
    """
    labels = Labels.from_json(description, where)
    reorients = description.get("overwrite_image_reader_writer") == "NibabelIOWithReorient"
    if "mirror_pairs" in description:
        sides = _stated_sides(
            labels, _stated_pairs(description["mirror_pairs"], labels, where), files, reorients, where
        )
    else:
        sides = _detected_sides(labels, files, reorients)
    logger.info("mirroring: %s", sides.reason)
    return sides


# ------------------------------------------------------------------------------------------------------- stated pairs


def _stated_pairs(stated: object, labels: Labels, where: Path) -> list[Pair]:
    if not isinstance(stated, list) or not all(_is_pair(item) for item in stated):
        example = '"mirror_pairs": [["left kidney", "right kidney"]]'
        raise UserError(where, f'"mirror_pairs" is {stated!r}', f"list pairs of label names, {example}, or none: []")
    counted = Counter(name for pair in stated for name in pair)
    if unknown := [name for name in counted if name not in labels.foreground]:
        what = f'"mirror_pairs" names {", ".join(unknown)}, which "labels" does not have'
        raise UserError(where, what, f"choose from {', '.join(labels.foreground)}")
    if twice := [name for name, count in counted.items() if count > 1]:
        raise UserError(where, f'"mirror_pairs" names {", ".join(twice)} twice', "put every label into one pair only")
    return [(left, right) for left, right in stated]


def _is_pair(item: object) -> bool:
    return isinstance(item, list) and len(item) == 2 and all(isinstance(name, str) for name in item)


def _stated_sides(labels: Labels, pairs: list[Pair], files: Sequence[Path], reorients: bool, where: Path) -> Sides:
    """Pairs of the user are taken at their word: no voxel is read."""
    if not pairs:
        return Sides("dataset.json says that no labels are mirror images")
    swap = exchanged_values(labels, pairs)
    if swap is None:
        raise UserError(
            where,
            f"no exchange of label values exchanges the regions of {_listed(pairs)}",
            'give both regions of a pair as many values, which no other region holds, or leave "mirror_pairs" out',
        )
    return _swapping(pairs, swap, _left_right_axis(files, reorients))


def exchanged_values(labels: Labels, pairs: Sequence[Pair]) -> tuple[tuple[int, int], ...] | None:
    """The label values to exchange so that the labels or regions of each pair change places, and no others change.

    Returns:
        Pairs of values, or None if there is no such exchange: values are told apart by the regions that hold them, and
        those in a set of regions and those in its mirror image must be equally many.
    """
    mirrored = dict(pairs) | {right: left for left, right in pairs}
    members = {name: value if isinstance(value, tuple) else (value,) for name, value in labels.foreground.items()}
    groups: dict[frozenset[str], list[int]] = {}
    for value in sorted({value for values in members.values() for value in values}):
        groups.setdefault(frozenset(name for name in members if value in members[name]), []).append(value)
    found = set()
    for names, values in groups.items():
        image = frozenset(mirrored.get(name, name) for name in names)
        if len(groups.get(image, [])) != len(values):
            return None
        if image != names:
            found |= {(min(two), max(two)) for two in zip(values, groups[image], strict=True)}
    return tuple(sorted(found))


# ----------------------------------------------------------------------------------------------------- detected pairs


def paired_names(names: Iterable[str]) -> list[Pair]:
    """Names that become each other when left (l, lh, lt, sinister) is read as right (r, rh, rt, dexter).

    Only whole words count, however they are joined: ``kidney_l``, ``Left-Hippocampus``, ``femurLeft``; not ``LV``.
    """
    by_words = {_words(name): name for name in names}
    images = {words: tuple(_RIGHT_OF.get(word, word) for word in words) for words in by_words}
    return [
        (by_words[words], by_words[image]) for words, image in images.items() if image != words and image in by_words
    ]


def _words(name: str) -> tuple[str, ...]:
    apart = re.sub(r"(?<=[a-z\d])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", name)
    return tuple(word for word in re.split(r"[\W_]+", apart.lower()) if word)


def is_of_one_organ(name: str) -> bool:
    """Whether a name is that of a part of the heart or the liver; the lateral ventricles of the brain are not."""
    return _ONE_ORGAN.search(" ".join(_words(name))) is not None


def _detected_sides(labels: Labels, files: Sequence[Path], reorients: bool) -> Sides:
    named = paired_names(labels.foreground)
    if not named:
        return Sides("no two labels are named as left and right")
    pairs = [pair for pair in named if not is_of_one_organ(pair[0])]
    if not pairs:
        return Sides(f"{_listed(named)} are parts of one organ, not mirror images")
    chosen = np.unique(np.linspace(0, len(files) - 1, min(_SPREAD, len(files))).round().astype(int))
    cases = [_measure(files[index], labels, pairs, reorients) for index in chosen]
    return _judged(labels, pairs, cases, _left_right_axis(files, reorients))


@dataclass(frozen=True)
class _Lie:
    """How the labels of a pair lie in a case.

    Attributes:
        towards_left: Cosine of the angle at which the way from the right label to the left one runs along the voxel
            axis nearest to the patient's left.
        axis: The axis along which they lie apart, as nnU-Net reads the image.
        ratio: Volume of the left one over that of the right one.
    """

    towards_left: float
    axis: int
    ratio: float


def _measure(path: Path, labels: Labels, pairs: Sequence[Pair], reorients: bool) -> dict[Pair, _Lie]:
    """The pairs of which a label file holds both."""
    image = read_image(path)
    array = image.array[0].reshape((1, *image.array.shape[1:])[-3:])  # (z, y, x)
    spacing = np.array((*image.spacing, 1.0)[:3])[::-1]
    directions = _directions(image.direction)
    nearest = int(np.abs(directions[0]).argmax())
    counts, moments = _moments(array, max(labels.values) + 1)
    found = {}
    for pair in pairs:
        left, right = (np.atleast_1d(labels.foreground[name]) for name in pair)
        sizes = counts[left].sum(), counts[right].sum()
        if min(sizes) == 0:
            continue
        way = spacing * (moments[:, left].sum(axis=1) / sizes[0] - moments[:, right].sum(axis=1) / sizes[1])
        length = max(float(np.linalg.norm(way)), 1e-9)  # one inside the other: towards nothing
        axis = int(np.abs(way).argmax())
        if reorients:
            axis = _HORIZONTAL - int(np.abs(directions[:, axis]).argmax())
        found[pair] = _Lie(way[nearest] * np.sign(directions[0, nearest]) / length, axis, sizes[0] / sizes[1])
    return found


def _moments(array: np.ndarray, values: int) -> tuple[np.ndarray, np.ndarray]:
    """Voxels (values) of each label value in ``array`` (z, y, x), and the sums (3, values) of their indices."""
    # Plane by plane, as a scan of the whole body has 10^8 voxels. What is no label is named by `umamba-seg check`.
    profiles = [
        np.stack([np.bincount(plane.ravel().astype(np.intp).clip(0), minlength=values)[:values] for plane in planes])
        for planes in (np.moveaxis(array, axis, 0) for axis in _AXES)
    ]
    return profiles[0].sum(axis=0), np.stack([np.arange(len(profile)) @ profile for profile in profiles])


def _directions(cosines: Sequence[float]) -> np.ndarray:
    """The patient's axes (left, back, head) by those of the voxels (z, y, x), from the cosines of SimpleITK."""
    axes = math.isqrt(len(cosines))
    directions = np.eye(3)
    directions[:axes, :axes] = np.reshape(cosines, (axes, axes))
    return directions[:, ::-1]


def _left_right_axis(files: Sequence[Path], reorients: bool) -> int | None:
    """The axis (z, y, x) nearest to the patient's left-right axis; None if it is not the same one in all cases."""
    if reorients or files[0].name.endswith(PICTURE_ENDINGS):
        return _HORIZONTAL
    found = Counter(int(np.abs(_directions(_header_cosines(path))[0]).argmax()) for path in files)
    axis, count = found.most_common(1)[0]
    return axis if count >= _SAME_AXIS * len(files) else None


def _header_cosines(path: Path) -> tuple[float, ...]:
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    reader.ReadImageInformation()
    return reader.GetDirection()


def _judged(labels: Labels, pairs: list[Pair], cases: Sequence[dict[Pair, _Lie]], axis: int | None) -> Sides:
    """What follows from how pairs lie in ``cases``, and from the left-right axis, if there is one."""
    confirmed: list[Pair] = []
    doubts: dict[str, int | None] = {}  # and the axis that each forbids to flip, None if it is not known
    for pair in pairs:
        lies, both = [case[pair] for case in cases if pair in case], _listed([pair])
        if len(lies) < _FEWEST:
            doubts[f"{both} are together in {len(lies)} of {len(cases)} cases only"] = axis
        elif not _side_by_side(lies):
            if (apart := _apart_along(lies)) is not None:
                doubts[f"{both} do not lie side by side, the same way round, in nearly all cases"] = apart
        elif (ratio := _typical_ratio(lies)) > _LARGEST_RATIO:
            doubts[f"the volumes of {both} differ by a factor of {ratio:.1f}"] = axis
        else:
            confirmed.append(pair)
    swap = exchanged_values(labels, confirmed)
    if swap is None:
        doubts[f"no exchange of label values exchanges the regions of {_listed(confirmed)}"] = axis
    if doubts:  # then those that are confirmed are not flipped either: one rule for all is easier to trust
        return _leaving_out(list(doubts), {*doubts.values()} | ({axis} if confirmed else set()))
    if not swap:
        return Sides(f"{_listed(pairs)} lie in no fixed direction from each other, so left and right are but names")
    return _swapping(confirmed, swap, axis)


def _side_by_side(lies: Sequence[_Lie]) -> bool:
    """Whether the way from right to left runs along the left-right axis in nearly all cases, the same way round."""
    cosines = np.array([lie.towards_left for lie in lies])
    return bool(max(np.mean(cosines >= _ALONG), np.mean(cosines <= -_ALONG)) >= _NEARLY_ALL)


def _apart_along(lies: Sequence[_Lie]) -> int | None:
    axis, count = Counter(lie.axis for lie in lies).most_common(1)[0]
    return axis if count >= _NEARLY_ALL * len(lies) else None


def _typical_ratio(lies: Sequence[_Lie]) -> float:
    """The larger volume over the smaller, where one side is the larger one as a rule."""
    return math.exp(abs(np.median([math.log(lie.ratio) for lie in lies])))


def _leaving_out(doubts: Sequence[str], axes: set[int | None]) -> Sides:
    why = doubts[0] + (f" (and {len(doubts) - 1} more doubts)" if len(doubts) > 1 else "")
    known = tuple(sorted(axis for axis in axes if axis is not None))
    if len(known) < len(axes):
        return Sides(f"{why}, and no axis is left-right in all images, so none is flipped", left_out=_AXES)
    return Sides(f"{why}, so the axis between left and right is not flipped", left_out=known)


def _swapping(pairs: Sequence[Pair], swap: tuple[tuple[int, int], ...], axis: int | None) -> Sides:
    if axis is None:
        return Sides(
            f"{_listed(pairs)} are mirror images, but no axis is left-right in all images, so none is flipped",
            left_out=_AXES,
        )
    return Sides(f"{_listed(pairs)} change places when the left-right axis is flipped", axis, swap)


def _listed(pairs: Sequence[Pair]) -> str:
    left, right = pairs[0]
    more = f" (and {len(pairs) - 1} more pairs)" if len(pairs) > 1 else ""
    return f'"{left}" and "{right}"{more}'
