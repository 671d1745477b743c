"""Checks of one case: are its files readable, on one grid, finite, and labelled with known values."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from umamba_seg.datasets.findings import Finding
from umamba_seg.datasets.images import Image, read_image
from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import Case
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.text import shorten, times

_SAME = 1e-5
"""Relative difference that float32 headers make, and up to which nnU-Net takes two spacings as equal."""
NOISE = 1e-3
"""Relative difference of rounded headers: half a voxel at the far end of 512 voxels."""


@dataclass(frozen=True)
class CaseResult:
    """What a check of one case found.

    Attributes:
        findings: Errors and warnings.
        digest: Hash of all channels, or None where an image is unreadable or every image is constant.
        label_values: The values in the label file, or None where it is missing or unreadable.
    """

    findings: tuple[Finding, ...]
    digest: str | None
    label_values: frozenset[int] | None


def check_case(case: Case, labels: Labels, channels: int) -> CaseResult:
    """Check the images of a case, and its label file where it has one."""
    findings: list[Finding] = []
    images = _check_images(case.identifier, case.images, channels, findings)
    values = None
    if case.label and (label := _read(case.label, findings)):
        if images:
            findings += _compare(images[0], label, case.images[0], case.label, NOISE)
        values = _check_label(label, labels, case.label, findings)
    return CaseResult(tuple(findings), _digest(images), values)


def check_case_images(identifier: str, files: Sequence[Path], channels: int) -> list[Image]:
    """Read the images of a case to predict: readable, on one grid, finite, and as many channels as the model takes.

    Warnings (a constant image, header noise) are logged.

    Raises:
        UserError: The images have errors; all of them stand in the message.
    """
    findings: list[Finding] = []
    images = _check_images(identifier, files, channels, findings)
    errors = [finding for finding in findings if finding.severity == "error"]
    for finding in findings:
        if finding.severity == "warning":
            logger.warning("%s: %s; %s", finding.where, finding.what, finding.remedy)
    if len(errors) == 1:
        raise UserError(errors[0].where, errors[0].what, errors[0].remedy)
    if errors:
        lines = "".join(f"\n  {error.where}: {error.what}; {error.remedy}" for error in errors)
        raise UserError(identifier, f"its images have {len(errors)} errors", f"mend them:{lines}")
    return images


def _read(path: Path, findings: list[Finding]) -> Image | None:
    try:
        return read_image(path)
    except UserError as error:
        findings.append(Finding.of(error))
        return None


def _check_images(identifier: str, files: Sequence[Path], channels: int, findings: list[Finding]) -> list[Image]:
    """Append what is wrong to ``findings``; the images, or an empty list if any is unreadable."""
    images = [image for path in files if (image := _read(path, findings))]
    if len(images) < len(files):
        return []
    count = sum(len(image.array) for image in images)
    if count != channels:
        has_alpha = any(len(image.array) == 4 for image in images)
        remedy = "drop the alpha channel (`umamba-seg convert folder` does)" if has_alpha else "add or remove channels"
        findings.append(Finding("error", identifier, f"its files hold {count} channels instead of {channels}", remedy))
    for path, image in zip(files[1:], images[1:], strict=True):
        findings += _compare(images[0], image, files[0], path, _SAME)
    for path, image in zip(files, images, strict=True):
        findings += _check_intensities(image, path)
    return images


def _check_intensities(image: Image, path: Path) -> list[Finding]:
    wrong = image.array.size - np.count_nonzero(np.isfinite(image.array))
    if wrong:
        what = f"holds NaN or infinity in {wrong} of {image.array.size} voxels"
        remedy = "replace them by the background's value (from NIfTI files nnU-Net would silently read 0)"
        return [Finding("error", str(path), what, remedy)]
    low, high = image.array.min(), image.array.max()
    if low == high:
        what = f"is constant: every voxel is {low:g}"
        return [Finding("warning", str(path), what, "check that the image was exported correctly")]
    return []


def _compare(first: Image, second: Image, first_path: Path, path: Path, spacing_noise: float) -> list[Finding]:
    """Do two files lie on the same grid? Differences up to the noise of rounded headers are warnings."""
    name = first_path.name
    shapes = first.array.shape[1:], second.array.shape[1:]
    if shapes[0] != shapes[1]:
        what = f"has shape {times(shapes[1][::-1])} (x first), but {name} has {times(shapes[0][::-1])}"
        return [Finding("error", str(path), what, "resample one to the grid of the other, or pair the right files")]
    findings = []
    for quantity, wanted, found, difference in deviations(first, second, shapes[0][::-1]):
        if difference <= _SAME:
            continue
        unit = "" if quantity == "direction" else " mm"
        what = f"has {quantity} {seven_digits(found)}{unit}, but {name} has {seven_digits(wanted)}{unit}"
        if difference <= (spacing_noise if quantity == "spacing" else NOISE):
            findings.append(Finding("warning", str(path), f"{what} (header noise)", "copy the header of the image"))
        else:
            remedy = f"resample it to {name}, or copy that header if the voxels correspond one to one"
            findings.append(Finding("error", str(path), what, remedy))
    return findings


class _Geometry(Protocol):
    """Of an image, or of a header."""

    @property
    def spacing(self) -> tuple[float, ...]: ...
    @property
    def origin(self) -> tuple[float, ...]: ...
    @property
    def direction(self) -> tuple[float, ...]: ...


def deviations(
    first: _Geometry, second: _Geometry, size: Sequence[int]
) -> Iterator[tuple[str, tuple[float, ...], tuple[float, ...], float]]:
    """Spacing, origin and direction of two grids of one size, and by which share of what they are compared with they
    differ: of the spacing, of the longest side of the first grid, of a cosine of 1.

    Args:
        first, second: As SimpleITK gives them.
        size: Voxels of both, in the order of their spacing.

    Yields:
        The quantity, its values in both, and the largest relative difference.
    """
    scales = {"spacing": np.array(first.spacing), "origin": np.multiply(first.spacing, size).max(), "direction": 1.0}
    for quantity, scale in scales.items():
        wanted, found = getattr(first, quantity), getattr(second, quantity)
        yield quantity, wanted, found, float(np.max(np.abs(np.subtract(found, wanted)) / scale))


def seven_digits(values: Sequence[float]) -> str:
    """Seven digits, which is what float32 headers hold; adding 0.0 turns -0.0 into 0."""
    return "(" + ", ".join(f"{value + 0.0:.7g}" for value in values) + ")"


def _check_label(label: Image, labels: Labels, path: Path, findings: list[Finding]) -> frozenset[int] | None:
    """Append what is wrong to ``findings``; the values in the label, or None if they are not whole numbers."""
    if len(label.array) > 1:
        remedy = "save labels as one number per voxel (one grey channel)"
        findings.append(Finding("error", str(path), f"has {len(label.array)} channels", remedy))
        return None
    present = _unique(label.array)
    broken = [value for value in present if not float(value).is_integer()]
    if broken:
        what = f"holds values that are not whole numbers: {shorten([f'{value:g}' for value in broken])}"
        remedy = "write the label again (resample labels with nearest neighbour, never linearly)"
        findings.append(Finding("error", str(path), what, remedy))
        return None
    values = frozenset(int(value) for value in present)
    unknown = sorted(values - set(labels.values))
    if unknown:
        what = f"holds the values {shorten([str(value) for value in unknown])}, which dataset.json does not name"
        remedy = "remap them, or name them in dataset.json"
        if values <= {0, 255}:
            remedy = "write 1 instead of 255 (for pictures `umamba-seg convert folder` does it)"
        findings.append(Finding("error", str(path), what, remedy))
    elif not values - {0, labels.ignore}:
        findings.append(Finding("warning", str(path), "has no foreground voxel", "check that this is meant"))
    return values


def _unique(array: np.ndarray) -> np.ndarray:
    """``np.unique``, in linear time for the usual labels: small integers, none negative."""
    if array.dtype.kind in "iu" and array.min() >= 0 and array.max() < 1 << 16:
        return np.flatnonzero(np.bincount(array.ravel()))
    return np.unique(array)


def _digest(images: list[Image]) -> str | None:
    """Equal for two cases exactly if all their voxels are. Constant images say nothing and would all be equal."""
    if not any(image.array.min() < image.array.max() for image in images):
        return None
    digest = hashlib.blake2b(digest_size=16)
    for image in images:
        digest.update(f"{image.array.dtype}{image.array.shape}".encode())
        digest.update(np.ascontiguousarray(image.array).data)
    return digest.hexdigest()
