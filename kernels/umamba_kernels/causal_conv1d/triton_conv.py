"""The causal convolution on GPUs, in Triton.

A program walks through consecutive tokens of one sample with one block of channels, so that with channels last every
access is one coalesced row, and keeps the last width - 1 tokens in registers: each input is read once. Programs share
the tokens as well as the channels. They begin by reading, and in the gradient recomputing, the tokens before their own.

The gradient recomputes what the activation was given. Its programs add up what the weights receive from their tokens;
these sums are added in a fixed order, so the same input gives the same bits.
"""

# Python's type system knows neither Triton's loops over tuples nor its launches.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false

from __future__ import annotations

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from umamba_kernels.order import Order
from umamba_kernels.triton_common import CompiledCase, launcher, on_device, sigmoid, token_address, uses_asm

BLOCK = 64  # channels of a program, two a lane
WARPS = 1
PROGRAMS = 4096  # a GPU as large as an H100 runs about so many at once; with fewer, a program gets fewer tokens
_VARYING = ["length", "slices", "tokens", "chunks"]  # arguments whose values are not compiled into a kernel


@triton.jit
def _place(D, tokens, chunks, BLOCK: tl.constexpr):
    """Channels, first token and sample of this program."""
    blocks = tl.cdiv(D, BLOCK)
    program = tl.program_id(0)
    channel = program % blocks * BLOCK + tl.arange(0, BLOCK)
    chunk = program // blocks
    return channel.to(tl.int64), chunk % chunks * tokens, (chunk // chunks).to(tl.int64)


@triton.jit
def _next(address, length, slices):
    """Address of the token after the one at ``address``, before reversal."""
    skip = length // slices
    return tl.where(address < length - skip, address + skip, address - (length - 1 - skip))


@triton.jit
def _row(x, address, stride, length, REVERSE: tl.constexpr):
    """Pointers to a token."""
    if REVERSE:
        address = length - 1 - address
    return x + address.to(tl.int64) * stride


@triton.jit
def _load(x, address, stride, length, mask, REVERSE: tl.constexpr, ACC: tl.constexpr):
    return tl.load(_row(x, address, stride, length, REVERSE), mask=mask, other=0.0).to(ACC)


@triton.jit
def _filter(weight, bias, channel, inside, weight_d, weight_j, bias_d, WIDTH: tl.constexpr, ACC: tl.constexpr):
    """The taps from the oldest to the current token, and the bias."""
    taps = ()
    for j in tl.static_range(WIDTH):
        taps += (tl.load(weight + channel * weight_d + j * weight_j, mask=inside, other=0.0).to(ACC),)
    start = tl.zeros_like(taps[0])
    if bias is not None:
        start = tl.load(bias + channel * bias_d, mask=inside, other=0.0).to(ACC)
    return taps, start


@triton.jit
def _convolve(window, taps, start, FIRST: tl.constexpr, WIDTH: tl.constexpr):
    """The sum over a filter's taps, the oldest of which meets ``window[FIRST]``."""
    total = start
    for j in tl.static_range(WIDTH):
        total += taps[j] * window[FIRST + j]
    return total


@triton.jit(do_not_specialize=_VARYING)
def _forward(
    x, weight, bias, out,
    x_b, x_d, x_t, out_b, out_d, out_t, weight_d, weight_j, bias_d,
    D, length, slices, tokens, chunks,
    SILU: tl.constexpr, REVERSE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, ACC: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    channel, first, batch = _place(D, tokens, chunks, BLOCK)
    inside = channel < D
    x += batch * x_b + channel * x_d
    out += batch * out_b + channel * out_d
    taps, start = _filter(weight, bias, channel, inside, weight_d, weight_j, bias_d, WIDTH, ACC)

    address = token_address(tl.maximum(first - (WIDTH - 1), 0), length, slices, False, True)  # before reversal
    window = ()  # the WIDTH - 1 tokens before t
    for j in tl.static_range(WIDTH - 1):
        exists = first - (WIDTH - 1) + j >= 0
        window += (_load(x, address, x_t, length, inside & exists, REVERSE, ACC),)
        address = tl.where(exists, _next(address, length, slices), address)

    for t in range(first, min(first + tokens, length), GROUP):
        addresses = ()
        for u in tl.static_range(GROUP):
            window += (_load(x, address, x_t, length, inside & (t + u < length), REVERSE, ACC),)
            addresses += (address,)
            address = _next(address, length, slices)
        for u in tl.static_range(GROUP):
            y = _convolve(window, taps, start, u, WIDTH)
            if SILU:
                y *= sigmoid(y, ASM)
            tl.store(_row(out, addresses[u], out_t, length, REVERSE), y, mask=inside & (t + u < length))
        window = window[GROUP:]


@triton.jit
def _before_activation(dout, y, SILU: tl.constexpr, ASM: tl.constexpr):
    """Gradient of what the activation was given, y."""
    if SILU:
        s = sigmoid(y, ASM)
        dout *= s * (1 + y * (1 - s))
    return dout


@triton.jit(do_not_specialize=_VARYING)
def _backward(
    dout, x, weight, bias, dx, sums,
    dout_b, dout_d, dout_t, x_b, x_d, x_t, dx_b, dx_d, dx_t, weight_d, weight_j, bias_d,
    D, length, slices, tokens, chunks,
    SILU: tl.constexpr, REVERSE: tl.constexpr, WIDTH: tl.constexpr,
    BLOCK: tl.constexpr, GROUP: tl.constexpr, ACC: tl.constexpr, ASM: tl.constexpr,
):  # fmt: skip
    # dx of a token needs the gradients at the WIDTH - 1 tokens behind it. Here it is written once they are known, so a
    # program writes dx for tokens WIDTH - 1 before those it reads, and the sequence is read WIDTH - 1 beyond its end.
    channel, first, batch = _place(D, tokens, chunks, BLOCK)
    inside = channel < D
    dout += batch * dout_b + channel * dout_d
    x += batch * x_b + channel * x_d
    dx += batch * dx_b + channel * dx_d
    taps, start = _filter(weight, bias, channel, inside, weight_d, weight_j, bias_d, WIDTH, ACC)
    zero = tl.zeros_like(start)

    address = token_address(tl.maximum(first - 2 * (WIDTH - 1), 0), length, slices, False, True)
    addresses = ()  # of the WIDTH - 1 tokens before t, and below what they hold
    window = ()
    gradients = ()
    for j in tl.static_range(2 * (WIDTH - 1)):
        before = first - 2 * (WIDTH - 1) + j
        exists = inside & (before >= 0) & (before < length)
        window += (_load(x, address, x_t, length, exists, REVERSE, ACC),)
        if j >= WIDTH - 1:
            g = _load(dout, address, dout_t, length, exists, REVERSE, ACC)
            y = _convolve(window, taps, start, j - (WIDTH - 1), WIDTH)
            gradients += (_before_activation(g, y, SILU, ASM),)
            addresses += (address,)
        address = tl.where(before >= 0, _next(address, length, slices), address)
    window = window[WIDTH - 1 :]

    dtaps = ()
    for _ in tl.static_range(WIDTH):
        dtaps += (zero,)
    dstart = zero
    for t in range(first, min(first + tokens, length + WIDTH - 1), GROUP):
        received = ()
        for u in tl.static_range(GROUP):
            mask = inside & (t + u < length)
            window += (_load(x, address, x_t, length, mask, REVERSE, ACC),)
            received += (_load(dout, address, dout_t, length, mask, REVERSE, ACC),)
            addresses += (address,)
            address = _next(address, length, slices)
        for u in tl.static_range(GROUP):
            g = _before_activation(received[u], _convolve(window, taps, start, u, WIDTH), SILU, ASM)
            gradients += (g,)
            dstart += g
            added = ()
            for j in tl.static_range(WIDTH):
                added += (dtaps[j] + g * window[u + j],)
            dtaps = added
        for u in tl.static_range(GROUP):
            total = zero
            for j in tl.static_range(WIDTH):
                total += taps[WIDTH - 1 - j] * gradients[u + j]
            written = t + u - (WIDTH - 1)
            mask = inside & (written >= 0) & (written < length)
            tl.store(_row(dx, addresses[u], dx_t, length, REVERSE), total, mask=mask)
        window, gradients, addresses = window[GROUP:], gradients[GROUP:], addresses[GROUP:]

    sums += (tl.program_id(0) // tl.cdiv(D, BLOCK)).to(tl.int64) * (WIDTH + 1) * D + channel
    for j in tl.static_range(WIDTH):
        tl.store(sums + j * D, dtaps[j], mask=inside)
    tl.store(sums + WIDTH * D, dstart, mask=inside)


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order) -> Tensor:
    """:func:`umamba_kernels.causal_conv1d` for checked arguments, none of them empty."""
    out = torch.empty_like(x)
    programs, sizes = _cut(x, order, x.shape[-1])
    with on_device(x):
        launcher(_forward, programs)(
            x, weight, bias, out,
            *x.stride(), *out.stride(), *_filter_strides(weight, bias),
            *sizes, **_constants(x.dtype, weight.shape[1], silu, order), num_warps=WARPS,
        )  # fmt: skip
    return out


def backward(
    dout: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, silu: bool, order: Order
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Gradients of x, weight and bias (None where it is None) for that of the result, each in its tensor's dtype."""
    (_, d, length), width = x.shape, weight.shape[1]
    programs, sizes = _cut(x, order, length + width - 1)
    dx = torch.empty_like(x)
    constants = _constants(x.dtype, width, silu, order)
    dtype = torch.promote_types(x.dtype, torch.float32)
    sums = torch.empty((programs // _blocks(d), width + 1, d), dtype=dtype, device=x.device)
    with on_device(x):
        launcher(_backward, programs)(
            dout, x, weight, bias, dx, sums,
            *dout.stride(), *x.stride(), *dx.stride(), *_filter_strides(weight, bias),
            *sizes, **constants, num_warps=WARPS,
        )  # fmt: skip
    total = sums.sum(0)
    dweight = torch.empty_like(weight).copy_(total[:width].t())
    dbias = None if bias is None else total[width].to(bias.dtype)
    return dx, dweight, dbias


def _cut(x: Tensor, order: Order, visited: int) -> tuple[int, tuple[int, ...]]:
    """Number of programs, and the kernels' integers that describe the work; visited is the number of steps in all."""
    batch, d, length = x.shape
    rows = batch * _blocks(d)
    tokens = 64 if rows * visited >= 64 * PROGRAMS else 16
    chunks = math.ceil(visited / tokens)
    return rows * chunks, (d, length, order.slices, tokens, chunks)


def _blocks(d: int) -> int:
    """Number of blocks of channels."""
    return math.ceil(d / BLOCK)


def _filter_strides(weight: Tensor, bias: Tensor | None) -> tuple[int, ...]:
    return *weight.stride(), 0 if bias is None else bias.stride(0)


def _constants(dtype: torch.dtype, width: int, silu: bool, order: Order) -> dict[str, Any]:
    double = dtype == torch.float64
    return {
        "SILU": silu,
        "REVERSE": order.reverse,
        "WIDTH": width,
        "BLOCK": BLOCK,
        "GROUP": 2 if double else 4,  # tokens loaded together, so that their latencies overlap
        "ACC": tl.float64 if double else tl.float32,
        "ASM": uses_asm(torch.float64 if double else torch.float32),
    }


def compiled_cases() -> list[CompiledCase]:
    """The kernels as networks launch them: channels last, width 4, bias and silu."""
    return [
        _compiled_case(kernel, name, dtype, stored)
        for dtype, stored in ((torch.float32, "fp32"), (torch.bfloat16, "bf16"), (torch.float64, "fp64"))
        for kernel, name in ((_forward, "forward"), (_backward, "backward"))
    ]


def _compiled_case(kernel: Any, name: str, dtype: torch.dtype, stored: str) -> CompiledCase:
    constants = _constants(dtype, 4, True, Order())
    activations, parameters = ("x", "out", "dout", "dx"), ("weight", "bias")
    kept = "fp64" if dtype == torch.float64 else "fp32"
    types = {
        **{tensor: f"*{stored}:16" for tensor in activations},
        **{tensor: f"*{kept}:16" for tensor in (*parameters, "sums")},
        **{f"{tensor}_{axis}": "i32:16" for tensor in activations for axis in "bt"},
        **{"weight_d": "i32", "D": "i32:16"},
        **dict.fromkeys(_VARYING, "i32"),
    }
    ones = {**{f"{tensor}_d": 1 for tensor in activations}, "weight_j": 1, "bias_d": 1}
    arguments = set(kernel.arg_names)
    return CompiledCase(
        f"convolution {name}, {str(dtype).removeprefix('torch.')}",
        kernel,
        {argument: kind for argument, kind in types.items() if argument in arguments},
        {argument: value for argument, value in (constants | ones).items() if argument in arguments},
        WARPS,
        steps=(constants["GROUP"],),
    )
