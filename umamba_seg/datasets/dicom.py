"""DICOM series -> images: sorted by where slices lie, never by file names, and refused where they are no volume."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from umamba_seg.datasets.dicom_files import (
    Slice,
    is_dicom,
    kind_without_slices,
    needed,
    parse,
    pixels,
    printable,
    refuse_stump,
    slices_in,
    value,
)
from umamba_seg.datasets.images import ENDINGS, PICTURE_ENDINGS, Image, ending_of
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.text import shorten, times

if TYPE_CHECKING:
    from pydicom import Dataset

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")

_VOLUME_ENDINGS = tuple(ending for ending in ENDINGS if ending not in PICTURE_ENDINGS)
_CHANNEL = re.compile(r"(?P<case>.+)_(?P<channel>\d{4})")

_COPY = 1e-3
"""Slices closer than this (mm) lie at the same place."""
_PLACE = 0.2
"""Share of a voxel by which a slice may lie off its place: positions are written with few digits."""
_ROUNDING = 1e-3
"""Relative difference that few digits make in spacings and directions."""

_VOLUME_TAGS = (
    "AcquisitionNumber",
    "EchoTime",
    "DiffusionBValue",
    "TemporalPositionIdentifier",
    "TriggerTime",
    "InversionTime",
    "SequenceName",
    "ImageType",
    "AcquisitionTime",
)
"""What tells the volumes of a series apart that holds several."""
_APART = "put the files of one series into a folder of their own"


@dataclass(frozen=True, eq=False)
class Series:
    """A series whose slices are a volume.

    Attributes:
        folder: Of its files.
        slices: In the order of their places along the slice normal, ascending.
        spacing, origin, direction: As :class:`umamba_seg.datasets.images.Image` has them.
    """

    folder: Path
    slices: tuple[Slice, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def holds_dicom(folder: Path) -> bool:
    """Whether :func:`list_series` finds anything in a folder."""
    return any(_dicom_files(place) for place in (folder, *_subfolders(folder)))


def list_series(folder: Path) -> dict[str, dict[int, Path]]:
    """Find DICOM series: a folder for each case, or ``CASE_0000``, ``CASE_0001``, ... for each channel of a case.

    Args:
        folder: Holds such folders, or is itself one series; the case is then named after it.

    Returns:
        case -> {channel number: folder}, sorted. Nothing is opened but the first bytes of files.

    Raises:
        UserError: There are DICOM files beside folders of DICOM files, or files of other images beside either; or two
            folders are the same channel.
    """
    own = _dicom_files(folder)
    below = [place for place in _subfolders(folder) if _dicom_files(place)]
    volumes = [path.name for path in _files(folder) if ending_of(path.name) in _VOLUME_ENDINGS]
    if volumes and (own or below):
        what = f"holds DICOM files ({(own or below)[0].name}) and other images ({shorten(volumes, 3)})"
        raise UserError(folder, what, "put them into folders of their own, so that no case is left out")
    if own and below:
        what = f"holds DICOM files ({shorten([path.name for path in own], 3)}) and folders of DICOM files"
        raise UserError(folder, what, f"put the files into a folder beside {below[0].name}")
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    for place in [folder] if own else below:
        name = place.resolve().name
        match = _CHANNEL.fullmatch(name)
        case, channel = (match["case"], int(match["channel"])) if match else (name, 0)
        if channel in found[case]:
            what = f"{found[case][channel].name} and {place.name} are both channel {channel} of {case}"
            raise UserError(folder, what, "rename one of them")
        found[case][channel] = place
    return {case: dict(sorted(channels.items())) for case, channels in sorted(found.items())}


def _subfolders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))


def _dicom_files(folder: Path) -> list[Path]:
    return [path for path in _files(folder) if is_dicom(path)]


def read_series(folder: Path) -> Image:
    """Read a DICOM series as SimpleITK would, if it is one volume.

    RescaleSlope and RescaleIntercept are applied, and give float32.

    Raises:
        UserError: As :func:`find_series`; or voxels are damaged.
    """
    series = find_series(folder)
    places: dict[Path, list[int]] = defaultdict(list)
    for place, one in enumerate(series.slices):
        places[one.path].append(place)
    number_type = np.result_type(*{one.dtype for one in series.slices})
    volume = np.empty((len(series.slices), *series.slices[0].shape), number_type)

    def decode(path: Path) -> None:
        dataset = parse(path, voxels=True)
        for place in places[path]:
            volume[place] = pixels(dataset, series.slices[place])

    _each(folder, decode, list(places))
    return Image(volume[None], series.spacing, series.origin, series.direction)


def find_series(folder: Path) -> Series:
    """The slices of a series, from the headers of its files.

    Objects without slices (RTSTRUCT, SEG, reports) and files of other kinds are left alone, with a warning.

    Raises:
        UserError: A file is damaged or lacks what is needed, the files are several series, or their slices are no
            volume: one is missing or there twice, or they differ in size, spacing or direction.
    """
    files = _series_files(folder)
    headers = dict(zip(files, _each(folder, parse, files), strict=True))
    images = _images(folder, headers)
    _require_one_series(folder, images)
    found = _each(folder, lambda path: slices_in(path, images[path]), list(images))
    slices = [one for some in found for one in some]
    _require_alike(folder, slices)
    return _ordered(folder, slices)


def _series_files(folder: Path) -> list[Path]:
    files = _dicom_files(folder)
    if not files:
        below = [place.name for place in _subfolders(folder) if holds_dicom(place)]
        what = "is a folder, not an image, and holds no DICOM files"
        if below:
            raise UserError(folder, f"{what}, but folders of them ({shorten(below)})", _APART)
        raise UserError(folder, what, "check the path")
    others = [path for path in _files(folder) if path not in files and path.name != "DICOMDIR"]
    _each(folder, refuse_stump, others)
    if others:
        names = shorten([path.name for path in others])
        logger.warning("%s: left alone, as they are not DICOM: %s", folder, names)
    return files


def _each(folder: Path, function: Callable[[_Item], _Result], items: Sequence[_Item]) -> list[_Result]:
    """What ``function`` makes of each file; its errors in one message."""
    results, errors = [], []
    for item in items:
        try:
            results.append(function(item))
        except UserError as error:
            errors.append(error)
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = shorten([f"\n  {error}" for error in errors])
        raise UserError(folder, f"{len(errors)} of its {len(items)} files cannot be used", f"mend these: {lines}")
    return results


def _images(folder: Path, headers: dict[Path, Dataset]) -> dict[Path, Dataset]:
    """The files that may hold slices."""
    kinds = {path: kind for path, header in headers.items() if (kind := kind_without_slices(path, header))}
    names = shorten([f"{path.name} ({kind})" for path, kind in kinds.items()])
    if len(kinds) == len(headers):
        raise UserError(folder, f"holds no images: {names}", "give the folder of the images")
    if kinds:
        logger.warning("%s: left alone, as they are no images: %s", folder, names)
    return {path: header for path, header in headers.items() if path not in kinds}


def _require_one_series(folder: Path, headers: dict[Path, Dataset]) -> None:
    series: dict[str, list[Path]] = defaultdict(list)
    for path, header in headers.items():
        series[str(needed(path, [header], "SeriesInstanceUID"))].append(path)
    if len(series) > 1:
        listed = []
        for paths in series.values():
            name = value(paths[0], [headers[paths[0]]], "SeriesDescription") or "without description"
            listed.append(f"{printable(str(name))} ({len(paths)} files, such as {paths[0].name})")
        raise UserError(folder, f"holds {len(series)} series: {shorten(listed)}", _APART)


def _require_alike(folder: Path, slices: Sequence[Slice]) -> None:
    sizes = [one.shape[::-1] for one in slices]
    spacings, orientations = [one.spacing for one in slices], [one.orientation for one in slices]
    for quantity, values, noise in (
        ("sizes", sizes, 0),
        ("pixel spacings", spacings, _ROUNDING * min(map(np.min, spacings))),
        ("directions", orientations, _ROUNDING),
    ):
        groups: list[list[int]] = []
        for number, found in enumerate(values):
            fitting = (group for group in groups if np.abs(values[group[0]] - found).max() <= noise)
            group = next(fitting, None)
            groups.append([number]) if group is None else group.append(number)
        if len(groups) > 1:
            listed = [f"{_list(values[group[0]])} ({len(group)}, {slices[group[0]].path.name})" for group in groups]
            what = f"its slices have {len(groups)} {quantity}: {shorten(listed, 4)}"
            raise UserError(folder, what, "keep the slices of one volume (no localizer, no reformatted slices)")


def _ordered(folder: Path, slices: Sequence[Slice]) -> Series:
    row, column = slices[0].orientation.reshape(2, 3)
    left, _, right = np.linalg.svd(np.stack([row, column, np.cross(row, column)], axis=1))
    axes = left @ right  # the closest right-angled ones, as in ITK: few digits make them slightly skew
    normal = axes[:, 2]
    slices = sorted(slices, key=lambda one: float(one.position @ normal))
    positions = np.array([one.position for one in slices])
    places = positions @ normal
    if len(slices) == 1:
        step = _thickness(slices[0])
    else:
        _require_single(folder, slices, places)
        _require_even(folder, slices, places)
        _require_straight(folder, positions - np.outer(places, normal), slices[0].spacing, places)
        step = float(np.linalg.norm(positions[-1] - positions[0])) / (len(slices) - 1)
    spacing = (*slices[0].spacing.tolist(), step)
    return Series(folder, tuple(slices), spacing, tuple(positions[0].tolist()), tuple(axes.ravel().tolist()))


def _thickness(one: Slice) -> float:
    if one.thickness is None or one.thickness <= 0:
        what = f"is a single slice of the thickness {one.thickness}"
        raise UserError(one.path, what, "get the other slices of the series")
    return one.thickness


def _require_single(folder: Path, slices: Sequence[Slice], places: np.ndarray) -> None:
    """Refuse slices at the same place."""
    copies = [number for number, step in enumerate(np.diff(places)) if step < _COPY]
    if not copies:
        return
    first, second = slices[copies[0]], slices[copies[0] + 1]
    pair = f"{_name(first)} and {_name(second)}"
    ids = [value(one.path, [one.header], "SOPInstanceUID") for one in (first, second)]
    if ids[0] == ids[1] and first.path != second.path:
        raise UserError(folder, f"holds the same slice twice: {pair}", "remove one of each pair")
    differing = [
        tag
        for tag in _VOLUME_TAGS
        if value(first.path, [first.header], tag) != value(second.path, [second.header], tag)
    ]
    reason = f", which differ in {', '.join(differing)}" if differing else ""
    what = f"holds {len(slices)} slices at {len(slices) - len(copies)} places: {pair} lie at the same{reason}"
    raise UserError(folder, what, "separate the volumes (echoes, times, b-values), a folder for each")


def _require_even(folder: Path, slices: Sequence[Slice], places: np.ndarray) -> None:
    """Refuse gaps, and slices at uneven distances."""
    count = len(places)
    steps, mean = np.diff(places), (places[-1] - places[0]) / (count - 1)
    single = steps < 1.5 * steps.min()
    if single.all() and np.abs(places - places[0] - mean * np.arange(count)).max() <= _PLACE * mean:
        return
    multiples = steps / np.median(steps[single])
    missing = np.rint(multiples).astype(int) - 1
    if 3 * single.sum() < len(steps) or single.all() or np.abs(multiples - 1 - missing).max() > _PLACE:
        what = f"its slices lie at uneven distances, from {steps.min():.4g} to {steps.max():.4g} mm"
        raise UserError(folder, what, "export the series at one distance between slices, or resample it")
    total = count + missing.sum()
    gaps = [
        f"between the slices at {places[i]:.2f} mm ({_name(slices[i])}) and at {places[i + 1]:.2f} mm "
        f"({_name(slices[i + 1])}) along the slice normal: {missing[i]} of {total} "
        f"slices {'is' if missing[i] == 1 else 'are'} missing"
        for i in range(count - 1)
        if missing[i]
    ]
    raise UserError(folder, shorten(gaps, 3), "ask for the series again")


def _require_straight(folder: Path, across: np.ndarray, spacing: np.ndarray, places: np.ndarray) -> None:
    """Refuse slices that are shifted against each other in their plane, as a tilted gantry leaves them."""
    shift, length = float(np.linalg.norm(across - across[0], axis=1).max()), float(places[-1] - places[0])
    if shift > max(_PLACE * spacing.min(), _ROUNDING * length):
        angle = np.degrees(np.arctan2(shift, length))
        what = f"its slices are shifted in their plane by up to {shift:.3g} mm over {length:.4g} mm"
        remedy = "resample it to a right-angled grid first (dcm2niix writes one)"
        raise UserError(folder, f"{what} ({angle:.1f} degrees: a tilted gantry?)", remedy)


def _name(one: Slice) -> str:
    return one.path.name if one.frame is None else f"frame {one.frame + 1} of {one.path.name}"


def _list(values: np.ndarray) -> str:
    return times(values) if len(values) < 6 else f"({', '.join(f'{number:.3g}' for number in values)})"
