"""Decoding and writing 2-D pictures without losing bits: PNG, TIFF, BMP, and JPEG as input.

PIL, on which most readers build, silently keeps 8 bits of 16-bit colour; imagecodecs does not.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_seg.datasets.images import PICTURE_ERRORS, TIFF_ERRORS, read_pixels, require_content
from umamba_seg.errors import UserError
from umamba_seg.text import times

ENDINGS = (".png", ".tif", ".tiff", ".bmp", ".jpg", ".jpeg")


@dataclass(frozen=True, eq=False)
class Picture:
    """A picture without alpha channel, and what was left out of it.

    Attributes:
        pixels: (y, x) if grey, (y, x, 3) if stored as RGB; palettes are expanded.
        notes: What was left out, in words: alpha channels, further pages.
    """

    pixels: np.ndarray
    notes: tuple[str, ...]


def read_picture(path: Path) -> Picture:
    """Decode a picture in its own bit depth.

    Raises:
        UserError: It is missing, empty, damaged, a volume, or has colours other than grey, RGB and a palette.
    """
    require_content(path)
    notes = []
    if path.suffix.lower() in (".tif", ".tiff"):
        pixels, further_pages = _decode_tiff(path)
        if further_pages:
            notes.append("further TIFF pages were left out")
    else:
        pixels = _decode(path)
    if pixels.ndim == 3 and pixels.shape[-1] in (2, 4):
        alpha = pixels[..., -1]
        kind = "constant" if alpha.min() == alpha.max() else "varying"
        notes.append(f"a {kind} alpha channel was dropped")
        pixels = pixels[..., :-1]
    if pixels.ndim == 3 and pixels.shape[-1] == 1:
        pixels = pixels[..., 0]
    if pixels.ndim != 2 and pixels.shape[-1] != 3:
        raise UserError(path, f"has the shape {times(pixels.shape)}", "save it as a grey or RGB picture")
    return Picture(pixels.astype(np.uint8) if pixels.dtype == bool else pixels, tuple(notes))


def write_picture(path: Path, pixels: np.ndarray) -> None:
    """Write (y, x) or (y, x, 3) as PNG or TIFF, by the ending of ``path``, without loss."""
    import imagecodecs
    import tifffile

    pixels = np.ascontiguousarray(pixels)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(pixels, level=3))
    else:
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack", compression="zlib")


def _decode(path: Path) -> np.ndarray:
    """Decode PNG, BMP or JPEG by the ending of the name."""
    import imagecodecs

    suffix = path.suffix.lower()
    if suffix == ".bmp":
        return read_pixels(path)  # never more than 8 bits, and imagecodecs crashes on damaged ones
    decode = imagecodecs.png_decode if suffix == ".png" else imagecodecs.jpeg8_decode
    try:
        pixels = decode(path.read_bytes())
    except PICTURE_ERRORS as error:
        remedy = "name the file after its real format, write it again, or leave it out"
        raise UserError(path, f"is not a sound {suffix[1:].upper()} file ({error})", remedy) from None
    if suffix in (".jpg", ".jpeg") and pixels.shape[2:] == (4,):
        raise UserError(path, "is a CMYK picture", "save it as RGB")
    return pixels


def _decode_tiff(path: Path) -> tuple[np.ndarray, bool]:
    """The first picture in a TIFF, and whether there are more."""
    import tifffile

    try:
        with tifffile.TiffFile(path) as file:
            series, page, count = file.series[0], file.pages.first, len(file.series)
            pixels, axes = series.asarray(), series.axes
            colours, kind = page.colormap, tifffile.PHOTOMETRIC(page.photometric).name
    except TIFF_ERRORS as error:
        raise UserError(path, f"is a damaged TIFF file ({error})", "write it again, or leave it out") from None
    if axes not in ("YX", "YXS", "SYX"):
        what = f"is a stack of pictures, not one (axes {axes}, {times(pixels.shape)})"
        raise UserError(path, what, "volumes are not converted here: save them as .nii.gz, one file per channel")
    if kind == "PALETTE" and colours is not None:
        pixels = np.moveaxis(colours[:, pixels.astype(int)] >> 8, 0, -1).astype(np.uint8)
    elif kind == "MINISWHITE" and pixels.dtype.kind in "bu":
        pixels = np.invert(pixels)
    elif kind not in ("MINISBLACK", "RGB", "YCBCR"):
        raise UserError(path, f"has the colour model {kind}", "save it as a grey or RGB picture")
    return (np.moveaxis(pixels, 0, -1) if axes == "SYX" else pixels), count > 1
