"""Mirroring in training that exchanges the labels of a left and a right side; the plans say which."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from torch import Tensor


class SwapMirror(MirrorTransform):
    """nnU-Net's random flips; where ``swap_axis`` is among them, the label values of each pair are exchanged.

    Args:
        allowed_axes: Axes of a patch, each flipped in half of the samples.
        swap_axis: The one from left to right.
        pairs: Label values, two by two.
    """

    def __init__(self, allowed_axes: tuple[int, ...], swap_axis: int, pairs: Sequence[Sequence[int]]):
        super().__init__(allowed_axes)
        self.swap_axis = swap_axis
        self.left, self.right = (list(values) for values in zip(*pairs, strict=True))

    def _apply_to_segmentation(self, segmentation: Tensor, **params) -> Tensor:
        """(channels, ...) of label values, -1 outside the image: flipped, and exchanged where a side became the other.

        All channels are label maps: the second one, of a cascade, is the result of the stage before.
        """
        flipped = super()._apply_to_segmentation(segmentation, **params)
        if self.swap_axis not in params["axes"]:
            return flipped
        highest = max(int(flipped.max()), *self.left, *self.right)
        images = torch.arange(-1, highest + 1, dtype=flipped.dtype)  # of the value v at v + 1
        left, right = torch.tensor(self.left) + 1, torch.tensor(self.right) + 1
        images[left], images[right] = images[right], images[left]
        return images[(flipped + 1).long()]


def with_swaps(transforms: ComposeTransforms, swap: dict) -> ComposeTransforms:
    """nnU-Net's training transforms with the mirroring replaced; ``swap`` is ``mirroring["swap"]`` of a configuration.

    The mirroring comes after the patch is three-dimensional again, where nnU-Net deforms it slice by slice, and before
    labels become regions.
    """
    return ComposeTransforms(
        [
            SwapMirror(transform.allowed_axes, swap["axis"], swap["pairs"])
            if isinstance(transform, MirrorTransform)
            else transform
            for transform in transforms.transforms
        ]
    )


def inference_axes(mirroring: dict) -> tuple[int, ...] | None:
    """The axes that nnU-Net's predictor may flip: it cannot exchange labels. None, as it wants, if there is none left.

    Args:
        mirroring: Of a configuration.
    """
    swap = mirroring["swap"]
    return tuple(axis for axis in mirroring["axes"] if swap is None or axis != swap["axis"]) or None
