"""What callers see of the causal convolution: validation and the choice of a backend."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from umamba_kernels.causal_conv1d import op, reference
from umamba_kernels.checks import FLOATS, SINGLE_OR_HALF, check_tensor
from umamba_kernels.order import Order


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: Literal["silu", "swish"] | None = None,
    order: Order = Order(),  # noqa: B008 (immutable)
    backend: str | None = None,
) -> Tensor:
    """Depthwise convolution that looks back only, differentiable in every tensor (arXiv:2312.00752, Fig. 3).

    With tokens t in scan order and zeros before the first::

        out_t = activation(bias + sum_j weight[width - 1 - j] x_{t-j}),   j = 0 .. width - 1

    Accumulates in float32, in float64 for float64 input. The tensors are float32, bfloat16 or float16, each on its own;
    if x is float64, all are.

    Args:
        x: Input (batch, d, L).
        weight: One filter per channel (d, width); the last tap meets the current token.
        bias: (d,).
        activation: None, or "silu" (also called "swish").
        order: Order in which the tokens lie in memory; the result is written in the same order.
        backend: Name of a backend, or None for the best one.

    Returns:
        (batch, d, L) in x's dtype.

    Raises:
        ValueError: A shape, dtype, device or activation does not fit, the order does not divide L, or the backend
            cannot run.
    """
    _check(x, weight, bias)
    order.check("causal_conv1d", x.shape[-1])
    if activation not in (None, "silu", "swish"):
        raise ValueError(f"causal_conv1d: activation = {activation!r}, wanted None, 'silu' or 'swish'")
    silu = activation is not None
    if backend == "reference":
        return reference.causal_conv1d(x, weight, bias, silu, order)
    return op.causal_conv1d(x, weight, bias, silu, order.reverse, order.slices, backend)


def _check(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    check_tensor("causal_conv1d: x", x, ("batch", "d", "L"), FLOATS, x.device)
    dtypes = (torch.float64,) if x.dtype == torch.float64 else SINGLE_OR_HALF
    check_tensor("causal_conv1d: weight", weight, (x.shape[1], "width"), dtypes, x.device)
    if bias is not None:
        check_tensor("causal_conv1d: bias", bias, (x.shape[1],), dtypes, x.device)
