"""Is one set of segmentations better than another by more than the noise between cases? From the metrics of both.

Cases are paired: a hard case is hard for both, so differences within cases say more than two means side by side.
"""

from __future__ import annotations

import csv
import io
import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from umamba_seg import figures
from umamba_seg.errors import UserError
from umamba_seg.evaluate import instances, protocols, statistics
from umamba_seg.evaluate.metrics import DEFAULT_METRICS
from umamba_seg.evaluate.results import NAME, CaseMetrics, as_json, evaluate_segmentations, read_case_metrics
from umamba_seg.files import draft_of, make_folder, read_json, write_json, write_text
from umamba_seg.log import logger, table
from umamba_seg.text import shorten

MEAN = "mean over classes"
LEVEL = 0.05
_FEWEST = 6
"""With fewer cases that differ, no two-sided p can be below 0.05."""
_MOST_PANELS = 30
"""A plot of more pairs would be longer than images may be."""
_DECIMALS = 12
"""Differences that are equal to so many decimals are tied: what is beyond is rounding."""

METHOD = {
    "difference": "the second minus the first in every case; of a metric that is best at 0, of its magnitudes",
    "won": "cases in which the second is better",
    "mean over classes": "in every case, over the classes that are defined in both",
    "undefined": "cases that are NaN in either, and are left out",
    "no rank": "cases that cannot be ranked, and are left out: each of the two misses another class, so that in the "
    "mean over classes an infinite loss stands against an infinite gain",
    "infinite": "an infinite distance against a finite one is won or lost and ranks as the largest difference, but is "
    "in no mean and no interval; two infinite ones differ by 0",
    "interval": f"of the mean difference, {statistics.CONFIDENCE:.0%}, percentile bootstrap over cases "
    f"({statistics.RESAMPLES} resamples, seed {statistics.SEED})",
    "test": "Wilcoxon's signed-rank test, two-sided (scipy): equal magnitudes share their ranks, zeros are ranked and "
    f"dropped (Pratt); exact where samples are small, else normal; none where fewer than {_FEWEST} cases differ",
    "correction": "Holm's: over all pairs of folders, and apart from that over all pairs and classes",
    "effect": "matched-pairs rank-biserial correlation, from -1 to 1, above 0 where the second is better",
    "larger than the noise": f"corrected p below {LEVEL}, and the interval on the same side of 0; p alone where "
    "differences are infinite",
}
REMINDER = (
    "This is the noise between cases, not between trainings: how far another training of the same network (another "
    "seed) would fall from this one cannot be told from one training each."
)


@dataclass(frozen=True)
class Difference:
    """Two sets of segmentations, compared in one class or in the mean over classes.

    Attributes:
        first: Name of one set.
        second: Name of the other.
        target: The class, or :data:`MEAN`.
        cases: Cases that are compared.
        left_out: Cases that are undefined in either.
        unranked: Cases that cannot be ranked, since each of the two misses another class; of :data:`MEAN` alone.
        infinite: Those of the compared cases whose difference is infinite.
        mean: Mean of the second minus the first over the others; NaN if there are none.
        low: Where the interval of the mean begins.
        high: Where it ends.
        won: Cases in which the second is better.
        lost: Cases in which the first is better.
        tied: The rest.
        effect: Rank-biserial correlation, above 0 where the second is better; NaN if all are tied.
        p: Of Wilcoxon's test; NaN where too few cases differ.
        corrected_p: The same, corrected for the comparisons made.
        better: The name of the one that is better by more than the noise, or None.
    """

    first: str
    second: str
    target: str
    cases: int
    left_out: int
    unranked: int
    infinite: int
    mean: float
    low: float
    high: float
    won: int
    lost: int
    tied: int
    effect: float
    p: float
    corrected_p: float = math.nan
    better: str | None = None


@dataclass(frozen=True, eq=False)
class Comparison:
    """Every pair of two or more sets of segmentations, compared in one metric.

    Attributes:
        metric: Its name.
        better: ``"higher"``, ``"lower"``, or ``"zero"`` for one whose magnitude should be low.
        unit: Of the metric, if it has one.
        protocol: By which it was measured.
        cases: The cases, sorted.
        targets: The classes, and before them :data:`MEAN` if there are several.
        scores: Set -> (cases, targets); the mean over classes is NaN here, since it depends on the pair.
        paired: (first, second) -> second minus first, (cases, targets).
        differences: The first target of every pair, then the other targets of every pair.
    """

    metric: str
    better: str
    unit: str
    protocol: str
    cases: tuple[str, ...]
    targets: tuple[str, ...]
    scores: Mapping[str, np.ndarray]
    paired: Mapping[tuple[str, str], np.ndarray]
    differences: tuple[Difference, ...]


