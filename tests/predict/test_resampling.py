"""Resampled planes: equal to nnU-Net's, and the same whatever the blocks."""

import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape

from umamba_seg.errors import UserError
from umamba_seg.predict.resampling import Resampler, nearest_axis

CONFIGURATION = {
    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
    "resampling_fn_probabilities_kwargs": {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None},
}


def resample(logits, new_shape, nearest, *, fed, at_once):
    """(classes, ...) fed by ``fed`` planes, asked for by ``at_once``."""
    resampler = Resampler(logits.shape[1:], new_shape, nearest, at_once)
    result = torch.full((len(logits), *new_shape), float("nan"))
    for first in range(0, logits.shape[1], fed):
        planes = logits[None, :, first : first + fed].clone()
        for rows, group in resampler.feed(first, planes):
            for number in range(len(logits)):
                result[number, rows] = group.logits(0, number)
        planes.fill_(float("nan"))  # it is overwritten by the next ones
    return result


SHAPES = [
    ((9, 8, 7), (9, 8, 7)),
    ((9, 8, 7), (17, 21, 13)),
    ((20, 18, 11), (7, 9, 5)),
    ((6, 9, 9), (6, 20, 15)),
    ((6, 9, 9), (13, 9, 9)),
    ((1, 30, 20), (1, 33, 41)),
    ((5, 5, 5), (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("nearest", [None, 0, 1, 2])
def test_it_is_nnunets(shape, new_shape, nearest):
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32))
    spacing = [1.0, 1.0, 1.0]
    if nearest is not None:
        spacing[nearest] = 5.0
    assert nearest_axis(CONFIGURATION, spacing, spacing) == nearest
    expected = resample_data_or_seg_to_shape(
        logits.numpy(), new_shape, spacing, spacing, is_seg=False, order=1, order_z=0, force_separate_z=None
    )
    found = resample(logits, new_shape, nearest, fed=4, at_once=3)
    np.testing.assert_allclose(found.numpy(), expected, atol=2e-5)


@pytest.mark.parametrize(("shape", "new_shape"), SHAPES)
@pytest.mark.parametrize("nearest", [None, 0, 1])
def test_blocks_do_not_change_a_bit(shape, new_shape, nearest):
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32))
    whole = resample(logits, new_shape, nearest, fed=1000, at_once=1000)
    assert not whole.isnan().any()
    for fed, at_once in [(1, 1), (2, 3), (5, 1), (3, 7)]:
        assert torch.equal(resample(logits, new_shape, nearest, fed=fed, at_once=at_once), whole)


def test_a_picture_in_a_2d_plan_has_no_nearest_axis_of_its_own():
    """The slice spacing that nnU-Net makes up is the largest; along it nothing is resampled."""
    assert nearest_axis(CONFIGURATION, [999.0, 1.0, 1.0], [999.0, 1.0, 1.0]) == 0


def test_half_spacings_pick_the_later_of_two_planes_as_near():
    logits = torch.arange(6.0).reshape(1, 6, 1, 1)
    found = resample(logits, (3, 1, 1), 0, fed=6, at_once=9)
    expected = resample_data_or_seg_to_shape(logits.numpy(), (3, 1, 1), [5.0, 1, 1], [10.0, 1, 1], order=1, order_z=0,
                                             force_separate_z=None)  # fmt: skip
    assert found.flatten().tolist() == expected.flatten().tolist() == [1.0, 3.0, 5.0]


@pytest.mark.parametrize(
    ("name", "how"),
    [("resample_data_or_seg_to_shape", {"order": 3}), ("no_resampling_hack", {}),
     ("resample_torch_fornnunet", {"mode": "nearest"}), ("resample_data_or_seg_to_shape", {"unheard_of": 1}),
     ("resample_torch_fornnunet", {"aniso_axis_mode": "linear"})],
)  # fmt: skip
def test_other_resampling_is_refused(name, how):
    plan = {"resampling_fn_probabilities": name, "resampling_fn_probabilities_kwargs": how}
    with pytest.raises(UserError, match="only linear resampling is there; predict with nnUNetv2_predict"):
        nearest_axis(plan, [1, 1, 1], [2, 2, 2])


def test_thick_slices_begin_where_the_plans_say():
    how = CONFIGURATION["resampling_fn_probabilities_kwargs"] | {"separate_z_anisotropy_threshold": 2}
    assert nearest_axis(CONFIGURATION, [2.5, 1, 1], [2.5, 1, 1]) is None
    assert nearest_axis(CONFIGURATION | {"resampling_fn_probabilities_kwargs": how}, [2.5, 1, 1], [2.5, 1, 1]) == 0
    torch_function = {"resampling_fn_probabilities": "resample_torch_fornnunet"}
    kwargs = {"is_seg": False, "force_separate_z": False, "memefficient_seg_resampling": False}
    plan = torch_function | {"resampling_fn_probabilities_kwargs": kwargs}
    assert nearest_axis(plan, [5, 1, 1], [5, 1, 1]) is None
    assert nearest_axis(torch_function | {"resampling_fn_probabilities_kwargs": {}}, [5, 1, 1], [5, 1, 1]) == 0
