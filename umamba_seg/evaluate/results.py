"""metrics.json and metrics.csv: every number of every case, what they amount to, and how they came about."""

from __future__ import annotations

import csv
import io
import math
import platform
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

import umamba_seg
from umamba_seg.errors import UserError
from umamba_seg.evaluate import statistics
from umamba_seg.evaluate.case import State
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.evaluate.metrics import METRICS, OTHER_DEFINITIONS
from umamba_seg.evaluate.protocols import Protocol, Target
from umamba_seg.files import move_into_place, read_json, write_json

FORMAT = 1
NAME = "metrics.json"


def build_results(
    cases: Sequence[CaseScores], targets: Mapping[str, Target], protocol: Protocol, settings: dict
) -> dict:
    """The content of metrics.json, with NaN and infinity as floats.

    Args:
        cases: As measured.
        targets: What was measured of each class.
        protocol: By which rules.
        settings: What else a reader should know.
    """
    measured = {name: target for name, target in targets.items() if target.metrics}
    values = np.array([[_row(case, name, protocol.metrics) for name in measured] for case in cases])
    counts = np.array([[case.classes[name].counts for name in measured] for case in cases])
    taken = np.array([[metric in target.metrics for metric in protocol.metrics] for target in measured.values()])
    estimates = statistics.class_means(values, counts, taken, protocol)
    of_class = {
        name: {
            metric: _estimate(estimates, row, column) | _spread(values[:, row, column])
            for column, metric in enumerate(protocol.metrics)
            if taken[row, column]
        }
        for row, name in enumerate(measured)
    }
    return {
        "format": FORMAT,
        "protocol": protocol.as_json(),
        "settings": settings
        | {"left_out": [name for name in targets if name not in measured]}
        | {"interval": {"confidence": statistics.CONFIDENCE, "method": statistics.METHOD}}
        | {"headers_differ": {case.case: case.geometry for case in cases if case.geometry}}
        | {"unnamed_values": {case.case: case.unnamed for case in cases if case.unnamed}},
        "versions": {"umamba_seg": umamba_seg.__version__, "python": platform.python_version()}
        | {name: version(name) for name in ("numpy", "scipy", "scikit-image")},
        "classes": list(measured),
        "metrics": {metric: _description(metric, protocol) for metric in protocol.metrics},
        "counts": {name: _count_states(cases, name) for name in measured},
        "statistics": of_class,
        "overall": {metric: _estimate(estimates, -1, column) for column, metric in enumerate(protocol.metrics)},
        "cases": [{"case": case.case, "classes": {name: _scores(case, name) for name in measured}} for case in cases],
    }


