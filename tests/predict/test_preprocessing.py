"""Images resampled by matrices are nnU-Net's."""

import json

import numpy as np
import pytest
from nnunetv2.preprocessing.resampling.default_resampling import resample_data_or_seg_to_shape
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from umamba_seg.predict.preprocessing import PredictionConfiguration, resample_image


@pytest.mark.parametrize(
    ("shape", "new_shape"),
    [((9, 20, 17), (12, 13, 30)), ((30, 8, 9), (11, 8, 12)), ((1, 33, 21), (1, 40, 18)), ((5, 1, 7), (9, 3, 2)),
     ((25, 26, 27), (25, 26, 27))],
)  # fmt: skip
@pytest.mark.parametrize("thick", [None, 0, 1, 2])
@pytest.mark.parametrize("order", [1, 3])
def test_it_is_nnunets(shape, new_shape, thick, order):
    data = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    spacing = [1.0, 1.0, 1.0]
    if thick is not None:
        spacing[thick] = 4.0
    how = {"order": order, "force_separate_z": None}
    expected = resample_data_or_seg_to_shape(data, new_shape, spacing, [1, 1, 1], order_z=0, **how)
    found = resample_image(data, new_shape, spacing, [1, 1, 1], **how)
    assert found.dtype == expected.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=2e-5)


def test_a_forced_decision_is_honoured():
    data = np.random.default_rng(1).normal(size=(1, 6, 9, 8)).astype(np.float32)
    for how in ({"force_separate_z": True}, {}, {"force_separate_z": None, "separate_z_anisotropy_threshold": 2}):
        expected = resample_data_or_seg_to_shape(data, (9, 5, 5), [3, 1, 1], [2, 2, 2], **how)
        found = resample_image(data, (9, 5, 5), [3, 1, 1], [2, 2, 2], **how)
        np.testing.assert_allclose(found, expected, atol=2e-5)


def test_other_functions_of_the_plans_are_kept(trained):
    plans = json.loads((trained.model / "plans.json").read_text())
    plan = plans["configurations"]["3d_fullres"]
    ours = PredictionConfiguration(plan, keeps_labels=False)
    assert ours.resampling_fn_data.args[0].func is resample_image
    labels = ours.resampling_fn_seg(np.ones((1, 3, 4, 5)), (2, 2, 2), [1, 1, 1], [2, 2, 2])
    assert labels.shape == (1, 2, 2, 2)
    assert not labels.any()
    other = plan | {"resampling_fn_data": "resample_torch_fornnunet", "resampling_fn_data_kwargs": {"is_seg": False}}
    kept = PredictionConfiguration(other, keeps_labels=True).resampling_fn_data
    assert kept.args[0].func.__name__ == "resample_torch_fornnunet"
    theirs = PlansManager(plans).get_configuration("3d_fullres").resampling_fn_seg
    assert PredictionConfiguration(plan, keeps_labels=True).resampling_fn_seg.keywords == theirs.keywords