def metrics_of(predictions: Path, metric: str, references: Path | None = None) -> CaseMetrics:
    """The numbers of a folder of segmentations; those that ``references`` shows to be out of date are measured anew.

    Args:
        predictions: The folder; its metrics.json is replaced where it is measured.
        metric: What is to be compared.
        references: Folder of the references. Without it numbers that are out of date are an error.

    Raises:
        UserError: There are no such numbers, or they cannot be measured.
    """
    if references is not None:
        return _with_references(predictions, metric, references)
    if not (predictions / NAME).is_file():
        remedy = "name them with -r REFERENCES, or run `umamba-seg evaluate`"
        raise UserError(predictions, f"holds no {NAME}, and no references are named", remedy)
    found = read_case_metrics(predictions)
    if newer := found.newer_file():
        raise UserError(newer, f"newer than {NAME}", "evaluate again, or give -r REFERENCES")
    return found


def _with_references(predictions: Path, metric: str, references: Path) -> CaseMetrics:
    found, reason = None, f"holds no {NAME}"
    if (predictions / NAME).is_file():
        try:
            found = read_case_metrics(predictions)
            reason = _out_of_date(found, metric, references)
        except UserError as error:
            reason = f"holds a {NAME} that cannot be read ({error.what})"
    if found is not None and reason is None:
        return found
    logger.info("%s %s: evaluating it", predictions, reason)
    _evaluate(predictions, metric, references, found)
    return read_case_metrics(predictions)


def _out_of_date(found: CaseMetrics, metric: str, references: Path) -> str | None:
    """Why the numbers cannot be used."""
    if found.references != references.resolve():
        return f"was evaluated with other references ({found.references})"
    if metric not in found.metrics and found.protocol in (protocols.DEFAULT_PROTOCOL, "default"):
        return f"was evaluated without {metric}"
    newer = found.newer_file()
    return f"was evaluated before {newer} was written" if newer else None


def _evaluate(predictions: Path, metric: str, references: Path, found: CaseMetrics | None) -> None:
    """By the protocol of the numbers before, with their metrics and this one."""
    protocol, missing = (found.protocol, bool(found.missing)) if found else ("", False)
    if metric in instances.METRICS:
        protocol = protocol if protocol in instances.PROTOCOLS else "default"
        instances.evaluate_instances(references, predictions, protocol=protocol, allow_missing=missing)
        return
    protocol = protocol if protocol in protocols.PROTOCOLS else protocols.DEFAULT_PROTOCOL
    metrics = None  # those of the paper
    if protocol == protocols.DEFAULT_PROTOCOL:
        before = found.metrics if found and found.protocol == protocol else DEFAULT_METRICS
        metrics = [*before, metric]
    evaluate_segmentations(references, predictions, metrics, protocol, allow_missing=missing)


def compare(tables: Mapping[str, CaseMetrics], metric: str = "dice") -> Comparison:
    """Compare sets of segmentations of the same cases.

    Args:
        tables: Name of a set -> its metrics; two or more.
        metric: What is compared.

    Raises:
        UserError: The sets are not comparable: another protocol, other classes, cases or references, or the metric is
            missing in one or only describes.
    """
    better = require_comparable(tables, metric)
    one = next(iter(tables.values()))
    cases, classes = _measured(one, metric)
    scores = {name: _scores(found, cases, classes, metric, better) for name, found in tables.items()}
    targets = tuple(classes) if len(classes) == 1 else (MEAN, *classes)
    paired, found = {}, []
    for first, second in itertools.combinations(tables, 2):
        differences, unranked = _subtract(scores[second], scores[first])
        paired[first, second] = differences
        for target, column, cancelled in zip(targets, differences.T, unranked, strict=True):
            found.append(_describe(first, second, target, column, better, cancelled))
    if len(classes) > 1:
        scores = {name: np.pad(values, ((0, 0), (1, 0)), constant_values=np.nan) for name, values in scores.items()}
    contents = [read_json(found.path) for found in tables.values()]
    if len(folders := {str(found.references) for found in tables.values()}) > 1:
        logger.warning(
            "the references were in different folders; see that they are the same: %s", ", ".join(sorted(folders))
        )
    unit = contents[0]["metrics"][metric]["unit"]
    judged = _judge(found, targets[0], better)
    return Comparison(metric, better, unit, one.protocol, cases, targets, scores, paired, judged)


