"""The selective scan as it is defined. Every other backend is tested against this one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.order import Order


def _recurrence(u: Tensor, step: Tensor, A: Tensor, B: Tensor, C: Tensor) -> tuple[Tensor, Tensor]:
    """``h_t = exp(step_t A) h_{t-1} + step_t B_t u_t`` from a zero state, ``y_t = C_t · h_t``.

    Args:
        u: (batch, d, L).
        step: (batch, d, L).
        A: (d, N).
        B: (batch, groups, N, L).
        C: (batch, groups, N, L).

    Returns:
        y (batch, d, L) and the last state (batch, d, N).
    """
    channels = B.shape[1], u.shape[1] // B.shape[1]  # groups, and channels of each
    u, step, A = u.unflatten(1, channels), step.unflatten(1, channels), A.unflatten(0, channels)
    state = u.new_zeros(u.shape[0], *A.shape)
    outputs = []
    for u_t, step_t, B_t, C_t in zip(u.unbind(-1), step.unbind(-1), B.unbind(-1), C.unbind(-1), strict=True):
        step_t = step_t.unsqueeze(-1)
        state = torch.exp(step_t * A) * state + step_t * u_t.unsqueeze(-1) * B_t.unsqueeze(-2)
        outputs.append((C_t.unsqueeze(-2) * state).sum(-1))
    y = torch.stack(outputs, -1) if outputs else torch.zeros_like(u)
    return y.flatten(1, 2), state.flatten(1, 2)


def selective_scan(
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
) -> tuple[Tensor, Tensor]:
    """:func:`umamba_kernels.selective_scan` for checked arguments and B, C with groups.

    Returns:
        out in u's dtype and the last state in the dtype of the computation.
    """
    out_dtype, dtype = u.dtype, torch.promote_types(u.dtype, torch.float32)
    u, step, B, C = (x.to(dtype) for x in (u, delta, B, C))
    if delta_bias is not None:
        step = step + delta_bias[:, None]
    if delta_softplus:
        step = F.softplus(step)  # torch's threshold is the 20 of the definition
    y, last_state = _recurrence(order.gather(u), order.gather(step), A, order.gather(B), order.gather(C))
    y = order.scatter(y)
    if D is not None:
        y = y + D[:, None] * u
    if z is not None:
        y = y * F.silu(z.to(dtype))
    return y.to(out_dtype), last_state
