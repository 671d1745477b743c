"""The patches that a data set calls for, and the encoder-decoder that goes with each, by nnU-Net's rules.

Pure functions of spacing and median shape. Source of the rules: Isensee et al., nnU-Net, Nature Methods 2021,
supplementary note 2, and the planner of nnunetv2 2.8, which they agree with.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology
from umamba_seg.networks.spec import FixedLevels
from umamba_seg.text import times

_MAX_FEATURES = {2: 512, 3: 320}
_SMALLEST_MAP = 4  # voxels on an axis of the coarsest feature map
_NO_LIMIT = 10**6
_LARGEST_PATCH = {2: 2048**2, 3: 256**3}  # voxels
FEWEST_STAGES = 3  # deep supervision needs two outputs, and its last one weighs nothing


def topology_for(
    patch_size: Sequence[float],
    spacing: Sequence[float] | None = None,
    base_features: int = 32,
    max_features: int | None = None,
) -> Topology:
    """What nnU-Net's planner would choose for a U-Net on this patch.

    Args:
        patch_size: Extent in voxels, two or three entries.
        spacing: Extent of a voxel; the same on all axes by default.
        base_features: Channels of the first stage; every further stage has twice as many.
        max_features: Their cap; nnU-Net's 512 in 2-D and 320 in 3-D by default.

    Returns:
        The topology. Its patch is rounded up to what the strides divide, as nnU-Net does it.

    Raises:
        UserError: The patch is too small to be halved.
    """
    dims = len(patch_size)
    spacing = [1.0] * dims if spacing is None else spacing
    _, strides, kernel_sizes, patch, _ = get_pool_and_conv_props(spacing, patch_size, _SMALLEST_MAP, _NO_LIMIT)
    if len(strides) < 2:
        raise UserError(
            f"patch {times(patch_size)}",
            "nnU-Net's planner would not halve it on any axis",
            f"give {2 * _SMALLEST_MAP} voxels on two axes, or {3 * _SMALLEST_MAP} on one",
        )
    widest = max_features or _MAX_FEATURES[dims]
    return Topology(
        patch_size=tuple(int(extent) for extent in patch),
        strides=strides,
        kernel_sizes=kernel_sizes,
        features=tuple(min(base_features * 2**stage, widest) for stage in range(len(strides))),
    )


def largest_patch(spacing: Sequence[float], median_shape: Sequence[float]) -> tuple[float, ...]:
    """The patch that is tried first: a cube in mm of 256³ voxels (2-D: a square of 2048²), but no larger than images.

    Args:
        spacing: mm per voxel, two or three entries.
        median_shape: Voxels of the median image at this spacing; the median of two sizes may be a fraction.

    Raises:
        UserError: A spacing or an extent is not a positive number.
    """
    if not all(0 < value < math.inf for value in (*spacing, *median_shape)):
        raise UserError(
            f"spacing {times(spacing)} mm, images of {times(median_shape)} voxels",
            "no patch can be planned for these",
            "correct the headers of the images; `umamba-seg check` names them",
        )
    dims = len(spacing)
    edge = (_LARGEST_PATCH[dims] * math.prod(spacing)) ** (1 / dims)  # mm
    return tuple(min(round(edge / step), extent) for step, extent in zip(spacing, median_shape, strict=True))


def open_topologies(
    spacing: Sequence[float], median_shape: Sequence[float], base_features: int, max_features: int | None = None
) -> Iterator[Topology]:
    """What may be planned for a network of open depth, largest patch first.

    From one to the next the axis shrinks that covers most of the median image, by as little as the strides allow. The
    last has the three stages that deep supervision needs.

    Args:
        spacing, median_shape: See :func:`largest_patch`.
        base_features, max_features: See :func:`topology_for`.
    """

    def plan(patch: Sequence[float]) -> Topology | None:
        try:
            topology = topology_for(patch, spacing, base_features, max_features)
        except UserError:
            return None
        return topology if len(topology.strides) >= FEWEST_STAGES else None

    topology = plan(largest_patch(spacing, median_shape))
    while topology is not None:
        yield topology
        patch = topology.patch_size
        axes = [axis for axis, extent in enumerate(patch) if extent > _SMALLEST_MAP]
        axis = _to_shrink(patch, median_shape, axes)
        # The step is that of the strides which the smaller patch has: it may have fewer.
        smaller = plan(_shrunk(patch, axis, topology.total_stride[axis]))
        if smaller is None:
            return
        topology = plan(_shrunk(patch, axis, smaller.total_stride[axis]))


def fixed_topologies(
    levels: FixedLevels, spacing: Sequence[float], median_shape: Sequence[float], width: float
) -> Iterator[Topology]:
    """The same for a network of fixed depth: patches that its levels divide, down to one voxel at the coarsest.

    Args:
        levels: Of the network.
        spacing, median_shape: See :func:`largest_patch`.
        width: Share of the published network's channels.
    """
    topology = levels.topology(largest_patch(spacing, median_shape), width)
    while True:
        yield topology
        patch, step = topology.patch_size, topology.total_stride
        axes = [axis for axis, extent in enumerate(patch) if extent > step[axis]]
        axis = _to_shrink(patch, median_shape, axes)
        smaller = levels.topology(_shrunk(patch, axis, step[axis]), width)
        if math.prod(smaller.patch_size) == math.prod(patch):  # the levels put the two voxels elsewhere
            return
        topology = smaller


def _to_shrink(patch: Sequence[int], median_shape: Sequence[float], axes: Sequence[int]) -> int:
    """The axis that covers most of the image, the last of several."""
    return max(axes, key=lambda axis: (patch[axis] / median_shape[axis], axis))


def _shrunk(patch: tuple[int, ...], axis: int, by: int) -> tuple[int, ...]:
    return tuple(extent - by if i == axis else extent for i, extent in enumerate(patch))
