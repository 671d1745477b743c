"""The selective scan in Triton, forward and backward, for NVIDIA and AMD.

A program is one warp and owns 32 channels, all states of a channel in one lane (in two of AMD's wide waves): the tile
of states is (N, channels), and sums over states need no exchange between lanes. It walks through the tokens of one
segment of the sequence, reading a few tokens ahead. Where batch · d fills the machine the only segment is the whole
sequence. Otherwise each segment is first summarised from a zero state (its end state and the sum of its steps, as a
segment multiplies the state it is given by ``exp(A · sum of its steps)``), a short scan over the summaries gives the
true starts, and the segments are walked again.

The gradient is the same in the other direction. A program recomputes the states of a chunk from the one that the
forward pass stored, keeps every second in a scratch of its own, and walks back over the chunk. B and C are read as
packed float32 rows that all channels of a group share; the sums over channels for their gradients go to partial
buffers, one per block of channels or few of them, which are added in a fixed order. There are no atomics.

The layout of the tile follows from what the compiler knows about the addresses of loads and stores. Sizes and strides
are kept out of its specialisation, for if it knew an alignment it would give a lane four channels and spread the states
over lanes, with shuffles and barriers at every token. If it knew nothing at all, the version of Triton would decide
which axis lanes run over (3.6 takes the states, 3.7 the channels), so that every tile of states says that channels lie
side by side (``max_contiguous``). Where they do not it is harmless: without an alignment nothing is read as a vector.
Registers are scarce: what a loop does not need is computed again behind it, see :func:`_here`.
"""

# Python's type system knows neither Triton's loops over tuples nor its launches.
# pyright: reportGeneralTypeIssues=false, reportCallIssue=false, reportAssignmentType=false, reportArgumentType=false

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from umamba_kernels.order import Order
from umamba_kernels.tracing import dry_backend
from umamba_kernels.triton_common import (
    CompiledCase,
    exp2,
    launcher,
    on_device,
    sigmoid,
    softplus,
    token_address,
    uses_asm,
)

CHUNK = 32  # tokens between two states that the forward pass stores; more fill the cache with backward scratch
TOKENS = 4  # tokens that forward walks and summaries read at once, one iteration ahead
SUMMARIES = 8  # segments whose summaries the scan over segments reads at once

_H100 = 132  # multiprocessors; a dry run has no GPU to ask

LANES = tl.constexpr(32)  # channels of a program, and side by side in matrices of states and channels
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)


# ---- Where things are ------------------------------------------------------------------------------------------------


@triton.jit
def _place(blocks, groups, batch):
    """Block of channels, group, batch entry and segment of this program."""
    program = tl.program_id(0)
    entry = program // (blocks * groups) % batch
    segment = program // (blocks * groups * batch)
    return program % blocks, program // blocks % groups, entry, segment


@triton.jit
def _channels(block, group, d, groups):
    """Channels of a block and which of them exist; the others repeat the last one, to be read but not stored.

    A block does not straddle groups.
    """
    per_group = d // groups
    within = block * LANES + tl.arange(0, LANES)
    return group * per_group + tl.minimum(within, per_group - 1), within < per_group


@triton.jit
def _place_in_tiles(channel, N: tl.constexpr):
    """Where the states of a channel begin in a matrix of states and channels, stored as tiles (d / LANES, N, LANES).

    The distance between two states is a constant, so that a tile needs one address in a register and not N.
    """
    return channel // LANES * (N * LANES) + channel % LANES


@triton.jit
def _tile(x, place, STATES: tl.constexpr):
    """Addresses of the (STATES, channels) tile of such a matrix, ``place`` being that of each channel."""
    return tl.max_contiguous(x + place[None, :] + tl.arange(0, STATES)[:, None] * LANES, [1, LANES])


@triton.jit
def _hop(row, slices, columns, REVERSE: tl.constexpr, SLICED: tl.constexpr, BACK: tl.constexpr):
    """From a token to the next, ``BACK`` to the one before: its row ``t mod slices`` and how far it is in memory."""
    hop = 1
    if SLICED:
        if BACK:
            edge = row == 0
            row = tl.where(edge, slices - 1, row - 1)
        else:
            edge = row == slices - 1
            row = tl.where(edge, 0, row + 1)
        hop = tl.where(edge, 1 - (slices - 1) * columns, columns).to(tl.int64)
    if REVERSE != BACK:
        hop = -hop
    return row, hop


@triton.jit
def _moved(pointers, strides, hop):
    moved = ()
    for i in tl.static_range(len(pointers)):
        moved += (pointers[i] + strides[i] * hop,)
    return moved


@triton.jit
def _read(
    pointers, strides, row, slices, columns, wanted,
    COUNT: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr, BACK: tl.constexpr,
):  # fmt: skip
    """COUNT tokens of each tensor, token after token, and the pointers and the row after them."""
    values = ()
    for _ in tl.static_range(COUNT):
        for i in tl.static_range(len(pointers)):
            values += (tl.load(pointers[i], mask=wanted),)
        row, hop = _hop(row, slices, columns, REVERSE, SLICED, BACK)
        pointers = _moved(pointers, strides, hop)
    return values, pointers, row


@triton.jit
def _row(pointer, STATES: tl.constexpr):
    """B or C of one token, (STATES, 1)."""
    return tl.load(pointer + tl.arange(0, STATES))[:, None]


@triton.jit
def _varying(pointer, ASM: tl.constexpr):
    """The same pointer, which the compiler for NVIDIA now takes to differ between lanes.

    It would keep a pointer that is the same for all lanes in uniform registers and move it to others for every load.
    Like :func:`_here` the assembly is not pure, so that it stays where it is.
    """
    if ASM:
        nothing = tl.inline_asm_elementwise(
            "{ .reg .b32 x, y; mov.u32 x, %lanemask_eq; mov.u32 y, %lanemask_lt; and.b32 $0, x, y; }",
            "=r,r", [0], tl.int32, is_pure=False, pack=1,
        )  # fmt: skip
        pointer += nothing * 16
    return pointer


@triton.jit
def _here(x, ASM: tl.constexpr):
    """The same, but what is computed from it is computed here and not kept in registers from outside of the loop."""
    if ASM:
        if x.dtype == tl.int64:
            x = tl.inline_asm_elementwise("mov.b64 $0, $1;", "=l,l", [x], tl.int64, is_pure=False, pack=1)
        else:
            x = tl.inline_asm_elementwise("mov.b32 $0, $1;", "=r,r", [x], tl.int32, is_pure=False, pack=1)
    return x