def compare_means(first: CaseMetrics, second: CaseMetrics, metric: str) -> tuple[Difference, np.ndarray]:
    """Compare two sets in the mean over classes (or the only class) alone; they are called "first" and "second".

    Returns:
        What :func:`compare` finds, with p not corrected, and the difference of every case, (cases,).

    Raises:
        UserError: As there.
    """
    better = require_comparable({"first": first, "second": second}, metric)
    cases, classes = _measured(first, metric)
    differences, unranked = _subtract(*(_scores(table, cases, classes, metric, better) for table in (second, first)))
    target = classes[0] if len(classes) == 1 else MEAN
    found = _describe("first", "second", target, differences[:, 0], better, unranked[0])
    return found, differences[:, 0]


def _measured(table: CaseMetrics, metric: str) -> tuple[tuple[str, ...], list[str]]:
    """The cases, sorted, and the classes of which the metric is measured."""
    cases = tuple(sorted(table.values))
    return cases, [name for name in table.classes if any(metric in table.values[case][name] for case in cases)]


def require_comparable(tables: Mapping[str, CaseMetrics], metric: str) -> str:
    """Which values of a metric are better in sets that can be compared in it.

    Raises:
        UserError: They cannot, see :func:`compare`.
    """
    one, *others = tables.values()
    for other in others:
        require_alike(one, other)
    for found in tables.values():
        if metric not in found.metrics:
            what = f"holds no {metric}, only {', '.join(name for name, better in found.metrics.items() if better)}"
            raise UserError(found.path, what, "evaluate with this metric, or compare another")
    better = one.metrics[metric]
    if better is None:
        raise UserError(f"--metric {metric}", "only describes: no value of it is better", "compare another metric")
    return better


def require_alike(one: CaseMetrics, other: CaseMetrics) -> None:
    """Two sets of segmentations must be of the same cases, measured by the same rules with the same references.

    Raises:
        UserError: They are not.
    """
    for what, found, wanted in (
        ("the protocol", [other.protocol], [one.protocol]),
        ("classes", other.classes, one.classes),
    ):
        if list(found) != list(wanted):
            message = f"has {what} {shorten(found)}, but {one.path} has {shorten(wanted)}"
            raise UserError(other.path, message, "evaluate all of them alike")
    missing = [
        f"{table.path} lacks {shorten(names)}"
        for table, names in (
            (one, sorted({*other.values} - {*one.values})),
            (other, sorted({*one.values} - {*other.values})),
        )
        if names
    ]
    if missing:
        raise UserError("compare", f"the cases are not the same: {'; '.join(missing)}", "predict and evaluate these")
    changed = [case for case in one.values if one.n_ref[case] != other.n_ref[case]]
    if changed:
        what = f"its references of {shorten(changed)} are not those of {one.path}"
        raise UserError(other.path, what, "evaluate all of them with the same references")


def _scores(table: CaseMetrics, cases: Sequence[str], classes: Sequence[str], metric: str, better: str) -> np.ndarray:
    """(cases, classes), NaN for what was not measured."""
    values = [[table.values[case][name].get(metric, math.nan) for name in classes] for case in cases]
    return np.abs(values) if better == "zero" else np.array(values)


