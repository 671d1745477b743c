"""The inner Mamba block as a torch.library op, of the backends of its parts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.causal_conv1d.op import BACKENDS as CONVOLUTIONS
from umamba_kernels.order import Order
from umamba_kernels.selective_scan.op import BACKENDS as SCANS
from umamba_kernels.selective_scan.op import states_shape
from umamba_kernels.tracing import implements

_LISTS = "A", "x_proj", "dt_proj", "dt_bias", "D", "conv_weight", "conv_bias"  # a tensor for each direction, or empty
_ARGUMENTS = f"Tensor x, Tensor? z, {', '.join(f'Tensor[] {name}' for name in _LISTS)}, {{states}}bool[] reverse, "
_ARGUMENTS += "int[] slices, {save}str? backend"


@torch.library.custom_op(
    "umamba_kernels::mamba_inner",
    mutates_args=(),
    schema=f"({_ARGUMENTS.format(states='', save='bool save_states, ')}) -> (Tensor, Tensor)",
)
@implements("umamba_kernels::mamba_inner")
def mamba_inner(
    x, z, A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias, reverse, slices, save_states, backend
) -> tuple[Tensor, Tensor]:
    """The result, and the states that the scans keep if ``save_states``, flat, else an empty tensor."""
    if x.numel() == 0:
        return _outputs(x, A, save_states, backend)
    out: Any = None
    kept = []
    for way in _ways(x, z, (A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias), reverse, slices, backend):
        y, states = way.forward(save_states)
        kept.append(states.flatten())
        out = _add(out, y)
    return out, torch.cat(kept)


@mamba_inner.register_fake
def _(x, z, A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias, reverse, slices, save_states, backend):
    return _outputs(x, A, save_states, backend)


def _add(total: Tensor | None, x: Tensor | None) -> Tensor | None:
    """Their sum, in place; None counts as zero."""
    if total is None or x is None:
        return x if total is None else total
    return total.add_(x)


def _outputs(x: Tensor, A: list[Tensor], save_states: bool, backend: str | None) -> tuple[Tensor, Tensor]:
    kept = len(A) * math.prod(states_shape(x, A[0], backend)) if save_states else 0
    return torch.empty_like(x), A[0].new_empty(kept)


@torch.library.custom_op(
    "umamba_kernels::mamba_inner_backward",
    mutates_args=(),
    schema=f"(Tensor dout, {_ARGUMENTS.format(states='Tensor states, ', save='')}) -> Tensor[]",
)
@implements("umamba_kernels::mamba_inner_backward")
def mamba_inner_backward(
    dout, x, z, A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias, states, reverse, slices, backend
) -> list[Tensor]:
    """Gradients of x, of z if it is given, and of the tensors of all lists in their order."""
    lists = A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias
    if x.numel() == 0:
        return [torch.zeros_like(y) for y in _flat(x, z, lists)]
    dx = dz = None
    gradients: list[list[Tensor]] = [[] for _ in lists]
    states = states.view(len(A), *states_shape(x, A[0], backend))
    for way, kept in zip(_ways(x, z, lists, reverse, slices, backend), states, strict=True):
        dx_way, dz_way, parameters = way.backward(dout, kept)
        dx, dz = _add(dx, dx_way), _add(dz, dz_way)
        for values, gradient in zip(gradients, parameters, strict=True):
            if gradient is not None:
                values.append(gradient)
    return _flat(dx, dz, gradients)


@mamba_inner_backward.register_fake
def _(dout, x, z, A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias, states, reverse, slices, backend):
    return [torch.empty_like(y) for y in _flat(x, z, (A, x_proj, dt_proj, dt_bias, D, conv_weight, conv_bias))]


def _flat(x, z, lists) -> list:
    return [x, *([] if z is None else [z]), *(y for values in lists for y in values)]


def _keep_for_backward(ctx, inputs, output) -> None:
    x, z, *lists, ctx.reverse, ctx.slices, _, ctx.backend = inputs
    ctx.has_z, ctx.lengths = z is not None, [len(values) for values in lists]
    ctx.save_for_backward(output[1], *_flat(x, z, lists))
    ctx.set_materialize_grads(False)  # of the states, which nobody differentiates by


def _backward(ctx, dout: Tensor, _dstates: None) -> tuple:
    states, *flat = ctx.saved_tensors
    x, z, lists = _unflat(flat, ctx)
    gradients = mamba_inner_backward(dout, x, z, *lists, states, ctx.reverse, ctx.slices, ctx.backend)
    dx, dz, gradients = _unflat(gradients, ctx)
    return dx, dz, *gradients, None, None, None, None


def _unflat(flat, ctx) -> tuple:
    rest = iter(flat)
    x, z = next(rest), next(rest) if ctx.has_z else None
    return x, z, [[next(rest) for _ in range(length)] for length in ctx.lengths]


mamba_inner.register_autograd(_backward, setup_context=_keep_for_backward)


def _ways(x, z, lists, reverse, slices, backend: str | None) -> Iterator[_Way]:
    """The directions one by one."""
    for i, order in enumerate(map(Order, reverse, slices)):
        parameters: list[Any] = [values[i] if values else None for values in lists]
        yield _Way(x, z, *parameters, order=order, backend=backend)


@dataclass(frozen=True)
class _Way:
    """One direction of the block, forward and backward. Dtypes and shapes as in ``interface.Direction``."""

    x: Tensor
    z: Tensor | None
    A: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    D: Tensor | None
    conv_weight: Tensor | None
    conv_bias: Tensor | None
    order: Order
    backend: str | None

    def forward(self, save_states: bool) -> tuple[Tensor, Tensor]:
        u, _, delta, B, C = self._recompute()
        scan = SCANS.proved(self.backend, u.device)
        tensors = u, delta, self.A, B, C, self.D, self.z, self.dt_bias
        out, _, states = scan.forward(*tensors, True, self.order, save_states)
        return out, states

    def backward(self, dout: Tensor, states: Tensor) -> tuple[Tensor, Tensor | None, tuple[Tensor | None, ...]]:
        """Gradients of x, of z, and of the parameters in the order of ``_LISTS``."""
        u, dt, delta, B, C = self._recompute()
        scan, tensors = SCANS.proved(self.backend, u.device), (u, delta, self.A, B, C, self.D, self.z, self.dt_bias)
        dlast = self.A.new_zeros(u.shape[0], *self.A.shape)
        du, ddelta, dA, dB, dC, dD, dz, dt_bias = scan.backward(dout, dlast, *tensors, states, True, self.order)
        with torch.autocast(u.device.type, enabled=False):
            ddelta, tokens = ddelta.transpose(1, 2), u.transpose(1, 2)
            ddt = ddelta @ self.dt_proj.to(u.dtype)
            ddt_proj = torch.einsum("bld,blr->dr", ddelta, dt)
            dprojected = torch.cat((ddt, dB.squeeze(1).transpose(1, 2), dC.squeeze(1).transpose(1, 2)), -1)
            dx_proj = torch.einsum("blp,bld->pd", dprojected, tokens)
            du.transpose(1, 2).add_(dprojected @ self.x_proj.to(u.dtype))
        dx, dconv_weight, dconv_bias = du, None, None
        if self.conv_weight is not None:
            convolution = CONVOLUTIONS.proved(self.backend, u.device)
            options = self.conv_weight, self.conv_bias, True, self.order
            dx, dconv_weight, dconv_bias = convolution.backward(du, self.x, *options)
        projections = dx_proj.to(self.x_proj.dtype), ddt_proj.to(self.dt_proj.dtype)
        return dx, dz, (dA, *projections, dt_bias, dD, dconv_weight, dconv_bias)

    def _recompute(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Input of the scan (batch, d, L), low-rank steps (batch, L, R), steps (batch, d, L), B and C with groups."""
        u = self.x
        if self.conv_weight is not None:
            convolution = CONVOLUTIONS.proved(self.backend, u.device)
            u = convolution.forward(u, self.conv_weight, self.conv_bias, True, self.order)
        n = self.A.shape[1]
        with torch.autocast(u.device.type, enabled=False):
            projected = F.linear(u.transpose(1, 2), self.x_proj.to(u.dtype))
            dt, B, C = projected.split([self.dt_proj.shape[1], n, n], -1)
            delta = F.linear(dt, self.dt_proj.to(u.dtype)).transpose(1, 2)
        return u, dt, delta, B.transpose(1, 2).unsqueeze(1), C.transpose(1, 2).unsqueeze(1)
