"""Reading checkpoints of the official repositories: names are converted, and what does not fit is refused."""

from __future__ import annotations

import re

import torch
from torch import Tensor, nn

from umamba_seg.errors import UserError
from umamba_seg.text import shorten

# What DistributedDataParallel and torch.compile wrap a network in stays in the names.
_WRAPPERS = (r"^((module|_orig_mod)\.)+", "")


def _our_names(network: nn.Module, official: dict[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Apply the network's ``official_names`` (regex, replacement); also return aliases that contradict."""
    renamed: dict[str, Tensor] = {}
    contradicting = []
    for key, value in official.items():
        name = key
        for pattern, replacement in (_WRAPPERS, *getattr(network, "official_names", ())):
            name = re.sub(pattern, replacement, name)
        if name in renamed and not torch.equal(renamed[name], value):
            contradicting.append(f"{key} (differs from {name})")
        renamed.setdefault(name, value)
    return renamed, contradicting


def load_official(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    """See :func:`umamba_seg.networks.load_official`."""
    renamed, contradicting = _our_names(network, state_dict)
    own = network.state_dict()
    problems = {
        "missing in the checkpoint": sorted(own.keys() - renamed.keys()),
        "unknown to the network": sorted(renamed.keys() - own.keys()),
        "of another shape": [
            f"{name} {tuple(renamed[name].shape)} for {tuple(own[name].shape)}"
            for name in sorted(own.keys() & renamed.keys())
            if renamed[name].shape != own[name].shape
        ],
        "contradicting aliases": contradicting,
    }
    found = "; ".join(f"{len(names)} {what}: {shorten(names)}" for what, names in problems.items() if names)
    if found:
        raise UserError("official checkpoint", found, "build the network with the topology that it was trained with")
    network.load_state_dict(renamed)
