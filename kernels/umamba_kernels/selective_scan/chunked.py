"""The selective scan in plain torch, parallel over chunks of the sequence, on every device.

The tokens are cut into segments, which follow each other, and a segment into M chunks of K tokens. One loop over the K
positions advances all chunks of a segment at once from a zero state. The true state at the start of each chunk follows
from a loop over the chunks, as a chunk multiplies the state it is given by ``exp(A · sum of its steps)``. A second loop
over the positions starts from there. Nothing is divided by a decay and no logarithm is taken, so decays may underflow.

The gradient runs the same three parts backwards and recomputes the states of a segment from those at the starts of its
chunks. As a segment has about L / N tokens, the states at all of its positions take the memory of one activation.

Axes of a segment: (K, M, batch, groups, N, channels of a group). Activations have extent 1 on that of N, B and C on
that of channels. Channels come last, as they are many and torch is fast along the last axis.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.order import Order

CHUNK = 64  # tokens of a chunk, K
_FEWEST_CHUNKS = 4  # in a segment; with fewer a loop over positions would be all overhead
_LINEAR_ABOVE = 20.0  # where softplus is the identity, by definition


def states_shape(batch: int, d: int, length: int, n: int) -> tuple[int, ...]:
    """Shape of what :func:`forward` keeps, the states before each chunk: (chunks, batch, d · N)."""
    return (length + CHUNK - 1) // CHUNK, batch, d * n


def forward(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    delta_softplus: bool,
    order: Order,
    save_states: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """The scan for checked arguments and B, C with groups.

    Returns:
        out in u's dtype, the last state, and the states before the chunks if they are wanted, else an empty tensor.
    """
    groups, kept = B.shape[1], []
    A, D, delta_bias = _parameter(A, groups), _parameter(D, groups), _parameter(delta_bias, groups)
    out, carry = torch.empty_like(u), A.new_zeros(u.shape[0], *A.shape)
    for segment in _segments(u.shape[-1], A.shape[1], order, u.device):
        u_s, B_s, C_s = segment.read(u, groups), segment.read(B, groups), segment.read(C, groups)
        step = segment.cut(_steps(segment.read(delta, groups), delta_bias, delta_softplus)[1])
        drive, decay = step * u_s, carry.new_empty(u_s.shape[1], *carry.shape)

        end = torch.zeros_like(decay)
        for k in range(len(step)):
            end.mul_(torch.mul(step[k], A, out=decay).exp_()).addcmul_(drive[k], B_s[k])
        states = _carry(torch.exp(step.sum(0) * A), end, carry)
        carry, state = states[-1], states[:-1].clone()
        if save_states:
            kept.append(states[:-1].flatten(2))

        y = torch.empty_like(u_s)
        for k in range(len(step)):
            state.mul_(torch.mul(step[k], A, out=decay).exp_()).addcmul_(drive[k], B_s[k])
            torch.sum(torch.mul(state, C_s[k], out=decay), -2, keepdim=True, out=y[k])
        if D is not None:
            y.addcmul_(u_s, D)
        if z is not None:
            y.mul_(F.silu(segment.read(z, groups)))
        segment.write(out, y)
    last_state = carry.transpose(-1, -2).flatten(1, 2).contiguous()
    return out, last_state, torch.cat(kept) if save_states else carry.new_empty(0)


def backward(
    dout: Tensor,
    dlast: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    states: Tensor,
    delta_softplus: bool,
    order: Order,
) -> tuple[Tensor | None, ...]:
    """Gradients of u, delta, A, B, C, D, z and delta_bias, None for what is None.

    Args:
        dout: Gradient of out, (batch, d, L).
        dlast: Gradient of the last state, (batch, d, N).
        states: What :func:`forward` kept.
    """
    groups = B.shape[1]
    du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, delta, B, C))
    dz = None if z is None else torch.empty_like(z)
    A_s, D_s, bias = _parameter(A, groups), _parameter(D, groups), _parameter(delta_bias, groups)
    dA, dD, dbias = (None if x is None else torch.zeros_like(x) for x in (A_s, D_s, bias))
    carry = dlast.to(A.dtype).unflatten(1, (groups, -1)).transpose(-1, -2)
    for segment in reversed(_segments(u.shape[-1], A.shape[1], order, u.device)):
        u_s, B_s, C_s = segment.read(u, groups), segment.read(B, groups), segment.read(C, groups)
        raw, step = _steps(segment.read(delta, groups), bias, delta_softplus)
        step, dy = segment.cut(step), segment.read(dout, groups)
        drive = step * u_s
        decay, history = _recompute(step, drive, A_s, B_s, states[segment.chunks].unflatten(-1, A_s.shape))
        if z is not None and dz is not None:
            y = torch.stack([(C_k * state).sum(-2, keepdim=True) for C_k, state in zip(C_s, history[1:], strict=True)])
            z_s = segment.read(z, groups)
            gate = torch.sigmoid(z_s)
            dgate = dy * (y if D_s is None else y.addcmul_(u_s, D_s))
            segment.write(dz, dgate * gate * (1 + z_s * (1 - gate)))
            dy = dy * z_s * gate

        ends = torch.zeros_like(
            history[0]
        )  # the adjoint that leaves each chunk at its start, if zero enters at its end
        for k in reversed(range(len(step))):
            ends.addcmul_(C_s[k], dy[k]).mul_(decay[k])
        adjoints = _carry(torch.exp(step.sum(0) * A_s).flip(0), ends.flip(0), carry)
        carry, adjoint = adjoints[-1], adjoints[:-1].flip(0)
        ddrive, dstep, dA_s, dB_s, dC_s = _sweep_back(step, drive, A_s, B_s, C_s, dy, decay, history, adjoint)

        dstep = segment.cut(dstep.addcmul_(ddrive, u_s))
        du_s = ddrive.mul_(step)
        if delta_softplus:
            dstep *= torch.where(raw > _LINEAR_ABOVE, 1.0, torch.sigmoid(raw))
        if D_s is not None:
            du_s.addcmul_(dy, D_s)
        for gradient, values in ((du, du_s), (ddelta, dstep), (dB, dB_s), (dC, dC_s)):
            segment.write(gradient, values)
        for total, share in ((dA, dA_s), (dD, dy * u_s), (dbias, dstep)):
            if total is not None:
                total += share.sum((0, 1, 2)) if share.dim() > total.dim() else share
    dA, dD, dbias = (
        None if total is None or x is None else torch.empty_like(x).copy_(total.transpose(-1, -2).reshape_as(x))
        for total, x in ((dA, A), (dD, D), (dbias, delta_bias))
    )
    return du, ddelta, dA, dB, dC, dD, dz, dbias


@overload
def _parameter(x: Tensor, groups: int) -> Tensor: ...
@overload
def _parameter(x: Tensor | None, groups: int) -> Tensor | None: ...
def _parameter(x: Tensor | None, groups: int) -> Tensor | None:
    """(d, N) or (d) -> (groups, N or 1, channels of a group)."""
    if x is None:
        return None
    return x.reshape(groups, x.shape[0] // groups, -1).transpose(-1, -2)


def _steps(delta: Tensor, delta_bias: Tensor | None, delta_softplus: bool) -> tuple[Tensor, Tensor]:
    """The steps before and after softplus."""
    raw = delta if delta_bias is None else delta + delta_bias
    return raw, F.softplus(raw, threshold=_LINEAR_ABOVE) if delta_softplus else raw


def _sweep_back(
    step: Tensor,
    drive: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    dy: Tensor,
    decay: Tensor,
    history: Tensor,
    adjoint: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """From the last position of every chunk to the first.

    Args:
        adjoint: What enters each chunk at its end; overwritten.

    Returns:
        Gradients of drive, of step by way of the decays, of A (groups, N, channels), of B and of C.
    """
    ddrive, dstep, dA, dB, dC = (torch.empty_like(x) for x in (drive, step, A, B, C))
    dA.zero_()
    product, dexponent = torch.empty_like(adjoint), torch.empty_like(adjoint)
    for k in reversed(range(len(step))):
        adjoint.addcmul_(C[k], dy[k])
        torch.sum(torch.mul(history[k + 1], dy[k], out=product), -1, keepdim=True, out=dC[k])
        torch.sum(torch.mul(adjoint, drive[k], out=product), -1, keepdim=True, out=dB[k])
        torch.sum(torch.mul(adjoint, B[k], out=product), -2, keepdim=True, out=ddrive[k])
        adjoint.mul_(decay[k])  # now what the state before position k receives
        torch.mul(adjoint, history[k], out=dexponent)  # a product, not h_t - drive B, which cancels at small decays
        torch.sum(torch.mul(dexponent, A, out=product), -2, keepdim=True, out=dstep[k])
        dA += dexponent.mul_(step[k]).sum((0, 1))
    return ddrive, dstep, dA, dB, dC


def _carry(decay: Tensor, gain: Tensor, first: Tensor) -> Tensor:
    """``c_0 = first``, ``c_{m+1} = decay_m c_m + gain_m``: (M, ...), (M, ...), (...) -> (M + 1, ...)."""
    carried = [first]
    for decay_m, gain_m in zip(decay, gain, strict=True):
        carried.append(torch.addcmul(gain_m, decay_m, carried[-1]))
    return torch.stack(carried)


def _recompute(step: Tensor, drive: Tensor, A: Tensor, B: Tensor, start: Tensor) -> tuple[Tensor, Tensor]:
    """Decays at the positions, (K, M, ...), and the states before them and after the last, (K + 1, M, ...)."""
    decay = torch.mul(step, A).exp_()
    history = start.new_empty(len(step) + 1, *start.shape)
    history[0] = start
    for k in range(len(step)):
        torch.mul(decay[k], history[k], out=history[k + 1]).addcmul_(drive[k], B[k])
    return decay, history


@dataclass(frozen=True)
class _Segment:
    """Tokens that are read, scanned and written together.

    Args:
        addresses: Where they lie along the last axis of a tensor: an index or a slice.
        tokens: Their number.
        chunks: Their chunks among all.
    """

    addresses: Tensor | slice
    tokens: int
    chunks: slice

    def read(self, x: Tensor, groups: int) -> Tensor:
        """(batch, d, L) or (batch, groups, N, L) -> (K, M, batch, groups, 1, c) or (K, M, batch, groups, N, 1).

        In the dtype of the computation. The last chunk is filled up with zeros.
        """
        x = x[..., self.addresses].to(torch.promote_types(x.dtype, torch.float32))
        x = x.unsqueeze(-2) if x.dim() == 4 else x.unflatten(1, (groups, -1)).unsqueeze(-3)
        k = min(CHUNK, self.tokens)
        x = F.pad(x, (0, -self.tokens % k)).unflatten(-1, (-1, k))
        return x.movedim((-1, -2), (0, 1)).contiguous()

    def write(self, x: Tensor, values: Tensor) -> None:
        """The inverse of :meth:`read` into ``x``."""
        values = values.movedim((0, 1), (-1, -2)).flatten(-2)[..., : self.tokens]
        x[..., self.addresses] = values.reshape(*x.shape[:-1], -1).to(x.dtype)

    def cut(self, x: Tensor) -> Tensor:
        """Zero what lies behind the last token, in place where it must: a step of zero keeps the state."""
        filled = x.shape[0] * x.shape[1] - self.tokens
        if filled == 0:
            return x
        x = x.clone()
        x[x.shape[0] - filled :, -1] = 0
        return x


def _segments(length: int, n: int, order: Order, device: torch.device) -> list[_Segment]:
    """The segments in scan order."""
    chunks = -(-length // CHUNK)
    per_segment = max(_FEWEST_CHUNKS, -(-chunks // n))
    index = None if order == Order() else order.index(length, device)
    segments = []
    for first in range(0, chunks, per_segment):
        tokens = slice(first * CHUNK, min((first + per_segment) * CHUNK, length))
        addresses = tokens if index is None else index[tokens]
        segments.append(_Segment(addresses, tokens.stop - tokens.start, slice(first, first + per_segment)))
    return segments