@triton.jit
def _all_here(values, ASM: tl.constexpr):
    here = ()
    for i in tl.static_range(len(values)):
        here += (_here(values[i], ASM),)
    return here


# ---- One token -------------------------------------------------------------------------------------------------------


@triton.jit
def _decay_rates(A, channel, A_d, A_n, N: tl.constexpr, STATES: tl.constexpr):
    """A for exponentials of base 2, (STATES, channels); 0 for states beyond N, which then stay 0."""
    n = tl.arange(0, STATES)[:, None]
    rates = tl.max_contiguous(A + channel[None, :] * A_d + n * A_n, [1, LANES])
    return tl.load(rates, mask=n < N, other=0.0) * LOG2_E


@triton.jit
def _step(delta, bias, DTYPE: tl.constexpr, SOFTPLUS: tl.constexpr, ASM: tl.constexpr):
    step = delta.to(DTYPE)
    if bias is not None:
        step += bias
    if SOFTPLUS:
        step = softplus(step, ASM)
    return step


@triton.jit
def _step_slope(delta, bias, DTYPE: tl.constexpr, ASM: tl.constexpr):
    """Derivative of softplus in :func:`_step`. Above 20 the sigmoid is 1 in float32, but not in float64."""
    x = _step(delta, bias, DTYPE, False, ASM)
    return tl.where(x > 20.0, 1.0, sigmoid(x, ASM))


# ---- Forward ---------------------------------------------------------------------------------------------------------


# The arguments that are not to be specialised: sizes, and the strides of tensors of tokens or of states.
_UNSPECIALISED = ["batch", "d", "groups", "length", "blocks", "segment_tokens", "segments", "slices"]


def _integers(tensors: str, *more: str) -> list[str]:
    return [*_UNSPECIALISED, *more, *(f"{x}_{axis}" for x in tensors.split() for axis in "bdl")]


