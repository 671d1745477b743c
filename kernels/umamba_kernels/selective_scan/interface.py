"""What callers see of the selective scan: validation and the choice of a backend."""

from __future__ import annotations

from typing import Literal, overload

import torch
from torch import Tensor

from umamba_kernels.checks import FLOATS, SINGLE_OR_HALF, check_tensor
from umamba_kernels.order import Order
from umamba_kernels.selective_scan import op, reference


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    return_last_state: Literal[False] = ...,
    order: Order = ...,
    backend: str | None = ...,
) -> Tensor: ...


@overload
def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = ...,
    z: Tensor | None = ...,
    delta_bias: Tensor | None = ...,
    *,
    delta_softplus: bool = ...,
    return_last_state: Literal[True],
    order: Order = ...,
    backend: str | None = ...,
) -> tuple[Tensor, Tensor]: ...


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    *,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    order: Order = Order(),  # noqa: B008 (immutable)
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """The selective scan (S6; Gu and Dao 2023, arXiv:2312.00752, Alg. 2), differentiable in every tensor.

    With tokens t in scan order, ``D_t = softplus(delta_t + delta_bias)`` (or without softplus) and ``h_{-1} = 0``::

        h_t   = exp(D_t A) h_{t-1} + D_t B_t u_t
        y_t   = C_t · h_t + D u_t
        out_t = y_t silu(z_t)

    Everything up to the result is computed in float32, in float64 for float64 input. u, delta, z, B and C are float32,
    bfloat16 or float16, each on its own; A, D and delta_bias are float32. If u is float64, all are.

    Args:
        u: Input (batch, d, L).
        delta: Step sizes before bias and softplus (batch, d, L).
        A: State matrix (d, N), diagonal per channel.
        B: Input matrix (batch, N, L) or (batch, groups, N, L); channel i belongs to group i // (d / groups).
        C: Output matrix, shaped as B.
        D: Skip weight (d,).
        z: Gate (batch, d, L).
        delta_bias: Added to delta (d,).
        delta_softplus: Apply softplus to the steps; it is the identity above 20.
        return_last_state: Return the state after the last token as well.
        order: Order in which the tokens lie in memory; the result is written in the same order.
        backend: Name of a backend, or None for the best one.

    Returns:
        out (batch, d, L) in u's dtype; with ``return_last_state`` also the last state (batch, d, N) in the dtype of the
        computation.

    Raises:
        ValueError: A shape, dtype or device does not fit, the order does not divide L, or the backend cannot run.
    """
    _check(u, delta, A, B, C, D, z, delta_bias, order)
    if B.dim() == 3:
        B, C = B.unsqueeze(1), C.unsqueeze(1)
    tensors = u, delta, A, B, C, D, z, delta_bias
    if backend == "reference":
        out, last_state = reference.selective_scan(*tensors, delta_softplus, order)
    else:
        wanted = torch.is_grad_enabled() and any(x is not None and x.requires_grad for x in tensors)
        out, last_state, _ = op.selective_scan(*tensors, delta_softplus, order.reverse, order.slices, wanted, backend)
    return (out, last_state) if return_last_state else out


def _check(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    order: Order,
) -> None:
    def check(name: str, x: Tensor | None, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...]) -> None:
        if x is not None:
            check_tensor(f"selective_scan: {name}", x, shape, dtypes, u.device)

    check("u", u, ("batch", "d", "L"), FLOATS)
    batch, d, length = u.shape
    activations = (torch.float64,) if u.dtype == torch.float64 else SINGLE_OR_HALF
    parameters = (torch.float64,) if u.dtype == torch.float64 else (torch.float32,)
    check("delta", delta, (batch, d, length), activations)
    check("A", A, (d, "N"), parameters)
    grouped = ("groups",) if B.dim() == 4 else ()
    check("B", B, (batch, *grouped, A.shape[1], length), activations)
    check("C", C, tuple(B.shape), activations)
    check("D", D, (d,), parameters)
    check("z", z, (batch, d, length), activations)
    check("delta_bias", delta_bias, (d,), parameters)
    if grouped and d % B.shape[1]:
        raise ValueError(f"selective_scan: B and C have {B.shape[1]} groups, wanted a divisor of the {d} channels")
    order.check("selective_scan", length)
