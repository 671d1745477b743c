"""The encoder-decoder that nnU-Net's planner gives a patch."""

from __future__ import annotations

from collections.abc import Sequence

from nnunetv2.experiment_planning.experiment_planners.network_topology import get_pool_and_conv_props

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology
from umamba_seg.text import times

_MAX_FEATURES = {2: 512, 3: 320}
_SMALLEST_MAP = 4  # voxels on an axis of the coarsest feature map
_NO_LIMIT = 10**6


def topology_for(
    patch_size: Sequence[int],
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
    _, strides, kernel_sizes, patch, _ = get_pool_and_conv_props(
        spacing or [1.0] * dims, patch_size, _SMALLEST_MAP, _NO_LIMIT
    )
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
