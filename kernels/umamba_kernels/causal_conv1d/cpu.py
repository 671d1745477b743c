"""The causal convolution on the CPU, by the shared library of :mod:`umamba_kernels.native`."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from umamba_kernels import native
from umamba_kernels.order import Order

# The gradients of weight and bias are summed up over segments of this many tokens or more, at most so many in a batch
# entry, and then over the segments.
_SEGMENT, _SEGMENTS = 256, 16
# A thread is worth its start for about this many multiplications.
_PRODUCTS_PER_THREAD = 400_000


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order) -> Tensor:
    """The convolution of checked arguments."""
    out = torch.empty_like(x)
    weight, bias = _rows(weight, x), _rows(bias, x)
    arguments = _arguments(x, weight, bias, silu, order)
    arguments.out = native.argument(out)
    native.run("conv_forward", arguments)
    return out


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order
) -> tuple[Tensor, Tensor, Tensor | None]:
    """The gradients of x, weight and bias, for checked arguments."""
    dx = torch.empty_like(x)
    w, b = _rows(weight, x), _rows(bias, x)
    dweight, dbias = torch.empty_like(w), None if b is None else torch.empty_like(b)
    arguments = _arguments(x, w, b, silu, order)
    segments = -(-x.shape[2] // arguments.segment)
    sums = torch.empty(x.shape[0] * segments, w.shape[0] + 1, x.shape[1], dtype=torch.float64)
    arguments.dout, arguments.dx = native.argument(dout), native.argument(dx)
    arguments.dweight, arguments.dbias = native.address(dweight), native.address(dbias)
    arguments.sums = native.address(sums)
    native.run("conv_backward", arguments)
    dbias = None if bias is None or dbias is None else dbias.to(bias.dtype)
    return dx, dweight.t().to(weight.dtype).contiguous(), dbias


@overload
def _rows(parameter: Tensor, x: Tensor) -> Tensor: ...
@overload
def _rows(parameter: Tensor | None, x: Tensor) -> Tensor | None: ...
def _rows(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    """A parameter with the channels along the last axis, contiguous, in the dtype of the computation."""
    if parameter is None:
        return None
    return parameter.detach().to(torch.promote_types(x.dtype, torch.float32)).t().contiguous()


def _arguments(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order) -> native.ConvArguments:
    (batch, d, length), width = x.shape, weight.shape[0]
    chunks = -(-length // native.CHUNK)
    worth = 1 + batch * d * length * width // _PRODUCTS_PER_THREAD
    return native.ConvArguments(
        batch=batch,
        channels=d,
        length=length,
        width=width,
        slices=order.slices,
        segment=native.CHUNK * max(_SEGMENT // native.CHUNK, -(-chunks // _SEGMENTS)),
        reverse=order.reverse,
        silu=silu,
        is_double=x.dtype == torch.float64,
        threads=min(torch.get_num_threads(), worth),
        x=native.argument(x),
        weight=native.address(weight),
        bias=native.address(bias),
    )
