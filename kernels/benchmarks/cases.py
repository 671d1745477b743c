"""The shapes on which the kernels are measured: those of segmentation networks, with their inputs.

Inputs lie in memory as the networks produce them: activations with channels last, B and C as slices of one projection.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from umamba_kernels import Direction, Order

WIDTH = 4  # of the causal convolution, in every network here


@dataclass(frozen=True)
class Case:
    """An op on a shape.

    Args:
        name: Network and place.
        op: "scan", "conv" or "block" (a Mamba block with its projections).
        batch: Samples.
        d: Channels of the scan.
        length: Tokens.
        n: States.
        groups: Groups of B and C.
        orders: Scan orders; a block runs them all, scan and convolution have one.
        gated: Whether the scan multiplies by silu(z).
    """

    name: str
    op: str
    batch: int
    d: int
    length: int
    n: int = 16
    groups: int = 1
    orders: tuple[Order, ...] = (Order(),)
    gated: bool = True

    @property
    def shape(self) -> str:
        return f"({self.batch}, {self.d}, {self.length}, {self.n})"

    @property
    def order(self) -> str:
        return " + ".join(("reverse " if o.reverse else "") + (f"slices {o.slices}" if o.slices > 1 else "memory")
                          for o in self.orders)  # fmt: skip


def _segmamba(slices: int) -> tuple[Order, ...]:
    return Order(), Order(reverse=True), Order(slices=slices)


_SLICED = (Order(slices=64),)
_REVERSED = (Order(reverse=True),)

# SegMamba: 128^3, batch 2. U-Mamba: 3-D patches of 128^3 and 2-D ones of 512^2. VMamba: 224^2. nnMamba: 64^3.
GPU = (
    Case("SegMamba stage 1", "scan", 2, 96, 64**3),
    Case("SegMamba stage 1, reversed", "scan", 2, 96, 64**3, orders=_REVERSED),
    Case("SegMamba stage 1, sliced", "scan", 2, 96, 64**3, orders=_SLICED),
    Case("SegMamba stage 2", "scan", 2, 192, 32**3),
    Case("SegMamba stage 3", "scan", 2, 384, 16**3),
    Case("SegMamba stage 4", "scan", 2, 768, 8**3),
    Case("U-Mamba Bot 3-D", "scan", 2, 640, 216),
    Case("U-Mamba Bot 3-D", "scan", 2, 640, 1000),
    Case("U-Mamba Enc 3-D stage 1", "scan", 2, 64, 128**3),
    Case("U-Mamba Enc 3-D stage 2", "scan", 2, 128, 64**3),
    Case("U-Mamba Enc 3-D stage 3", "scan", 2, 256, 32**3),
    Case("U-Mamba Enc 3-D stage 4", "scan", 2, 512, 16**3),
    Case("U-Mamba Enc 3-D channel tokens", "scan", 2, 128, 320),
    Case("U-Mamba Bot 2-D", "scan", 12, 1024, 1024),
    Case("VMamba stage 1", "scan", 8, 4 * 192, 56**2, groups=4, gated=False),
    Case("VMamba stage 4", "scan", 8, 4 * 1536, 7**2, groups=4, gated=False),
    Case("nnMamba", "scan", 2, 128, 64**3, n=8),
    Case("Sweep", "scan", 2, 96, 1024),
    Case("Sweep", "scan", 2, 96, 4096),
    Case("Sweep", "scan", 2, 96, 16384),
    Case("Sweep", "scan", 2, 96, 65536),
    Case("Sweep", "scan", 2, 96, 1048576),
    Case("SegMamba stage 1", "conv", 2, 96, 64**3),
    Case("SegMamba stage 1, sliced", "conv", 2, 96, 64**3, orders=_SLICED),
    Case("SegMamba stage 3", "conv", 2, 384, 16**3),
    Case("U-Mamba Bot 2-D", "conv", 12, 1024, 1024),
    Case("SegMamba stage 1", "block", 2, 96, 64**3, orders=_segmamba(64)),
    Case("SegMamba stage 2", "block", 2, 192, 32**3, orders=_segmamba(32)),
    Case("SegMamba stage 3", "block", 2, 384, 16**3, orders=_segmamba(16)),
    Case("U-Mamba Enc 3-D stage 2", "block", 2, 128, 64**3),
    Case("U-Mamba Bot 2-D", "block", 12, 1024, 1024),
)

CPU = (
    Case("U-Mamba Enc 3-D stage 3", "scan", 2, 64, 32**3),
    Case("nnMamba", "scan", 1, 192, 4096),
    Case("SegMamba stage 3, reversed", "scan", 2, 384, 16**3, orders=_REVERSED),
    Case("SegMamba stage 3, sliced", "scan", 2, 384, 16**3, orders=(Order(slices=16),)),
    Case("U-Mamba Bot 3-D", "scan", 2, 640, 216),
    Case("VMamba stage 2", "scan", 1, 4 * 384, 28**2, groups=4, gated=False),
    Case("Sweep", "scan", 1, 96, 1024),
    Case("Sweep", "scan", 1, 96, 4096),
    Case("Sweep", "scan", 1, 96, 16384),
    Case("Sweep", "scan", 1, 96, 65536),
    Case("U-Mamba Enc 3-D stage 3", "conv", 2, 64, 32**3),
    Case("U-Mamba Bot 3-D", "conv", 2, 640, 216),
    Case("SegMamba stage 3", "block", 1, 384, 16**3, orders=_segmamba(16)),
    Case("U-Mamba Bot 3-D", "block", 2, 640, 216),
)


def _activation(case: Case, dtype: torch.dtype, device: torch.device, channels_last: bool) -> Tensor:
    """Random (batch, d, L)."""
    if channels_last:
        return torch.randn(case.batch, case.length, case.d, dtype=dtype, device=device).transpose(1, 2)
    return torch.randn(case.batch, case.d, case.length, dtype=dtype, device=device)


def scan_inputs(
    case: Case, dtype: torch.dtype, device: torch.device, channels_last: bool = True
) -> dict[str, Tensor | None]:
    """Tensors of :func:`umamba_kernels.selective_scan`, all of which want a gradient.

    Args:
        case: The shape.
        dtype: Of the activations; parameters are float32.
        device: Where they lie.
        channels_last: As networks of this package have them; else as mamba-ssm's kernel wants them, tokens last.
    """
    batch, d, length, n, groups = case.batch, case.d, case.length, case.n, case.groups
    if channels_last:
        B, C = torch.randn(batch, length, groups, 2 * n, dtype=dtype, device=device).permute(0, 2, 3, 1).split(n, 2)
    else:
        B, C = torch.randn(2, batch, groups, n, length, dtype=dtype, device=device).unbind()
    tensors = {
        "u": _activation(case, dtype, device, channels_last),
        "delta": _activation(case, dtype, device, channels_last),
        "A": -torch.arange(1.0, n + 1, device=device).repeat(d, 1),
        "B": B,
        "C": C,
        "D": torch.ones(d, device=device),
        "z": _activation(case, dtype, device, channels_last) if case.gated else None,
        "delta_bias": torch.full((d,), -4.0, device=device),
    }
    return {name: None if x is None else x.detach().requires_grad_() for name, x in tensors.items()}


def conv_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> dict[str, Tensor]:
    """Tensors of :func:`umamba_kernels.causal_conv1d`, all of which want a gradient."""
    tensors = {
        "x": _activation(case, dtype, device, channels_last=True),
        "weight": torch.randn(case.d, WIDTH, device=device),
        "bias": torch.randn(case.d, device=device),
    }
    return {name: x.detach().requires_grad_() for name, x in tensors.items()}


@dataclass
class Block:
    """A Mamba block: tokens (batch, L, d / 2), the projections in and out, and a direction per order."""

    tokens: Tensor
    in_proj: Tensor
    out_proj: Tensor
    directions: list[Direction]

    def leaves(self) -> list[Tensor]:
        """Everything that wants a gradient."""
        parameters = [x for direction in self.directions for x in direction if isinstance(x, Tensor)]
        return [self.tokens, self.in_proj, self.out_proj, *parameters]


def block_inputs(case: Case, dtype: torch.dtype, device: torch.device) -> Block:
    """A block whose parameters have plausible sizes; dt has rank d / 32 as in mamba-ssm (d / 2 channels / 16)."""
    d, n, rank = case.d, case.n, max(1, case.d // 32)

    def random(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return (torch.randn(shape, dtype=dtype, device=device) / shape[-1] ** 0.5).requires_grad_()

    def direction(order: Order) -> Direction:
        A = -torch.arange(1.0, n + 1, device=device).repeat(d, 1)
        dt_bias, D = torch.full((d,), -4.0, device=device), torch.ones(d, device=device)
        return Direction(
            A=A.requires_grad_(),
            x_proj=random(rank + 2 * n, d),
            dt_proj=random(d, rank),
            dt_bias=dt_bias.requires_grad_(),
            D=D.requires_grad_(),
            conv_weight=random(d, WIDTH),
            conv_bias=random(d),
            order=order,
        )

    tokens = torch.randn(case.batch, case.length, d // 2, dtype=dtype, device=device).requires_grad_()
    return Block(tokens, random(2 * d, d // 2), random(d // 2, d), [direction(order) for order in case.orders])
