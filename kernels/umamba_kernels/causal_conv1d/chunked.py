"""The causal convolution by torch's own depthwise convolution.

Nothing is cut into chunks here; the name is that of the plain-torch backend of every op, so that one name picks all.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from umamba_kernels.causal_conv1d import reference


def convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """:func:`reference.convolve` in one call: the same arguments and result."""
    with torch.autocast(x.device.type, enabled=False):  # it would accumulate in half precision
        out = F.conv1d(x, weight.unsqueeze(1), bias, padding=weight.shape[-1] - 1, groups=x.shape[1])
    return out[..., : x.shape[-1]]


causal_conv1d = functools.partial(reference.causal_conv1d, convolve=convolve)
