"""The causal convolution as a torch.library op: shapes for tracing, gradients, and the way to a backend.

Backends are modules with ``forward`` and ``backward``; ``chunked.py`` documents the two.
"""

from __future__ import annotations

from types import ModuleType

import torch
from torch import Tensor

from umamba_kernels.causal_conv1d import reference
from umamba_kernels.dispatch import Implementations, relative_rms
from umamba_kernels.order import Order
from umamba_kernels.tracing import implements

_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, bool silu, bool reverse, int slices, str? backend"


def _error(module: ModuleType, device: torch.device) -> float:
    """Worst relative RMS of results and gradients against the reference, for a small case with all options."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).to(device) for shape in ((2, 40, 70), (40, 4), (40,))]
    order = Order(reverse=True, slices=5)
    leaves = [x.clone().requires_grad_() for x in tensors]
    wanted = reference.causal_conv1d(*leaves, silu=True, order=order)
    weights = torch.randn(wanted.shape, generator=generator).to(device)
    gradients = torch.autograd.grad(wanted, leaves, weights)
    got = module.forward(*tensors, True, order), *module.backward(weights, *tensors, True, order)
    return max(relative_rms(x, y) for x, y in zip(got, (wanted, *gradients), strict=True))


BACKENDS = Implementations(
    "causal_conv1d",
    {
        "triton": "umamba_kernels.causal_conv1d.triton_conv",
        "cpu": "umamba_kernels.causal_conv1d.cpu",
        "chunked": "umamba_kernels.causal_conv1d.chunked",
    },
    _error,
)


@torch.library.custom_op("umamba_kernels::causal_conv1d", mutates_args=(), schema=f"({_ARGUMENTS}) -> Tensor")
@implements("umamba_kernels::causal_conv1d")
def causal_conv1d(x, weight, bias, silu, reverse, slices, backend) -> Tensor:
    if x.numel() == 0:
        return torch.empty_like(x)
    return BACKENDS.proved(backend, x.device).forward(x, weight, bias, silu, Order(reverse, slices))


@causal_conv1d.register_fake
def _(x, weight, bias, silu, reverse, slices, backend):
    return torch.empty_like(x)


@torch.library.custom_op(
    "umamba_kernels::causal_conv1d_backward",
    mutates_args=(),
    schema=f"(Tensor dout, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
@implements("umamba_kernels::causal_conv1d_backward")
def causal_conv1d_backward(dout, x, weight, bias, silu, reverse, slices, backend) -> tuple[Tensor, ...]:
    """Gradients of x, weight and bias; an empty tensor for a bias that is None."""
    if x.numel() == 0:
        return tuple(x.new_empty(0) if y is None else torch.zeros_like(y) for y in (x, weight, bias))
    run = BACKENDS.proved(backend, x.device).backward
    dx, dweight, dbias = run(dout, x, weight, bias, silu, Order(reverse, slices))
    return dx, dweight, x.new_empty(0) if dbias is None else dbias


@causal_conv1d_backward.register_fake
def _(dout, x, weight, bias, silu, reverse, slices, backend):
    return tuple(x.new_empty(0) if y is None else torch.empty_like(y) for y in (x, weight, bias))


def _keep_for_backward(ctx, inputs, output) -> None:
    x, weight, bias, *ctx.options = inputs
    ctx.save_for_backward(x, weight, bias)


def _backward(ctx, dout: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias = ctx.saved_tensors
    dx, dweight, dbias = causal_conv1d_backward(dout, x, weight, bias, *ctx.options)
    return dx, dweight, None if bias is None else dbias, None, None, None, None


causal_conv1d.register_autograd(_backward, setup_context=_keep_for_backward)
