"""The causal convolution by torch's own depthwise convolution.

Nothing is cut into chunks here; the name is that of the plain-torch backend of every op, so that one name picks all.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.order import Order


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order) -> Tensor:
    """(batch, d, L) in x's dtype, for checked arguments."""
    before = _convolve(_read(x, order), weight, bias)
    return _write(F.silu(before) if silu else before, x, order)


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias, None without a bias."""
    inputs, before_gradient, length = _read(x, order), _read(dout, order), x.shape[-1]
    if silu:
        before = _convolve(inputs, weight, bias)
        gate = torch.sigmoid(before)
        before_gradient = before_gradient * gate * (1 + before * (1 - gate))
    width = weight.shape[-1]
    # The tap j tokens back meets what lies j tokens ahead: the same convolution from the end.
    dx = _convolve(before_gradient.flip(-1), weight, None).flip(-1)
    reach = range(min(width, length) - 1, -1, -1)
    taps = [(before_gradient[..., j:] * inputs[..., : length - j]).sum((0, 2)) for j in reach]
    dweight = F.pad(torch.stack(taps, -1), (width - len(taps), 0))
    dbias = None if bias is None else before_gradient.sum((0, 2)).to(bias.dtype)
    return _write(dx, x, order), dweight.to(weight.dtype), dbias


def _read(x: Tensor, order: Order) -> Tensor:
    """In scan order and the dtype of the computation."""
    return order.gather(x.to(torch.promote_types(x.dtype, torch.float32)))


def _write(values: Tensor, like: Tensor, order: Order) -> Tensor:
    """In memory order, with the dtype and strides of ``like``."""
    return torch.empty_like(like).copy_(order.scatter(values))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    weight = weight.to(x.dtype).unsqueeze(1)
    bias = None if bias is None else bias.to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):  # it would accumulate in half precision
        return F.conv1d(F.pad(x, (weight.shape[-1] - 1, 0)), weight, bias, groups=x.shape[1])
