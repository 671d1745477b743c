"""Finished runs -> the numbers of a table."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from umamba_seg.datasets.splits import load_splits
from umamba_seg.errors import UserError
from umamba_seg.evaluate.compare import require_alike
from umamba_seg.evaluate.protocols import DEFAULT_PROTOCOL, PROTOCOLS
from umamba_seg.evaluate.results import NAME, read_case_metrics
from umamba_seg.evaluate.statistics import seed_means
from umamba_seg.files import read_json
from umamba_seg.reproduce import scan
from umamba_seg.reproduce.footer import footer, options_of
from umamba_seg.reproduce.outcome import Costs, Measured, Missing, Outcome, Place, Run, metric_of
from umamba_seg.reproduce.runs import Job
from umamba_seg.reproduce.splits import split_hash
from umamba_seg.reproduce.table import Column, PaperTable


def collect(
    table: PaperTable,
    jobs: Sequence[Job],
    costs: Mapping[tuple[int, str], Costs],
    remarks: Sequence[str],
    failed: Mapping[Job, str] | None = None,
) -> Outcome:
    """Read what the jobs of a table have left.

    A number is the mean over the seeds that are there, its interval that of other cases, the same ones for all seeds.
    With one seed both are those of metrics.json.

    Args:
        table: As it was run.
        jobs: Of all its rows, data sets and seeds; those without metrics.json are missing.
        costs: (row, data set) -> what the network costs.
        remarks: What differs from the table's file, in sentences.
        failed: Jobs that failed, and why: what an earlier run has left of them does not count.

    Raises:
        UserError: A metrics.json cannot be read, was measured by another protocol than the table's, lacks a metric or
            class of the table, or those of two seeds are of other cases.
    """
    groups: dict[Place, list[Job]] = defaultdict(list)
    for job in jobs:
        groups[Place(job.row, job.key)].append(job)
    failed = failed or {}
    runs = {place: _runs([job for job in group if job not in failed]) for place, group in groups.items()}
    cells = {
        (place.row, column.name): _measured(found, column)
        for place, found in runs.items()
        for column in table.columns
        if found and column.metric and column.dataset == place.key
    }
    splits = {job.key: load_splits(file) for job in jobs if (file := job.preprocessed / "splits_final.json").is_file()}
    differences = scan.compare_networks(table, runs)
    return Outcome(
        table=table,
        cells=cells,
        costs={Place(*place): found for place, found in costs.items()},
        missing={place: _missing(groups[place], failed) for place, found in runs.items() if not found},
        epochs={place: epochs for place, found in runs.items() if (epochs := _epochs(found))},
        splits={key: split_hash(found) for key, found in splits.items()},
        differences=differences,
        answers=scan.answers(table, differences),
        footer=footer(table, groups, runs, splits, costs.values(), remarks, failed),
    )


def _missing(jobs: Sequence[Job], failed: Mapping[Job, str]) -> Missing:
    why = [failed[job] for job in jobs if job in failed]
    return Missing("failed", why[0]) if why else Missing("not run", "not run yet")


def _runs(jobs: Sequence[Job]) -> list[Run]:
    """Those of the seeds that were measured."""
    found = [_read(job) for job in jobs if (job.segmentations / NAME).is_file()]
    for other in found[1:]:
        require_alike(found[0].metrics, other.metrics)
    return found


def _read(job: Job) -> Run:
    path = job.segmentations / NAME
    metrics, wanted = read_case_metrics(path), job.dataset.protocol
    if metrics.protocol != wanted:
        what = f"was measured by the protocol {metrics.protocol}, but the table asks for {wanted}"
        raise UserError(path, what, f"measure again with `umamba-seg evaluate --protocol {wanted}`")
    return Run(job, path, read_json(path), metrics)


def _measured(runs: Sequence[Run], column: Column) -> Measured:
    numbers = np.array([_numbers(run, column) for run in runs])
    low, high = numbers[0, 1:] if len(runs) == 1 else _interval(runs, column)
    return Measured(
        value=float(numbers[:, 0].mean()),
        low=float(low),
        high=float(high),
        spread=float(numbers[:, 0].std(ddof=1)) if len(runs) > 1 else math.nan,
        seeds=tuple(run.job.seed for run in runs),
        cases=len(runs[0].metrics.values),
    )


def _numbers(run: Run, column: Column) -> list[float]:
    """The mean of a column with the ends of its interval, as metrics.json has them."""
    metric, content = metric_of(column), run.content
    if metric not in content["metrics"]:
        what = f"holds no {metric}, only {', '.join(content['metrics'])}"
        raise UserError(run.path, what, f"mend the metric of the table's column {column.name}, or measure again")
    found = content["overall"][metric]
    if column.target is not None:
        classes = [name for name, numbers in content["statistics"].items() if metric in numbers]
        if column.target not in classes:
            what = f"holds no {metric} of {column.target}, only of {', '.join(classes)}"
            raise UserError(run.path, what, f"mend the target of the table's column {column.name}")
        found = content["statistics"][column.target][metric]
    return [_float(found[key]) for key in ("mean", "low", "high")]


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _interval(runs: Sequence[Run], column: Column) -> tuple[float, float]:
    """Of the mean over several seeds; NaN where voxels of all cases are pooled, which metrics.json does not hold."""
    metric, one = metric_of(column), runs[0].metrics
    protocol = PROTOCOLS[one.protocol if one.protocol in PROTOCOLS else DEFAULT_PROTOCOL]  # cells are one class
    if protocol.means == "pooled":
        return math.nan, math.nan
    values = np.array(
        [
            [[[run.metrics.values[case][name].get(metric, math.nan)] for name in one.classes] for case in one.values]
            for run in runs
        ]
    )
    measured = np.array([[metric in runs[0].content["statistics"][name]] for name in one.classes])
    _, low, high = seed_means(values, measured, protocol)
    row = -1 if column.target is None else one.classes.index(column.target)
    return low[row, 0], high[row, 0]


def _epochs(runs: Sequence[Run]) -> tuple[int, ...]:
    """Of the trainings, as run.json of their folds has them, each number once."""
    found = {options["epochs"] for run in runs for options in options_of(run)}
    return tuple(sorted(number for number in found if number is not None))
