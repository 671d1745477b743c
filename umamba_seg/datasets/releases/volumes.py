"""What releases of volumes share: finding and pairing files, comparing grids, writing .nii.gz and remapped labels."""

from __future__ import annotations

import gzip
import math
import os
import re
import shutil
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from umamba_seg.datasets import nifti
from umamba_seg.datasets.case_checks import NOISE, deviations, seven_digits
from umamba_seg.datasets.images import Image, ending_of, itk_reader, read_image, require_content
from umamba_seg.datasets.releases.release import Content, Item
from umamba_seg.errors import UserError
from umamba_seg.log import progress
from umamba_seg.text import shorten, times

_ENDING = ".nii.gz"
_VOLUMES = (_ENDING, ".nii", ".mhd")
_FETCH = "get the file again, or leave the case out"


def sort_files(source: Path, patterns: Mapping[str, str]) -> tuple[dict[str, dict[str, Path]], list[str]]:
    """Which volume below a folder plays which part: the first whose pattern is its path. Hidden files do not count.

    Args:
        source: The folder.
        patterns: Part -> regular expression of a path below ``source`` (``/`` between folders), with a group ``case``.

    Returns:
        Part -> {case: path}; and the paths of volumes that play no part.

    Raises:
        UserError: Two files play the same part in a case.
    """
    files: dict[str, dict[str, Path]] = {part: {} for part in patterns}
    others = []
    for path in _volumes(source):
        name = path.relative_to(source).as_posix()
        matches = ((part, re.fullmatch(pattern, name)) for part, pattern in patterns.items())
        part, match = next(((part, match) for part, match in matches if match), ("", None))
        if match is None:
            others.append(name)
        elif (first := files[part].setdefault(match["case"], path)) != path:
            raise UserError(path, f"is a second file of {match['case']}, beside {first}", "remove one of the two")
    return files, others


def _volumes(source: Path) -> list[Path]:
    found = []
    for folder, subfolders, names in os.walk(source, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".")]
        found += [Path(folder, name) for name in names if name.endswith(_VOLUMES) and not name.startswith(".")]
    return sorted(found)


def pair(
    source: Path,
    images: Mapping[str, Mapping[str, Path]],
    labels: Mapping[str, Path],
    *,
    prefix: str = "",
    needs_labels: bool = True,
) -> list[Item]:
    """Join what :func:`sort_files` found to cases, sorted by identifier.

    Args:
        source: The folder, for messages.
        images: Channel -> {case: path}, in the order of the channels.
        labels: Case -> path.
        prefix: Goes before the cases to make identifiers; numbers then get three digits at least.
        needs_labels: Whether each case must have one.

    Raises:
        UserError: An image or label is missing; every such case is named.
    """
    needed = dict(images) | ({"label": labels} if needs_labels else {})
    cases = set(labels).union(*images.values())
    missing = {case: [part for part, files in needed.items() if case not in files] for case in sorted(cases)}
    lacking = [f"{case} has no {' and no '.join(parts)}" for case, parts in missing.items() if parts]
    if lacking:
        what = f"holds cases that are not whole ({len(lacking)}): {shorten(lacking)}"
        raise UserError(source, what, "add what is missing, or remove these cases")
    items = [
        Item(
            f"{prefix}{case.zfill(3)}" if prefix else case,
            tuple(files[case] for files in images.values()),
            (labels[case],) if case in labels else (),
        )
        for case in cases
    ]
    return sorted(items, key=lambda item: item.identifier)


def find_single_images(
    source: Path,
    patterns: Mapping[str, str],
    dataset_json: dict[str, Any],
    values: Mapping[int, int],
    *,
    prefix: str = "",
    test_prefix: str = "",
    dataset: tuple[int, str] | None = None,
) -> Content:
    """The content of a release whose cases are one image each, with a label, and maybe tests without.

    Args:
        source, patterns: As of :func:`sort_files`; the parts are "image", "label" and, where there are tests, "test".
        dataset_json, values, dataset: As of :func:`content_of`.
        prefix, test_prefix: As of :func:`pair`.

    Raises:
        UserError: As these.
    """
    files, others = sort_files(source, patterns)
    training = pair(source, {"image": files["image"]}, files["label"], prefix=prefix)
    tests = pair(source, {"image": files.get("test", {})}, {}, prefix=test_prefix, needs_labels=False)
    return content_of(dataset_json, training, tests, values, others, dataset)


def content_of(
    dataset_json: dict[str, Any],
    training: Sequence[Item],
    tests: Sequence[Item],
    values: Mapping[int, int],
    others: Sequence[str],
    dataset: tuple[int, str] | None = None,
) -> Content:
    """The content of a release of volumes, each case of which lies on one grid.

    NIfTI images are written byte for byte, compressed where they were not; so are labels that keep their values.

    Args:
        dataset_json: As in :class:`Content`, without ``file_ending``.
        training, tests: From :func:`pair`; one label file each.
        values: Value in the label files -> label. Other values are refused.
        others: Volumes that play no part, from :func:`sort_files`.
        dataset: As in :class:`Content`.

    Raises:
        UserError: A file of a case lies on another grid than its first image, or is no volume; all are named.
    """
    _require_one_grid([*training, *tests])
    left_out = (f"left out, as no part of the data set: {shorten(others)}",) if others else ()
    return Content(
        dataset_json | {"file_ending": _ENDING},
        training,
        tests,
        _write_images,
        partial(_write_label, values=values),
        left_out=left_out,
        dataset=dataset,
    )


