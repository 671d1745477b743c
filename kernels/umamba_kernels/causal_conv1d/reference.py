"""The causal convolution as it is defined. Every other backend is tested against this one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.order import Order


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """``out_t = bias + sum_j weight[width - 1 - j] x_{t-j}``: (batch, d, L), (d, width), (d,) -> (batch, d, L)."""
    length, width = x.shape[-1], weight.shape[-1]
    out = torch.zeros_like(x) if bias is None else bias[:, None].expand_as(x)
    for j in range(width):
        delayed = F.pad(x, (j, 0))[..., :length]
        out = out + weight[:, width - 1 - j, None] * delayed
    return out


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    silu: bool,
    order: Order,
) -> Tensor:
    """:func:`umamba_kernels.causal_conv1d` for checked arguments."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    bias = None if bias is None else bias.to(dtype)
    out = order.scatter(_convolve(order.gather(x.to(dtype)), weight.to(dtype), bias))
    return (F.silu(out) if silu else out).to(x.dtype)
