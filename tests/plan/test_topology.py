"""The topology of a patch is the one that nnU-Net's planner gives it."""

import pytest

from umamba_seg.errors import UserError
from umamba_seg.plan.topology import topology_for


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
