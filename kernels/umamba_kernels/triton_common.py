"""What the Triton kernels share: scan orders in address arithmetic and the functions of the gate and the step."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from umamba_kernels.tracing import dry_backend


@triton.jit
def token_address(t, length, slices, REVERSE: tl.constexpr, SLICED: tl.constexpr):
    """Address of token ``t`` (a scalar or a tensor) along an axis of ``length``; see :class:`umamba_kernels.Order`.

    The default order costs nothing, ``REVERSE`` a subtraction, ``SLICED`` a division by the number of ``slices``.
    """
    address = t
    if SLICED:
        address = (t % slices) * (length // slices) + t // slices
    if REVERSE:
        address = length - 1 - address
    return address


@triton.jit
def exp2(x, ASM: tl.constexpr):
    """2 ** x. With ``ASM`` (float32 on NVIDIA) one instruction; results below 2 ** -126 are then 0."""
    if ASM:
        return tl.inline_asm_elementwise("ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return tl.exp2(x)


@triton.jit
def reciprocal(x, ASM: tl.constexpr):
    """1 / x. With ``ASM`` (float32 on NVIDIA) one instruction, off by at most one unit in the last place."""
    if ASM:
        return tl.inline_asm_elementwise("rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, is_pure=True, pack=1)
    else:
        return 1.0 / x


@triton.jit
def sigmoid(x, ASM: tl.constexpr):
    """1 / (1 + exp(-x)), relatively accurate for both signs and without overflow."""
    small = exp2(tl.abs(x) * -1.4426950408889634, ASM)
    inverse = reciprocal(1.0 + small, ASM)
    return tl.where(x < 0, small * inverse, inverse)


@triton.jit
def softplus(x, ASM: tl.constexpr):
    """log(1 + exp(x)), x itself above 20, relatively accurate down to where exp(x) underflows.

    log1p(v) = 2 atanh(v / (2 + v)), as an odd polynomial in float32: an approximate logarithm has no correct digits
    near 1. float64 takes the logarithm of the rounded 1 + v and corrects for the rounding.
    """
    small = exp2(tl.abs(x) * -1.4426950408889634, ASM)
    if x.dtype == tl.float64:
        rounded = 1.0 + small
        lost = rounded == 1.0
        log1p = tl.where(lost, small, tl.log(rounded) * (small / tl.where(lost, 1.0, rounded - 1.0)))
        return tl.where(x > 20.0, x, tl.maximum(x, 0.0) + log1p)
    else:
        ratio = small * reciprocal(2.0 + small, ASM)
        square = ratio * ratio
        series = 0.40024596 + square * (0.27965157 + square * 0.2815778)
        return tl.maximum(x, 0.0) + ratio * (2.0 + square * (0.6666632 + square * series))


INTERPRETED = not isinstance(softplus, triton.runtime.JITFunction)
"""Whether TRITON_INTERPRET was set when the kernels were defined: they then run on the CPU, for tests."""


def uses_asm(dtype: torch.dtype) -> bool:
    """Whether kernels that compute in ``dtype`` may use NVIDIA's instructions, the argument ``ASM`` of the helpers."""
    return dtype == torch.float32 and torch.version.hip is None and not INTERPRETED


def on_device(x: Tensor) -> contextlib.AbstractContextManager:
    """Context in which kernels are launched on the GPU of ``x``; does nothing for the interpreter's CPU tensors."""
    return torch.cuda.device(x.device) if x.is_cuda else contextlib.nullcontext()


def launcher(kernel: Any, programs: int) -> Callable[..., object]:
    """What launches so many programs of a kernel when it is called with its arguments; nothing in a dry run."""
    return kernel[(programs,)] if dry_backend() is None else lambda *_, **__: None


@dataclass(frozen=True)
class CompiledCase:
    """A kernel with everything that decides its machine code, so that it can be compiled where no GPU is.

    Every Triton module lists its kernels in ``compiled_cases()``; ``kernels/benchmarks/static_budget.py`` reads them.

    Args:
        name: Name in the tables.
        kernel: The jitted function.
        signature: Type of every argument that is not a constant, as Triton writes them ("*fp32", "i32"); ":16" behind a
            type says that the value is divisible by 16, as Triton finds at a launch for pointers from torch.
        constexprs: Value of every other argument; None for a tensor that is not there.
        num_warps: Warps per program.
        steps: Tokens per iteration of the main loops, the longest loop first; their costs per token are added. Shorter
            loops, such as one for the remainder, are not counted.
    """

    name: str
    kernel: Any
    signature: dict[str, str]
    constexprs: dict[str, Any]
    num_warps: int
    steps: tuple[int, ...] = ()
