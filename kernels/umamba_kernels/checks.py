"""Validation of the tensors given to an op."""

from __future__ import annotations

import torch
from torch import Tensor

SINGLE_OR_HALF = (torch.float32, torch.bfloat16, torch.float16)
FLOATS = (*SINGLE_OR_HALF, torch.float64)

_MAY_BE_EMPTY = ("batch", "L")


def check_tensor(
    name: str, x: Tensor, shape: tuple[int | str, ...], dtypes: tuple[torch.dtype, ...], device: torch.device
) -> None:
    """Compare a tensor with what an op wants.

    Args:
        name: Op and argument, for messages.
        x: The tensor.
        shape: Extent of every axis; a name stands for any extent, 0 for "batch" and "L" only.
        dtypes: The accepted dtypes.
        device: The device wanted.

    Raises:
        ValueError: It differs; the message gives the value found and the one wanted.
    """
    fits = x.dim() == len(shape) and all(
        isinstance(want, str) or got == want for got, want in zip(x.shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted ({', '.join(map(str, shape))})")
    for got, want in zip(x.shape, shape, strict=True):
        if isinstance(want, str) and want not in _MAY_BE_EMPTY and got == 0:
            raise ValueError(f"{name} has shape {tuple(x.shape)}, wanted a {want} of 1 or more")
    if x.dtype not in dtypes:
        raise ValueError(f"{name} has dtype {x.dtype}, wanted {' or '.join(map(str, dtypes))}")
    if x.device != device:
        raise ValueError(f"{name} is on {x.device}, wanted {device}")
