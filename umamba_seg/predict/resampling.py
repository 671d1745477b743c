"""Logits on the network's grid -> on the image's, some planes and one class at a time.

What nnU-Net's resampling of logits gives (linear; across thick slices the nearest), but for rounding: it works in
float64, on all planes of a class at once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from torch import Tensor
from torch.nn import functional

from umamba_seg.errors import UserError

# nnU-Net's functions with those of their arguments, and their defaults, that say how logits are resampled.
_LINEAR: dict[str, dict] = {
    "resample_data_or_seg_to_shape": {
        "order": 1,
        "order_z": 0,
        "force_separate_z": False,
        "separate_z_anisotropy_threshold": ANISO_THRESHOLD,
    },
    "resample_torch_fornnunet": {
        "mode": "linear",
        "aniso_axis_mode": "nearest-exact",
        "force_separate_z": None,
        "separate_z_anisotropy_threshold": ANISO_THRESHOLD,
        "memefficient_seg_resampling": False,
    },
}
_FREE = ("force_separate_z", "separate_z_anisotropy_threshold", "memefficient_seg_resampling")


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
    known = _LINEAR.get(name, {})
    asked = known | {"is_seg": False} | how
    linear = {"is_seg": False} | {key: value for key, value in known.items() if key not in _FREE}
    if not known or set(asked) > {*known, "is_seg"} or any(asked[key] != value for key, value in linear.items()):
        what = f"logits are resampled by {name} with {how}; only linear resampling is there"
        raise UserError("plans", what, "predict with nnUNetv2_predict_from_modelfolder")
    decide: Any = determine_do_sep_z_and_axis  # takes None too, against its hint
    separate, axis = decide(
        asked["force_separate_z"], current_spacing, new_spacing, asked["separate_z_anisotropy_threshold"]
    )
    return axis if separate else None


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
        self._new_plane = tuple(new_shape[1:])
        self._within: tuple[int, Tensor] | None = None  # an axis of planes of which the nearest line is taken
        if nearest:
            lines = _Axis(shape[nearest], new_shape[nearest], nearest=True).low
            self._within = nearest, torch.from_numpy(lines)
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
        if self._within is not None:
            axis, lines = self._within
            planes = planes.index_select(axis, lines.to(planes.device))
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
