"""Means and their intervals."""

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import bootstrap

from umamba_seg.evaluate.protocols import PROTOCOLS, choose_protocol
from umamba_seg.evaluate.statistics import bootstrap_mean, class_means

TWO = choose_protocol("nnunet", ["dice", "iou"])
NAN, INF = math.nan, math.inf


def means(values, protocol=TWO, counts=None, measured=None):
    values = np.array(values, float)
    counts = np.ones((*values.shape[:2], 4)) if counts is None else np.array(counts)
    measured = np.ones(values.shape[1:], bool) if measured is None else measured
    return class_means(values, counts, measured, protocol)


def test_interval_of_a_mean_is_scipys():
    values = np.random.default_rng(3).gamma(2, size=40)
    found = bootstrap_mean(values)
    theirs = bootstrap((values,), np.mean, method="percentile", n_resamples=20_000, rng=1).confidence_interval
    assert found.value == pytest.approx(values.mean())
    assert (found.low, found.high) == pytest.approx(tuple(theirs), abs=0.02)
    assert bootstrap_mean(values) == found


def test_numbers_that_are_not_finite_are_left_out():
    assert bootstrap_mean(np.array([1, 2, NAN, 3, INF])) == bootstrap_mean(np.array([1, 2, 3]))
    assert bootstrap_mean(np.array([NAN, INF])) == pytest.approx((NAN, NAN, NAN), nan_ok=True)
    assert bootstrap_mean(np.array([0.5, NAN])) == pytest.approx((0.5, NAN, NAN), nan_ok=True)


def test_means_of_classes_then_over_classes():
    value, low, high = means([[[0.2, 1], [NAN, 3]], [[0.4, 2], [0.9, INF]], [[0.6, 6], [0.7, 5]]])
    assert value == pytest.approx(np.array([[0.4, 3], [0.8, 4], [0.6, 3.5]]))
    assert (low < value).all()
    assert (high > value).all()


def test_over_classes_is_undefined_where_a_class_has_no_number():
    value, low, _ = means([[[0.2, 1], [NAN, 3]], [[0.4, 2], [NAN, 3]]])
    assert value == pytest.approx(np.array([[0.3, 1.5], [NAN, 3], [NAN, 2.25]]), nan_ok=True)
    assert np.isnan(low[1, 0])
    assert np.isnan(low[2, 0])


def test_one_case_has_no_interval():
    value, low, high = means([[[0.2, 1]]])
    assert value == pytest.approx(np.array([[0.2, 1], [0.2, 1]]))
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_a_metric_of_one_class_alone_has_its_mean_over_classes():
    value, _, _ = means([[[0.2, NAN], [NAN, 3]], [[0.4, NAN], [NAN, 5]]], measured=np.eye(2, dtype=bool))
    assert value[2] == pytest.approx([0.3, 4])


def test_mean_over_cases_of_the_mean_over_classes():
    protocol = replace(PROTOCOLS["umamba_endoscopy"], metrics=("dice",))
    value, low, high = means([[[0.2], [NAN]], [[0.4], [0.8]], [[NAN], [NAN]]], protocol)
    assert value[:, 0] == pytest.approx([0.3, 0.8, (0.2 + 0.6) / 2])
    assert low[2, 0] == pytest.approx(0.2)
    assert high[2, 0] == pytest.approx(0.6)


def test_voxels_of_all_cases_together():
    protocol = PROTOCOLS["vmunet_isic"]
    counts = [[[90, 10, 0, 900]], [[0, 5, 5, 0]], [[0, 0, 0, 10]]]
    value, low, high = means(np.full((3, 1, 5), 0.5), protocol, counts)
    expected = {
        "iou": 90 / 110,
        "dice": 180 / 200,
        "accuracy": 1000 / 1020,
        "specificity": 910 / 925,
        "sensitivity": 90 / 95,
    }
    assert value[0] == pytest.approx([expected[metric] for metric in protocol.metrics])
    assert value[1] == pytest.approx(value[0])
    assert (low[0] <= value[0]).all()
    assert (value[0] <= high[0]).all()
