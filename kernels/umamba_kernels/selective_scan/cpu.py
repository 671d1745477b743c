"""The selective scan on the CPU, by the shared library of :mod:`umamba_kernels.native`."""

from __future__ import annotations

from typing import overload

import torch
from torch import Tensor

from umamba_kernels import native
from umamba_kernels.order import Order

# The library sums dB and dC over the channels in two steps. The shares of the first step, one for every 16 channels or
# more, are kept for a span of tokens that is as long as this many bytes, or as a quarter of u, allows.
_SHARES_BYTES = 4 << 20
# A thread is worth its start for about this many updates of a state, some 0.2 ms.
_UPDATES_PER_THREAD = 200_000


def states_shape(batch: int, d: int, length: int, n: int) -> tuple[int, ...]:
    """Shape of the saved states: one per chunk of 64 tokens, (batch, chunks, N, d)."""
    return batch, (length + native.CHUNK - 1) // native.CHUNK, n, d


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
    """out, the last state and the saved states (empty without ``save_states``), for checked arguments."""
    (batch, d, length), n = u.shape, A.shape[1]
    A, D, delta_bias = _rows(A), _rows(D), _rows(delta_bias)
    out = torch.empty_like(u)
    last_state = A.new_empty(batch, d, n)
    states = A.new_empty(states_shape(batch, d, length, n) if save_states else 0)
    arguments = _arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
    arguments.out = native.argument(out)
    arguments.chunk_states = native.address(states) if save_states else None
    arguments.last_state = native.address(last_state)
    native.run("scan_forward", arguments)
    return out, last_state, states


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of u, delta, A, B, C, D, z and delta_bias, for checked arguments and :func:`forward`'s states."""
    (batch, d, length), n, groups = u.shape, A.shape[1], B.shape[1]
    A, D, delta_bias, states = _rows(A), _rows(D), _rows(delta_bias), states.contiguous()
    du, ddelta, dB, dC = (torch.empty_like(x) for x in (u, delta, B, C))
    dA = torch.empty_like(A)
    dD, dz, dbias = (None if x is None else torch.empty_like(x) for x in (D, z, delta_bias))

    carry = A.new_empty(batch, n, d)
    sums = torch.zeros(batch, n + 2, d, dtype=torch.float64)
    blocks = _ceil_div(d // groups, native.BLOCK)
    partitions = _ceil_div(blocks, _ceil_div(blocks, native.PARTITIONS))
    per_token = batch * groups * partitions * 2 * n
    most = max(_SHARES_BYTES // A.element_size(), batch * d * length // 4)
    span = native.CHUNK * min(max(1, most // (per_token * native.CHUNK)), _ceil_div(length, native.CHUNK))
    partial = A.new_empty(per_token * span)

    arguments = _arguments(u, delta, A, B, C, D, z, delta_bias, delta_softplus, order)
    arguments.span = span
    gradients = {"dout": dout, "dlast": dlast, "du": du, "ddelta": ddelta, "dz": dz, "dB": dB, "dC": dC}
    for name, x in gradients.items():
        setattr(arguments, name, native.argument(x))
    arrays = {"chunk_states": states, "dA": dA, "dD": dD, "dbias": dbias}
    for name, x in (arrays | {"carry": carry, "sums": sums, "partial": partial}).items():
        setattr(arguments, name, native.address(x))
    native.run("scan_backward", arguments)
    return du, ddelta, dA.t().contiguous(), dB, dC, dD, dz, dbias


@overload
def _rows(x: Tensor) -> Tensor: ...
@overload
def _rows(x: Tensor | None) -> Tensor | None: ...
def _rows(x: Tensor | None) -> Tensor | None:
    """A parameter with the channels along the last axis, contiguous: a copy, but a small one."""
    if x is None:
        return None
    return x.detach().t().contiguous()


def _ceil_div(a: int, b: int) -> int:
    return (a + b - 1) // b


def _arguments(
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
) -> native.ScanArguments:
    (batch, d, length), groups, n = u.shape, B.shape[1], A.shape[0]
    worth = 1 + batch * d * length * n // _UPDATES_PER_THREAD
    return native.ScanArguments(
        batch=batch,
        groups=groups,
        channels=d // groups,
        length=length,
        states=n,
        slices=order.slices,
        reverse=order.reverse,
        softplus=delta_softplus,
        is_double=u.dtype == torch.float64,
        threads=min(torch.get_num_threads(), worth),
        u=native.argument(u),
        delta=native.argument(delta),
        z=native.argument(z),
        B=native.argument(B),
        C=native.argument(C),
        A=native.address(A),
        D=native.address(D),
        bias=native.address(delta_bias),
    )
