"""The search for patch and batch, against trying every one."""

import math
import random

import pytest

from umamba_seg.networks import Topology
from umamba_seg.plan.search import SMALLEST_BATCH, batch_within, largest_that_fits
from umamba_seg.plan.topology import topology_for


def patches_of_falling_size(count: int) -> list[Topology]:
    return [Topology((8 * (count - i), 8), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (4, 8)) for i in range(count)]


def searched(patches: list[Topology], bytes_of: dict[Topology, int], limit: float, guess: float | None = None):
    """``largest_that_fits`` by a table of what two samples take."""

    def memory(topology, batch_size):
        assert batch_size == SMALLEST_BATCH
        return bytes_of[topology]

    return largest_that_fits(patches, memory, limit, guess)


def test_the_first_patch_that_fits_is_found_for_any_memory_that_falls():
    draw = random.Random(0)
    for _ in range(300):
        patches = patches_of_falling_size(draw.randint(1, 40))
        falling = sorted((draw.randint(1, draw.choice((5, 10**9))) for _ in patches), reverse=True)
        bytes_of = dict(zip(patches, falling, strict=True))
        limit = draw.choice((*falling, draw.randint(0, max(falling))))
        guess = draw.choice((None, draw.uniform(1, 5000)))
        found, tried = searched(patches, bytes_of, limit, guess)
        assert found == next((patch for patch in patches if bytes_of[patch] <= limit), None)
        assert len({trial.topology for trial in tried}) == len(tried)
        assert all(trial.bytes == bytes_of[trial.topology] for trial in tried)


@pytest.mark.parametrize("fixed", [0, 10**5, 10**6], ids=lambda fixed: f"{fixed} bytes whatever the patch")
def test_no_more_patches_are_tried_than_by_halving_where_memory_goes_about_as_the_voxels(fixed):
    patches = patches_of_falling_size(200)
    bytes_of = {patch: fixed + 1000 * math.prod(patch.patch_size) for patch in patches}
    for wanted in (*patches[::7], patches[-1]):
        found, tried = searched(patches, bytes_of, bytes_of[wanted])
        assert found == wanted
        assert len(tried) <= math.log2(200) + 1


def test_the_patch_of_the_guess_is_tried_first():
    patches = patches_of_falling_size(200)
    bytes_of = {patch: math.prod(patch.patch_size) for patch in patches}
    for wanted in (patches[0], patches[77], patches[-1]):
        found, tried = searched(patches, bytes_of, bytes_of[wanted], guess=bytes_of[wanted])
        assert found == tried[0].topology == wanted
        assert len(tried) <= 2


def test_where_nothing_fits_the_smallest_patch_was_tried():
    patches = patches_of_falling_size(9)
    found, tried = searched(patches, dict.fromkeys(patches, 10), 9)
    assert found is None
    assert patches[-1] in {trial.topology for trial in tried}


def test_as_many_samples_are_found_as_by_adding_one_after_the_other():
    """Memory is the maximum of straight lines; one of them may be the optimizer's step, which is flat."""
    draw, patch = random.Random(0), topology_for((16, 16))
    for _ in range(300):
        lines = [(draw.randint(1, 10**6), draw.randint(1, draw.choice((10, 1000, 10**5)))) for _ in range(3)]
        lines += [(draw.randint(1, 10**6), 0)] * draw.randint(0, 1)

        def memory(_patch, batch_size, lines=lines):
            return max(base + slope * batch_size for base, slope in lines)

        limit = memory(patch, draw.randint(2, draw.choice((4, 60)))) + draw.randint(0, 10**5)
        most = SMALLEST_BATCH
        while memory(patch, most + 1) <= limit:
            most += 1
        assert int(batch_within(patch, memory, limit)) == most, (lines, limit)


@pytest.mark.parametrize(
    ("flat", "limit", "samples"), [(0, 1000, 10), (0, 1049, 10.49), (500, 1049, 10.49), (900, 910, 9.1), (200, 200, 2)]
)
def test_the_batch_is_not_rounded(flat, limit, samples):
    found = batch_within(topology_for((16, 16)), lambda _patch, batch_size: max(flat, 100 * batch_size), limit)
    assert found == pytest.approx(samples)
