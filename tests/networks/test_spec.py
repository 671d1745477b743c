"""What a network's entry makes of a patch."""

import pytest

from umamba_seg.errors import UserError
from umamba_seg.networks import find
from umamba_seg.networks.spec import FixedLevels

LEVELS = FixedLevels(features=(32, 64, 128, 256), narrowest=16)


@pytest.mark.parametrize(
    ("wished", "patch"),
    [((40, 56, 40), (40, 56, 40)), ((36, 53, 1), (32, 56, 8)), ((5, 8, 3), (8, 8, 16)), ((30, 29), (32, 32))],
)
def test_a_patch_is_brought_to_the_nearest_extent_that_the_levels_divide(wished, patch):
    topology = LEVELS.topology(wished)
    assert topology.patch_size == patch
    assert topology.total_stride == (8,) * len(patch)
    assert topology.features == (32, 64, 128, 256)


def test_width_scales_the_features_down_to_the_narrowest():
    assert LEVELS.topology((16, 16), width=0.75).features == (24, 48, 96, 192)
    assert LEVELS.topology((16, 16), width=0.25).features == (16, 32, 64, 128)


def test_segmamba_s_slices_are_the_planes_of_the_first_axis():
    spec = find("segmamba")
    assert spec.planned(spec.levels.topology((128, 128, 128))) == {
        "features_per_stage": [48, 96, 192, 384],
        "hidden_size": 768,
        "slices": [64, 32, 16, 8],
    }
    assert spec.planned(spec.levels.topology((50, 60, 20), width=0.25)) == {
        "features_per_stage": [12, 24, 48, 96],
        "hidden_size": 192,
        "slices": [24, 12, 6, 3],
    }


def test_dimensions_that_a_network_does_not_have_are_refused():
    with pytest.raises(UserError, match=r"network segmamba: 2-D was asked for; this network is 3-D only"):
        find("segmamba").planned(LEVELS.topology((16, 16)))
