"""What becomes of resampled logits: labels, probabilities, and how sure the model is, in the frame of the image."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from umamba_seg.datasets.labels import Labels
from umamba_seg.predict.resampling import Group


@dataclass
class Prediction:
    """A segmented image. Arrays are (z, y, x) as nnU-Net's reader orders the axes; z is 1 for a picture.

    Attributes:
        name: Of the case.
        files: Its images; none if it came as an array.
        segmentation: uint8, or uint16 for 255 labels and more.
        properties: What nnU-Net's writer needs, ``spacing`` (z, y, x) in mm among it.
        probabilities: float16 (classes or regions, z, y, x), if asked for: of the folds' mean logits, as nnU-Net's.
        entropy: float16, if asked for: of the folds' mean probabilities, from 0 (sure) to 1 (all classes alike).
            Regions: the mean over their binary entropies.
        disagreement: float16, if asked for and there are several folds: the share of them whose own label is another.
    """

    name: str
    files: tuple[Path, ...]
    segmentation: np.ndarray
    properties: dict
    probabilities: np.ndarray | None = None
    entropy: np.ndarray | None = None
    disagreement: np.ndarray | None = None


class Canvas:
    """Takes groups of planes and writes what they say into arrays of the whole image.

    Args:
        labels: Of the data set.
        properties: nnU-Net's of the case: shape before cropping, and the box that was cut out.
        order: Axes of the cropped image in which planes come.
        transpose_backward: From the axes of the plans to those of the image.
        probabilities: Whether to keep them.
        entropy: Whether to compute it.
        disagreement: Whether to compute it; the groups must have several members then.
        scratch: Folder for probabilities on the disk instead of in memory.
    """

    def __init__(
        self,
        labels: Labels,
        properties: dict,
        order: Sequence[int],
        transpose_backward: Sequence[int],
        *,
        probabilities: bool,
        entropy: bool,
        disagreement: bool,
        scratch: Path | None,
    ):
        self._labels, self._backward = labels, tuple(transpose_backward)
        shape = tuple(int(extent) for extent in properties["shape_before_cropping"])
        box = tuple(slice(low, high) for low, high in properties["bbox_used_for_cropping"])
        self._segmentation = np.zeros(shape, labels.stored_as)
        self._probabilities = _empty((labels.num_classes, *shape), scratch) if probabilities else None
        if self._probabilities is not None and not labels.has_regions:
            self._probabilities[0] = 1  # outside the box all is background
        self._entropy = np.zeros(shape, np.float16) if entropy else None
        self._disagreement = np.zeros(shape, np.float16) if disagreement else None

        def swept(array: np.ndarray | None) -> np.ndarray | None:
            """The box as a view (..., planes, h, w)."""
            if array is None:
                return None
            inside = array[..., *box]
            lead = inside.ndim - 3
            return inside.transpose(*range(lead), *(lead + axis for axis in order))

        self._views = {
            name: swept(getattr(self, f"_{name}"))
            for name in ("segmentation", "probabilities", "entropy", "disagreement")
        }

    def write(self, rows: slice, group: Group) -> None:
        """Some planes. Where labels are all that is wanted, no more than one class is in memory at a time."""
        if self._probabilities is None and self._entropy is None and self._disagreement is None:
            self._put("segmentation", rows, self._winner(group.logits(0, number) for number in range(group.classes)))
            return
        members = [
            torch.stack([group.logits(member, number) for number in range(group.classes)])
            for member in range(group.members)
        ]
        mean = sum(members[1:], members[0]) / len(members)
        winner = self._winner(iter(mean))
        self._put("segmentation", rows, winner)
        if self._probabilities is not None:
            self._put("probabilities", rows, self._chances(mean))
        if self._entropy is not None:
            chances = sum((self._chances(member) for member in members[1:]), self._chances(members[0]))
            self._put("entropy", rows, self._uncertainty(chances / len(members)))
        if self._disagreement is not None:
            others = torch.stack([self._winner(iter(member)) != winner for member in members])
            self._put("disagreement", rows, others.float().mean(0))

    def finish(self, name: str, files: tuple[Path, ...], properties: dict) -> Prediction:
        """What was written, with the axes of the image."""
        return Prediction(
            name,
            files,
            np.ascontiguousarray(self._restored(self._segmentation)),
            properties,
            self._restored(self._probabilities),
            self._restored(self._entropy),
            self._restored(self._disagreement),
        )

    def _winner(self, logits: Iterator[Tensor]) -> Tensor:
        """Labels from the logits of one class or region after the other, by nnU-Net's rules."""
        best = next(logits)
        found = torch.zeros_like(best, dtype=torch.int32)
        if self._labels.regions_class_order is not None:
            for value, region in zip(self._labels.regions_class_order, chain([best], logits), strict=True):
                found.masked_fill_(region.sigmoid() > 0.5, value)
            return found
        for number, rival in enumerate(logits, 1):
            found.masked_fill_(rival > best, number)
            best = torch.maximum(best, rival)
        return found

    def _chances(self, logits: Tensor) -> Tensor:
        return logits.sigmoid() if self._labels.has_regions else logits.softmax(0)

    def _uncertainty(self, chances: Tensor) -> Tensor:
        if self._labels.has_regions:
            against = 1 - chances
            bits = -(torch.xlogy(chances, chances) + torch.xlogy(against, against)) / np.log(2)
            return bits.mean(0)
        return -torch.xlogy(chances, chances).sum(0) / np.log(len(chances))

    def _put(self, name: str, rows: slice, planes: Tensor) -> None:
        view = self._views[name]
        if view is not None:
            view[..., rows, :, :] = planes.cpu().numpy()

    def _restored(self, array):
        if array is None:
            return None
        lead = array.ndim - 3
        return array.transpose(*range(lead), *(lead + axis for axis in self._backward))


def _empty(shape: tuple[int, ...], scratch: Path | None) -> np.ndarray:
    """Zeros, on the disk in a file without a name if there is a folder for it."""
    if scratch is None:
        return np.zeros(shape, np.float16)
    with tempfile.TemporaryFile(dir=scratch) as file:
        if hasattr(os, "posix_fallocate"):  # or a page that finds no room on the disk would kill the process
            os.posix_fallocate(file.fileno(), 0, prod(shape) * np.dtype(np.float16).itemsize)
        return np.memmap(file, np.float16, "w+", shape=shape)