def write_results(results: dict, path: Path) -> Path:
    """Write metrics.json and, of the same name, the table of cases and classes as CSV, whose path is returned.

    In the CSV, NaN is an empty field.
    """
    write_json(path, as_json(results))
    metrics = list(results["metrics"])
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(["case", "class", "state", *metrics])
    for case in results["cases"]:
        for name, scores in case["classes"].items():
            numbers = [scores.get(metric, math.nan) for metric in metrics]
            writer.writerow(
                [case["case"], name, scores["state"], *("" if math.isnan(value) else value for value in numbers)]
            )
    table = path.with_suffix(".csv")
    part = table.with_name(f".{table.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_text(sheet.getvalue(), encoding="utf-8")
        move_into_place(part, table)
    finally:
        part.unlink(missing_ok=True)
    return table


@dataclass(frozen=True, eq=False)
class CaseMetrics:
    """The numbers of every case, read from a metrics.json.

    Attributes:
        path: Of the file.
        protocol: Name of the protocol by which they were measured.
        classes: In the order of dataset.json.
        metrics: Metric -> which values are better: ``"higher"``, ``"lower"``, those nearer to ``"zero"``, or None for
            numbers that only describe.
        values: case -> class -> metric -> value, NaN and infinity included.
        states: case -> class -> ``"present"``, ``"both_empty"``, ``"missed"`` or ``"invented"``.
    """

    path: Path
    protocol: str
    classes: tuple[str, ...]
    metrics: dict[str, str | None]
    values: dict[str, dict[str, dict[str, float]]]
    states: dict[str, dict[str, State]]


def read_case_metrics(path: Path) -> CaseMetrics:
    """Read the numbers of every case from a metrics.json, or from the one in a folder.

    Raises:
        UserError: It is missing, or not what ``umamba-seg evaluate`` writes.
    """
    file = path / NAME if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise UserError(path, f"holds no {NAME}", "write it with `umamba-seg evaluate`")
    try:
        content = _File.model_validate(read_json(file))
    except ValidationError as error:
        where = ".".join(map(str, error.errors()[0]["loc"]))
        what = f"is no {NAME} of format {FORMAT} ({where}: {error.errors()[0]['msg']})"
        raise UserError(file, what, "write it with `umamba-seg evaluate`") from None
    return CaseMetrics(
        path=file,
        protocol=content.protocol.name,
        classes=tuple(content.classes),
        metrics={name: metric.better for name, metric in content.metrics.items()},
        values={
            case.case: {
                name: {
                    metric: math.nan if value is None else value for metric, value in (scores.model_extra or {}).items()
                }
                for name, scores in case.classes.items()
            }
            for case in content.cases
        },
        states={case.case: {name: scores.state for name, scores in case.classes.items()} for case in content.cases},
    )


class _Named(BaseModel):
    name: str


class _Metric(BaseModel):
    better: Literal["higher", "lower", "zero"] | None


class _Scores(BaseModel):
    """A state, and any metrics beside it."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    state: State


class _Case(BaseModel):
    case: str
    classes: dict[str, _Scores]


class _File(BaseModel):
    """What is read of a metrics.json."""

    format: Literal[1]
    protocol: _Named
    classes: list[str]
    metrics: dict[str, _Metric]
    cases: list[_Case]


def _row(case: CaseScores, name: str, metrics: Sequence[str]) -> list[float]:
    return [case.classes[name].values.get(metric, math.nan) for metric in metrics]


def _scores(case: CaseScores, name: str) -> dict:
    return {"state": case.classes[name].state} | case.classes[name].values


def _estimate(estimates: tuple[np.ndarray, np.ndarray, np.ndarray], row: int, column: int) -> dict[str, float]:
    return {key: float(numbers[row, column]) for key, numbers in zip(("mean", "low", "high"), estimates, strict=True)}


def _spread(values: np.ndarray) -> dict[str, float]:
    """Of the finite numbers of a class, and how many there are of each kind."""
    finite = values[np.isfinite(values)]
    spread = {"median": np.median, "min": np.min, "max": np.max}
    return {key: float(function(finite)) if len(finite) else math.nan for key, function in spread.items()} | {
        "cases": len(finite),
        "undefined": int(np.isnan(values).sum()),
        "infinite": int(np.isinf(values).sum()),
    }


def _count_states(cases: Sequence[CaseScores], name: str) -> dict[str, int]:
    states = [case.classes[name].state for case in cases]
    return {"cases": len(states)} | {state: states.count(state) for state in ("both_empty", "missed", "invented")}


def _description(metric: str, protocol: Protocol) -> dict:
    name = metric.partition("@")[0]
    found = METRICS[name]
    unit = "px" if found.unit == "mm" and not protocol.spacing else found.unit
    definition = OTHER_DEFINITIONS.get((name, getattr(protocol, name, "")), found.definition)
    return {"better": found.better, "unit": unit, "definition": definition}


def as_json(value: Any) -> Any:
    """With null for NaN and ``"inf"`` for infinity, which JSON does not know."""
    if isinstance(value, Mapping):
        return {key: as_json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else ("inf" if value > 0 else "-inf")
    return value
