"""The selective scan in plain torch, parallel over chunks of the sequence.

The sequence is cut into M chunks of K tokens, K about sqrt(L). One loop over the K positions advances all chunks at
once from a zero state. The true state at the start of each chunk follows from a short loop over the chunks, as a chunk
multiplies the state it is given by ``exp(A · sum of its steps)``. A second loop over the positions starts from there.
Nothing is divided by a decay and no logarithm is taken, so decays may underflow to zero.

The gradient runs the same three parts backwards and recomputes the states: kept for it are the inputs and one state
per chunk, where autograd would keep several (batch, d, N) tensors per token.
"""

from __future__ import annotations

import functools
import math

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from umamba_kernels.selective_scan import reference


def recurrence(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """:func:`reference.recurrence` in chunks: the same arguments and results."""
    (_, d, length), groups = u.shape, B.shape[1]
    chunk = math.ceil(math.sqrt(length))
    step, drive = (_to_chunks(x.unflatten(1, (groups, d // groups)), chunk).unsqueeze(-1) for x in (step, step * u))
    B, C = (_to_chunks(x, chunk).unsqueeze(-2) for x in (B, C))
    y, last_state = _ChunkedRecurrence.apply(step, drive, A.unflatten(0, (groups, d // groups)), B, C)
    y = y.squeeze(-1).movedim((1, 0), (-2, -1)).flatten(-2)[..., :length]
    return y.flatten(1, 2), last_state.flatten(1, 2)


selective_scan = functools.partial(reference.selective_scan, recurrence=recurrence)


def _to_chunks(x: Tensor, chunk: int) -> Tensor:
    """(..., L) -> (K, M, ...), token m K + k at [k, m]. The end is padded with zero steps, which keep the state."""
    x = F.pad(x, (0, -x.shape[-1] % chunk))
    return x.unflatten(-1, (-1, chunk)).movedim((-2, -1), (1, 0)).contiguous()


def _carry(decay: Tensor, gain: Tensor, first: Tensor) -> Tensor:
    """``c_0 = first``, ``c_{m+1} = decay_m c_m + gain_m``: (M, ...), (M, ...), (...) -> (M + 1, ...)."""
    carried = [first]
    for decay_m, gain_m in zip(decay, gain, strict=True):
        carried.append(torch.addcmul(gain_m, decay_m, carried[-1]))
    return torch.stack(carried)


class _ChunkedRecurrence(torch.autograd.Function):
    """The recurrence and its gradient on axes (K, M, batch, groups, channels of a group, N).

    step, drive = step · u and y have extent 1 on the axis of N, B and C on that of channels, A lacks the first three.
    """

    @staticmethod
    def forward(ctx, step: Tensor, drive: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
        zero = step.new_zeros(*step.shape[1:-1], A.shape[-1])
        end = zero
        for step_k, drive_k, B_k in zip(step, drive, B, strict=True):
            end = _advance(end, step_k, drive_k, A, B_k)
        starts = _carry(torch.exp(step.sum(0) * A), end, zero[0])
        state, last_state = starts[:-1], starts[-1]
        ctx.save_for_backward(step, drive, A, B, C, state)
        y = []
        for step_k, drive_k, B_k, C_k in zip(step, drive, B, C, strict=True):
            state = _advance(state, step_k, drive_k, A, B_k)
            y.append((C_k * state).sum(-1, keepdim=True))
        return torch.stack(y), last_state

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads: Tensor) -> tuple[Tensor, ...]:
        dy, dlast = grads
        step, drive, A, B, C, start = ctx.saved_tensors
        states = [start]  # states[k] is the one before position k
        for step_k, drive_k, B_k in zip(step, drive, B, strict=True):
            states.append(_advance(states[-1], step_k, drive_k, A, B_k))

        # The adjoint g_t = C_t dy_t + exp(step_{t+1} A) g_{t+1}: a recurrence like the forward one, from the end.
        adjoint = torch.zeros_like(start)
        for k in reversed(range(len(step))):
            adjoint = torch.exp(step[k] * A).mul_(torch.addcmul(adjoint, C[k], dy[k]))
        adjoint = _carry(torch.exp(step.sum(0) * A).flip(0), adjoint.flip(0), dlast)[:-1].flip(0)

        dstep, ddrive, dA = torch.empty_like(step), torch.empty_like(drive), torch.zeros_like(A)
        dB, dC = torch.empty_like(B), torch.empty_like(C)
        for k in reversed(range(len(step))):
            adjoint = torch.addcmul(adjoint, C[k], dy[k])
            dC[k] = (states[k + 1] * dy[k]).sum(-2, keepdim=True)
            dB[k] = (adjoint * drive[k]).sum(-2, keepdim=True)
            ddrive[k] = (adjoint * B[k]).sum(-1, keepdim=True)
            adjoint *= torch.exp(step[k] * A)  # now what the state before position k receives
            dexponent = adjoint * states[k]  # a product, not h_t - drive B, which cancels where decays are small
            dstep[k] = (dexponent * A).sum(-1, keepdim=True)
            dA += (dexponent * step[k]).sum((0, 1))
        return dstep, ddrive, dA, dB, dC


def _advance(state: Tensor, step: Tensor, drive: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """The states of all chunks one position on, as a new tensor."""
    return torch.exp(step * A).mul_(state).addcmul_(drive, B)
