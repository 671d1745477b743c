"""Means over cases and classes, with intervals by bootstrap."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from umamba_seg.evaluate.metrics import RATIOS, ratio
from umamba_seg.evaluate.protocols import Protocol

CONFIDENCE = 0.95
RESAMPLES = 10_000
SEED = 0
METHOD = (
    f"percentile bootstrap over cases ({RESAMPLES} resamples, seed {SEED}); numbers that are undefined or infinite are "
    "left out of each resample's mean, and resamples that hold none for a class are left out"
)
_TAILS = (1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2
_NUMBERS_AT_ONCE = 2**22  # in a matrix of resamples: 32 MiB


class Estimate(NamedTuple):
    """A statistic of all cases, and its interval; both ends are NaN where fewer than two cases count."""

    value: float
    low: float
    high: float


def bootstrap_mean(values: np.ndarray) -> Estimate:
    """The mean over cases, one number each; NaN and infinity are left out."""
    finite = np.asarray(values, float)
    finite = finite[np.isfinite(finite)]
    if not len(finite):
        return Estimate(np.nan, np.nan, np.nan)
    value, low, high = _bootstrap(lambda weights: _weighted_means(weights, finite[:, None]), len(finite))
    return Estimate(float(value[0]), float(low[0]), float(high[0]))


def class_means(
    values: np.ndarray, counts: np.ndarray, measured: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The numbers of each class and over classes, as the protocol forms them.

    Args:
        values: (cases, classes, metrics); NaN and infinity are left out of means.
        counts: (cases, classes, 4) voxels: tp, fp, fn, tn.
        measured: (classes, metrics): which metrics the protocol takes of which class.
        protocol: Its ``means`` and, where voxels are pooled, its ``metrics`` are used.

    Returns:
        Value, lower and upper end, each (classes + 1, metrics); over classes stands last. It is NaN where a class has
        no number at all, as nnU-Net's.
    """
    value, low, high = _bootstrap(_class_statistic(values, counts, measured, protocol), len(values))
    certain = _certain(values)
    return value, np.where(certain, low, np.nan), np.where(certain, high, np.nan)


def seed_means(
    values: np.ndarray, measured: np.ndarray, protocol: Protocol
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """As :func:`class_means`, the mean over trainings of one network: each resample draws the same cases of all.

    Args:
        values: (seeds, cases, classes, metrics).
        measured: (classes, metrics).
        protocol: Its ``means`` are used; they may not be "pooled", which no number of a case can tell.
    """
    assert protocol.means != "pooled"
    counts = np.zeros((*values.shape[1:3], 4))
    statistics = [_class_statistic(one, counts, measured, protocol) for one in values]
    value, low, high = _bootstrap(
        lambda weights: np.mean([one(weights) for one in statistics], axis=0), values.shape[1]
    )
    certain = np.all([_certain(one) for one in values], axis=0)
    return value, np.where(certain, low, np.nan), np.where(certain, high, np.nan)


def bootstrap_seeds(values: np.ndarray) -> Estimate:
    """The mean over seeds and cases, (seeds, cases); each resample draws seeds and, apart from them, cases.

    Cases that are undefined or infinite with any seed are left out.
    """
    known = np.asarray(values, float)
    known = known[:, np.isfinite(known).all(axis=0)]
    seeds, cases = known.shape
    if not cases:
        return Estimate(np.nan, np.nan, np.nan)
    if min(seeds, cases) < 2:
        return Estimate(float(known.mean()), np.nan, np.nan)
    drawn = np.random.default_rng(SEED + 1).multinomial(seeds, np.full(seeds, 1 / seeds), size=RESAMPLES)
    of_seeds = np.concatenate([weights @ known.T for weights in _resamples(cases)]) / cases
    samples = np.sum(of_seeds * drawn, axis=1) / seeds
    low, high = np.quantile(samples, _TAILS)
    return Estimate(float(known.mean()), float(low), float(high))


def _class_statistic(
    values: np.ndarray, counts: np.ndarray, measured: np.ndarray, protocol: Protocol
) -> Callable[[np.ndarray], np.ndarray]:
    """Weights of cases, (resamples, cases) -> the means of each class and over classes, see :func:`class_means`."""
    cases, classes, metrics = values.shape
    over_cases = _mean_over_classes(values, measured)

    def statistic(weights: np.ndarray) -> np.ndarray:
        if protocol.means == "pooled":
            of_class = _pooled(weights, counts, protocol.metrics)
        else:
            of_class = _weighted_means(weights, values.reshape(cases, -1)).reshape(len(weights), classes, metrics)
        if protocol.means == "cases":
            overall = _weighted_means(weights, over_cases)
        else:
            overall = np.where(measured, of_class, 0).sum(axis=1) / measured.sum(axis=0)
        return np.concatenate([of_class, overall[:, None]], axis=1)

    return statistic


def _certain(values: np.ndarray) -> np.ndarray:
    """(cases, classes, metrics) -> (classes + 1, metrics): whether two cases or more count, so that there is noise."""
    counted = np.isfinite(values).sum(axis=0)
    return np.concatenate([counted, counted.max(axis=0, keepdims=True)]) > 1


def _mean_over_classes(values: np.ndarray, measured: np.ndarray) -> np.ndarray:
    """Of each case, over the classes that have a finite number: (cases, metrics)."""
    finite = np.isfinite(values) & measured
    return _divide(np.where(finite, values, 0).sum(axis=1), finite.sum(axis=1))


def _bootstrap(statistic: Callable[[np.ndarray], np.ndarray], cases: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A statistic of weighted cases, (resamples, cases) -> (resamples, ...), and the ends of its interval."""
    value = statistic(np.ones((1, cases)))[0]
    if cases < 2:
        return value, np.full_like(value, np.nan), np.full_like(value, np.nan)
    samples = np.concatenate([statistic(weights) for weights in _resamples(cases)]).reshape(RESAMPLES, -1)
    ends = np.array([_quantiles(column, _TAILS) for column in samples.T])
    return value, ends[:, 0].reshape(value.shape), ends[:, 1].reshape(value.shape)


def _resamples(cases: int) -> Iterator[np.ndarray]:
    """How often each case is drawn, (resamples, cases), in portions."""
    generator = np.random.default_rng(SEED)
    portion = max(1, _NUMBERS_AT_ONCE // cases)
    for start in range(0, RESAMPLES, portion):
        size = min(portion, RESAMPLES - start)
        yield generator.multinomial(cases, np.full(cases, 1 / cases), size=size).astype(float)


def _quantiles(samples: np.ndarray, shares: tuple[float, float]) -> np.ndarray:
    known = samples[~np.isnan(samples)]
    return np.quantile(known, shares) if len(known) else np.full(2, np.nan)


def _weighted_means(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """(resamples, cases) and (cases, columns) -> (resamples, columns): means of the finite values."""
    finite = np.isfinite(values)
    return _divide(weights @ np.where(finite, values, 0), weights @ finite.astype(float))


def _pooled(weights: np.ndarray, counts: np.ndarray, metrics: tuple[str, ...]) -> np.ndarray:
    """The metrics of all voxels counted together: (resamples, classes, metrics)."""
    assert set(metrics) <= RATIOS
    cases, classes, _ = counts.shape
    together = (weights @ counts.reshape(cases, -1)).reshape(len(weights), classes, 4)
    return np.stack([ratio(metric, np.moveaxis(together, -1, 0)) for metric in metrics], axis=-1)


def _divide(above: np.ndarray, below: np.ndarray) -> np.ndarray:
    return np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0)
