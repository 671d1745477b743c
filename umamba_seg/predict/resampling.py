"""Logits on the network's grid -> on the image's, some planes and one class at a time.

What nnU-Net's resampling of logits gives (linear; across thick slices the nearest), but for rounding: it works in
float64, on all planes of a class at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from torch import Tensor
from torch.nn import functional

from umamba_seg.errors import UserError

_LINEAR = ("resample_data_or_seg_to_shape", "resample_torch_fornnunet", "resample_torch_simple")


def nearest_axis(configuration: dict, current_spacing: Sequence[float], new_spacing: Sequence[float]) -> int | None:
    """The axis along which logits take the nearest plane, or None where they are interpolated along all.

    Args:
        configuration: Of the plans.
        current_spacing: Of the network's grid, in mm.
        new_spacing: Of the image's grid, in mm.

    Raises:
        UserError: The plans resample logits in another way.
    """
    name, how = configuration["resampling_fn_probabilities"], configuration["resampling_fn_probabilities_kwargs"]
    if name not in _LINEAR or how.get("order", 1) != 1 or how.get("mode", "linear") != "linear" or how.get("is_seg"):
        what = f"logits are resampled by {name} with {how}; only linear resampling is there"
        raise UserError("plans", what, "predict with nnUNetv2_predict_from_modelfolder")
    separate, axis = determine_do_sep_z_and_axis(how.get("force_separate_z"), current_spacing, new_spacing)
    return axis if separate and how.get("order_z", 0) == 0 else None


class _Axis:
    """Along one axis of ``size`` planes, from which two planes each of the ``new_size`` comes, and how much of each."""

    def __init__(self, size: int, new_size: int, nearest: bool):
        position = np.clip((np.arange(new_size) + 0.5) * (size / new_size) - 0.5, 0, size - 1)
        self.low = np.floor(position + 0.5 * nearest).astype(int)
        self.high = self.low if nearest or size == new_size else np.minimum(self.low + 1, size - 1)
        self.share = (position - self.low).astype(np.float32)  # of the high one
        self.moves = size != new_size
        self.blends = self.moves and not nearest


class Resampler:
    """Takes planes in order and gives those of the new grid as soon as the planes that they lie between are there.

    Every value is computed as if all planes were there: the same operations in the same order.

    Args:
        shape: Of the logits, in the order in which planes come.
        new_shape: Of the image, in that order.
        nearest: Axis of the nearest plane, in that order, or None.
        planes_at_once: So many planes of the new grid are given at a time.
    """

    def __init__(self, shape: Sequence[int], new_shape: Sequence[int], nearest: int | None, planes_at_once: int):
        self._axis = _Axis(shape[0], new_shape[0], nearest == 0)
        self._plane, self._new_plane = tuple(shape[1:]), tuple(new_shape[1:])
        self._in_plane = None if nearest in (None, 0) else nearest - 1
        self._at_once = planes_at_once
        self._last: Tensor | None = None  # plane of what was fed before
        self._next = 0

    def feed(self, first: int, planes: Tensor) -> Iterator[tuple[slice, Group]]:
        """Give the planes of the new grid that are ready.

        Args:
            first: Position of the first of ``planes``.
            planes: (members, classes, planes, ...). They need not stay as they are after the iteration.

        Yields:
            Where the planes lie in the new grid, and what computes them.
        """
        low, high = self._axis.low, self._axis.high
        ready = int(np.searchsorted(high, first + planes.shape[2]))
        while self._next < ready:
            rows = slice(self._next, min(self._next + self._at_once, ready))
            begin, end = int(low[rows.start]), int(high[rows.stop - 1]) + 1
            yield rows, Group(self, rows, begin, self._between(begin, end, first, planes))
            self._next = rows.stop
        self._last = planes[:, :, -1:].clone()

    def _between(self, begin: int, end: int, first: int, planes: Tensor) -> Tensor:
        if begin >= first:
            return planes[:, :, begin - first : end - first]
        if self._last is None or begin != first - 1:
            raise AssertionError("planes are fed in order")
        return torch.cat([self._last, planes[:, :, : end - first]], 2)

    def resample(self, source: Tensor, rows: slice, begin: int) -> Tensor:
        """(planes, ...) from ``begin`` on -> ``rows`` of the new grid."""
        axis = self._axis
        low, high = (torch.from_numpy(index[rows] - begin).to(source.device) for index in (axis.low, axis.high))
        if axis.blends:
            share = torch.from_numpy(axis.share[rows]).to(source.device)[:, None, None]
            # Products and sum are separate operations: fused ones round otherwise, depending on where a block ends.
            source = source[low].mul_(1 - share).add_(source[high].mul_(share))
        elif axis.moves:
            source = source[low]
        return self._resample_planes(source)

    def _resample_planes(self, planes: Tensor) -> Tensor:
        if self._in_plane is not None:
            index = _Axis(self._plane[self._in_plane], self._new_plane[self._in_plane], nearest=True).low
            planes = planes.index_select(self._in_plane + 1, torch.from_numpy(index).to(planes.device))
        if planes.shape[1:] == self._new_plane:
            return planes
        # One by one: the last bits depend on how many planes torch is given at once.
        return torch.cat([self._interpolate(plane) for plane in planes])

    def _interpolate(self, plane: Tensor) -> Tensor:
        return functional.interpolate(plane[None, None], self._new_plane, mode="bilinear", align_corners=False)[0]


class Group:
    """Some planes of the new grid, of which each member and class is computed when it is asked for."""

    def __init__(self, resampler: Resampler, rows: slice, begin: int, source: Tensor):
        self._resampler, self._rows, self._begin, self._source = resampler, rows, begin, source
        self.members, self.classes = source.shape[:2]

    def logits(self, member: int, number: int) -> Tensor:
        """(planes, ...) of a class or region."""
        return self._resampler.resample(self._source[member, number], self._rows, self._begin)
