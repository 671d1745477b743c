"""The search for patch and batch: the largest patch of which two samples fit, then as many samples as fit."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from umamba_seg.networks import Topology

SMALLEST_BATCH = 2

Memory = Callable[[Topology, int], int]
"""Bytes of a training step by topology and batch size."""


@dataclass(frozen=True)
class Trial:
    """A patch that was looked at, and what two samples of it take."""

    topology: Topology
    bytes: int


def largest_that_fits(
    candidates: Sequence[Topology], memory: Memory, limit: float, guess: float | None = None
) -> tuple[Topology | None, list[Trial]]:
    """The first of ``candidates`` of which two samples take ``limit`` bytes at most, and what was tried, in order.

    Args:
        candidates: Largest first. Memory should fall along them, about as the voxels do: what the last trial took for a
            voxel says which candidate to try next.
        memory: What a step takes.
        limit: Bytes.
        guess: Voxels of the patch to try first; the middle of the list by default.

    Returns:
        The topology, None if even the last takes more, and the trials.
    """
    tried: list[Trial] = []
    first, last = 0, len(candidates)
    next_one = last // 2 if guess is None else min(_larger_than(guess, candidates), last - 1)
    while first < last:
        tried.append(Trial(candidates[next_one], memory(candidates[next_one], SMALLEST_BATCH)))
        if tried[-1].bytes <= limit:
            last = next_one
        else:
            first = next_one + 1
        voxels = limit / tried[-1].bytes * math.prod(candidates[next_one].patch_size)
        next_one = min(max(_larger_than(voxels, candidates), first), last - 1)
    return (candidates[first] if first < len(candidates) else None), tried


def _larger_than(voxels: float, candidates: Sequence[Topology]) -> int:
    return sum(math.prod(candidate.patch_size) > voxels for candidate in candidates)


def batch_within(topology: Topology, memory: Memory, limit: float) -> float:
    """How many samples take ``limit`` bytes, not rounded.

    Memory grows with the batch along straight lines, one for each op at which the peak may lie, and the steepest wins
    in the end: beyond two batches it is above their secant, between them below. The secant therefore says which batch
    to try next, and the search ends between two neighbours.

    Args:
        topology: Of which two samples fit.
        memory: What a step takes.
        limit: Bytes.
    """
    low, at_low = SMALLEST_BATCH, memory(topology, SMALLEST_BATCH)
    high, at_high = math.inf, math.inf
    guess = low * limit / at_low
    while high - low > 1:
        batch = int(min(max(low + 1, guess), high - 1))
        at_batch = memory(topology, batch)
        slope = (at_batch - at_low) / (batch - low)
        if at_batch <= limit:
            low, at_low = batch, at_batch
            guess = low + (limit - at_low) / slope if slope else 2 * low
        else:
            high, at_high = batch, at_batch
            guess = low + (limit - at_low) / slope
            if guess < low + 1:  # the lines are far apart
                guess = (low + high) / 2
    return low + (limit - at_low) / (at_high - at_low)