@triton.jit
def _forward_walk(
    state, first, reads, inputs, strides, out, out_l, rows, states, a, bias, skip,
    place, exists, stored, matrix, length, slices,
    COUNT: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr,
    ASM: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """``reads`` times COUNT tokens from the token ``first``, each time one read ahead; returns the state.

    A chunk starts with one of these reads, as COUNT divides CHUNK.
    """
    columns = length // slices
    address = token_address(first, length, slices, REVERSE, SLICED).to(tl.int64)
    pointers = _moved(inputs, strides, address)
    out += address * out_l
    rows += address * 2 * STATES
    row = first % slices
    WIDTH: tl.constexpr = len(inputs)
    ahead, pointers, read_row = _read(pointers, strides, row, slices, columns, reads > 0, COUNT, REVERSE, SLICED, False)
    for start in range(0, reads, CHUNK // COUNT):
        if states is not None:
            token = first + start * COUNT
            if token % CHUNK == 0:
                kept = states + (token // CHUNK).to(tl.int64) * matrix
                tl.store(_tile(kept, place, STATES), state, mask=stored)
        for i in range(start, tl.minimum(start + CHUNK // COUNT, reads)):
            now = ahead
            if i + 1 < reads:
                ahead, pointers, read_row = _read(
                    pointers, strides, read_row, slices, columns, True, COUNT, REVERSE, SLICED, False
                )
            now_row = row
            results = ()  # stored together at the end: a store in between would keep the compiler from reading ahead
            for k in tl.static_range(COUNT):
                u = now[k * WIDTH].to(a.dtype)
                step = _step(now[k * WIDTH + 1], bias, a.dtype, SOFTPLUS, ASM)
                state = exp2(step[None, :] * a, ASM) * state + (step * u)[None, :] * _row(rows, STATES)
                y = tl.sum(_row(rows + STATES, STATES) * state, 0)
                if skip is not None:
                    y += skip * u
                if WIDTH == 3:
                    z = now[k * WIDTH + 2].to(a.dtype)
                    y *= z * sigmoid(z, ASM)
                results += (y.to(out.dtype.element_ty),)
                now_row, hop = _hop(now_row, slices, columns, REVERSE, SLICED, False)
                rows += 2 * STATES * hop
            for k in tl.static_range(COUNT):
                tl.store(out, results[k], mask=exists)
                row, hop = _hop(row, slices, columns, REVERSE, SLICED, False)
                out += out_l * hop
    return state


@triton.jit(do_not_specialize=_integers("u delta z out", "A_d", "A_n", "last_b", "last_d", "last_n"))
def forward_kernel(
    u, delta, z, rows, A, D, delta_bias, starts, out, states, last,
    batch, d, groups, length, blocks, segment_tokens, slices, A_d, A_n,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, z_b, z_d, z_l, out_b, out_d, out_l, last_b, last_d, last_n,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr, ASM: tl.constexpr,
    N: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """Walk a segment from its start state. Program: segment, batch entry, group, block of channels."""
    block, group, entry, segment = _place(blocks, groups, batch)
    channel, exists = _channels(block, group, d, groups)
    matrix = tl.cdiv(d, LANES) * (N * LANES)
    real = (tl.arange(0, STATES) < N)[:, None]
    stored = real & exists[None, :]
    dtype: tl.constexpr = A.dtype.element_ty
    a = _decay_rates(A, channel, A_d, A_n, N, STATES)
    bias = None if delta_bias is None else tl.load(delta_bias + channel)
    skip = None if D is None else tl.load(D + channel)
    state = tl.zeros([STATES, LANES], dtype)
    if starts is not None:
        start = starts + (segment * batch + entry).to(tl.int64) * matrix
        state = tl.load(_tile(start, _place_in_tiles(channel, N), STATES), mask=real, other=0.0)

    for part in tl.static_range(2):  # as many reads of TOKENS as there are; then the rest, one by one
        begin = _here(segment, ASM) * segment_tokens
        end = tl.minimum(begin + segment_tokens, length)
        full = (end - begin) // TOKENS
        first = begin + part * full * TOKENS
        sample = _here(entry, ASM).to(tl.int64)
        wide = _here(channel, ASM).to(tl.int64)
        inputs = (u + sample * u_b + wide * u_d, delta + sample * delta_b + wide * delta_d)
        strides = (u_l, delta_l)
        if z is not None:
            inputs += (z + sample * z_b + wide * z_d,)
            strides += (z_l,)
        kept = states
        if states is not None:
            kept = states + sample * tl.cdiv(length, CHUNK) * matrix
        state = _forward_walk(
            state, first, full if part == 0 else end - first, inputs, strides,
            out + sample * out_b + wide * out_d, out_l,
            rows + (sample * groups + group) * length * 2 * STATES, kept, a, bias, skip,
            _place_in_tiles(channel, N), exists, stored, matrix, length, slices,
            TOKENS if part == 0 else 1, SOFTPLUS, REVERSE, SLICED, ASM, STATES, CHUNK,
        )  # fmt: skip
    if (segment + 1) * segment_tokens >= length:
        wide = channel.to(tl.int64)
        ends = last + entry.to(tl.int64) * last_b + wide[None, :] * last_d + tl.arange(0, STATES)[:, None] * last_n
        tl.store(tl.max_contiguous(ends, [1, LANES]), state, mask=stored)


# ---- Segments --------------------------------------------------------------------------------------------------------


@triton.jit
def _summary_walk(
    state, total, first, reads, inputs, strides, rows, a, bias, length, slices,
    COUNT: tl.constexpr, ADJOINT: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr,
    ASM: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    columns = length // slices
    address = token_address(first, length, slices, REVERSE, SLICED).to(tl.int64)
    pointers = _moved(inputs, strides, address)
    rows += address * 2 * STATES
    row = first % slices
    WIDTH: tl.constexpr = len(inputs)
    ahead, pointers, read_row = _read(
        pointers, strides, row, slices, columns, reads > 0, COUNT, REVERSE, SLICED, ADJOINT
    )
    for i in range(reads):
        now = ahead
        if i + 1 < reads:
            ahead, pointers, read_row = _read(
                pointers, strides, read_row, slices, columns, True, COUNT, REVERSE, SLICED, ADJOINT
            )
        for k in tl.static_range(COUNT):
            x = now[k * WIDTH].to(a.dtype)
            step = _step(now[k * WIDTH + 1], bias, a.dtype, SOFTPLUS, ASM)
            decay = exp2(step[None, :] * a, ASM)
            if ADJOINT:
                if WIDTH == 3:
                    z = now[k * WIDTH + 2].to(a.dtype)
                    x *= z * sigmoid(z, ASM)
                state = decay * (state + x[None, :] * _row(rows, STATES))
            else:
                state = decay * state + (step * x)[None, :] * _row(rows, STATES)
            total += step
            row, hop = _hop(row, slices, columns, REVERSE, SLICED, ADJOINT)
            rows += 2 * STATES * hop
    return state, total


@triton.jit(do_not_specialize=_integers("x delta z", "A_d", "A_n"))
def summary_kernel(
    x, delta, z, rows, A, delta_bias, ends, sums,
    batch, d, groups, length, blocks, segment_tokens, slices, A_d, A_n,
    x_b, x_d, x_l, delta_b, delta_d, delta_l, z_b, z_d, z_l,
    ADJOINT: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr, ASM: tl.constexpr,
    N: tl.constexpr, STATES: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """What a segment makes of a zero state, and the sum of its steps; all segments but the last.

    With ADJOINT the same backwards for the adjoint, where ``x`` is dout and not u, for all segments but the first.
    """
    block, group, entry, segment = _place(blocks, groups, batch)
    if ADJOINT:
        segment += 1
    channel, exists = _channels(block, group, d, groups)
    a = _decay_rates(A, channel, A_d, A_n, N, STATES)
    bias = None if delta_bias is None else tl.load(delta_bias + channel)
    state = tl.zeros([STATES, LANES], a.dtype)
    total = tl.zeros([LANES], a.dtype)
    for part in tl.static_range(2):  # as many reads of TOKENS as there are; then the rest, one by one
        begin = _here(segment, ASM) * segment_tokens
        end = tl.minimum(begin + segment_tokens, length)
        full = (end - begin) // TOKENS
        rest = end - begin - full * TOKENS
        first = begin + part * full * TOKENS
        sample = _here(entry, ASM).to(tl.int64)
        wide = _here(channel, ASM).to(tl.int64)
        inputs = (x + sample * x_b + wide * x_d, delta + sample * delta_b + wide * delta_d)
        strides = (x_l, delta_l)
        if z is not None:
            inputs += (z + sample * z_b + wide * z_d,)
            strides += (z_l,)
        row = rows + (sample * groups + group) * length * 2 * STATES
        if ADJOINT:
            first = end - 1 - part * full * TOKENS
            row += STATES
        state, total = _summary_walk(
            state, total, first, full if part == 0 else rest, inputs, strides, row, a, bias, length, slices,
            TOKENS if part == 0 else 1, ADJOINT, SOFTPLUS, REVERSE, SLICED, ASM, STATES,
        )  # fmt: skip
    tile = (segment * batch + entry).to(tl.int64) * tl.cdiv(d, LANES) * LANES
    stored = (tl.arange(0, STATES) < N)[:, None] & exists[None, :]
    tl.store(_tile(ends + tile * N, _place_in_tiles(channel, N), STATES), state, mask=stored)
    tl.store(sums + tile + channel, total, mask=exists)


@triton.jit(do_not_specialize=[*_UNSPECIALISED, "A_d", "A_n", "first_b", "first_d", "first_n"])
def carry_kernel(
    ends, sums, A, first, starts,
    batch, d, segments, A_d, A_n, first_b, first_d, first_n,
    ADJOINT: tl.constexpr, ASM: tl.constexpr, N: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The state that each segment starts from, the last segment first with ADJOINT; ``first`` is what that one gets.

    Program: batch entry, LANES channels, state.
    """
    program = tl.program_id(0)
    tiles = (d + LANES - 1) // LANES
    tile = program // N
    entry = (tile // tiles).to(tl.int64)
    channel = tile % tiles * LANES + tl.arange(0, LANES)
    exists = channel < d
    a = tl.load(A + channel * A_d + program % N * A_n, mask=exists, other=0.0) * LOG2_E
    state = tl.zeros_like(a)
    if first is not None:
        state = tl.load(first + entry * first_b + channel * first_d + program % N * first_n, mask=exists, other=0.0)

    matrices = (batch * tiles * N).to(tl.int64) * LANES
    vectors = (batch * tiles).to(tl.int64) * LANES
    segment = 0
    if ADJOINT:
        segment = segments - 1
    position = segment * matrices + program.to(tl.int64) * LANES + tl.arange(0, LANES)
    ends += position
    starts += position
    sums += segment * vectors + tile.to(tl.int64) * LANES + tl.arange(0, LANES)
    if ADJOINT:
        matrices = -matrices
        vectors = -vectors
    for i in range(0, segments, COUNT):
        gains = ()
        decays = ()
        for k in tl.static_range(COUNT):  # all loads before the first store
            wanted = exists & (i + k + 1 < segments)
            gains += (tl.load(ends + k * matrices, mask=wanted, other=0.0),)
            decays += (exp2(tl.load(sums + k * vectors, mask=wanted, other=0.0) * a, ASM),)
        for k in tl.static_range(COUNT):
            tl.store(starts + k * matrices, state, mask=exists & (i + k < segments))
            state = decays[k] * state + gains[k]
        ends += COUNT * matrices
        starts += COUNT * matrices
        sums += COUNT * vectors


# ---- Backward --------------------------------------------------------------------------------------------------------


@triton.jit
def _from_partner(x, lane, MASK: tl.constexpr, ASM: tl.constexpr):
    """What the lane whose number differs in the bit MASK holds; lanes are the last axis."""
    if ASM:
        return tl.inline_asm_elementwise(
            f"shfl.sync.bfly.b32 $0, $1, {MASK}, 0x1f, 0xffffffff;", "=f,f", [x], tl.float32, is_pure=True, pack=1
        )
    else:
        return tl.gather(x, tl.broadcast_to(lane ^ MASK, x.shape), 1)


@triton.jit
def _fold(x, lane, ASM: tl.constexpr):
    """Sums over 32 lanes but for the last bit of their number: (STATES, 32) -> (max(STATES / 16, 1), 32).

    Each lane gives half of its states to a partner, keeps the other half and adds what it is given; one that is left
    is added as it is. Lane l ends with row i of the result as the sum of state (l / 2) · STATES / 16 + i. This takes
    about as many shuffles as there are states, where one sum after the other takes five times as many. It is right only
    if a lane holds all states of one channel, and lanes follow the channels: with one warp and no other layout.
    """
    for i in tl.static_range(4):
        if x.shape[0] == 1:
            x += _from_partner(x, lane, 16 >> i, ASM)
        else:
            low, high = tl.split(tl.permute(tl.reshape(x, [2, x.shape[0] // 2, 32]), [1, 2, 0]))
            upper = (lane & (16 >> i)) != 0
            x = tl.where(upper, high, low) + _from_partner(tl.where(upper, low, high), lane, 16 >> i, ASM)
    return x


@triton.jit
def _place_in_share(lane, STATES: tl.constexpr):
    """Where the sums that a lane ends with, see :func:`_fold`, are in the share of a token."""
    HELD: tl.constexpr = (STATES + 15) // 16
    return lane % 2 * STATES + lane // 2 * STATES // 16 + tl.arange(0, HELD)[:, None]


@triton.jit
def _share(
    b, c, pointer, lane, again,
    ASM: tl.constexpr, EXCHANGE: tl.constexpr, ACCUMULATE: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Store this block's share of dB and dC of one token, (2, STATES) floats; add to what is there if ``again``.

    b and c are sums over channels or, with EXCHANGE, what :func:`_fold` leaves of them: the last step of the exchange
    joins the two, even lanes get dB and odd ones dC, and ``pointer`` has :func:`_place_in_share` in it.
    """
    if EXCHANGE:
        odd = (lane & 1) != 0
        b = tl.where(odd, c, b) + _from_partner(tl.where(odd, b, c), lane, 1, ASM)
        only = (lane // 2 * STATES) % 16 == 0  # with fewer than 16 states some lanes hold the same
        if ACCUMULATE:
            b += tl.load(pointer, mask=only & again, other=0.0)
        tl.store(pointer, b, mask=only)
    else:
        pointer += tl.arange(0, STATES)
        if ACCUMULATE:
            b += tl.load(pointer, mask=again, other=0.0)
            c += tl.load(pointer + STATES, mask=again, other=0.0)
        tl.store(pointer, b)
        tl.store(pointer + STATES, c)


@triton.jit
def _scratch(scratch, scratch_size, STATES: tl.constexpr, ASM: tl.constexpr):
    """Addresses of a tile in this program's scratch. With its size unknown they have no known alignment, see above."""
    place = _here(tl.program_id(0), ASM).to(tl.int64) * scratch_size + tl.arange(0, LANES)
    return scratch + place[None, :] + tl.arange(0, STATES)[:, None] * LANES


@triton.jit
def _back(
    adjoint, dA, dskip, dbias, state, gradients, inputs, input_strides, outputs, output_strides, rows, shares, row,
    a, bias, skip, exists, lane, again, slices, columns,
    COUNT: tl.constexpr, SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr,
    ASM: tl.constexpr, EXCHANGE: tl.constexpr, ACCUMULATE: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Back over COUNT tokens, ``state`` being the one before the first of them; all pointers are at the last.

    ``gradients`` are the values of dout and, with a gate, z, the last token first; ``inputs`` and ``outputs`` point to
    u, delta and du, ddelta, dz. Returns the adjoint, the sums, and the pointers and the row after the step.
    """
    GATED: tl.constexpr = len(outputs) == 3
    values, inputs, _ = _read(inputs, input_strides, row, slices, columns, True, COUNT, REVERSE, SLICED, True)
    later_row = row
    at_rows = ()
    at_shares = ()
    for _ in tl.static_range(COUNT):
        at_rows += (rows,)
        at_shares += (shares,)
        later_row, hop = _hop(later_row, slices, columns, REVERSE, SLICED, True)
        rows += 2 * STATES * hop
        shares += 2 * STATES * hop

    # Forward, for the states.
    us = ()
    steps = ()
    decays = ()
    befores = ()
    dys = ()
    dzs = ()
    dCs = ()
    for j in tl.static_range(COUNT):
        u = values[(COUNT - 1 - j) * 2].to(a.dtype)
        step = _step(values[(COUNT - 1 - j) * 2 + 1], bias, a.dtype, SOFTPLUS, ASM)
        decay = exp2(step[None, :] * a, ASM)
        befores += (state,)
        state = decay * state + (step * u)[None, :] * _row(at_rows[COUNT - 1 - j], STATES)
        dy = tl.where(exists, gradients[(COUNT - 1 - j) * (len(outputs) - 1)].to(a.dtype), 0.0)
        if GATED:
            z = gradients[(COUNT - 1 - j) * 2 + 1].to(a.dtype)
            y = tl.sum(_row(at_rows[COUNT - 1 - j] + STATES, STATES) * state, 0)
            if skip is not None:
                y += skip * u
            gate = sigmoid(z, ASM)
            dzs += (dy * y * gate * (1.0 + z * (1.0 - gate)),)
            dy *= z * gate
        if EXCHANGE:
            dCs += (_fold(dy[None, :] * state, lane, ASM),)
        else:
            dCs += (tl.sum(dy[None, :] * state, 1),)
        us += (u,)
        steps += (step,)
        decays += (decay,)
        dys += (dy,)

    results = ()
    for k in tl.static_range(COUNT):
        B = _row(at_rows[k], STATES)
        adjoint += _row(at_rows[k] + STATES, STATES) * dys[COUNT - 1 - k][None, :]
        dB = adjoint * (steps[COUNT - 1 - k] * us[COUNT - 1 - k])[None, :]
        dB = _fold(dB, lane, ASM) if EXCHANGE else tl.sum(dB, 1)
        _share(dB, dCs[COUNT - 1 - k], at_shares[k], lane, again, ASM, EXCHANGE, ACCUMULATE, STATES)
        ddrive = tl.sum(adjoint * B, 0)
        # With what is left of the state before, as a product: h - D_t B u would cancel.
        adjoint *= decays[COUNT - 1 - k]
        dexponent = adjoint * befores[COUNT - 1 - k]
        dA += dexponent * steps[COUNT - 1 - k][None, :]
        dstep = us[COUNT - 1 - k] * ddrive + LN_2 * tl.sum(dexponent * a, 0)
        ddelta = dstep
        if SOFTPLUS:
            ddelta *= _step_slope(values[k * 2 + 1], bias, a.dtype, ASM)
        dbias += ddelta
        du = steps[COUNT - 1 - k] * ddrive
        if skip is not None:
            du += skip * dys[COUNT - 1 - k]
            dskip += dys[COUNT - 1 - k] * us[COUNT - 1 - k]
        results += (du, ddelta)
        if GATED:
            results += (dzs[COUNT - 1 - k],)
    for k in tl.static_range(COUNT):
        for i in tl.static_range(len(outputs)):
            tl.store(outputs[i], results[k * len(outputs) + i].to(outputs[i].dtype.element_ty), mask=exists)
        row, hop = _hop(row, slices, columns, REVERSE, SLICED, True)
        outputs = _moved(outputs, output_strides, hop)
    return adjoint, dA, dskip, dbias, inputs, outputs, rows, shares, row


@triton.jit
def _keep_states(
    state, first, pairs, kept, inputs, strides, rows, a, bias, length, slices,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr, ASM: tl.constexpr, STATES: tl.constexpr,
):  # fmt: skip
    """Forward over pairs of tokens from the token ``first``; the state before each goes to the tiles ``kept``."""
    columns = length // slices
    address = token_address(first, length, slices, REVERSE, SLICED).to(tl.int64)
    pointers = _moved(inputs, strides, address)
    rows += address * 2 * STATES
    row = first % slices
    ahead, pointers, read_row = _read(pointers, strides, row, slices, columns, pairs > 0, 2, REVERSE, SLICED, False)
    for i in range(pairs):
        tl.store(kept + i * (STATES * LANES), state)
        now = ahead
        if i + 1 < pairs:
            ahead, pointers, read_row = _read(
                pointers, strides, read_row, slices, columns, True, 2, REVERSE, SLICED, False
            )
        for k in tl.static_range(2):
            u = now[2 * k].to(a.dtype)
            step = _step(now[2 * k + 1], bias, a.dtype, SOFTPLUS, ASM)
            state = exp2(step[None, :] * a, ASM) * state + (step * u)[None, :] * _row(rows, STATES)
            row, hop = _hop(row, slices, columns, REVERSE, SLICED, False)
            rows += 2 * STATES * hop
    return state


_BACKWARD_INTEGERS = _integers(
    "u delta z dout du ddelta dz dlast", "parts", "blocks_per_part", "scratch_size", "A_d", "A_n", "dlast_n"
)


@triton.jit(do_not_specialize=_BACKWARD_INTEGERS)
def backward_kernel(
    u, delta, z, dout, rows, A, D, delta_bias, states, starts, dlast, du, ddelta, dz, shares, dA, dD, dbias, scratch,
    batch, d, groups, length, blocks, parts, blocks_per_part, segment_tokens, slices, scratch_size, A_d, A_n,
    u_b, u_d, u_l, delta_b, delta_d, delta_l, z_b, z_d, z_l, dout_b, dout_d, dout_l,
    du_b, du_d, du_l, ddelta_b, ddelta_d, ddelta_l, dz_b, dz_d, dz_l, dlast_b, dlast_d, dlast_n,
    SOFTPLUS: tl.constexpr, REVERSE: tl.constexpr, SLICED: tl.constexpr, ASM: tl.constexpr, EXCHANGE: tl.constexpr,
    ACCUMULATE: tl.constexpr, N: tl.constexpr, STATES: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """Walk back over a segment. Program: segment, batch entry, group, part of the group's blocks of channels.

    The states of a chunk are recomputed from the stored one, and every second is kept in the scratch.
    """
    part, group, entry, segment = _place(parts, groups, batch)
    columns = length // slices
    dtype: tl.constexpr = A.dtype.element_ty
    matrix = tl.cdiv(d, LANES) * (N * LANES)
    real = (tl.arange(0, STATES) < N)[:, None]
    lane = tl.arange(0, LANES)[None, :]
    first_block = part * blocks_per_part
    end_block = first_block + 1
    if ACCUMULATE:
        end_block = tl.minimum(first_block + blocks_per_part, blocks)
    for block in range(first_block, end_block):
        channel, exists = _channels(_here(block, ASM), group, d, groups)
        stored = real & exists[None, :]
        a = _decay_rates(A, channel, A_d, A_n, N, STATES)
        bias = None if delta_bias is None else tl.load(delta_bias + channel)
        skip = None if D is None else tl.load(D + channel)
        if starts is not None:
            start = starts + (_here(segment, ASM) * batch + entry).to(tl.int64) * matrix
            after = _tile(start, _place_in_tiles(channel, N), STATES)
        else:
            sample = _here(entry, ASM).to(tl.int64)
            wide = channel.to(tl.int64)
            after = dlast + sample * dlast_b + wide[None, :] * dlast_d + tl.arange(0, STATES)[:, None] * dlast_n
            after = tl.max_contiguous(after, [1, LANES])
        adjoint = tl.load(after, mask=stored, other=0.0)
        dskip = tl.zeros([LANES], dtype)
        dbias_sum = tl.zeros([LANES], dtype)

        begin = _here(segment, ASM) * segment_tokens
        end = tl.minimum(begin + segment_tokens, length)
        for back in range(0, tl.cdiv(end - begin, CHUNK)):
            chunk = (end - 1) // CHUNK - _here(back, ASM)
            first = chunk * CHUNK
            count = tl.minimum(first + CHUNK, end) - first
            pairs = count // 2
            sample = _here(entry, ASM).to(tl.int64)
            wide = _here(channel, ASM).to(tl.int64)
            before = _tile(
                states + (sample * tl.cdiv(length, CHUNK) + chunk) * _here(matrix, ASM),
                _place_in_tiles(_here(channel, ASM), N), STATES,
            )  # fmt: skip
            inputs = (u + sample * u_b + wide * u_d, delta + sample * delta_b + wide * delta_d)
            sample_row = (_here(entry, ASM) * groups + group).to(tl.int64) * length
            state = _keep_states(
                tl.load(before, mask=real, other=0.0), first, pairs, _scratch(scratch, scratch_size, STATES, ASM),
                inputs, (u_l, delta_l), rows + sample_row * 2 * STATES, a, bias, length, slices,
                SOFTPLUS, REVERSE, SLICED, ASM, STATES,
            )  # fmt: skip
            tl.debug_barrier()

            sample = _here(entry, ASM).to(tl.int64)
            wide = _here(channel, ASM).to(tl.int64)
            inputs = (u + sample * u_b + wide * u_d, delta + sample * delta_b + wide * delta_d)
            input_strides = (u_l, delta_l)
            gradients = (dout + sample * dout_b + wide * dout_d,)
            gradient_strides = (dout_l,)
            outputs = (du + sample * du_b + wide * du_d, ddelta + sample * ddelta_b + wide * ddelta_d)
            output_strides = (du_l, ddelta_l)
            if z is not None:
                gradients += (z + sample * z_b + wide * z_d,)
                gradient_strides += (z_l,)
                outputs += (dz + sample * dz_b + wide * dz_d,)
                output_strides += (dz_l,)
            sample_row = (_here(entry, ASM) * groups + group).to(tl.int64) * length
            share_row = ((_here(part, ASM) * batch + entry) * groups + group).to(tl.int64) * length
            again = block > _here(part, ASM) * blocks_per_part
            chunk_shares = shares + share_row * 2 * STATES
            if EXCHANGE:
                chunk_shares += _place_in_share(_here(lane, ASM), STATES)
            dA_chunk = tl.zeros([STATES, LANES], dtype)
            if count % 2 == 1:  # the last token alone, so that pairs are left
                latest = first + count - 1
                address = token_address(latest, length, slices, REVERSE, SLICED).to(tl.int64)
                values, _1, _2 = _read(
                    _moved(gradients, gradient_strides, address), gradient_strides, latest % slices, slices, columns,
                    True, 1, REVERSE, SLICED, True,
                )  # fmt: skip
                adjoint, dA_chunk, dskip, dbias_sum, _3, _4, _5, _6, _7 = _back(
                    adjoint, dA_chunk, dskip, dbias_sum, state, values,
                    _moved(inputs, input_strides, address), input_strides,
                    _moved(outputs, output_strides, address), output_strides,
                    rows + (sample_row + address) * 2 * STATES, chunk_shares + address * 2 * STATES,
                    latest % slices, a, bias, skip, exists, lane, again, slices, columns,
                    1, SOFTPLUS, REVERSE, SLICED, ASM, EXCHANGE, ACCUMULATE, STATES,
                )  # fmt: skip

            latest = first + 2 * pairs - 1
            row = latest % slices
            address = token_address(latest, length, slices, REVERSE, SLICED).to(tl.int64)
            inputs = _moved(inputs, input_strides, address)
            outputs = _moved(outputs, output_strides, address)
            row_pointer = _varying(rows + (sample_row + address) * 2 * STATES, ASM)
            share_pointer = chunk_shares + address * 2 * STATES
            kept = _scratch(scratch, scratch_size, STATES, ASM)
            ahead, gradients, read_row = _read(
                _moved(gradients, gradient_strides, address), _all_here(gradient_strides, ASM), row, slices, columns,
                pairs > 0, 2, REVERSE, SLICED, True,
            )  # fmt: skip
            for i in range(pairs):
                input_strides = _all_here((u_l, delta_l), ASM)
                gradient_strides = _all_here(gradient_strides, ASM)
                output_strides = _all_here(output_strides, ASM)
                state = tl.load(kept + (pairs - 1 - i) * (STATES * LANES))
                values = ahead
                if i + 1 < pairs:
                    ahead, gradients, read_row = _read(
                        gradients, gradient_strides, read_row, slices, columns, True, 2, REVERSE, SLICED, True
                    )
                adjoint, dA_chunk, dskip, dbias_sum, inputs, outputs, row_pointer, share_pointer, row = _back(
                    adjoint, dA_chunk, dskip, dbias_sum, state, values, inputs, input_strides, outputs, output_strides,
                    row_pointer, share_pointer, row, a, bias, skip, exists, lane, again, slices, columns,
                    2, SOFTPLUS, REVERSE, SLICED, ASM, EXCHANGE, ACCUMULATE, STATES,
                )  # fmt: skip
            # Summed chunk by chunk, which rounds far less than one long sum.
            place = _place_in_tiles(_here(channel, ASM), N)
            dA_tile = _tile(dA + (_here(segment, ASM) * batch + entry).to(tl.int64) * _here(matrix, ASM), place, STATES)
            tl.store(dA_tile, dA_chunk + tl.load(dA_tile, mask=stored & (back > 0), other=0.0), mask=stored)
            tl.debug_barrier()  # the scratch is free again
        vector = (_here(segment, ASM) * batch + entry).to(tl.int64) * tl.cdiv(d, LANES) * LANES
        vector += _here(channel, ASM)
        if D is not None:
            tl.store(dD + vector, dskip, mask=exists)
        if delta_bias is not None:
            tl.store(dbias + vector, dbias_sum, mask=exists)
        tl.debug_barrier()  # the shares of this block are there to be added to


# ---- Launches --------------------------------------------------------------------------------------------------------


def states_shape(batch: int, d: int, length: int, n: int) -> tuple[int, ...]:
    """Shape of the stored states: tiles of 32 channels, one set per chunk of CHUNK tokens."""
    return batch, (length + CHUNK - 1) // CHUNK, (d + LANES.value - 1) // LANES.value, n, LANES.value


def _multiprocessors(device: torch.device) -> int:
    if dry_backend() is not None:
        return _H100
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def segment_tokens(programs: int, length: int, multiprocessors: int, per_multiprocessor: int, shortest: int) -> int:
    """Tokens of a segment, a multiple of CHUNK; the length or more where the sequence is not cut.

    ESTIMATED from instruction counts, as nothing was measured on a GPU yet; to be replaced by a table of what
    kernels/benchmarks measures. A program is one warp. With about 3 on a multiprocessor one pass keeps the exponentials
    busier than the two that segments take; below, the cut aims at as many programs as run at once.

    Args:
        programs: Programs of one segment: batch · blocks of channels.
        length: Tokens.
        multiprocessors: Of the GPU.
        per_multiprocessor: How many programs a multiprocessor holds by their registers.
        shortest: Fewer tokens are not worth two more launches and, backward, a scratch.
    """
    count = 1 if programs >= 3 * multiprocessors else per_multiprocessor * multiprocessors // programs
    tokens = max(-(-length // max(count, 1)), shortest)
    return -(-tokens // CHUNK) * CHUNK


class _Launch:
    """Sizes of one call and the constants of its kernels."""

    def __init__(self, u: Tensor, A: Tensor, B: Tensor, delta_softplus: bool, order: Order):
        self.batch, self.d, self.length = u.shape
        self.groups, self.n = B.shape[1:3]
        self.device, self.dtype = u.device, A.dtype
        self.blocks = -(-self.d // self.groups // LANES.value)
        asm = uses_asm(A.dtype)
        states = triton.next_power_of_2(self.n)
        self.constants = {
            "SOFTPLUS": delta_softplus,
            "REVERSE": order.reverse,
            "SLICED": 1 < order.slices < self.length,
            "ASM": asm,
            "N": self.n,
            "STATES": states,
        }
        self.forward_warps, self.backward_warps = (_warps(states, A.element_size(), x) for x in (False, True))
        # The exchange between lanes is written for one warp of NVIDIA's; elsewhere the compiler sums over lanes.
        self.exchange = asm and self.backward_warps == 1
        self.slices = order.slices
        self.tiles = -(-self.d // LANES.value)

    def segments(self, programs: int, per_multiprocessor: int, shortest: int) -> tuple[int, int]:
        """Tokens of a segment and number of segments; see :func:`segment_tokens`."""
        multiprocessors = _multiprocessors(self.device)
        tokens = segment_tokens(programs, self.length, multiprocessors, per_multiprocessor, shortest)
        return tokens, -(-self.length // tokens)

    def empty(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=self.dtype, device=self.device)

    def rows(self, B: Tensor, C: Tensor) -> Tensor:
        """B and C as aligned rows (batch, groups, L, 2, STATES) in memory order, read by every program of a group."""
        states = self.constants["STATES"]
        rows = self.empty(self.batch, self.groups, self.length, 2, states)
        if states > self.n:
            rows[..., self.n :].zero_()
        rows[..., 0, : self.n].copy_(B.transpose(-1, -2))
        rows[..., 1, : self.n].copy_(C.transpose(-1, -2))
        return rows

    def starts(
        self, x: Tensor, delta: Tensor, z: Tensor | None, rows: Tensor, A: Tensor, delta_bias: Tensor | None,
        tokens: int, count: int, first: Tensor | None,
    ) -> Tensor | None:  # fmt: skip
        """States that the segments start from, tiles (segments, batch, ...), or for the gradient with ``first``, what
        comes from the end, adjoints; None if there is one segment."""
        if count == 1:
            return None
        adjoint = first is not None
        ends, starts = (self.empty(count, self.batch, self.tiles, self.n, LANES.value) for _ in range(2))
        sums = self.empty(count, self.batch, self.tiles, LANES.value)
        programs = (count - 1) * self.batch * self.groups * self.blocks
        launcher(summary_kernel, programs)(
            x, delta, z, rows, A, delta_bias, ends, sums,
            self.batch, self.d, self.groups, self.length, self.blocks, tokens, self.slices, *A.stride(),
            *x.stride(), *delta.stride(), *_strides(z),
            ADJOINT=adjoint, TOKENS=TOKENS, **self.constants, num_warps=self.forward_warps,
        )  # fmt: skip
        launcher(carry_kernel, self.batch * self.tiles * self.n)(
            ends, sums, A, first, starts,
            self.batch, self.d, count, *A.stride(), *_strides(first),
            ADJOINT=adjoint, ASM=self.constants["ASM"], N=self.n, COUNT=SUMMARIES, num_warps=1,
        )  # fmt: skip
        return starts


def _warps(states: int, size: int, backward: bool) -> int:
    """Warps of a program, which share its states of ``size`` bytes: as few as it takes to stay within registers."""
    warps = max(1, states * size // 64)
    if backward and size == 8:
        return min(4 * warps, 8)
    return 2 * warps if backward and warps > 1 else warps


def _strides(x: Tensor | None) -> tuple[int, ...]:
    return (0, 0, 0) if x is None else x.stride()


def _contiguous(x: Tensor | None) -> Tensor | None:
    return None if x is None else x.contiguous()


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
    """out, the last state and the stored states (empty without ``save_states``), for checked arguments."""
    launch = _Launch(u, A, B, delta_softplus, order)
    D, delta_bias = _contiguous(D), _contiguous(delta_bias)
    out = torch.empty_like(u)
    last = launch.empty(launch.batch, launch.d, launch.n)
    states = launch.empty(*states_shape(*u.shape, launch.n)) if save_states else launch.empty(0)
    programs = launch.batch * launch.groups * launch.blocks
    tokens, count = launch.segments(programs, per_multiprocessor=16, shortest=256)
    with on_device(u):
        rows = launch.rows(B, C)
        starts = launch.starts(u, delta, z, rows, A, delta_bias, tokens, count, None)
        launcher(forward_kernel, programs * count)(
            u, delta, z, rows, A, D, delta_bias, starts, out, states if save_states else None, last,
            launch.batch, launch.d, launch.groups, launch.length, launch.blocks, tokens, launch.slices, *A.stride(),
            *u.stride(), *delta.stride(), *_strides(z), *out.stride(), *last.stride(),
            CHUNK=CHUNK, TOKENS=TOKENS, **launch.constants, num_warps=launch.forward_warps,
        )  # fmt: skip
    return out, last, states


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
    launch = _Launch(u, A, B, delta_softplus, order)
    batch, n = launch.batch, launch.n
    D, delta_bias = _contiguous(D), _contiguous(delta_bias)
    du, ddelta = torch.empty_like(u), torch.empty_like(delta)
    dz = None if z is None else torch.empty_like(z)

    parts = _parts(launch, (u, delta, B, C, *(() if z is None else (z,))))
    blocks_per_part = -(-launch.blocks // parts)
    parts = -(-launch.blocks // blocks_per_part)
    programs = batch * launch.groups * parts
    # A program's scratch is as large as u and delta in float32 for 128 tokens of its channels.
    tokens, count = launch.segments(programs, per_multiprocessor=8, shortest=1024 // u.element_size())
    tile = launch.constants["STATES"] * LANES.value
    scratch = launch.empty(programs * count, CHUNK // 2, tile)
    with on_device(u):
        rows = launch.rows(B, C)
        starts = launch.starts(dout, delta, z, rows, A, delta_bias, tokens, count, dlast)
        shares = launch.empty(parts, *rows.shape)
        dA = launch.empty(count, batch, launch.tiles, n, LANES.value)
        vectors = count, batch, launch.tiles, LANES.value
        dD, dbias = (None if x is None else launch.empty(*vectors) for x in (D, delta_bias))
        launcher(backward_kernel, programs * count)(
            u, delta, z, dout, rows, A, D, delta_bias, states, starts, dlast, du, ddelta, dz, shares, dA, dD, dbias,
            scratch,
            batch, launch.d, launch.groups, launch.length, launch.blocks, parts, blocks_per_part, tokens, launch.slices,
            CHUNK // 2 * tile, *A.stride(),
            *u.stride(), *delta.stride(), *_strides(z), *dout.stride(),
            *du.stride(), *ddelta.stride(), *_strides(dz), *dlast.stride(),
            EXCHANGE=launch.exchange, ACCUMULATE=blocks_per_part > 1, CHUNK=CHUNK, **launch.constants,
            num_warps=launch.backward_warps,
        )  # fmt: skip
        del scratch, rows
        sums = shares[0] if parts == 1 else shares.sum(0)
    dB, dC = (torch.empty_like(x).copy_(sums[..., i, :n].transpose(-1, -2)) for i, x in enumerate((B, C)))
    dA = torch.empty_like(A).copy_(_of_channels(dA, launch.d))
    dD, dbias = (None if x is None else _of_channels(x, launch.d) for x in (dD, dbias))
    return du, ddelta, dA, dB, dC, dD, dz, dbias


def _parts(launch: _Launch, inputs: tuple[Tensor, ...]) -> int:
    """Shares of dB and dC per group: one per block of channels, or fewer to stay below half of the inputs' size."""
    share = launch.batch * launch.groups * launch.length * 2 * launch.constants["STATES"] * launch.dtype.itemsize
    size = sum(x.numel() * x.element_size() for x in inputs)
    return max(1, min(launch.blocks, size // 2 // share))


def _of_channels(parts: Tensor, d: int) -> Tensor:
    """Sum tiles (segments, batch, tiles, ..., LANES) over segments and batch: (d, ...)."""
    return parts.sum((0, 1)).movedim(-1, 1).flatten(0, 1)[:d]


# ---- Without a GPU ---------------------------------------------------------------------------------------------------


def compiled_cases() -> list[CompiledCase]:
    """The kernels in the variants that matter, for 16 states where nothing else is said."""
    plain: dict[str, Any] = {"z": None, "dz": None, "delta_bias": None, "dbias": None}
    full: dict[str, Any] = {"SOFTPLUS": True}
    one_pass, segments = {"starts": None}, {"dlast": None}
    orders, several = {"REVERSE": True, "SLICED": True}, {"ACCUMULATE": True}
    forward_steps, backward_steps = (TOKENS,), (2, 2)  # backward: the way back, and the states before it
    return [
        _case("forward, no softplus, no gate", forward_kernel, forward_steps, plain | one_pass),
        _case("forward", forward_kernel, forward_steps, full | one_pass),
        _case("forward of segments", forward_kernel, forward_steps, full),
        _case("forward, sliced and reverse", forward_kernel, forward_steps, full | one_pass | orders),
        _case("forward, bfloat16", forward_kernel, forward_steps, full | one_pass, "bf16"),
        _case("forward, 64 states", forward_kernel, forward_steps, full | one_pass, states=64),
        _case("forward, float64", forward_kernel, forward_steps, full | one_pass, "fp64"),
        _case("summary", summary_kernel, forward_steps, full | {"z": None}),
        _case("summary of adjoints", summary_kernel, forward_steps, full | {"ADJOINT": True}),
        _case("carry", carry_kernel, (SUMMARIES,), {"first": None}),
        _case("backward, no softplus, no gate", backward_kernel, backward_steps, plain | one_pass),
        _case("backward", backward_kernel, backward_steps, full | one_pass),
        _case("backward of segments", backward_kernel, backward_steps, full | segments),
        _case("backward, sliced and reverse", backward_kernel, backward_steps, full | segments | orders),
        _case("backward, bfloat16", backward_kernel, backward_steps, full | segments, "bf16"),
        _case("backward, shares of several blocks", backward_kernel, backward_steps, full | segments | several),
        _case("backward, 64 states", backward_kernel, backward_steps, full | segments, states=64),
        _case("backward, float64", backward_kernel, backward_steps, full | segments, "fp64"),
    ]


def _case(
    name: str, kernel: Any, steps: tuple[int, ...], constants: dict[str, Any], stored: str = "fp32", states: int = 16
) -> CompiledCase:
    kept = "fp64" if stored == "fp64" else "fp32"
    warps = _warps(states, 8 if kept == "fp64" else 4, kernel is backward_kernel)
    constants = {
        **dict.fromkeys(("SOFTPLUS", "REVERSE", "SLICED", "ADJOINT", "ACCUMULATE"), False),
        **{"N": states, "STATES": states, "CHUNK": CHUNK, "TOKENS": TOKENS, "COUNT": SUMMARIES},
        **{"ASM": kept == "fp32", "EXCHANGE": kept == "fp32" and warps == 1},
        **constants,
    }
    pointers = dict.fromkeys(("u", "delta", "z", "dout", "out", "du", "ddelta", "dz", "x"), f"*{stored}:16")
    tensors = "rows A D delta_bias starts states last dlast shares dA dD dbias scratch ends sums first"
    pointers |= dict.fromkeys(tensors.split(), f"*{kept}:16")
    return CompiledCase(
        f"scan {name}",
        kernel,
        {x: pointers.get(x, "i32") for x in kernel.arg_names if x not in constants},
        {x: value for x, value in constants.items() if x in kernel.arg_names},
        warps,
        steps,
    )
