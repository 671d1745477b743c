"""The memory layout in which a network runs fastest on a device."""

from __future__ import annotations

import torch
from torch import nn


def use_fast_layout(network: nn.Module, device: torch.device) -> nn.Module:
    """Put the weights into the layout that suits ``device``, in place; values and names do not change.

    On a CPU, oneDNN's 3-D convolutions are about a third faster on channels-last weights (0.42 s against 0.61 s for an
    iteration of U-Mamba_Bot on two cores). For 2-D it hardly matters.
    """
    is_3d = any(isinstance(module, nn.Conv3d) for module in network.modules())
    if device.type == "cpu" and is_3d:
        network.to(memory_format=torch.channels_last_3d)  # type: ignore[call-overload]
    return network
