"""The inner Mamba block as it is defined. The op is tested against this one."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.causal_conv1d import causal_conv1d
from umamba_kernels.mamba_inner.direction import Direction
from umamba_kernels.selective_scan import selective_scan


def mamba_inner(x: Tensor, directions: Sequence[Direction], z: Tensor | None) -> Tensor:
    """:func:`umamba_kernels.mamba_inner` for checked arguments, by the reference backends of its parts."""
    with torch.autocast(x.device.type, enabled=False):
        return sum((_scan(x, direction, z) for direction in directions), torch.zeros_like(x))


def _scan(x: Tensor, direction: Direction, z: Tensor | None) -> Tensor:
    A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias, order = direction
    u = x
    if conv_weight is not None:
        u = causal_conv1d(x, conv_weight, conv_bias, activation="silu", order=order, backend="reference")
    n = A.shape[1]
    projected = F.linear(u.transpose(1, 2), x_proj.to(x.dtype)).split([dt_proj.shape[1], n, n], -1)
    dt, B, C = (y.transpose(1, 2) for y in projected)
    delta = torch.matmul(dt_proj.to(x.dtype), dt)
    options = {"delta_softplus": True, "order": order, "backend": "reference"}
    return selective_scan(u, delta, A, B, C, D, z, dt_bias, **options)
