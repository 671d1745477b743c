"""The selective scan as a torch.library op: shapes for tracing, gradients, and the way to a backend.

The op takes checked arguments and B, C with groups. Backends are modules with ``forward``, ``backward`` and
``states_shape``; ``chunked.py`` documents the three.
"""

from __future__ import annotations

import math
from types import ModuleType

import torch
from torch import Tensor

from umamba_kernels.dispatch import Implementations, relative_rms
from umamba_kernels.order import Order
from umamba_kernels.selective_scan import reference
from umamba_kernels.tracing import implements

_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, {states}"
    "bool delta_softplus, bool reverse, int slices, {save}str? backend"
)


def _error(module: ModuleType, device: torch.device) -> float:
    """Worst relative RMS of results and gradients against the reference, for a small case with all options."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, 40, 70), (2, 40, 70), (40, 16), (2, 2, 16, 70), (2, 2, 16, 70), (40,), (2, 40, 70), (40,)]
    tensors = [torch.randn(shape, generator=generator) for shape in shapes]
    tensors[2] = -tensors[2].exp()
    tensors = [x.to(device) for x in tensors]
    order = Order(reverse=True, slices=5)
    leaves = [x.clone().requires_grad_() for x in tensors]
    wanted = reference.selective_scan(*leaves, delta_softplus=True, order=order)
    weights = [torch.randn(x.shape, generator=generator).to(device) for x in wanted]
    gradients = torch.autograd.grad(wanted, leaves, weights)
    out, last_state, states = module.forward(*tensors, True, order, True)
    got = out, last_state, *module.backward(*weights, *tensors, states, True, order)
    return max(relative_rms(x, y) for x, y in zip(got, (*wanted, *gradients), strict=True))


BACKENDS = Implementations(
    "selective_scan",
    {
        "triton": "umamba_kernels.selective_scan.triton_scan",
        "cpu": "umamba_kernels.selective_scan.cpu",
        "chunked": "umamba_kernels.selective_scan.chunked",
    },
    _error,
)


@torch.library.custom_op(
    "umamba_kernels::selective_scan",
    mutates_args=(),
    schema=f"({_ARGUMENTS.format(states='', save='bool save_states, ')}) -> (Tensor, Tensor, Tensor)",
)
@implements("umamba_kernels::selective_scan")
def selective_scan(
    u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, slices, save_states, backend
) -> tuple[Tensor, Tensor, Tensor]:
    """out, the last state, and what the backend keeps for the gradient if ``save_states``, else an empty tensor."""
    if u.numel() == 0:
        last_state, states = _states(u, A, save_states, backend)
        return torch.empty_like(u), last_state.zero_(), states
    run = BACKENDS.proved(backend, u.device).forward
    tensors, order = (u, delta, A, B, C, D, z, delta_bias), Order(reverse, slices)
    out, last_state, states = run(*tensors, delta_softplus, order, save_states)
    return out, last_state, states.flatten()


@selective_scan.register_fake
def _(u, delta, A, B, C, D, z, delta_bias, delta_softplus, reverse, slices, save_states, backend):
    return torch.empty_like(u), *_states(u, A, save_states, backend)


def states_shape(u: Tensor, A: Tensor, backend: str | None) -> tuple[int, ...]:
    """Shape of what a backend keeps for u (batch, d, L) and A (d, N).

    Ops hand it over flat: an axis of chunks may have extent 1, on which tracing with a symbolic L would specialise.
    """
    return BACKENDS.module(backend, u.device).states_shape(*u.shape, A.shape[1])


def _states(u: Tensor, A: Tensor, save_states: bool, backend: str | None) -> tuple[Tensor, Tensor]:
    """Uninitialised: the last state, and what the backend keeps."""
    kept = math.prod(states_shape(u, A, backend)) if save_states else 0
    return A.new_empty(u.shape[0], *A.shape), A.new_empty(kept)


@torch.library.custom_op(
    "umamba_kernels::selective_scan_backward",
    mutates_args=(),
    schema=f"(Tensor dout, Tensor dlast, {_ARGUMENTS.format(states='Tensor states, ', save='')})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)",
)
@implements("umamba_kernels::selective_scan_backward")
def selective_scan_backward(
    dout, dlast, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, reverse, slices, backend
) -> tuple[Tensor, ...]:
    """Gradients of u, delta, A, B, C, D, z, delta_bias; an empty tensor for what is None."""
    tensors = u, delta, A, B, C, D, z, delta_bias
    if u.numel() == 0:
        return tuple(u.new_empty(0) if x is None else torch.zeros_like(x) for x in tensors)
    module = BACKENDS.proved(backend, u.device)
    states = states.view(module.states_shape(*u.shape, A.shape[1]))
    gradients = module.backward(dout, dlast, *tensors, states, delta_softplus, Order(reverse, slices))
    return tuple(u.new_empty(0) if x is None else x for x in gradients)


@selective_scan_backward.register_fake
def _(dout, dlast, u, delta, A, B, C, D, z, delta_bias, states, delta_softplus, reverse, slices, backend):
    tensors = u, delta, A, B, C, D, z, delta_bias
    return tuple(u.new_empty(0) if x is None else torch.empty_like(x) for x in tensors)


def _keep_for_backward(ctx, inputs, output) -> None:
    *tensors, ctx.delta_softplus, ctx.reverse, ctx.slices, _, ctx.backend = inputs
    ctx.save_for_backward(*tensors, output[2])
    ctx.set_materialize_grads(False)  # of the states, which nobody differentiates by


def _backward(ctx, dout: Tensor | None, dlast: Tensor | None, _dstates: None) -> tuple[Tensor | None, ...]:
    *tensors, states = ctx.saved_tensors
    u, _, A, *_ = tensors
    dout = torch.zeros_like(u) if dout is None else dout
    dlast = A.new_zeros(u.shape[0], *A.shape) if dlast is None else dlast
    options = ctx.delta_softplus, ctx.reverse, ctx.slices, ctx.backend
    gradients = selective_scan_backward(dout, dlast, *tensors, states, *options)
    named = (None if x is None else gradient for x, gradient in zip(tensors, gradients, strict=True))
    return *named, None, None, None, None, None


selective_scan.register_autograd(_backward, setup_context=_keep_for_backward)
