"""The sliding window: tiles in order along one axis, and their logits in a buffer that moves along with them.

nnU-Net holds the logits of all classes for the whole volume. Here only as many planes are held as a tile is deep: once
the tiles that start further on are all that is left, the planes before them are final and are handed over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product
from math import prod

import numpy as np
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from torch import Tensor


class Tiling:
    """Where the tiles of a volume lie, as nnU-Net places them: in a volume that is padded to at least one patch.

    Args:
        shape: Of the volume, three axes.
        patch_size: Two or three axes; two are the last ones, and every slice has tiles of its own.
        step_size: Largest step from tile to tile, as a share of the patch.

    Attributes:
        patch: Extent of a tile in the volume, three axes.
        padded: Extent of the padded volume.
        before: Padding in front of the volume, per axis.
        starts: First voxels of the tiles, per axis.
        axis: Along which the window moves: the one that leaves the smallest buffer.
        order: The axes with ``axis`` in front.
    """

    def __init__(self, shape: Sequence[int], patch_size: Sequence[int], step_size: float):
        dims = len(patch_size)
        self.shape = tuple(shape)
        self.patch = (1,) * (3 - dims) + tuple(patch_size)
        self.padded = tuple(map(max, self.shape, self.patch))
        self.before = tuple((whole - own) // 2 for whole, own in zip(self.padded, self.shape, strict=True))
        steps = compute_steps_for_sliding_window(self.padded[-dims:], tuple(patch_size), step_size)
        self.starts = [*([list(range(self.padded[0]))] if dims == 2 else []), *steps]
        self.axis = min(range(3), key=lambda axis: self.patch[axis] * prod(self.padded) // self.padded[axis])
        self.order = (self.axis, *(axis for axis in range(3) if axis != self.axis))
        self._dims = dims

    @property
    def window(self) -> tuple[int, ...]:
        """Extent of the buffer, in ``order``."""
        return (self.patch[self.axis], *(self.padded[axis] for axis in self.order[1:]))

    def pad(self, data: np.ndarray) -> np.ndarray:
        """(channels, ...) with zeros around it, or itself where nothing is to be added."""
        if self.padded == self.shape:
            return data
        margins = zip(self.before, self.padded, self.shape, strict=True)
        return np.pad(data, [(0, 0), *((before, whole - own - before) for before, whole, own in margins)])

    def tile(self, data: np.ndarray, start: Sequence[int]) -> Tensor:
        """The padded data at a tile, (channels, ``*patch_size``); ``start`` is in ``order``."""
        corner = dict(zip(self.order, start, strict=True))
        cut = data[:, *(slice(corner[axis], corner[axis] + self.patch[axis]) for axis in range(3))]
        return torch.from_numpy(np.ascontiguousarray(cut[:, 0] if self._dims == 2 else cut))

    def weights(self, device: torch.device) -> Tensor:
        """nnU-Net's weights of a tile's voxels, in ``order``."""
        return self.swept(compute_gaussian(self.patch[-self._dims :], 1 / 8, 10, torch.float32, device))

    def swept(self, logits: Tensor) -> Tensor:
        """(..., ``*patch_size``) -> the same with three spatial axes in ``order``."""
        if self._dims == 2:
            logits = logits.unsqueeze(-3)
        lead = range(logits.ndim - 3)
        return logits.permute(*lead, *(len(lead) + axis for axis in self.order))


def sweep(
    data: np.ndarray,
    tiling: Tiling,
    run: Callable[[Tensor], Tensor],
    *,
    members: int,
    classes: int,
    tiles_at_once: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor]]:
    """The logits of a volume, some planes at a time.

    Args:
        data: (channels, z, y, x), not padded.
        tiling: Of its shape.
        run: (tiles, channels, ``*patch_size``) -> (tiles, members, classes, ``*patch_size``).
        members: Results that are kept apart: 1, or one per fold.
        classes: Channels of the logits.
        tiles_at_once: Given to ``run``.
        device: Where the buffer lies.

    Yields:
        The first plane along ``tiling.axis``, and the logits (members, classes, planes, ...) from there in the tiling's
        ``order``, without the padding. They are overwritten when the next ones are asked for.
    """
    data = tiling.pad(data)
    depth, height, width = tiling.window
    sums = torch.zeros(members, classes, depth, height, width, device=device)
    weights = torch.zeros(depth, height, width, device=device)
    weight = tiling.weights(device)
    starts = [tiling.starts[axis] for axis in tiling.order]
    tile = [tiling.patch[axis] for axis in tiling.order[1:]]
    inside = [slice(tiling.before[axis], tiling.before[axis] + tiling.shape[axis]) for axis in tiling.order]
    for first, following in zip(starts[0], [*starts[0][1:], tiling.padded[tiling.axis]], strict=True):
        corners = list(product(*starts[1:]))
        for n in range(0, len(corners), tiles_at_once):
            some = corners[n : n + tiles_at_once]
            logits = run(torch.stack([tiling.tile(data, (first, *corner)) for corner in some]))
            for (y, x), one in zip(some, logits, strict=True):
                place = (..., slice(y, y + tile[0]), slice(x, x + tile[1]))
                sums[place].add_(tiling.swept(one).to(device).mul_(weight))
                weights[place].add_(weight)
        done = following - first
        sums[:, :, :done].div_(weights[:done])
        kept = range(max(inside[0].start, first), min(inside[0].stop, following))
        if kept:
            planes = slice(kept.start - first, kept.stop - first)
            yield kept.start - inside[0].start, sums[:, :, planes, inside[1], inside[2]]
        _move_up(sums, done)
        _move_up(weights[None], done)


def _move_up(buffer: Tensor, planes: int) -> None:
    """Shift (..., planes, h, w) by some planes, plane by plane as a copy of the whole would double the memory."""
    depth = buffer.shape[-3]
    for plane in range(depth - planes):
        buffer[..., plane, :, :] = buffer[..., plane + planes, :, :]
    buffer[..., max(depth - planes, 0) :, :, :] = 0