def _subtract(second: np.ndarray, first: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """(cases, classes) of both -> the differences in each target, and how many of each cannot be ranked.

    Two equal infinities differ by 0.
    """
    with np.errstate(invalid="ignore"):
        differences = np.where(np.isinf(first) & (first == second), 0.0, second - first)
    if differences.shape[1] == 1:
        return differences, [0]
    cancelled = np.isposinf(differences).any(axis=1) & np.isneginf(differences).any(axis=1)
    unranked = [int(np.count_nonzero(cancelled)), *[0] * differences.shape[1]]
    return np.column_stack([_mean_over_classes(differences), differences]), unranked


def _mean_over_classes(differences: np.ndarray) -> np.ndarray:
    """(cases, classes) -> (cases,), over what is defined; NaN if nothing is, or infinities cancel out."""
    defined = ~np.isnan(differences)
    with np.errstate(invalid="ignore"):
        return np.where(defined, differences, 0).sum(axis=1) / np.where(
            defined.any(axis=1), defined.sum(axis=1), np.nan
        )


def _describe(first: str, second: str, target: str, differences: np.ndarray, better: str, unranked: int) -> Difference:
    """A comparison, before p is corrected; ``unranked`` differences are NaN since infinities cancel out."""
    known = differences[~np.isnan(differences)]
    finite = known[np.isfinite(known)]
    ranks = signed_ranks(known if better == "higher" else -known)
    won, lost = ranks[ranks > 0], -ranks[ranks < 0]
    mean, low, high = statistics.bootstrap_mean(finite)
    return Difference(
        first,
        second,
        target,
        cases=len(known),
        left_out=len(differences) - len(known) - unranked,
        unranked=unranked,
        infinite=len(known) - len(finite),
        mean=mean,
        low=low,
        high=high,
        won=len(won),
        lost=len(lost),
        tied=len(known) - len(won) - len(lost),
        effect=float((won.sum() - lost.sum()) / (won.sum() + lost.sum())) if len(won) + len(lost) else math.nan,
        p=wilcoxon_p(ranks),
    )


def signed_ranks(differences: np.ndarray) -> np.ndarray:
    """The rank of every difference by magnitude, zeros included, with its sign; 0 for zeros.

    All that Wilcoxon's test needs; infinite differences have a rank as well.
    """
    from scipy.stats import rankdata

    magnitudes = np.round(np.abs(differences), _DECIMALS)
    return np.where(magnitudes > 0, np.sign(differences) * rankdata(magnitudes), 0.0)


def wilcoxon_p(ranks: np.ndarray) -> float:
    """Two-sided p of Wilcoxon's signed-rank test under Pratt's rule; NaN where fewer than six differ."""
    from scipy.stats import wilcoxon

    if np.count_nonzero(ranks) < _FEWEST:
        return math.nan
    return float(np.asarray(wilcoxon(ranks, zero_method="pratt"))[1])


def holm(values: Sequence[float]) -> list[float]:
    """Holm's correction of a family of p values; NaN belongs to no family and stays."""
    order = sorted((index for index, p in enumerate(values) if not math.isnan(p)), key=lambda index: values[index])
    corrected, largest = [math.nan] * len(values), 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, values[index] * (len(order) - rank)))
        corrected[index] = largest
    return corrected


def _judge(found: Sequence[Difference], main: str, better: str) -> tuple[Difference, ...]:
    """Correct p, in the family of the main target and in that of the classes, and decide."""
    judged = []
    for family in ([one for one in found if one.target == main], [one for one in found if one.target != main]):
        for one, p in zip(family, holm([one.p for one in family]), strict=True):
            judged.append(replace(one, corrected_p=p, better=winner(one, p, better)))
    return tuple(judged)


def winner(one: Difference, p: float, better: str) -> str | None:
    """Who is better by more than the noise, given the corrected p and which values are better."""
    if not p < LEVEL:
        return None
    sign = 1 if better == "higher" else -1
    interval = sorted((sign * one.low, sign * one.high))
    if one.effect > 0 and (one.infinite or interval[0] > 0):
        return one.second
    if one.effect < 0 and (one.infinite or interval[1] < 0):
        return one.first
    return None


def sentences(comparison: Comparison) -> list[str]:
    """A sentence for each pair of sets, on the mean over classes or the only class."""
    main = [one for one in comparison.differences if one.target == comparison.targets[0]]
    tests = sum(not math.isnan(one.p) for one in main)
    correction = f" after correction for {tests} comparisons" if tests > 1 else ""
    unit = f" {comparison.unit}" if comparison.unit else ""
    return [_sentence(one, f"{comparison.metric} ({one.target})", unit, correction) for one in main]


def _sentence(one: Difference, what: str, unit: str, correction: str) -> str:
    p = "p < 0.001" if one.corrected_p < 0.001 else f"p = {one.corrected_p:.3f}"
    unranked = f" ({one.unranked} more cannot be ranked: each misses another class)" if one.unranked else ""
    test = f"{one.cases} cases{unranked}, Wilcoxon {p}{correction}"
    if one.better is None:
        return f"No difference can be told between {one.first} and {one.second} in {what}: {_doubt(one, unit, test)}."
    worse, won, lost = (one.first, one.won, one.lost) if one.better == one.second else (one.second, one.lost, one.won)
    low, high = sorted((abs(one.low), abs(one.high)))
    amount = f" by {abs(one.mean):.3g}{unit} (95 % interval {low:.3g} to {high:.3g}, {test})"
    if one.infinite:
        amount = f": it wins {won} cases and loses {lost}, {one.infinite} of them by an infinite distance ({test})"
    return f"{one.better} is better than {worse} in {what}{amount}: larger than the noise between these cases."