@dataclass(frozen=True)
class _Grid:
    """Where the voxels lie, as SimpleITK gives it."""

    size: tuple[int, ...]
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]

    def difference(self, other: _Grid, name: str) -> str | None:
        """How ``other`` is told from this grid, which is that of the file ``name``."""
        if self.size != other.size:
            return f"has shape {times(other.size)}, but {name} has {times(self.size)}"
        for quantity, mine, theirs, difference in deviations(self, other, self.size):
            if difference > NOISE:
                return f"has {quantity} {seven_digits(theirs)}, but {name} has {seven_digits(mine)}"
        return None


def _require_one_grid(items: Sequence[Item]) -> None:
    """Headers alone are read, before anything is written: who has a hundred wrong ones learns it at once."""
    differing: list[tuple[Path, str]] = []
    for item in progress(items, "comparing grids", len(items)):
        first, *rest = (*item.images, *item.labels)
        grid = _grid(first)
        found = ((path, grid.difference(_grid(path), first.name)) for path in rest)
        differing += [(path, difference) for path, difference in found if difference]
    if differing:
        path, what = differing[0]
        if len(differing) > 1:
            others = shorten([str(path) for path, _ in differing[1:]])
            what += f"; {len(differing) - 1} more lie on other grids than their images: {others}"
        remedy = "pair the right files; where voxels correspond one to one, copy the header of the image"
        raise UserError(path, what, remedy)


def _grid(path: Path) -> _Grid:
    require_content(path)
    with itk_reader(path) as reader:
        if reader.GetDimension() != 3:
            raise UserError(path, f"has shape {times(reader.GetSize())}, which is no volume", _FETCH)
        return _Grid(reader.GetSize(), reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _write_images(item: Item, folder: Path) -> None:
    for channel, path in enumerate(item.images):
        _write_volume(path, folder / f"{item.identifier}_{channel:04d}{_ENDING}")


def _write_label(item: Item, target: Path, values: Mapping[int, int]) -> None:
    (path,) = item.labels
    image = _read(path)
    labels = _remap(image.array[0], values, path)
    if all(value == label for value, label in values.items()):
        _write_volume(path, target)
    else:
        _save(labels, image, target)


def _remap(voxels: np.ndarray, values: Mapping[int, int], path: Path) -> np.ndarray:
    labels, known = np.zeros(voxels.shape, np.uint8), 0
    for value, label in values.items():
        there = voxels == value
        known += np.count_nonzero(there)
        labels[there] = label
    if known < voxels.size:
        foreign = [f"{value:g}" for value in np.unique(voxels[~np.isin(voxels, list(values))])]
        what = f"holds the values {shorten(foreign)}, but the labels of this data set are {shorten(_words(values), 20)}"
        raise UserError(path, what, _FETCH)
    return labels


def _words(values: Mapping[int, int]) -> list[str]:
    return [str(value) for value in sorted(values)]


def _write_volume(path: Path, target: Path) -> None:
    ending = ending_of(path.name)
    if ending == ".mhd":
        image = _read(path)
        _save(image.array[0], image, target)
        return
    nifti.read(path)  # raises where the file is damaged
    if ending == _ENDING:
        shutil.copyfile(path, target)
        return
    with (
        path.open("rb") as plain,
        target.open("wb") as file,
        gzip.GzipFile("", "wb", compresslevel=1, fileobj=file, mtime=0) as packed,  # the same bytes every time
    ):
        shutil.copyfileobj(plain, packed, 1 << 20)


def _save(voxels: np.ndarray, image: Image, target: Path) -> None:
    """Write voxels (z, y, x) with the geometry of ``image``."""
    import SimpleITK as sitk

    volume = sitk.GetImageFromArray(voxels)
    volume.SetSpacing(image.spacing)
    volume.SetOrigin(image.origin)
    volume.SetDirection(image.direction)
    sitk.WriteImage(volume, str(target), useCompression=True)


def _read(path: Path) -> Image:
    return _read_mhd(path) if path.suffix == ".mhd" else read_image(path)


def _read_mhd(path: Path) -> Image:
    """Read a MetaImage header and its file of voxels; where that is short, ITK would take what is in memory."""
    import SimpleITK as sitk

    with itk_reader(path) as reader:
        voxel = sitk.Image([1, 1, 1], reader.GetPixelID()).GetSizeOfPixelComponent()
        needed = math.prod(reader.GetSize()) * voxel
        held = _bytes_of_mhd(path)
        if held < needed:
            what = f"its file of voxels holds {held} of the {needed} bytes that it announces"
            raise UserError(path, what, _FETCH)
        image = reader.Execute()
    array = sitk.GetArrayFromImage(image)[None]
    return Image(array, image.GetSpacing(), image.GetOrigin(), image.GetDirection())


def _bytes_of_mhd(path: Path) -> int:
    """How many bytes of voxels there are, when they are unpacked."""
    header = path.read_text(encoding="utf-8", errors="replace")
    entries = dict(re.findall(r"^(\w+) *= *(.*?)\s*$", header, re.MULTILINE))
    voxels = path.parent / entries.get("ElementDataFile", "")
    require_content(voxels)
    if entries.get("CompressedData", "False").lower() != "true":
        return voxels.stat().st_size
    try:
        return len(zlib.decompress(voxels.read_bytes()))
    except zlib.error as error:
        raise UserError(voxels, f"its compressed data is damaged or cut short ({error})", _FETCH) from None
