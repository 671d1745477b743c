"""Networks by name: ``find``, ``all_networks`` (no torch needed), ``build`` and ``load_official``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umamba_seg.errors import UserError
from umamba_seg.networks.catalog import NETWORKS
from umamba_seg.networks.spec import NetworkSpec, Topology

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["NetworkSpec", "Topology", "all_networks", "build", "build_from", "find", "load_official"]


def all_networks() -> tuple[NetworkSpec, ...]:
    """Every network of the catalog."""
    return NETWORKS


def find(name: str) -> NetworkSpec:
    """The network called ``name``, or one of the user's own, ``package.module:NAME``.

    Raises:
        UserError: There is none; the message lists those there are.
    """
    if ":" in name:
        from umamba_seg.networks.own import find_own

        return find_own(name)
    for spec in NETWORKS:
        if spec.name == name:
            return spec
    known = ", ".join(spec.name for spec in NETWORKS)
    raise UserError(f"network {name!r}", "unknown", f"choose one of {known}, or name your own as package.module:NAME")


def build(
    name: str,
    *,
    input_channels: int,
    num_classes: int,
    topology: Topology | None = None,
    deep_supervision: bool = False,
    **arguments: Any,
) -> nn.Module:
    """Build and initialise a network.

    Args:
        name: A name of the catalog, or ``package.module:NAME``.
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        topology: Patch size, strides, kernel sizes and features. Networks of fixed depth (SegMamba, nnMamba,
            LightM-UNet) take the number of dimensions from it and nothing else.
        deep_supervision: Return logits of several resolutions, finest first, where the network can.
        arguments: Arguments of the network's class, by their names in the paper, instead of what follows from the
            topology or of the published values: SegMamba ``depths, features_per_stage, hidden_size, slices``, nnMamba
            ``channels, blocks``, LightM-UNet ``spatial_dims, init_filters, blocks_down, blocks_up``.

    Returns:
        A module that maps (batch, input_channels, *spatial) to logits (batch, num_classes, *spatial).

    Raises:
        UserError: Unknown name, a topology of dimensions that the network does not have, or none where one is needed.
    """
    spec = find(name)
    return build_from(
        spec.architecture(spec.published(topology) | arguments),
        input_channels=input_channels,
        num_classes=num_classes,
        deep_supervision=deep_supervision,
    )


def build_from(architecture: dict, *, input_channels: int, num_classes: int, deep_supervision: bool) -> nn.Module:
    """Build and initialise a network as plans describe it.

    Args:
        architecture: Dotted path of the class (``network_class_name``), its keyword arguments (``arch_kwargs``) and the
            names of those that are dotted paths themselves (``_kw_requires_import``).
        input_channels, num_classes, deep_supervision: See :func:`build`.
    """
    import pydoc

    arguments = architecture["arch_kwargs"]
    imports = {key: arguments[key] for key in architecture["_kw_requires_import"] if arguments[key] is not None}
    network_class: Any = pydoc.locate(architecture["network_class_name"])
    network = network_class(
        input_channels=input_channels,
        num_classes=num_classes,
        deep_supervision=deep_supervision,
        **(arguments | {key: pydoc.locate(path) for key, path in imports.items()}),
    )
    return network.apply(network.initialize) if hasattr(network, "initialize") else network


def load_official(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load the weights of a checkpoint of the official repository into ``network``, in place.

    Aliases (the same tensor under a second name) are accepted when they agree with their original.

    Args:
        network: Built with the same topology as the checkpoint.
        state_dict: The official state dict (for nnU-Net checkpoints, the entry ``network_weights``; the command
            ``umamba-seg convert checkpoint`` takes such a file whole).

    Raises:
        UserError: Entries are missing, unknown, of another shape, or contradict each other; all are listed.
    """
    from umamba_seg.networks.official import load_official as load

    load(network, state_dict)
