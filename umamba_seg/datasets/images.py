"""Reading images as nnU-Net will read them, and refusing by name what it would misread or a reader would die of."""

from __future__ import annotations

import contextlib
import os
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from umamba_seg.datasets import nifti
from umamba_seg.errors import UserError

if TYPE_CHECKING:
    import SimpleITK as sitk

PICTURE_ENDINGS = (".png", ".bmp", ".tif", ".tiff")
"""One file of these may hold several channels (RGB)."""
ENDINGS = (".nii.gz", ".nii", ".nrrd", ".mha", *PICTURE_ENDINGS)

_MAGIC = {
    ".png": (b"\x89PNG\r\n\x1a\n",),
    ".bmp": (b"BM",),
    ".tif": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    ".tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
}
_PNG_COLOUR, _PNG_GREY_ALPHA = (2, 6), 4
_CONVERT = "convert the images with `umamba-seg convert folder`"
_UNREADABLE = "write the file again, or leave the case out"

PICTURE_ERRORS = (ValueError, RuntimeError, OSError, SyntaxError)
"""What skimage, PIL (SyntaxError) and imagecodecs raise for damaged files."""
TIFF_ERRORS = (ValueError, TypeError, RuntimeError, OSError, LookupError, ArithmeticError, MemoryError, struct.error)
"""What tifffile and its codecs raise for damaged files."""


@dataclass(frozen=True, eq=False)
class Image:
    """An image in memory.

    Attributes:
        array: (channels, z, y, x), or (channels, y, x) for a 2-D image, in the file's own number type. Everything but
            RGB and RGBA pictures has one channel.
        spacing: Size of a voxel in mm, in the order x, y[, z]; 1 for PNG, BMP and TIFF, which carry no geometry.
        origin: Position of the first voxel's centre in mm, in the order x, y[, z].
        direction: The direction cosines, row by row, as SimpleITK gives them.
    """

    array: np.ndarray
    spacing: tuple[float, ...]
    origin: tuple[float, ...]
    direction: tuple[float, ...]


def ending_of(name: str) -> str:
    """The ending of a file name: ``.nii.gz`` as a whole, else what follows the last dot (``""`` without a dot)."""
    return ".nii.gz" if name.endswith(".nii.gz") else Path(name).suffix


def require_content(path: Path) -> None:
    """See that there is a file that is not empty.

    Raises:
        UserError: No such file, a folder, not readable for this user, or zero bytes.
    """
    if not path.is_file():
        what = "is a folder, not an image" if path.is_dir() else "no such file"
        raise UserError(path, what, "check the path")
    if not os.access(path, os.R_OK):
        raise UserError(path, "may not be read", "change its permissions")
    if path.stat().st_size == 0:
        raise UserError(path, "is empty (0 bytes)", "get the file again, or leave the case out")


def read_image(path: Path) -> Image:
    """Read an image or label file as nnU-Net will, but with NaN and infinity, which it would read as 0 from NIfTI.

    A folder is read as a DICOM series.

    Raises:
        UserError: It cannot be read whole, or nnU-Net would misread it; the message names the file and the remedy.
    """
    if path.is_dir():
        from umamba_seg.datasets.dicom import read_series

        return read_series(path)
    require_content(path)
    ending = ending_of(path.name)
    if ending in (".nii.gz", ".nii"):
        return _read_nifti(path)
    if ending in (".nrrd", ".mha"):
        return _read_itk(path)
    if ending in (".hdr", ".img"):
        other = path.with_suffix(".img" if ending == ".hdr" else ".hdr")
        what = f"is one half of a pair (.hdr and .img); the other half is {'there' if other.is_file() else 'missing'}"
        raise UserError(path, what, "save the image as one .nii.gz file")
    if ending not in ENDINGS:
        what = f"files ending in {ending or 'nothing'} are not read"
        raise UserError(path, what, f"convert it to one of {', '.join(ENDINGS)}")
    _require_magic(path, ending)
    return _read_tiff(path, ending) if ending in (".tif", ".tiff") else _read_picture(path)


def _read_nifti(path: Path) -> Image:
    array = nifti.read_volume(path)[None]
    with itk_reader(path) as reader:
        return Image(array, reader.GetSpacing(), reader.GetOrigin(), reader.GetDirection())


def _read_itk(path: Path) -> Image:
    import SimpleITK as sitk

    with itk_reader(path) as reader:
        _require_scalar(reader, path)
        if path.name.endswith(".mha"):
            _require_whole_mha(reader, path)
        image = reader.Execute()
    array = sitk.GetArrayFromImage(image)[None]
    return Image(array, image.GetSpacing(), image.GetOrigin(), image.GetDirection())


