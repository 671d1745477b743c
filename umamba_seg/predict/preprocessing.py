"""Resampling an image to the network's grid, with the numbers of nnU-Net's function and a tenth of its memory.

skimage's resize interpolates a volume with splines as a whole, in float64 and with several copies. Splines are
separable: along each axis resampling is one matrix, and scipy itself says which. So an image is three matrix products.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from nnunetv2.configuration import ANISO_THRESHOLD
from nnunetv2.preprocessing.resampling.default_resampling import determine_do_sep_z_and_axis
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager
from scipy import ndimage

from umamba_seg.errors import UserError
from umamba_seg.text import times

_KNOWN = {"is_seg": False, "order_z": 0}
_TAKEN = ("order", "force_separate_z", "separate_z_anisotropy_threshold")
_AT_ONCE = 32  # slices


class PredictionConfiguration(ConfigurationManager):
    """A configuration whose images are resampled by :func:`resample_image` where the plans name what it equals.

    Args:
        configuration: Of the plans, resolved.
        keeps_labels: Whether a segmentation comes with the images (that of the stage before). Otherwise nnU-Net's
            preprocessor would resample the mask of what it has cropped, which nobody uses.
    """

    def __init__(self, configuration: dict, *, keeps_labels: bool):
        super().__init__(configuration)
        self._keeps_labels = keeps_labels

    @property
    def resampling_fn_data(self) -> Callable:
        """nnU-Net's, or ours with the same arguments."""
        how = self.configuration["resampling_fn_data_kwargs"]
        known = all(key in _TAKEN or _KNOWN.get(key) == value for key, value in how.items())
        if self.configuration["resampling_fn_data"] != "resample_data_or_seg_to_shape" or not known:
            return partial(_of_some_extent, super().resampling_fn_data)
        taken = {key: value for key, value in how.items() if key in _TAKEN}
        return partial(_of_some_extent, partial(resample_image, **taken))

    @property
    def resampling_fn_seg(self) -> Callable:
        """nnU-Net's, or nothing."""
        return super().resampling_fn_seg if self._keeps_labels else _no_labels


def _of_some_extent(resample: Callable, data: np.ndarray, new_shape: Sequence[int], *spacings) -> np.ndarray:
    """Resample an image, unless nothing of it is left."""
    if 0 in tuple(new_shape):
        what = (
            f"has {times(data.shape[1:])} voxels of {times(spacings[0])} mm: less than half a voxel of the model's grid"
        )
        raise UserError("the image", what, "check its spacing, or leave the case out")
    return resample(data, new_shape, *spacings)


def _no_labels(seg: np.ndarray, new_shape: Sequence[int], *_spacings: Sequence[float]) -> np.ndarray:
    return np.zeros((len(seg), *new_shape), np.int8)


def resample_image(
    data: np.ndarray,
    new_shape: Sequence[int],
    current_spacing: Sequence[float],
    new_spacing: Sequence[float],
    *,
    order: int = 3,
    force_separate_z: bool | None = False,
    separate_z_anisotropy_threshold: float = ANISO_THRESHOLD,
) -> np.ndarray:
    """What nnU-Net's ``resample_data_or_seg_to_shape`` makes of an image, but for rounding.

    Args:
        data: float32 (channels, z, y, x).
        new_shape: (z, y, x).
        current_spacing, new_spacing: In mm; they decide whether there is an axis of thick slices, along which the
            nearest slice is taken.
        order: Of the splines in the other axes.
        force_separate_z: As in the plans; None to decide by the spacings.
        separate_z_anisotropy_threshold: Ratio of spacings from which slices are thick.
    """
    if tuple(data.shape[1:]) == tuple(new_shape):
        return data
    decide: Any = determine_do_sep_z_and_axis  # takes None too, against its hint
    separate, thick = decide(force_separate_z, current_spacing, new_spacing, separate_z_anisotropy_threshold)
    result = np.empty((len(data), *map(int, new_shape)), np.float32)
    for channel, target in zip(data, result, strict=True):
        if separate:
            _slice_by_slice(np.moveaxis(channel, thick, 0), np.moveaxis(target, thick, 0), order)
        else:
            _whole(channel, target, order)
    return result


def _whole(image: np.ndarray, target: np.ndarray, order: int) -> None:
    through, rows, columns = (_matrix(old, new, order) for old, new in zip(image.shape, target.shape, strict=True))
    target.fill(0)
    sums = torch.from_numpy(target.reshape(len(target), -1))
    for n in range(0, len(image), _AT_ONCE):
        slices = rows @ (image[n : n + _AT_ONCE] @ columns.T)
        part = torch.from_numpy(np.ascontiguousarray(through[:, n : n + _AT_ONCE]))
        sums.addmm_(part, torch.from_numpy(slices.reshape(len(slices), -1)))  # in place, which numpy's product is not
    np.clip(target, image.min(), image.max(), out=target)


def _slice_by_slice(image: np.ndarray, target: np.ndarray, order: int) -> None:
    """Both with the axis of thick slices in front."""
    scale = len(image) / len(target)
    nearest = np.clip(np.floor(scale * (np.arange(len(target)) + 0.5)), 0, len(image) - 1).astype(int)
    rows, columns = (_matrix(old, new, order) for old, new in zip(image.shape[1:], target.shape[1:], strict=True))
    for number in np.unique(nearest):
        plane = image[number]
        target[nearest == number] = np.clip(rows @ plane @ columns.T, plane.min(), plane.max())


def _matrix(old: int, new: int, order: int) -> np.ndarray:
    """(new, old): what skimage's resize does along an axis with edges repeated: what scipy makes of unit vectors."""
    if old == new:
        return np.eye(old, dtype=np.float32)
    units = np.eye(old)
    return np.asarray(ndimage.zoom(units, (new / old, 1), order=order, mode="nearest", grid_mode=True), np.float32)
