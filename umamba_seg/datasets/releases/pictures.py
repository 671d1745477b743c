"""What releases of 2-D pictures share: reading each picture once, and masks of its size."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import Path

import numpy as np

from umamba_seg.datasets.folder import pair, read_mask
from umamba_seg.datasets.masks import LabelMap
from umamba_seg.datasets.pictures import read_picture, write_picture
from umamba_seg.datasets.releases.release import Item
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.text import shorten

ENDING = ".png"
RGB = {"0": "R", "1": "G", "2": "B"}

_GREY = 1 << 32 | 1 << 16 | 1
"""The code of the grey value 1, see :class:`~umamba_seg.datasets.masks.LabelMap`."""


class Pictures:
    """Reads the pictures of a release and writes them as PNG.

    A case's picture is decoded once for itself and its mask, which follows at once. What is left out of a picture is
    logged for the first one only, since the others of a release are like it.

    Args:
        prepare: Makes of the file's name and its pixels, (y, x) or (y, x, 3), what is written.
    """

    def __init__(self, prepare: Callable[[Path, np.ndarray], np.ndarray]):
        self._prepare = prepare
        self._told: set[str] = set()
        self._read = lru_cache(maxsize=1)(self._decode)

    def _decode(self, path: Path) -> np.ndarray:
        picture = read_picture(path)
        for note in sorted(set(picture.notes) - self._told):
            logger.info("%s: %s; others like it are not named", path, note)
        self._told.update(picture.notes)
        return self._prepare(path, picture.pixels)

    def write_images(self, item: Item, folder: Path) -> None:
        """Write the picture of a case, as ``Content.write_images`` asks.

        Raises:
            UserError: It is unreadable or cannot be prepared.
        """
        (path,) = item.images
        write_picture(folder / f"{item.identifier}_0000{ENDING}", self._read(path))

    def read_mask(self, path: Path, item: Item) -> np.ndarray:
        """The codes (y, x) of a mask of a case.

        Raises:
            UserError: It is unreadable, or of another size than the picture.
        """
        (image,) = item.images
        return read_mask(path, image, self._read(image).shape[:2])


def to_rgb(path: Path, pixels: np.ndarray) -> np.ndarray:
    """Three channels of 8 bits, (y, x, 3).

    Raises:
        UserError: The picture has more bits.
    """
    _require_8_bits(path, pixels)
    return np.stack([pixels] * 3, axis=-1) if pixels.ndim == 2 else pixels


def to_grey(path: Path, pixels: np.ndarray) -> np.ndarray:
    """One channel of 8 bits, (y, x); RGB with three equal channels is grey.

    Raises:
        UserError: The picture has more bits, or colour.
    """
    _require_8_bits(path, pixels)
    if pixels.ndim == 2:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise UserError(path, "has colour", "give the grey picture as it was released")
    return pixels[..., 0]


def _require_8_bits(path: Path, pixels: np.ndarray) -> None:
    if pixels.dtype != np.uint8:
        raise UserError(path, f"holds numbers of the type {pixels.dtype}", "give the 8-bit picture as it was released")


def foreground(path: Path, codes: np.ndarray) -> np.ndarray:
    """Of the codes (y, x) of a mask of 0 and 255 (or 0 and 1): 0 and 1, in uint8.

    Raises:
        UserError: It holds other values.
    """
    found = np.unique(codes)
    if set(found.tolist()) <= {0, _GREY} or set(found.tolist()) <= {0, 255 * _GREY}:
        return (codes > 0).astype(np.uint8)
    what = f"holds the values {shorten(list(LabelMap(found, 0).names))} instead of 0 and 255"
    raise UserError(path, what, "give the mask as it was released")


def values(path: Path, codes: np.ndarray, highest: int) -> np.ndarray:
    """Of the codes (y, x) of a mask that holds labels already: the labels, in uint8.

    Raises:
        UserError: It holds colours or values above ``highest``.
    """
    found = np.unique(codes)
    if foreign := found[(found % _GREY != 0) | (found > highest * _GREY)].tolist():
        what = f"holds {shorten(list(LabelMap(np.array(foreign), 0).names))}, and labels run from 0 to {highest}"
        raise UserError(path, what, "give the mask as it was released")
    return (codes // _GREY).astype(np.uint8)


def require_folder(path: Path, remedy: str) -> Path:
    """The folder, which is there.

    Raises:
        UserError: It is not.
    """
    if not path.is_dir():
        raise UserError(path, "no such folder", remedy)
    return path


def items(
    pictures: dict[str, Path], masks: dict[str, Path], images: Path, labels: Path, prefix: str = ""
) -> list[Item]:
    """Pictures with their masks, paired by name as :func:`~umamba_seg.datasets.folder.pair` does.

    Raises:
        UserError: Some pictures or masks are alone.
    """
    paired = pair(pictures, masks, images, labels)
    return [Item(f"{prefix}{case}", (path,), (paired[case],)) for case, path in pictures.items()]