def _doubt(one: Difference, unit: str, test: str) -> str:
    if math.isnan(one.p):
        more = f"; {one.unranked} more cannot be ranked: each misses another class" if one.unranked else ""
        return f"they differ in {one.won + one.lost} of {one.cases} cases, and the test needs {_FEWEST}{more}"
    reason = "within the noise between these cases"
    if one.corrected_p < LEVEL:
        reason = "where the interval does not bear out what the test finds"
    if one.infinite:
        score = f"wins {one.won} cases and loses {one.lost}, {one.infinite} of them by an infinite distance"
        return f"{one.second} {score} ({test}), {reason}"
    interval = f"95 % interval {one.low:.3g} to {one.high:.3g}"
    return f"{one.second} is {one.mean:+.3g}{unit} from {one.first} ({interval}, {test}), {reason}"


def comparison_table(comparison: Comparison) -> str:
    """A row for each pair and target, sentences, and what the reader must know."""
    rows = [
        [
            f"{one.second} − {one.first}",
            one.target,
            one.mean,
            *((one.low, one.high) if len(comparison.cases) > 1 else "––"),
            one.cases,
            one.left_out,
            one.unranked,
            one.infinite,
            f"{one.won}/{one.tied}/{one.lost}",
            one.effect,
            one.corrected_p,
            one.better or "–",
        ]
        for one in comparison.differences
    ]
    unit = f" ({comparison.unit})" if comparison.unit else ""
    headers = (comparison.metric + unit, "class", "difference", "95 % from", "to", "cases", "undefined")
    shown = table(rows, [*headers, "no rank", "infinite", "won/tied/lost", "effect", "Holm's p", "better"])
    notes = ["How this was computed, and what the columns are: `method` in compare.json."]
    if (pairs := len(comparison.paired)) > _MOST_PANELS:
        notes.append(f"The plot shows the {_MOST_PANELS} of {pairs} pairs with the largest effects.")
    return "\n".join([shown, "", *sentences(comparison), REMINDER, *notes])


def content_of(comparison: Comparison) -> dict:
    """What compare.json holds: all numbers but those of single cases, which the CSV has."""
    return as_json(
        {
            "format": 1,
            "metric": comparison.metric,
            "better": comparison.better,
            "unit": comparison.unit,
            "protocol": comparison.protocol,
            "names": list(comparison.scores),
            "cases": len(comparison.cases),
            "differences": [asdict(one) for one in comparison.differences],
            "sentences": sentences(comparison),
            "reminder": REMINDER,
            "method": METHOD,
        }
    )


def write_comparison(comparison: Comparison, folder: Path) -> list[Path]:
    """Write compare.json, compare.csv (the differences of every case) and compare.png into a folder."""
    paths = [make_folder(folder) / f"compare.{ending}" for ending in ("json", "csv", "png")]
    write_json(paths[0], content_of(comparison))
    write_text(paths[1], _sheet(comparison))
    with draft_of(paths[2]) as part:
        part.write_bytes(_plot(comparison))
    return paths


def _sheet(comparison: Comparison) -> str:
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(
        ["case", "class", "first", "second", f"first_{comparison.metric}", f"second_{comparison.metric}", "difference"]
    )
    for (first, second), differences in comparison.paired.items():
        for (row, case), (column, target) in itertools.product(
            enumerate(comparison.cases), enumerate(comparison.targets)
        ):
            numbers = (comparison.scores[first], comparison.scores[second], differences)
            values = [values[row, column] for values in numbers]
            writer.writerow([case, target, first, second, *("" if math.isnan(value) else value for value in values)])
    return sheet.getvalue()


def _drawn(comparison: Comparison) -> list[tuple[str, str]]:
    """All pairs, or those with the largest effects, in their order."""
    main = comparison.differences[: len(comparison.paired)]
    effects = {(one.first, one.second): 0 if math.isnan(one.effect) else abs(one.effect) for one in main}
    largest = sorted(effects, key=lambda pair: -effects[pair])[:_MOST_PANELS]
    return [pair for pair in comparison.paired if pair in largest]


def _plot(comparison: Comparison) -> bytes:
    panels, sides = {}, {}
    for first, second in _drawn(comparison):
        differences = comparison.paired[first, second]
        found = {one.target: one for one in comparison.differences if (one.first, one.second) == (first, second)}
        title = f"{second} − {first}"
        panels[title] = [
            figures.Strip(target, column, found[target].mean, found[target].low, found[target].high)
            for target, column in zip(comparison.targets, differences.T, strict=True)
        ]
        left, right = (first, second) if comparison.better == "higher" else (second, first)
        sides[title] = (f"← {left} is better", f"{right} is better →")
    unit = f" in {comparison.unit}" if comparison.unit else ""
    axis = f"difference of {comparison.metric}{unit} in a case (diamond: mean, bar: 95 % interval)"
    return figures.strips(panels, axis, sides)
