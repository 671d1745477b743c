"""Networks by name: ``find``, ``all_networks`` (no torch needed), ``build`` and ``load_official``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from umamba_seg.errors import UserError
from umamba_seg.networks.catalog import NETWORKS
from umamba_seg.networks.spec import NetworkSpec, Topology

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["NetworkSpec", "Topology", "all_networks", "build", "find", "load_official"]


def all_networks() -> tuple[NetworkSpec, ...]:
    """Every network of the catalog."""
    return NETWORKS


def find(name: str) -> NetworkSpec:
    """The network called ``name``.

    Raises:
        UserError: There is none; the message lists those there are.
    """
    for spec in NETWORKS:
        if spec.name == name:
            return spec
    raise UserError(f"network {name!r}", "unknown", f"choose one of {', '.join(spec.name for spec in NETWORKS)}")


def build(
    name: str,
    *,
    input_channels: int,
    num_classes: int,
    topology: Topology,
    deep_supervision: bool = False,
    **arguments: Any,
) -> nn.Module:
    """Build and initialise a network.

    Args:
        name: A name of the catalog.
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        topology: Patch size, strides, kernel sizes and features.
        deep_supervision: Return logits of every decoder stage, finest first, instead of the finest alone.
        arguments: Override what the catalog derives from the topology.

    Returns:
        A module that maps (batch, input_channels, *spatial) to logits (batch, num_classes, *spatial).

    Raises:
        UserError: Unknown name, or a topology of dimensions that the network does not have.
    """
    import pydoc

    spec = find(name)
    if topology.dims not in spec.dims:
        wanted = " or ".join(f"{dims}-D" for dims in spec.dims)
        raise UserError(f"network {name}", f"the topology is {topology.dims}-D", f"this network is {wanted} only")
    network_class: Any = pydoc.locate(spec.network)
    network = network_class(
        input_channels=input_channels,
        num_classes=num_classes,
        deep_supervision=deep_supervision,
        **(spec.arguments(topology) | arguments),
    )
    return network.apply(network_class.initialize)


def load_official(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """Load the weights of a checkpoint of the official repository into ``network``, in place.

    Aliases (the same tensor under a second name) are accepted when they agree with their original.

    Args:
        network: Built with the same topology as the checkpoint.
        state_dict: The official state dict (for nnU-Net checkpoints, the entry ``network_weights``).

    Raises:
        UserError: Entries are missing, unknown, of another shape, or contradict each other; all are listed.
    """
    from umamba_seg.networks.official import load_official as load

    load(network, state_dict)
