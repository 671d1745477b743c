"""What belongs to one scan direction of a Mamba block."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from umamba_kernels.order import Order


class Direction(NamedTuple):
    """Parameters of one scan direction of a Mamba block, with d inner channels, N states and rank R of the steps.

    Args:
        A: State matrix (d, N).
        x_proj: Projection to steps, B and C (R + 2 N, d).
        dt_proj: Projection of the steps to channels (d, R).
        dt_bias: Bias of the steps (d,).
        D: Skip weight (d,).
        conv_weight: Filters of the causal convolution (d, width); without them the scan sees x itself, as in VMamba.
        conv_bias: (d,).
        order: Scan order of convolution and scan.
    """

    A: Tensor
    x_proj: Tensor
    dt_proj: Tensor
    dt_bias: Tensor
    D: Tensor | None = None
    conv_weight: Tensor | None = None
    conv_bias: Tensor | None = None
    order: Order = Order()
