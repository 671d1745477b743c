"""Mirrored tiles: along which axes, and which classes change places when left and right do."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError

NamePair = tuple[str, str]


@dataclass(frozen=True)
class Exchange:
    """Which channel stands for each when left and right have changed places.

    Args:
        inputs: Of the network's input: those of the image stay, the labels of the stage before may not.
        classes: Of the logits.
    """

    inputs: tuple[int, ...]
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Flip:
    """One way to look at a tile.

    Args:
        axes: Of a patch, those that are flipped.
        exchange: Which channels change places with the sides; None if none do.
    """

    axes: tuple[int, ...] = ()
    exchange: Exchange | None = None

    def apply(self, tile: Tensor) -> Tensor:
        """(channels, ``*patch_size``), flipped."""
        tile = self._flipped(tile)
        return tile if self.exchange is None else tile[list(self.exchange.inputs)]

    def undo(self, logits: Tensor) -> Tensor:
        """(classes, ``*patch_size``) of the flipped tile -> of the tile."""
        logits = self._flipped(logits)
        return logits if self.exchange is None else logits[list(self.exchange.classes)]

    def _flipped(self, x: Tensor) -> Tensor:
        return torch.flip(x, [axis + 1 for axis in self.axes]) if self.axes else x


def flips(axes: Collection[int], swap_axis: int | None, exchange: Exchange | None) -> list[Flip]:
    """Every combination of the axes, the unaltered tile first.

    Args:
        axes: Of a patch.
        swap_axis: The one from left to right, if channels change places along it.
        exchange: How they do.
    """
    some = [chosen for count in range(len(axes) + 1) for chosen in combinations(sorted(axes), count)]
    return [Flip(chosen, exchange if swap_axis in chosen else None) for chosen in some]


def exchange_of(labels: Labels, pairs: Sequence[Sequence[int]], images: int, *, staged: bool) -> Exchange | None:
    """What changes places with left and right.

    Args:
        labels: Of the data set.
        pairs: Label values, two by two.
        images: Channels of the image.
        staged: Whether one channel for each foreground value of the stage before comes after them.

    Returns:
        None if a region becomes one that the network does not know.
    """
    other = dict([*((left, right) for left, right in pairs), *((right, left) for left, right in pairs)])
    classes = _exchanged_classes(labels, other)
    if classes is None:
        return None
    stage = [value for value in labels.values if value not in (0, labels.ignore)] if staged else []
    return Exchange((*range(images), *(images + stage.index(other.get(value, value)) for value in stage)), classes)


def _exchanged_classes(labels: Labels, other: dict[int, int]) -> tuple[int, ...] | None:
    if not labels.has_regions:
        return tuple(other.get(value, value) for value in range(labels.num_classes))
    regions = [frozenset(value if isinstance(value, tuple) else (value,)) for value in labels.foreground.values()]
    images = [frozenset(other.get(value, value) for value in region) for region in regions]
    return tuple(map(regions.index, images)) if set(images) <= set(regions) else None


def named_pairs(labels: Labels, pairs: Sequence[NamePair]) -> list[tuple[int, int]]:
    """Label values by their names.

    Raises:
        UserError: There is no such label, it is a region, or it has several other sides.
    """
    single = {name: value for name, value in labels.foreground.items() if isinstance(value, int)}
    unknown = [name for pair in pairs for name in pair if name not in single]
    if unknown:
        raise UserError("--swap-labels", f"no label {', '.join(unknown)}", f"choose among {', '.join(single)}")
    names = [name for pair in pairs for name in pair]
    if repeated := sorted({name for name in names if names.count(name) > 1}):
        raise UserError("--swap-labels", f"names {', '.join(repeated)} twice", "give each label one other side")
    return [(single[left], single[right]) for left, right in pairs]
