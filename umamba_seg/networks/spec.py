"""What a network is to the rest of the house: a name, a class, and the arguments that a topology gives it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from umamba_seg.errors import UserError


@dataclass(frozen=True)
class Topology:
    """The shape of an encoder-decoder network, as a planner chooses it.

    Args:
        patch_size: Spatial extent of the input in voxels, two or three entries.
        strides: One tuple per stage; the first holds ones (the first stage runs at full resolution).
        kernel_sizes: One tuple of odd extents per stage.
        features: Channels per stage, finest first.

    Raises:
        UserError: Stages, dimensions or extents do not fit together.
    """

    patch_size: tuple[int, ...]
    strides: tuple[tuple[int, ...], ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    features: tuple[int, ...]

    def __post_init__(self) -> None:
        stages = (len(self.strides), len(self.kernel_sizes), len(self.features))
        if len(set(stages)) != 1 or stages[0] < 2:
            raise UserError(
                "topology",
                f"strides, kernel_sizes and features describe {stages} stages",
                "give one entry per stage to each, two stages at least",
            )
        if self.dims not in (2, 3) or any(len(item) != self.dims for item in (*self.strides, *self.kernel_sizes)):
            raise UserError(
                "topology",
                f"patch_size has {self.dims} dimensions, strides {self.strides}, kernel_sizes {self.kernel_sizes}",
                "use two or three dimensions, the same everywhere",
            )
        if any(step != 1 for step in self.strides[0]):
            raise UserError("topology", f"the first stage has strides {self.strides[0]}", "let strides begin with ones")
        if any(size % step for size, step in zip(self.patch_size, self.total_stride, strict=True)):
            raise UserError(
                "topology",
                f"patch_size {self.patch_size} is not divisible by the strides' product {self.total_stride}",
                "round the patch up to a multiple",
            )

    @property
    def dims(self) -> int:
        """Number of spatial dimensions, 2 or 3."""
        return len(self.patch_size)

    @property
    def total_stride(self) -> tuple[int, ...]:
        """Product of the strides per axis: input voxels per voxel of the bottleneck."""
        return tuple(math.prod(steps) for steps in zip(*self.strides, strict=True))


@dataclass(frozen=True)
class NetworkSpec:
    """An entry of the catalog.

    Args:
        name: What the user types, e.g. ``umamba_bot``.
        network: Dotted path of the class; the plans hold it and nnU-Net builds the network from it.
        arguments: Topology -> JSON-serialisable keyword arguments of the class.
        dims: Numbers of spatial dimensions that the class accepts.
        paper: Where the architecture is described.
    """

    name: str
    network: str
    arguments: Callable[[Topology], dict]
    dims: tuple[int, ...]
    paper: str
