"""The topology of a patch is the one that nnU-Net's planner gives it, and the patches that are tried for a data set."""

import math
from itertools import pairwise

import pytest

from umamba_seg.errors import UserError
from umamba_seg.networks import find
from umamba_seg.plan.topology import FEWEST_STAGES, fixed_topologies, largest_patch, open_topologies, topology_for


def test_anisotropic_patch_of_a_large_ct():
    topology = topology_for((40, 224, 192), spacing=(2.5, 0.8, 0.8))
    assert topology.strides == ((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2))
    assert topology.kernel_sizes == ((1, 3, 3), *((3, 3, 3),) * 5)
    assert topology.features == (32, 64, 128, 256, 320, 320)


def test_features_are_doubled_up_to_a_cap():
    assert topology_for((320, 320)).features == (32, 64, 128, 256, 512, 512, 512)
    assert topology_for((32, 32, 32), base_features=8, max_features=20).features == (8, 16, 20, 20)


def test_patch_is_rounded_up_to_what_the_strides_divide():
    topology = topology_for((150, 40, 13))
    assert topology.total_stride == (16, 8, 2)
    assert topology.patch_size == (160, 40, 14)
    assert all(type(extent) is int for extent in topology.patch_size)


def test_patch_that_cannot_be_halved_is_refused():
    with pytest.raises(UserError, match=r"patch 6×7: .*; give 8 voxels"):
        topology_for((6, 7))
    assert topology_for((12, 1)).total_stride == (2, 1)
    assert topology_for((8, 8, 1)).total_stride == (2, 2, 1)


DATA_SETS = {  # spacing in mm, median shape
    "isotropic CT": ((0.8, 0.8, 0.8), (512, 512, 512)),
    "anisotropic cardiac": ((10.0, 1.56, 1.56), (10, 256, 216)),
    "spleen": ((1.6, 0.79, 0.79), (187.5, 512, 512)),
    "brain": ((1.0, 1.0, 1.0), (138, 170, 138)),
    "hippocampus": ((1.0, 1.0, 1.0), (36, 50, 35)),
    "tiny": ((6.0, 2.5, 2.5), (14, 32, 36)),
    "slices": ((1.56, 1.56), (256, 216)),
    "microscopy": ((0.2, 0.2), (4000, 3000.5)),
}
VOLUMES = [name for name, (spacing, _) in DATA_SETS.items() if len(spacing) == 3]


def test_the_largest_patch_is_a_cube_in_mm_within_the_images():
    assert largest_patch((1.0, 1.0, 1.0), (512, 512, 512)) == (256, 256, 256)
    assert largest_patch((4.0, 1.0, 1.0), (512, 512, 512)) == (102, 406, 406)
    assert largest_patch((1.0, 1.0, 1.0), (138, 170.5, 300)) == (138, 170.5, 256)
    assert largest_patch((0.2, 0.2), (4000, 1000)) == (2048, 1000)


@pytest.mark.parametrize(
    ("spacing", "shape"),
    [
        ((0.0, 1.0, 1.0), (10, 10, 10)),
        ((-1.0, 1.0, 1.0), (10, 10, 10)),
        ((math.nan, 1.0, 1.0), (10, 10, 10)),
        ((math.inf, 1.0, 1.0), (10, 10, 10)),
        ((1.0, 1.0, 1.0), (0, 10, 10)),
        ((1.0, 1.0, 1.0), (10, math.nan, 10)),
    ],
)
def test_images_without_spacing_or_extent_are_refused(spacing, shape):
    with pytest.raises(UserError, match=r"spacing .* mm, images of .* voxels: no patch can be planned .* headers"):
        largest_patch(spacing, shape)


def coarsest_map(topology):
    return [extent // step for extent, step in zip(topology.patch_size, topology.total_stride, strict=True)]


@pytest.mark.parametrize("data_set", DATA_SETS)
def test_patches_for_an_open_depth_shrink_from_the_whole_image_to_three_stages(data_set):
    spacing, shape = DATA_SETS[data_set]
    topologies = list(open_topologies(spacing, shape, 32))
    largest = largest_patch(spacing, shape)
    assert all(extent >= whole for extent, whole in zip(topologies[0].patch_size, largest, strict=True))
    assert len(topologies[-1].strides) == FEWEST_STAGES
    for topology in topologies:
        assert topology == topology_for(topology.patch_size, spacing)
        assert len(topology.strides) >= FEWEST_STAGES
        assert min(coarsest_map(topology)) >= 4
    for larger, smaller in pairwise(topologies):
        assert math.prod(smaller.patch_size) < math.prod(larger.patch_size)


def test_features_of_an_open_depth_are_those_asked_for():
    widest = next(open_topologies((1.0, 1.0), (256, 256), 8, max_features=20))
    assert widest.features == (8, 16, 20, 20, 20, 20, 20)


@pytest.mark.parametrize("shape", [(6, 7), (8, 8), (4, 4, 11)])
def test_images_too_small_for_three_stages_have_no_topology(shape):
    assert list(open_topologies((1.0,) * len(shape), shape, 32)) == []


@pytest.mark.parametrize("network", ["segmamba", "lightmunet"])
@pytest.mark.parametrize("data_set", VOLUMES)
def test_patches_for_a_fixed_depth_are_multiples_of_its_levels_down_to_two_voxels(data_set, network):
    levels = find(network).levels
    assert levels is not None
    spacing, shape = DATA_SETS[data_set]
    topologies = list(fixed_topologies(levels, spacing, shape, 0.5))
    step = 2 ** (len(levels.features) - 1)
    for extent, whole in zip(topologies[0].patch_size, largest_patch(spacing, shape), strict=True):
        assert abs(extent - whole) <= step / 2
    for topology in topologies:
        assert topology.total_stride == (step,) * 3
        assert topology.features[0] == levels.features[0] / 2
    assert sorted(coarsest_map(topologies[-1])) == [1, 1, 2]
    for larger, smaller in pairwise(topologies):
        assert math.prod(smaller.patch_size) < math.prod(larger.patch_size)
