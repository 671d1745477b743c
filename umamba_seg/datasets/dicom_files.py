"""A DICOM file: the slices in it and their voxels, or why it has none that can be used."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from umamba_seg.datasets.images import ENDINGS, ending_of, require_content
from umamba_seg.errors import UserError
from umamba_seg.text import times

if TYPE_CHECKING:
    from pydicom import Dataset

_ENDINGS = (".dcm", ".dicom", ".ima")
_LABEL_MAP = "1.2.840.10008.5.1.4.1.1.66.7"
"""The SOP class of a kind of segmentations that pydicom's dictionary lacks."""
_GROUPS = ("PlanePosition", "PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
"""Where a frame of a multi-frame file keeps what other files keep at the top."""
_ROUNDING = 1e-3
"""Difference that few digits make in direction cosines."""
_AGAIN = "get the file again (export the series anew)"

_ERRORS = (
    *(ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError),
    *(OSError, EOFError, MemoryError, struct.error, zlib.error),
)
"""What pydicom and its decoders raise for damaged files, beside their own."""
_one_at_a_time = threading.RLock()


@dataclass(frozen=True, eq=False)
class Slice:
    """One slice of a series.

    Attributes:
        path: Its file.
        frame: Which one in a multi-frame file; None in the others.
        header: The file's header, without voxels.
        position: Of the first voxel's centre, in mm: x, y, z of the patient.
        orientation: Direction cosines along a row (x, y, z), then along a column.
        spacing: Size of a pixel in mm: x, y.
        shape: Rows and columns.
        thickness: Distance to the next slice, or else the thickness, in mm, as the header has it; None if it does not.
        scaling: Slope and intercept that turn stored numbers into intensities; None where the numbers are these.
        dtype: Of the intensities: float32 where they are scaled, else as stored.
    """

    path: Path
    frame: int | None
    header: Dataset
    position: np.ndarray
    orientation: np.ndarray
    spacing: np.ndarray
    shape: np.ndarray
    thickness: float | None
    scaling: tuple[float, float] | None
    dtype: np.dtype


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM, or should be by its name."""
    ending = ending_of(path.name.lower())
    if ending in _ENDINGS or path.name == "DICOMDIR":
        return path.name != "DICOMDIR"
    if ending in ENDINGS or not os.access(path, os.R_OK):
        return False
    start = _start(path)
    return start[128:] == b"DICM" or _is_bare(start)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)


def _is_bare(start: bytes) -> bool:
    """Whether a file begins with the elements of group 8, as files did before DICOM had preambles."""
    return start[:2] == b"\x08\0" and start[3:4] == b"\0" and start[128:] != b"DICM"


def refuse_stump(path: Path) -> None:
    """Refuse a file without an ending that :func:`is_dicom` does not know, but may have been a slice.

    Raises:
        UserError: It is empty, may not be read, or begins with zeros, as DICOM files do.
    """
    if path.suffix and not path.suffix[1:].isdecimal():
        return
    require_content(path)
    if not any(_start(path)):
        raise UserError(path, f"was cut short, or is empty ({path.stat().st_size} bytes, zeros at first)", _AGAIN)


@contextlib.contextmanager
def without_warnings() -> Iterator[None]:
    """pydicom and highdicom warn of values against the standard, of which scanners write many. What matters is checked.

    Python's filters of warnings belong to the process, hence the lock.
    """
    with _one_at_a_time, warnings.catch_warnings():
        warnings.filterwarnings("ignore", module="pydicom|highdicom")
        yield


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn pydicom's errors into ours."""
    from pydicom.errors import BytesLengthException, InvalidDicomError

    with without_warnings():
        try:
            yield
        except InvalidDicomError:
            raise UserError(path, "is not a DICOM file", "remove it, or get it again") from None
        except (*_ERRORS, BytesLengthException) as error:
            reason = printable(str(error).partition("\n")[0]) or type(error).__name__
            raise UserError(path, f"is a damaged or truncated DICOM file ({reason})", _AGAIN) from None


def parse(path: Path, *, voxels: bool = False) -> Dataset:
    """Read a file, without its voxels unless they are asked for.

    Raises:
        UserError: It cannot be read, is empty, damaged, or no DICOM file.
    """
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, ImplicitVRLittleEndian

    require_content(path)
    bare = _is_bare(_start(path))
    with reading(path):
        dataset = pydicom.dcmread(path, stop_before_pixels=not voxels, force=bare)
        if bare:
            implicit, _ = dataset.original_encoding
            dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian
        return dataset


def value(path: Path, sources: Sequence[Dataset], keyword: str) -> Any:
    """The value of an element in the first of ``sources`` that has it; None where it is missing or empty."""
    with reading(path):
        for source in sources:
            if keyword in source and (found := source[keyword].value) not in (None, ""):
                return found
    return None


def needed(path: Path, sources: Sequence[Dataset], keyword: str) -> Any:
    """As :func:`value`, of an element that must be there.

    Raises:
        UserError: It is not.
    """
    found = value(path, sources, keyword)
    if found is None:
        raise UserError(path, f"has no {keyword}", f"{_AGAIN}, or remove it if it is no slice")
    return found


def printable(text: str) -> str:
    """The beginning of a text from a file, which may be damaged, without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:100])


def kind_without_slices(path: Path, header: Dataset) -> str | None:
    """What a file is that holds no images of a scan (RTSTRUCT, SEG, report); None if it may hold some.

    A file that does not say what it is may be an image, cut short.
    """
    from pydicom.uid import UID

    kind = value(path, [header], "SOPClassUID")
    if kind == _LABEL_MAP:
        return "Label Map Segmentation Storage"
    if not isinstance(kind, UID) or kind.name == kind or "Image Storage" in kind.name:
        return None
    return kind.name


def slices_in(path: Path, header: Dataset) -> list[Slice]:
    """The slices in a file: one, or as many as a multi-frame file has frames.

    Raises:
        UserError: It holds none of a volume, does not say where they lie, or its voxels are of a kind that is not read.
    """
    _require_intensities(path, header)
    _require_readable(path, header)
    groups = value(path, [header], "PerFrameFunctionalGroupsSequence")
    if groups is None:
        frames = value(path, [header], "NumberOfFrames")
        if frames not in (None, 1):
            raise UserError(
                path, f"holds {printable(str(frames))} frames but not where they lie", "export one file per slice"
            )
        return [_slice(path, None, header, [header])]
    shared = value(path, [header], "SharedFunctionalGroupsSequence") or []
    return [_slice(path, frame, header, _sources(path, [group, *shared], header)) for frame, group in enumerate(groups)]


def _sources(path: Path, groups: Sequence[Dataset], header: Dataset) -> list[Dataset]:
    found = (value(path, [group], f"{name}Sequence") for group in groups for name in _GROUPS)
    return [*(sequence[0] for sequence in found if sequence), header]


def _require_intensities(path: Path, header: Dataset) -> None:
    from pydicom.uid import UID

    kind = needed(path, [header], "SOPClassUID")
    if not isinstance(kind, UID) or kind.name == kind or kind.is_retired:
        what = f"is an object of the class {printable(str(kind))}, which is none of DICOM's standard today"
        raise UserError(path, what, "export the series as standard images (CT, MR, PET)")
    if "LOCALIZER" in (value(path, [header], "ImageType") or ()):
        raise UserError(path, "is a localizer (scout), no slice of a volume", "remove it")
    samples, colours = (value(path, [header], key) for key in ("SamplesPerPixel", "PhotometricInterpretation"))
    if colours == "MONOCHROME1":
        what = "its grey values are inverted (MONOCHROME1), which some programs undo and others do not"
        raise UserError(path, what, "export the series as MONOCHROME2")
    if samples not in (None, 1) or colours not in (None, "MONOCHROME2"):
        raise UserError(path, f"is a colour image ({printable(str(colours))})", "give the grey images of the scan")
    if value(path, [header], "ModalityLUTSequence"):
        what = "its intensities are given by a table (ModalityLUTSequence), which is not read"
        raise UserError(path, what, "export the series with RescaleSlope and RescaleIntercept")


def _require_readable(path: Path, header: Dataset) -> None:
    from pydicom.uid import UID

    from umamba_seg.datasets.dicom_codecs import readable

    syntax = value(path, [header.file_meta], "TransferSyntaxUID")
    with reading(path):
        known = isinstance(syntax, UID) and readable(syntax)
    if not known:
        name = syntax.name if isinstance(syntax, UID) else str(syntax)
        what = f"its voxels are stored in the transfer syntax {printable(name)}, which is not read"
        raise UserError(path, what, "export the series uncompressed, or decompress it (gdcmconv --raw)")


def _slice(path: Path, frame: int | None, header: Dataset, sources: Sequence[Dataset]) -> Slice:
    orientation = _numbers(path, sources, "ImageOrientationPatient", 6)
    axes = orientation.reshape(2, 3)
    if np.abs(axes @ axes.T - np.eye(2)).max() > _ROUNDING:
        what = f"its ImageOrientationPatient {orientation.tolist()} is not two directions at a right angle"
        raise UserError(path, what, _AGAIN)
    scaling, spacing = _scaling(path, sources), _numbers(path, sources, "PixelSpacing", 2)[::-1]
    if spacing.min() <= 0:
        raise UserError(path, f"its pixels have the size {times(spacing)} mm", _AGAIN)
    return Slice(
        path,
        frame,
        header,
        _numbers(path, sources, "ImagePositionPatient", 3),
        orientation,
        spacing,
        np.array([_number(path, sources, key) for key in ("Rows", "Columns")], int),
        _thickness(path, sources),
        scaling,
        np.dtype(np.float32) if scaling else _stored_type(path, header),
    )


def _numbers(path: Path, sources: Sequence[Dataset], keyword: str, count: int) -> np.ndarray:
    found = needed(path, sources, keyword)
    with reading(path):
        numbers = np.atleast_1d(np.asarray(found, float))
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise UserError(path, f"its {keyword} is {printable(str(found))}", _AGAIN)
    return numbers


def _number(path: Path, sources: Sequence[Dataset], keyword: str) -> float:
    return float(_numbers(path, sources, keyword, 1)[0])


def _thickness(path: Path, sources: Sequence[Dataset]) -> float | None:
    for keyword in ("SpacingBetweenSlices", "SliceThickness"):
        if value(path, sources, keyword) is not None:
            return _number(path, sources, keyword)
    return None


def _scaling(path: Path, sources: Sequence[Dataset]) -> tuple[float, float] | None:
    slope, intercept = (
        default if value(path, sources, keyword) is None else _number(path, sources, keyword)
        for keyword, default in (("RescaleSlope", 1.0), ("RescaleIntercept", 0.0))
    )
    if slope == 0:
        raise UserError(path, "its RescaleSlope is 0", _AGAIN)
    return None if (slope, intercept) == (1, 0) else (slope, intercept)


def _stored_type(path: Path, header: Dataset) -> np.dtype:
    from pydicom.pixels.utils import pixel_dtype

    with reading(path):
        return pixel_dtype(header).newbyteorder("=")


def pixels(dataset: Dataset, one: Slice) -> np.ndarray:
    """The intensities (rows, columns) of a slice in its file, which :func:`parse` has read with voxels.

    Raises:
        UserError: They are damaged or not all there.
    """
    from pydicom.pixels.utils import pixel_array

    with reading(one.path):
        stored = pixel_array(dataset, index=one.frame)
    if stored.shape != tuple(one.shape):
        raise UserError(one.path, f"holds {times(stored.shape)} voxels instead of {times(one.shape)}", _AGAIN)
    if one.scaling is None:
        return stored
    slope, intercept = one.scaling
    return (stored * slope + intercept).astype(one.dtype)
