"""NIfTI files in Python, before or instead of SimpleITK.

SimpleITK fills what a truncated file lacks with whatever is in memory, reads NaN and infinity as 0, and some vector
images corrupt its heap. So voxels are read here, and only geometry is left to it.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np

from umamba_seg.errors import UserError
from umamba_seg.text import times

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_HEADER_BYTES = 348
_NIFTI2_HEADER_BYTES = 540
_FETCH = "get the file again: it was damaged, or its transfer was cut short"
_OTHER_FORMATS = {
    (128, b"DICM"): "a DICOM file",
    (0, b"\x00\x00\x00\x01"): "an MGH file",
    (0, b"NRRD"): "an NRRD file",
    (0, b"ObjectType"): "a MetaImage file",
    (0, b"\x89HDF"): "an HDF5 file (MINC?)",
    (0, b"\x89PNG"): "a PNG file",
    (0, b"\xff\xd8\xff"): "a JPEG file",
    (0, b"PK\x03\x04"): "a ZIP archive",
    (0, b"<"): "a web page or XML",
}
"""Where which bytes stand in files that are given names of NIfTI files now and then."""


def read(path: Path) -> tuple[Nifti1Header, np.ndarray]:
    """Read a NIfTI-1 file: its header, and its voxels (x, y, z, ...) as stored, without the header's scaling.

    Raises:
        UserError: Not NIfTI-1 in one file, damaged, truncated, or a header that makes no sense.
    """
    try:
        with _open(path) as stream:
            header = _parse(stream.read(_HEADER_BYTES), path)
            content = stream.read()
    except gzip.BadGzipFile as error:
        with path.open("rb") as file:
            _refuse_other_formats(file.read(_HEADER_BYTES), path)
        what = f"damaged, or not compressed with gzip although its name ends in .gz ({error})"
        raise UserError(path, what, "get the file again, or drop .gz from its name if it is not compressed") from None
    except (EOFError, zlib.error) as error:
        raise UserError(path, f"its compressed data is damaged or cut short ({error})", _FETCH) from None
    shape, dtype = header.get_data_shape(), header.get_data_dtype()
    offset = max(header.get_data_offset() - _HEADER_BYTES, 4)
    count, held = math.prod(shape), max(len(content) - offset, 0)
    if held < count * dtype.itemsize:
        what = f"holds {held} of the {count * dtype.itemsize} bytes of voxels that its header announces"
        remedy = _FETCH if held else "it is a header without an image: find the image"
        raise UserError(path, f"{what} (shape {times(shape)})", remedy)
    voxels = np.frombuffer(content, dtype, count, offset).reshape(shape, order="F")
    return header, voxels.astype(dtype.newbyteorder("="), copy=False)


def read_volume(path: Path) -> np.ndarray:
    """Read the voxels ([z,] y, x) of a NIfTI-1 file with one number per voxel on two or three axes, scaled.

    Axes of length 1 after the third do not count. Numbers that are scaled become float32.

    Raises:
        UserError: As :func:`read`; or more axes; or RGB, complex or vector voxels.
    """
    header, voxels = read(path)
    _require_scalar_volume(header, path)
    voxels = voxels.reshape(spatial_shape(header), order="F").T
    slope, inter = header.get_slope_inter()
    if slope is None or inter is None or (slope, inter) == (1, 0):
        return voxels
    return (voxels * slope + inter).astype(np.float32)


def _require_scalar_volume(header: Nifti1Header, path: Path) -> None:
    shape = spatial_shape(header)
    if header.get_data_dtype().kind not in "iuf":
        kind = "RGB" if header.get_data_dtype().fields else "complex"
        raise UserError(path, f"its voxels are {kind} values", "save one file per channel with one number per voxel")
    if len(shape) > 3:
        what = f"has {len(shape)} axes ({times(shape)})"
        raise UserError(path, what, "split it into one file per channel or time (CASE_0000, CASE_0001, ...)")
    if len(shape) < 2:
        raise UserError(path, f"has shape {times(shape)}", "give an image of two or three axes")
    if path.name.endswith(".nii") and len(header.get_data_shape()) != 3:
        raise UserError(path, "nnU-Net reads .nii with exactly three axes only", "save it as .nii.gz")


def spatial_shape(header: Nifti1Header) -> tuple[int, ...]:
    """The shape (x, y, z, ...) without the axes of length 1 after the third."""
    shape = header.get_data_shape()
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def _open(path: Path) -> gzip.GzipFile | BinaryIO:
    return gzip.open(path, "rb") if path.name.endswith(".gz") else path.open("rb")


def _parse(block: bytes, path: Path) -> Nifti1Header:
    from nibabel.nifti1 import Nifti1Header

    if block[:2] == b"\x1f\x8b":
        raise UserError(path, "is compressed with gzip, but its name does not end in .gz", "add .gz to its name")
    sizes = {int.from_bytes(block[:4], order) for order in ("little", "big")}
    if _NIFTI2_HEADER_BYTES in sizes:
        what = "is NIfTI-2 (or CIFTI, which builds on it), which SimpleITK does not read"
        raise UserError(path, what, "save it as NIfTI-1: nibabel.save(nibabel.Nifti1Image.from_image(image), path)")
    if _HEADER_BYTES not in sizes or block[344:347] != b"n+1":
        _refuse_other_formats(block, path)
        raise UserError(path, "is not a NIfTI file", "give a NIfTI-1 file, or name the file after its real format")
    header = Nifti1Header(block, check=False)
    _require_sense(header, path)
    return header


def _refuse_other_formats(start: bytes, path: Path) -> None:
    for (offset, magic), name in _OTHER_FORMATS.items():
        if start[offset : offset + len(magic)] == magic:
            remedy = "convert it, or name it after its real format"
            if magic == b"DICM":
                remedy = "put the files of the series into a folder, and give that"
            raise UserError(path, f"is {name}, although its name says NIfTI", remedy)


def _require_sense(header: Nifti1Header, path: Path) -> None:
    remedy = "write the file again with a correct header"
    shape = spatial_shape(header)
    if not shape or min(shape) < 1:
        raise UserError(path, f"its header gives the shape {times(shape)}", remedy)
    if not _voxel_bytes(header):
        code = int(header["datatype"])
        raise UserError(path, f"its voxels have a type that is not read (NIfTI code {code})", "save it as float32")
    spacing = np.asarray(header["pixdim"], float)[1:4][: len(shape)]
    if not (np.isfinite(spacing).all() and (spacing > 0).all()):
        raise UserError(path, f"its header gives the voxel spacing {times(spacing)} mm", remedy)
    fields = ["vox_offset"]
    if int(header["sform_code"]) > 0:
        fields += ["srow_x", "srow_y", "srow_z"]
    if int(header["qform_code"]) > 0:
        fields += ["quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"]
    if np.isfinite(float(header["scl_slope"])):
        fields.append("scl_inter")
    broken = [field for field in fields if not np.isfinite(np.asarray(header[field], float)).all()]
    if broken:
        raise UserError(path, f"its header fields {', '.join(broken)} are not finite", remedy)


def _voxel_bytes(header: Nifti1Header) -> int:
    """Bytes of a voxel; 0 for the types that nibabel does not read."""
    try:
        return header.get_data_dtype().itemsize
    except KeyError:
        return 0
