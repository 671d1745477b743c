"""What the scan adds: each network beside its twin without it and beside nnU-Net's ResEnc, within cases."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from umamba_seg.evaluate.compare import Difference, compare_means, holm, require_comparable, winner
from umamba_seg.evaluate.results import CaseMetrics
from umamba_seg.evaluate.statistics import bootstrap_seeds
from umamba_seg.networks import find
from umamba_seg.networks.catalog import BASELINE
from umamba_seg.reproduce.outcome import Paired, Place, Run, metric_of
from umamba_seg.reproduce.table import PaperTable

_WORDS = {"dice": "Dice", "instance_f1": "F1 of cells"}


def compare_networks(table: PaperTable, runs: Mapping[Place, Sequence[Run]]) -> list[Paired]:
    """Every network beside its twin and beside the ResEnc U-Net, on each data set on which both were measured.

    p is corrected over all pairs of the table. A twin is compared with its network alone, where that is there.

    Raises:
        UserError: Two that are to be compared have other cases, classes or references.
    """
    found = []
    for key in table.datasets:
        rows = [place.row for place, done in runs.items() if place.key == key and done]
        for first, second, twins in _pairs(table, sorted(rows)):
            pair = _compare(table, key, (first, runs[Place(first, key)]), (second, runs[Place(second, key)]), twins)
            found += [pair] if pair else []
    corrected = holm([pair.difference.p for pair in found])
    return [_judged(pair, p) for pair, p in zip(found, corrected, strict=True)]


def _judged(pair: Paired, p: float) -> Paired:
    better = winner(pair.difference, p, pair.better)
    return replace(pair, difference=replace(pair.difference, corrected_p=p, better=better))


def _pairs(table: PaperTable, rows: Sequence[int]) -> Iterator[tuple[int, int, bool]]:
    """The row that is taken off, the other, and whether that is its twin."""
    networks = {row: str(table.rows[row].network) for row in rows}
    twins = [
        (row, other)
        for row, other in itertools.permutations(rows, 2)
        if find(networks[row]).twin == networks[other]
        and table.training_of(table.rows[row]) == table.training_of(table.rows[other])
    ]
    yield from ((row, other, True) for row, other in twins)
    others = [row for row in rows if networks[row] != BASELINE and row not in {twin for _, twin in twins}]
    for base, row in itertools.product([row for row in rows if networks[row] == BASELINE], others):
        yield base, row, False


def main_metric(table: PaperTable, key: str) -> str:
    """The metric of a data set that networks are compared in: Dice where it is measured, else its first."""
    metrics = [metric_of(column) for column in table.columns if column.dataset == key and column.metric]
    return "dice" if "dice" in metrics else metrics[0]


def _compare(
    table: PaperTable, key: str, first: tuple[int, Sequence[Run]], second: tuple[int, Sequence[Run]], twins: bool
) -> Paired | None:
    """Of two rows, the seeds that both have; None if there are none."""
    metric = main_metric(table, key)
    runs = [{run.job.seed: run for run in found} for _, found in (first, second)]
    seeds = tuple(sorted(runs[0].keys() & runs[1].keys()))
    if not seeds:
        return None
    tables = {(side, seed): runs[side][seed].metrics for side in (0, 1) for seed in seeds}
    better = require_comparable({f"{side} {seed}": found for (side, seed), found in tables.items()}, metric)
    alike = _alike(tables, metric, magnitudes=better == "zero")
    ones, twos = ([alike[side, seed] for seed in seeds] for side in (0, 1))
    by_case = np.array([compare_means(one, two, metric)[1] for one, two in zip(ones, twos, strict=True)])
    difference, _ = compare_means(_mean(ones, metric), _mean(twos, metric), metric)
    together = bootstrap_seeds(by_case)
    return Paired(
        key=key,
        metric=metric,
        better=better,
        unit=runs[0][seeds[0]].content["metrics"][metric]["unit"],
        first=first[0],
        second=second[0],
        twins=twins,
        seeds=seeds,
        difference=difference,
        by_seed=tuple(_finite_mean(row) for row in by_case),
        over_seeds=together,
        other_training=_other_training(table, first[0], second[0]),
    )


def _alike(
    tables: Mapping[tuple[int, int], CaseMetrics], metric: str, magnitudes: bool
) -> dict[tuple[int, int], CaseMetrics]:
    """The tables with NaN in all of them where one is undefined, so that all seeds speak of the same numbers.

    Of a metric that is best at 0 the magnitudes are taken, before a mean over seeds is.
    """
    undefined = {
        (case, name)
        for found in tables.values()
        for case, classes in found.values.items()
        for name, numbers in classes.items()
        if math.isnan(numbers.get(metric, math.nan))
    }

    def aligned(found: CaseMetrics) -> CaseMetrics:
        def value(case: str, name: str) -> float:
            number = math.nan if (case, name) in undefined else found.values[case][name][metric]
            return abs(number) if magnitudes else number

        return _with_values(found, metric, value)

    return {place: aligned(found) for place, found in tables.items()}


def _mean(tables: Sequence[CaseMetrics], metric: str) -> CaseMetrics:
    """The mean over seeds of every case and class."""

    def value(case: str, name: str) -> float:
        return float(np.mean([found.values[case][name][metric] for found in tables]))

    return _with_values(tables[0], metric, value)


def _with_values(found: CaseMetrics, metric: str, value: Callable[[str, str], float]) -> CaseMetrics:
    """With other values, of a case and a class, of the metric alone where it is measured."""
    values = {
        case: {name: {metric: value(case, name)} if metric in numbers else {} for name, numbers in classes.items()}
        for case, classes in found.values.items()
    }
    return replace(found, values=values)


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else math.nan


def _other_training(table: PaperTable, first: int, second: int) -> str:
    one, two = (table.training_of(table.rows[row]).model_dump(exclude={"seeds"}) for row in (first, second))
    changed = [f"{name} {_shown(one[name])} and {_shown(two[name])}" for name in one if one[name] != two[name]]
    return ", ".join(changed)


def _shown(value: object) -> str:
    return "none" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


# -------------------------------------------------------------------------------------------------------------- words


def answers(table: PaperTable, found: Sequence[Paired]) -> list[str]:
    """What follows from each pair, a sentence each, and what the reader must know of all of them."""
    if not found:
        return []
    tests = sum(not math.isnan(pair.difference.p) for pair in found)
    several = len({pair.key for pair in found}) > 1
    sentences = [_sentence(table, pair, f"{pair.key}, " if several else "") for pair in found]
    sentences.append("A case counts with the mean over its classes, and of several seeds with the mean over these.")
    if tests > 1:
        sentences.append(f"p is corrected for {tests} comparisons (Holm).")
    if any(len(pair.seeds) == 1 for pair in found):
        sentences.append(
            "With one seed, the noise between trainings is not in these intervals: how far another training of the "
            "same network would fall cannot be told."
        )
    if any(1 < len(pair.seeds) < 5 for pair in found):
        sentences.append("An interval over so few seeds is rough.")
    return sentences


def _sentence(table: PaperTable, pair: Paired, where: str) -> str:
    first, second = (table.rows[row].method for row in (pair.first, pair.second))
    who = second if pair.twins else f"{second} beside {first}"
    other = f" They were trained differently ({pair.other_training})." if pair.other_training else ""
    return f"{where}{who}: {_amount(pair)}: {_verdict(pair)}.{other}"


def _amount(pair: Paired) -> str:
    one, digits = pair.difference, decimals_of(pair)
    seeds = f"{len(pair.seeds)} seed{'s' * (len(pair.seeds) > 1)}"
    what = _WORDS.get(pair.metric, pair.metric)
    if one.infinite:
        score = f"wins {one.won} and loses {one.lost} of {one.cases} cases, {one.infinite} by an infinite distance"
        return f"{what} {score} ({seeds}; {_test(one)})"
    unit = f" {pair.unit}" if pair.unit else ""
    shown = f"{what} {one.mean:+.{digits}f}{unit}"
    interval = f"95 % {one.low:.{digits}f} to {one.high:.{digits}f}"
    return f"{shown} ({interval}, {one.cases} cases, {seeds}; {_test(one)}{_over_seeds(pair, digits)})"


def _over_seeds(pair: Paired, digits: int) -> str:
    if len(pair.seeds) == 1:
        return ""
    each = ", ".join(f"{value:+.{digits}f}" for value in pair.by_seed)
    low, high = pair.over_seeds.low, pair.over_seeds.high
    return f"; seed by seed {each}, and with other seeds as well 95 % {low:.{digits}f} to {high:.{digits}f}"


def decimals_of(pair: Paired) -> int:
    """As many as are printed of a difference."""
    return 2 if pair.unit else 3


def _test(one: Difference) -> str:
    if math.isnan(one.p):
        return "no test"
    return "Wilcoxon p < 0.001" if one.corrected_p < 0.001 else f"Wilcoxon p = {one.corrected_p:.2g}"


def _verdict(pair: Paired) -> str:
    one = pair.difference
    if one.better is None:
        few = f"they differ in {one.won + one.lost} of {one.cases} cases, too few for a test; " * math.isnan(one.p)
        scan = "; what the scan adds here cannot be told from the noise" if pair.twins else ""
        return f"{few}no difference can be told{scan}"
    way = "better" if one.better == one.second else "worse"
    text = f"{way}{' without the scan' if pair.twins else ''} by more than the noise between cases"
    if len(pair.seeds) == 1:
        return text
    if beyond_seeds(pair):
        return f"{text} and between seeds"
    return f"{text}, but not by more than that between seeds: other trainings may turn it round"


def beyond_seeds(pair: Paired) -> bool:
    """Whether the difference is larger than its spread between seeds, and its interval over seeds leaves out 0."""
    mean, low, high = pair.over_seeds
    return abs(mean) > float(np.std(pair.by_seed, ddof=1)) and not low <= 0 <= high
