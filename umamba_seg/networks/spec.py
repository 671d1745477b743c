"""What a network is to the rest of the house: a name, a class, and the arguments that a topology gives it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

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
class FixedLevels:
    """What a network whose depth the plan cannot choose asks of its input: every level has half the extent.

    Args:
        features: Channels of each level, full resolution first, in the published network.
        narrowest: Fewest channels of the first level that the network can be built with.
    """

    features: tuple[int, ...]
    narrowest: int = 1

    def topology(self, patch_size: Sequence[float], width: float = 1.0) -> Topology:
        """The topology for a patch, brought to the nearest extent that the levels divide, two voxels at the coarsest.

        Args:
            patch_size: Wished extent in voxels.
            width: Share of the published network's channels.
        """
        step = 2 ** (len(self.features) - 1)
        patch = tuple(step * max(1, math.ceil(extent / step - 0.5)) for extent in patch_size)
        if all(extent == step for extent in patch):  # instance norm has nothing to compare a single voxel with
            patch = (*patch[:-1], 2 * step)
        width = max(width, self.narrowest / self.features[0])
        dims = len(patch)
        return Topology(
            patch_size=patch,
            strides=((1,) * dims, *((2,) * dims,) * (len(self.features) - 1)),
            kernel_sizes=((3,) * dims,) * len(self.features),
            features=tuple(round(channels * width) for channels in self.features),
        )


@dataclass(frozen=True)
class NetworkSpec:
    """An entry of the catalog.

    Args:
        name: What the user types, e.g. ``umamba_bot``.
        network: Dotted path of the class; the plans hold it and nnU-Net builds the network from it.
        arguments: Topology -> JSON-serialisable keyword arguments of the class that follow from it.
        dims: Numbers of spatial dimensions that the class accepts.
        paper: Where the architecture is described.
        constants: Keyword arguments of the class that make this network of it.
        levels: Of a network of fixed depth; None where the plan chooses the depth.
        imports: Names of arguments that are dotted paths (conv_op and the like), which whoever builds it resolves.
        learning_rates: Initial learning rate by optimizer, where that of the budget does not suit the network;
            a recipe that is asked for keeps its own.
        task: What its output is; the pipeline trains segmentation networks.
        remark: What to know when its costs are compared with published ones.
        twin: Name of the same network without the scan; None for one that has none.
    """

    name: str
    network: str
    arguments: Callable[[Topology], dict]
    dims: tuple[int, ...]
    paper: str
    constants: dict = field(default_factory=dict)
    levels: FixedLevels | None = None
    imports: tuple[str, ...] = ()
    learning_rates: dict[str, float] = field(default_factory=dict)
    task: Literal["segmentation", "classification", "landmarks"] = "segmentation"
    remark: str = ""
    twin: str | None = None

    def planned(self, topology: Topology) -> dict:
        """The keyword arguments that a plan holds.

        Raises:
            UserError: The network does not have the topology's number of dimensions.
        """
        self.require_dims(topology.dims)
        return self.arguments(topology) | self.constants

    def published(self, topology: Topology | None) -> dict:
        """The keyword arguments of the published network: what follows from the topology where the depth is open.

        Raises:
            UserError: The network does not have the topology's number of dimensions, or has an open depth and none.
        """
        if topology is None and self.levels is None:
            raise UserError(f"network {self.name}", "its depth is open", "give a topology")
        if topology is None:
            return self.constants
        if self.levels is None:
            return self.planned(topology)
        self.require_dims(topology.dims)
        return self.constants | ({"spatial_dims": topology.dims} if len(self.dims) > 1 else {})

    def architecture(self, arguments: dict) -> dict:
        """The network with these keyword arguments, in the form of nnU-Net's plans."""
        return {
            "network_class_name": self.network,
            "arch_kwargs": arguments,
            "_kw_requires_import": list(self.imports),
        }

    def require_segmentation(self) -> None:
        """Refuse to plan a network whose output is no segmentation."""
        if self.task != "segmentation":
            what = f"is a network for {self.task}, and the pipeline trains segmentation"
            raise UserError(f"network {self.name}", what, "choose another, or build this one in Python")

    def require_dims(self, dims: int) -> None:
        """Refuse a number of spatial dimensions that the network does not have."""
        if dims not in self.dims:
            there = " or ".join(f"{number}-D" for number in self.dims)
            raise UserError(f"network {self.name}", f"{dims}-D was asked for", f"this network is {there} only")
