"""Masks as people draw them (0/255, any greys, colours) -> label values 0, 1, 2, ..."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_seg.datasets.pictures import read_picture
from umamba_seg.errors import UserError
from umamba_seg.log import logger

_MOST_VALUES = 100
"""More distinct values than this in one set mean instance numbers, anti-aliased edges or photographs."""


@dataclass(frozen=True, eq=False)
class LabelMap:
    """Which value of the masks becomes which label.

    Attributes:
        codes: The values in the masks, ascending. Every value is one integer, ``red << 32 | green << 16 | blue``;
            grey has three equal parts.
        first: The label of ``codes[0]``: 0, or 1 if no mask holds 0 (then background stays empty).
    """

    codes: np.ndarray
    first: int

    @property
    def names(self) -> dict[str, int]:
        """What the masks held -> label: ``"255"`` for a grey value, ``"#ff0000"`` or ``"r,g,b"`` for a colour."""
        colours = np.stack([self.codes >> 32, self.codes >> 16 & 0xFFFF, self.codes & 0xFFFF], axis=1)
        if (colours == colours[:, :1]).all():
            words = [str(grey) for grey in colours[:, 0]]
        elif colours.max() < 256:
            words = ["#" + bytes(colour.astype(np.uint8)).hex() for colour in colours]
        else:
            words = [",".join(map(str, colour)) for colour in colours]
        return {word: label for label, word in enumerate(words, self.first)}

    @property
    def is_identity(self) -> bool:
        """Whether the masks hold the labels already."""
        return all(word == str(label) for word, label in self.names.items())

    def labels_entry(self) -> dict[str, int]:
        """The entry ``labels`` of dataset.json: background, and names made from what the masks held."""
        prefix = "label" if self.is_identity else "value"
        words = {word.lstrip("#"): label for word, label in self.names.items() if label}
        return {"background": 0} | {f"{prefix}_{word}": label for word, label in words.items()}

    def apply(self, codes: np.ndarray) -> np.ndarray:
        """Labels (y, x) in uint8 of the codes (y, x) of one mask."""
        return (np.searchsorted(self.codes, codes) + self.first).astype(np.uint8)


def map_of(paths: Iterable[Path]) -> LabelMap:
    """Collect the values of a set of masks.

    Raises:
        UserError: A mask is unreadable, JPEG or not of whole numbers; there are too many values, or no foreground.
    """
    found: set[int] = set()
    notes: Counter[str] = Counter()
    for path in paths:
        codes, left_out = _decode(path)
        notes.update(left_out)
        found.update(np.unique(codes).tolist())
        if len(found) > _MOST_VALUES:
            what = f"with it the masks hold more than {_MOST_VALUES} distinct values"
            remedy = "give masks with one value per class (no instance numbers, no smoothed edges, no JPEG in between)"
            raise UserError(path, what, remedy)
    for note, count in notes.items():
        logger.info("%d masks: %s", count, note)
    if found <= {0}:
        raise UserError("masks", "no mask has any foreground", "check that these are the masks")
    return LabelMap(np.array(sorted(found), np.int64), int(min(found) != 0))


def read_codes(path: Path) -> np.ndarray:
    """The values (y, x) of a mask, each as one int64 (see :class:`LabelMap`).

    Raises:
        UserError: The mask is unreadable, JPEG or not of whole numbers.
    """
    return _decode(path)[0]


def _decode(path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """The codes of a mask, and what was left out of it (alpha channel, further pages)."""
    if path.suffix.lower() in (".jpg", ".jpeg"):
        what = "is a JPEG, whose compression alters the values of a mask"
        raise UserError(path, what, "export the mask again as PNG or TIFF")
    picture = read_picture(path)
    pixels = picture.pixels
    with np.errstate(invalid="ignore"):
        whole = pixels.astype(np.uint16)
    if (whole != pixels).any():
        what = f"holds values that are not whole numbers from 0 to 65535 (its type is {pixels.dtype})"
        raise UserError(path, what, "write the mask again with whole numbers")
    codes = whole.astype(np.int64)
    red, green, blue = (codes,) * 3 if codes.ndim == 2 else np.moveaxis(codes, -1, 0)
    return red << 32 | green << 16 | blue, picture.notes
