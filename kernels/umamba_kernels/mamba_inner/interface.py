"""What callers see of the inner Mamba block: validation and the choice of a backend."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from umamba_kernels.checks import FLOATS, SINGLE_OR_HALF, check_tensor
from umamba_kernels.mamba_inner import op, reference
from umamba_kernels.mamba_inner.direction import Direction


def mamba_inner(
    x: Tensor, directions: Sequence[Direction], z: Tensor | None = None, *, backend: str | None = None
) -> Tensor:
    """What a Mamba block does between in_proj and out_proj (arXiv:2312.00752, Fig. 3), summed over scan directions.

    For every direction::

        u        = silu(causal_conv1d(x))
        dt, B, C = x_proj u
        out     += selective_scan(u, dt_proj dt, A, B, C, D, z, dt_bias, delta_softplus=True)

    One differentiable op, which keeps x, z and the states at the starts of chunks and recomputes the rest for the
    gradient. One direction is Mamba, two make Vim (arXiv:2401.09417), three SegMamba (arXiv:2401.13560), four VMamba
    (arXiv:2401.10166). The projections run in x's dtype, the rest in float32 (float64 for float64 input); autocast
    changes nothing.

    Args:
        x: Projected input (batch, d, L); fastest with channels last, as ``in_proj(tokens).transpose(1, 2)`` is.
        directions: At least one. Either all or none have a convolution, a bias of it, a D.
        z: Gate (batch, d, L), shared by the directions.
        backend: Name of a backend, or None for the best one.

    Returns:
        (batch, d, L) in x's dtype.

    Raises:
        ValueError: A shape, dtype or device does not fit, an order does not divide L, the directions differ in what
            they have, or the backend cannot run.
    """
    _check(x, directions, z)
    if backend == "reference":
        return reference.mamba_inner(x, directions, z)
    parameters = [[] if values[0] is None else list(values) for values in zip(*directions, strict=True)]
    orders = parameters.pop()
    tensors = [x, *(y for values in parameters for y in values), *([] if z is None else [z])]
    wanted = torch.is_grad_enabled() and any(y.requires_grad for y in tensors)
    reverse, slices = [order.reverse for order in orders], [order.slices for order in orders]
    return op.mamba_inner(x, z, *parameters, reverse, slices, wanted, backend)[0]


def _check(x: Tensor, directions: Sequence[Direction], z: Tensor | None) -> None:
    check_tensor("mamba_inner: x", x, ("batch", "d", "L"), FLOATS, x.device)
    d = x.shape[1]
    activations = (torch.float64,) if x.dtype == torch.float64 else SINGLE_OR_HALF
    parameters = (torch.float64,) if x.dtype == torch.float64 else (torch.float32,)
    if z is not None:
        check_tensor("mamba_inner: z", z, tuple(x.shape), activations, x.device)
    if not directions:
        raise ValueError("mamba_inner: directions is empty, wanted one or more")
    for i, direction in enumerate(directions):
        where = f"mamba_inner: directions[{i}]"
        check_tensor(f"{where}.A", direction.A, (d, "N"), parameters, x.device)
        check_tensor(f"{where}.dt_proj", direction.dt_proj, (d, "R"), activations, x.device)
        n, rank = direction.A.shape[1], direction.dt_proj.shape[1]
        if direction.A.shape != directions[0].A.shape:
            wanted = tuple(directions[0].A.shape)
            raise ValueError(
                f"{where}.A has shape {tuple(direction.A.shape)}, wanted that of directions[0].A, {wanted}"
            )
        check_tensor(f"{where}.x_proj", direction.x_proj, (rank + 2 * n, d), activations, x.device)
        check_tensor(f"{where}.dt_bias", direction.dt_bias, (d,), parameters, x.device)
        if direction.conv_weight is not None:
            check_tensor(f"{where}.conv_weight", direction.conv_weight, (d, "width"), activations, x.device)
        for name, dtypes in {"D": parameters, "conv_bias": activations}.items():
            if (tensor := getattr(direction, name)) is not None:
                check_tensor(f"{where}.{name}", tensor, (d,), dtypes, x.device)
        for name in ("D", "conv_weight", "conv_bias"):
            if (getattr(direction, name) is None) != (getattr(directions[0], name) is None):
                raise ValueError(f"{where}: {name} is given in some directions only, wanted in all or in none")
        if direction.conv_bias is not None and direction.conv_weight is None:
            raise ValueError(f"{where}: conv_bias is given without conv_weight")
        direction.order.check(where, x.shape[-1])
