"""metrics.json and metrics.csv: every number of every case, what they amount to, and how they came about."""

from __future__ import annotations

import csv
import io
import math
import platform
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

import umamba_seg
from umamba_seg import settings
from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import require_file_ending, visible_files
from umamba_seg.errors import UserError
from umamba_seg.evaluate import folder, statistics, summary
from umamba_seg.evaluate.case import State, metric_words
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.evaluate.metrics import METRICS, OTHER_DEFINITIONS
from umamba_seg.evaluate.protocols import DEFAULT_PROTOCOL, Protocol, Target, choose_protocol, targets_of
from umamba_seg.files import read_json, write_json, write_text

FORMAT = 1
NAME = "metrics.json"


@dataclass(frozen=True, eq=False)
class Evaluation:
    """What was found of a folder of segmentations, and where it was written.

    Attributes:
        results: Content of metrics.json, see :func:`build_results`.
        summary: Content of summary.json.
        summary_file: nnU-Net's summary.
        metrics_file: metrics.json.
        table_file: metrics.csv.
    """

    results: dict
    summary: dict
    summary_file: Path
    metrics_file: Path
    table_file: Path


def evaluate_segmentations(
    references: Path,
    predictions: Path,
    metrics: str | Iterable[str] | None = None,
    protocol: str = DEFAULT_PROTOCOL,
    *,
    description: Path | None = None,
    output: Path | None = None,
    processes: int | None = None,
    allow_missing: bool = False,
) -> Evaluation:
    """What ``umamba-seg evaluate`` does: measure a folder, and write summary.json, metrics.json and metrics.csv.

    Args:
        references: Folder of reference segmentations.
        predictions: Folder of predictions of the same names.
        metrics: As ``--metrics`` takes them (default: the protocol's).
        protocol: Its name.
        description: dataset.json (default: the one among the predictions).
        output: The summary (default: summary.json among the predictions); the others are put beside it.
        processes: Worker processes (default: what cores and memory allow).
        allow_missing: Measure the cases that were predicted; otherwise a missing one is an error.

    Raises:
        UserError: As :func:`~umamba_seg.evaluate.folder.score_folder`, there is no dataset.json, or nothing can be
            written there.
    """
    file = description or _dataset_json(references, predictions)
    dataset_json = read_json(file)
    require_file_ending(dataset_json, file)
    labels, ending = Labels.from_json(dataset_json, file), dataset_json["file_ending"]
    output = output or predictions / "summary.json"
    if output.suffix != ".json" or not output.parent.is_dir():
        raise UserError(f"-o {output}", "not a .json file in a folder that is there", "name one")
    rules, workers = choose_protocol(protocol, metric_words(metrics)), settings.workers(processes)
    cases = folder.score_folder(references, predictions, dataset_json, rules, workers, allow_missing=allow_missing)
    about = {
        "references": str(references.resolve()),
        "predictions": str(predictions),
        "endings": [ending],
        "ignore_label": labels.ignore,
        "missing": sorted(folder.case_names(references, ending) - {case.case for case in cases}),
    }
    summed = summary.write_summary(cases, references, predictions, dataset_json, output)
    found = build_results(cases, targets_of(rules, labels), rules, about)
    metrics_file = output.with_name(_beside(output.stem))
    return Evaluation(found, summed, output, metrics_file, write_results(found, metrics_file))


def _dataset_json(references: Path, predictions: Path) -> Path:
    """dataset.json among the predictions."""
    if (predictions / "dataset.json").is_file():
        return predictions / "dataset.json"
    if not visible_files(predictions):
        raise UserError(predictions, "this folder is empty", "name the folder of segmentations")
    if (references / "dataset.json").is_file():
        what = f"holds no dataset.json, but {references} does: it looks as if the two were swapped"
        remedy = "name the references first and the segmentations after them, or dataset.json with -djfile"
        raise UserError(predictions, what, remedy)
    raise UserError(predictions, "holds no dataset.json", "name that of the data set with `evaluate -djfile FILE`")


def _beside(name: str) -> str:
    """metrics.json for summary.json; a summary of another name keeps it, so that several fit into a folder."""
    return f"{name.replace('summary', 'metrics') if 'summary' in name else f'{name}_metrics'}.json"


def build_results(cases: Sequence[CaseScores], targets: Mapping[str, Target], protocol: Protocol, about: dict) -> dict:
    """The content of metrics.json, with NaN and infinity as floats.

    Args:
        cases: As measured.
        targets: What was measured of each class.
        protocol: By which rules.
        about: What else a reader should know; :func:`read_case_metrics` wants ``references`` (a folder) and
            ``endings`` (of segmentations), and ``missing`` cases.
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
        "settings": about
        | {"left_out": [name for name in targets if name not in measured]}
        | {"interval": {"confidence": statistics.CONFIDENCE, "method": statistics.METHOD}}
        | {"headers_differ": {case.case: case.geometry for case in cases if case.geometry}}
        | {"unnamed_values": {case.case: case.unnamed for case in cases if case.unnamed}}
        | {"without_spacing": [case.case for case in cases if case.without_spacing]},
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
    write_text(table, sheet.getvalue())
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
        n_ref: case -> class -> voxels of the reference.
        references: Folder of the references.
        endings: Of segmentations and references, in small letters.
        missing: Cases that were not predicted.
    """

    path: Path
    protocol: str
    classes: tuple[str, ...]
    metrics: dict[str, str | None]
    values: dict[str, dict[str, dict[str, float]]]
    states: dict[str, dict[str, State]]
    n_ref: dict[str, dict[str, int]]
    references: Path
    endings: tuple[str, ...]
    missing: tuple[str, ...]

    def newer_file(self) -> Path | None:
        """A segmentation beside the file, or a reference, that was written after it."""
        written = self.path.stat().st_mtime_ns
        for place in filter(Path.is_dir, (self.path.parent, self.references)):
            for name in visible_files(place):
                if name.lower().endswith(self.endings) and (place / name).stat().st_mtime_ns > written:
                    return place / name
        return None


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
        n_ref={case.case: {name: scores.n_ref for name, scores in case.classes.items()} for case in content.cases},
        references=Path(content.settings.references),
        endings=tuple(ending.lower() for ending in content.settings.endings),
        missing=tuple(content.settings.missing),
    )


class _Named(BaseModel):
    name: str


class _Settings(BaseModel):
    references: str
    endings: list[str]
    missing: list[str]


class _Metric(BaseModel):
    better: Literal["higher", "lower", "zero"] | None


class _Scores(BaseModel):
    """A state and the size of the reference, and any metrics beside them."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, float | None]
    state: State
    n_ref: int


class _Case(BaseModel):
    case: str
    classes: dict[str, _Scores]


class _File(BaseModel):
    """What is read of a metrics.json."""

    format: Literal[1]
    protocol: _Named
    settings: _Settings
    classes: list[str]
    metrics: dict[str, _Metric]
    cases: list[_Case]


def _row(case: CaseScores, name: str, metrics: Sequence[str]) -> list[float]:
    return [case.classes[name].values.get(metric, math.nan) for metric in metrics]


def _scores(case: CaseScores, name: str) -> dict:
    tp, _, fn, _ = case.classes[name].counts
    return {"state": case.classes[name].state, "n_ref": tp + fn} | case.classes[name].values


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
