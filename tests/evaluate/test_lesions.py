"""Lesions by hand, and against components that are grown voxel by voxel."""

import itertools

import numpy as np
import pytest

from umamba_seg.evaluate.lesions import match_lesions


def grown(mask):
    """Components of 26 (in 2-D 8) neighbours as sets of voxels."""
    left, found = set(map(tuple, np.argwhere(mask))), []
    steps = list(itertools.product((-1, 0, 1), repeat=mask.ndim))
    while left:
        component, edge = set(), {left.pop()}
        while edge:
            component |= edge
            edge = {tuple(np.add(voxel, step).tolist()) for voxel in edge for step in steps} & left
            left -= edge
        found.append(component)
    return found


@pytest.mark.parametrize("seed", range(10))
def test_matches_grown_components(seed):
    rng = np.random.default_rng(seed)
    shape = (5, 6, 7) if seed % 2 else (12, 13)
    r, p = rng.random(shape) < 0.12, rng.random(shape) < 0.12
    lesions, components = grown(r), grown(p)
    found = sum(any(p[voxel] for voxel in lesion) for lesion in lesions)
    true = sum(any(r[voxel] for voxel in component) for component in components)
    assert match_lesions(r, p) == (found, len(lesions) - found, len(components) - true)


def test_corners_touch_and_one_component_finds_several_lesions():
    r, p = np.zeros((3, 9), bool), np.zeros((3, 9), bool)
    r[0, 0] = r[1, 1] = True  # one lesion, by a corner
    r[0, 4] = r[0, 8] = True
    p[0, 1:5] = p[1, 1] = True  # overlaps the first two
    p[2, 6] = True
    assert match_lesions(r, p) == (2, 1, 1)
