"""What came of a table: our numbers, what they cost, how far networks are apart, and what a reader must know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from umamba_seg.evaluate.compare import Difference
from umamba_seg.evaluate.results import CaseMetrics
from umamba_seg.evaluate.statistics import Estimate
from umamba_seg.reproduce.runs import Job
from umamba_seg.reproduce.table import Column, PaperTable, Status

LETTERS: dict[Status, str] = {
    "official": "o",
    "secondary": "s",
    "computed": "c",
    "inferred": "i",
    "read-off-chart": "r",
}
"""Behind a published number, before the number of its source."""


class Place(NamedTuple):
    """A row of the table on one of its data sets."""

    row: int
    key: str


@dataclass(frozen=True, eq=False)
class Run:
    """A job that was measured.

    Attributes:
        job: What was run.
        path: Of its metrics.json.
        content: What that holds, with None for NaN and "inf" for infinity.
        metrics: The numbers of its cases.
    """

    job: Job
    path: Path
    content: Mapping[str, Any]
    metrics: CaseMetrics


class Missing(NamedTuple):
    """What stands in the place of a number of ours, and why there is none."""

    word: str
    why: str


@dataclass(frozen=True)
class Costs:
    """What a network costs.

    Attributes:
        parameters: Numbers that are trained.
        multiply_adds: Of the forward pass of one sample.
        training_bytes: Peak of a training step.
        seconds: Of a training step; None where it was not measured here.
        machine: Where it was measured, in words; empty where it was not.
        setting: What it is trained on, in words.
    """

    parameters: int
    multiply_adds: int
    training_bytes: int
    seconds: float | None
    machine: str
    setting: str


@dataclass(frozen=True)
class Measured:
    """A number of ours, in the unit of metrics.json.

    Attributes:
        value: Mean over seeds of what the protocol makes of all cases.
        low: Where its interval begins; NaN for a single case.
        high: Where it ends.
        spread: Standard deviation over seeds; NaN for one.
        seeds: Of the trainings.
        cases: That are scored.
    """

    value: float
    low: float
    high: float
    spread: float
    seeds: tuple[int, ...]
    cases: int


@dataclass(frozen=True)
class Paired:
    """Two rows of a table, compared within cases on a data set.

    Attributes:
        key: Of the data set.
        metric: That is compared.
        better: Which values of it are: "higher", "lower" or those nearer to "zero".
        unit: Of the metric, if it has one.
        first: Row that is taken off.
        second: Row that it is taken off from.
        twins: Whether the second is the first without the scan.
        seeds: That both were trained with; of each case the mean over them is compared.
        difference: The second minus the first, with p corrected for all pairs of the table.
        by_seed: The mean difference of each seed.
        over_seeds: The mean difference with the interval of other cases and other seeds; NaN for one seed.
        other_training: How the two were trained differently, in words; empty if alike.
    """

    key: str
    metric: str
    better: str
    unit: str
    first: int
    second: int
    twins: bool
    seeds: tuple[int, ...]
    difference: Difference
    by_seed: tuple[float, ...]
    over_seeds: Estimate
    other_training: str


@dataclass(frozen=True)
class Outcome:
    """A table beside ours.

    Attributes:
        table: As it was run.
        cells: (row, name of a column) -> our number.
        costs: (row, data set) -> what the network costs.
        missing: (row, data set) -> why there is no number of ours, where one was wanted.
        epochs: (row, data set) -> epochs of its trainings, as run.json has them; without those that were not run.
        splits: Data set -> SHA-256 of the splits that are there; without those that have none yet.
        differences: Of pairs of networks.
        answers: What follows from them, a sentence for each, and what does not.
        footer: What could change a number, in sentences.
    """

    table: PaperTable
    cells: Mapping[tuple[int, str], Measured]
    costs: Mapping[Place, Costs]
    missing: Mapping[Place, Missing]
    epochs: Mapping[Place, tuple[int, ...]]
    splits: Mapping[str, str]
    differences: Sequence[Paired]
    answers: Sequence[str]
    footer: Sequence[str]


def metric_of(column: Column) -> str:
    """The metric of a column as metrics.json calls it: the F1 of cells has a longer name there."""
    return "instance_f1" if column.metric == "f1" else str(column.metric)


def source_numbers(table: PaperTable) -> dict[str, int]:
    """Key -> number of each source that a published number of the table names, from 1."""
    named = {number.source for row in table.rows for number in row.published.values()}
    return {key: number for number, key in enumerate((key for key in table.sources if key in named), start=1)}
