"""What plans hold of a network: class, arguments, and at which resolutions it answers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from umamba_kernels import dry_run
from umamba_seg.errors import UserError
from umamba_seg.networks import NetworkSpec, Topology, build_from
from umamba_seg.text import times


def describe(spec: NetworkSpec, topology: Topology) -> dict:
    """The entries of a configuration that depend on the network: ``architecture`` and ``output_strides``.

    Raises:
        UserError: The network does not have the topology's dimensions, or does not answer for its patch with logits.
    """
    architecture = spec.architecture(spec.planned(topology))
    return {
        "architecture": architecture,
        "output_strides": output_strides(architecture, topology.patch_size),
    }


def output_strides(architecture: dict, patch_size: Sequence[int]) -> list[list[int]]:
    """Input voxels per voxel of every output under deep supervision, finest first; one entry without it.

    The network is run on tensors without data, so that one that does not fit its patch is found while planning.

    Args:
        architecture: As in the plans.
        patch_size: Extent of the input in voxels.

    Raises:
        UserError: It does not run, or an output is no image of logits whose extent divides the patch, or the first is
            not as large as the patch.
    """
    channels, classes = 1, 2
    with dry_run("chunked"), FakeTensorMode():
        network = build_from(architecture, input_channels=channels, num_classes=classes, deep_supervision=True)
        try:
            outputs = network(torch.zeros(2, channels, *patch_size))
        except (RuntimeError, ValueError) as error:
            raise UserError(
                f"network {architecture['network_class_name']}",
                f"does not run on a patch of {times(patch_size)} voxels: {error}",
                "mend it, or say which dimensions it has",
            ) from error
    shapes = [tuple(out.shape) for out in (outputs if isinstance(outputs, list | tuple) else [outputs])]
    strides = [_strides(shape, patch_size, classes) for shape in shapes]
    if None in strides or strides[0] != [1] * len(patch_size):
        raise UserError(
            f"network {architecture['network_class_name']}",
            f"answers a patch of {times(patch_size)} voxels and {classes} classes with {shapes}",
            "let it return logits (batch, classes, *patch_size), or a list of such at falling resolutions",
        )
    return [found for found in strides if found is not None]


def _strides(shape: tuple[int, ...], patch_size: Sequence[int], classes: int) -> list[int] | None:
    """None for what is no image of logits."""
    extent = shape[2:]
    if len(extent) != len(patch_size) or shape[1] != classes:
        return None
    if any(size == 0 or whole % size for size, whole in zip(extent, patch_size, strict=True)):
        return None
    return [whole // size for size, whole in zip(extent, patch_size, strict=True)]