@contextlib.contextmanager
def itk_reader(path: Path) -> Iterator[sitk.ImageFileReader]:
    """A reader that has read the header. Its errors become ours; warnings stay off stderr: what matters is checked."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        reader.ReadImageInformation()
        yield reader
    except RuntimeError as error:
        reason = " ".join(str(error).splitlines()[1:])  # the first line names a place in SimpleITK's source
        raise UserError(path, f"SimpleITK cannot read it ({reason})", _UNREADABLE) from None
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(shown)


def _require_scalar(reader: sitk.ImageFileReader, path: Path) -> None:
    if reader.GetNumberOfComponents() > 1:
        what = f"its voxels hold {reader.GetNumberOfComponents()} numbers each"
        raise UserError(path, what, "save one file per channel with one number per voxel")
    if reader.GetDimension() not in (2, 3):
        what = f"has {reader.GetDimension()} axes ({nifti.times(reader.GetSize())})"
        raise UserError(path, what, "split it into one file per channel or time (CASE_0000, CASE_0001, ...)")


def _require_whole_mha(reader: sitk.ImageFileReader, path: Path) -> None:
    """ITK returns whatever is in memory for an .mha whose compressed voxels are damaged."""
    import SimpleITK as sitk

    header, *rest = re.split(rb"ElementDataFile *= *LOCAL\r?\n", path.read_bytes(), maxsplit=1)
    if not rest:
        raise UserError(path, "keeps its voxels in another file", "save the image as one .mha file")
    voxels = rest[0]
    if re.search(rb"^CompressedData *= *True", header, re.MULTILINE):
        try:
            voxels = zlib.decompress(voxels)
        except zlib.error as error:
            raise UserError(path, f"its compressed data is damaged or cut short ({error})", _UNREADABLE) from None
    voxel = sitk.Image([1] * reader.GetDimension(), reader.GetPixelID()).GetSizeOfPixelComponent()
    needed = int(np.prod(reader.GetSize())) * voxel
    if len(voxels) < needed:
        what = f"holds {len(voxels)} of the {needed} bytes of voxels that its header announces"
        raise UserError(path, what, _UNREADABLE)


def _require_magic(path: Path, ending: str) -> None:
    with path.open("rb") as file:
        start = file.read(8)
    if not start.startswith(_MAGIC[ending]):
        remedy = "name it after its real format, or convert it (masks never through JPEG, which alters values)"
        raise UserError(path, f"is not a {ending[1:].upper()} file although its name says so", remedy)


def _read_tiff(path: Path, ending: str) -> Image:
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            axes, array = file.series[0].axes, file.series[0].asarray()
    except TIFF_ERRORS as error:
        raise UserError(path, f"is a damaged TIFF file ({error})", _UNREADABLE) from None
    array = np.moveaxis(array, axes.index("S"), 0) if "S" in axes else array[None]
    if array.ndim == 4 and len(array) == 1:
        return _without_geometry(array)
    if array.ndim != 3:
        raise UserError(path, f"has the axes {axes} ({nifti.times(array.shape)})", "save one file per channel")
    if ending == ".tiff":
        raise UserError(path, "is a 2-D image, but nnU-Net takes .tiff for volumes", "rename it to .tif")
    return _picture(array, path)


def _read_picture(path: Path) -> Image:
    if path.suffix == ".png":
        _require_plain_png(path)
    array = read_pixels(path)
    if array.ndim > 3:
        raise UserError(path, f"has the shape {nifti.times(array.shape)} (an animation?)", "save one image per file")
    return _picture(array[None] if array.ndim == 2 else np.moveaxis(array, -1, 0), path)


def read_pixels(path: Path) -> np.ndarray:
    """Read a PNG or BMP with skimage, as nnU-Net does: (y, x) or (y, x, colour). 16-bit colour loses 8 bits.

    Raises:
        UserError: It is damaged or too large.
    """
    from PIL.Image import DecompressionBombError
    from skimage import io

    try:
        return io.imread(path)
    except DecompressionBombError as error:
        raise UserError(path, f"is too large for PIL ({error})", "cut it into tiles") from None
    except PICTURE_ERRORS as error:
        raise UserError(path, f"is a damaged image ({error})", _UNREADABLE) from None


def _require_plain_png(path: Path) -> None:
    with path.open("rb") as file:
        depth, colour = file.read(26)[24:26].ljust(2, b"\0")  # whatever is too short fails in the reader
    if colour == _PNG_GREY_ALPHA:
        raise UserError(path, "is grey with an alpha channel, which nnU-Net does not read", _CONVERT)
    if depth == 16 and colour in _PNG_COLOUR:
        raise UserError(path, "is 16-bit colour, of which nnU-Net's PNG reader keeps 8 bits", _CONVERT)


def _picture(array: np.ndarray, path: Path) -> Image:
    if len(array) not in (1, 3, 4):
        raise UserError(path, f"has {len(array)} values per pixel", "save it as grey or RGB")
    return _without_geometry(array.astype(np.uint8) if array.dtype == bool else array)


def _without_geometry(array: np.ndarray) -> Image:
    axes = array.ndim - 1
    return Image(array, (1.0,) * axes, (0.0,) * axes, tuple(np.eye(axes).ravel().tolist()))
