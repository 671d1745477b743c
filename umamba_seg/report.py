"""Pictures and tables of a training run as one HTML file that needs nothing beside it."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple

from umamba_seg import figures
from umamba_seg.datasets.labels import Labels
from umamba_seg.evaluate import class_metrics
from umamba_seg.files import read_json
from umamba_seg.plan.plans import PLANS_TABLE, require_configuration
from umamba_seg.text import times
from umamba_seg.train.records import read_epochs

_PARTS = {  # of a training step, as the log names them
    "loader": "waiting for data",
    "forward_backward": "forward and backward pass",
    "step": "clipping and optimizer",
    "other": "the rest",
}


class Picture(NamedTuple):
    """The files of one case: images in channel order (the first is shown), reference labels if known, prediction."""

    case: str
    images: Sequence[Path]
    reference: Path | None
    prediction: Path


@dataclass(frozen=True)
class ReportInput:
    """What a report shows, as nnU-Net's files hold it.

    Attributes:
        title: Heading of the report.
        date: Date of the run, as it is to be shown.
        fold: Number or name of the fold.
        dataset_json: Content of the data set's ``dataset.json``.
        fingerprint: Content of ``dataset_fingerprint.json``.
        plans: Content of ``plans.json``; everything in its table ``umamba_seg`` is shown.
        configuration: The configuration of the plans that was trained, such as ``3d_fullres``.
        cases: What kind of cases -> how many, such as ``{"training": 16, "validation": 4, "test": 8}``.
        parameters: Number of the network's parameters, if known.
        logging: nnU-Net's log of the training, key -> one value per epoch; None if there is none.
        epochs: What ``log.jsonl`` holds about each epoch.
        summary: Content of ``summary.json``; None if nothing was evaluated.
        pictures: Cases to choose from: the best, the median and the worst by Dice are shown, without a summary the
            first three.
    """

    title: str
    date: str
    fold: int | str
    dataset_json: dict[str, Any]
    fingerprint: dict[str, Any]
    plans: dict[str, Any]
    configuration: str
    cases: Mapping[str, int]
    parameters: int | None = None
    logging: Mapping[str, Sequence[Any]] | None = None
    epochs: Sequence[Mapping[str, Any]] = ()
    summary: dict[str, Any] | None = None
    pictures: Sequence[Picture] = field(default_factory=tuple)


class _CaseDice(NamedTuple):
    """Dice of a case by class name, NaN where neither reference nor prediction holds the class."""

    case: str
    dice: dict[str, float]

    @property
    def mean(self) -> float:
        return mean(_known(self.dice.values()) or [math.nan])


def write_report(report: ReportInput, output: Path) -> Path:
    """Write the report to ``output``, one HTML file with all pictures inside, and return that path.

    Raises:
        UserError: The plans lack the configuration, the labels are malformed, or an image of ``pictures`` is missing,
            unreadable or of another grid than its labels.
    """
    import matplotlib.style as matplotlib_style
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("umamba_seg"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["dice"] = lambda value: "–" if math.isnan(value) else f"{value:.3f}"
    with matplotlib_style.context("default"):  # nnU-Net's progress.png leaves its own, with letters of twice the size
        page = environment.get_template("report.html").render(_context(report))
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page, encoding="utf-8")
    return output


def report_on_model(
    model_folder: Path,
    fold: int | str,
    *,
    title: str,
    summary: dict[str, Any] | None,
    images: Mapping[str, Sequence[Path]],
    references: Path,
    predictions: Path,
    cases: Mapping[str, int],
    output: Path,
) -> Path:
    """Report on a fold that ``train`` wrote, with pictures of the cases that ``predictions`` and ``images`` share.

    Args:
        model_folder: ``Trainer__plans__configuration``.
        fold: Number or name of the fold.
        title: Heading.
        summary: nnU-Net's summary of the predictions, if they were evaluated.
        images: Case -> its image files in channel order.
        references: Folder of reference segmentations.
        predictions: Folder of predicted segmentations.
        cases: What kind of cases -> how many.
        output: The HTML file.
    """
    dataset_json = read_json(model_folder / "dataset.json")
    training = read_json(model_folder / f"fold_{fold}" / "training.json")
    ending = dataset_json["file_ending"]
    pictures = [
        Picture(case, files, references / f"{case}{ending}", predictions / f"{case}{ending}")
        for case, files in images.items()
        if (predictions / f"{case}{ending}").is_file()
    ]
    report = ReportInput(
        title=title,
        date=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M"),
        fold=fold,
        dataset_json=dataset_json,
        fingerprint=read_json(model_folder / "dataset_fingerprint.json"),
        plans=read_json(model_folder / "plans.json"),
        configuration=training["configuration"],
        cases=cases,
        parameters=training["parameters"],
        logging=training["logging"],
        epochs=read_epochs(model_folder / f"fold_{fold}"),
        summary=summary,
        pictures=pictures,
    )
    return write_report(report, output)


def _context(report: ReportInput) -> dict[str, Any]:
    """What the template shows, as text and numbers."""
    labels = Labels.from_json(report.dataset_json, Path("dataset.json"))
    require_configuration(report.plans, report.configuration)
    ours = report.plans[PLANS_TABLE]
    cases = _dice_of_cases(report, labels)
    return {
        "report": report,
        "dataset_name": report.plans["dataset_name"],
        "network": ours["network"],
        "versions": ours["versions"],
        "labels": [(name, _values(value)) for name, value in labels.foreground.items()],
        "ignore": labels.ignore,
        "axes": _axes(report.fingerprint),
        "intensities": _intensities(report),
        "options": _rows({key: value for key, value in ours.items() if key != "versions"}),
        **_plan(report),
        "curves": figures.curves(report.logging) if report.logging else {},
        "training_time": _training_time(report.logging) if report.logging else None,
        "step_time": _step_time(report.epochs) if report.epochs else None,
        "class_table": [_class_row(name, [case.dice[name] for case in cases]) for name in labels.foreground],
        "case_table": cases,
        "legend": _legend(labels),
        "pictures": _pictures(report, cases, labels.ignore),
    }


def _values(value: int | tuple[int, ...]) -> str:
    return f"region of {', '.join(map(str, value))}" if isinstance(value, tuple) else str(value)


def _axes(fingerprint: dict[str, Any]) -> list[dict[str, Any]]:
    """Smallest, median and largest size and spacing per array axis; the single slice of 2-D images is no axis."""
    sizes, spacings = (list(zip(*fingerprint[key], strict=True)) for key in ("shapes_after_crop", "spacings"))
    axes = [
        {"name": name, "size": (min(size), median(size), max(size)), "spacing": (min(gap), median(gap), max(gap))}
        for name, size, gap in zip("zyx", sizes, spacings, strict=True)
    ]
    return axes[1:] if set(sizes[0]) == {1} else axes


def _intensities(report: ReportInput) -> list[tuple[str, dict[str, float]]]:
    statistics = report.fingerprint["foreground_intensity_properties_per_channel"]
    return [(name, statistics[channel]) for channel, name in report.dataset_json["channel_names"].items()]


def _plan(report: ReportInput) -> dict[str, Any]:
    """The configuration: rows of name and text, and a table with one column per stage of the network."""
    configuration = report.plans["configurations"][report.configuration]
    architecture = configuration["architecture"]
    topology = configuration["topology"]
    stage_count = len(topology["strides"])
    arguments = {key: value for key, value in architecture["arch_kwargs"].items() if value not in topology.values()}
    staged = topology | {
        key: value for key, value in arguments.items() if isinstance(value, list) and len(value) == stage_count
    }
    rows = {
        "network class": architecture["network_class_name"],
        "patch size": times(configuration["patch_size"]) + " voxels",
        "batch size": configuration["batch_size"],
        "spacing": times(round(value, 4) for value in configuration["spacing"]) + " mm",
        "normalisation": configuration["normalization_schemes"],
        **{key: value for key, value in arguments.items() if key not in staged},
    }
    if report.parameters is not None:
        rows["parameters"] = f"{report.parameters:,}"
    stages = [(_words(key), [_text(entry) for entry in value]) for key, value in staged.items()]
    return {"plan": _rows(rows), "stages": stages, "stage_count": stage_count}


def _rows(table: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Any JSON object as rows of name and text; the names of nested objects are joined."""
    rows = []
    for key, value in table.items():
        if isinstance(value, dict):
            rows += _rows(value, f"{prefix}{_words(key)}: ")
        else:
            rows.append((prefix + _words(key), _text(value)))
    return rows


def _words(key: str) -> str:
    return key.replace("_", " ")


def _text(value: Any) -> str:
    """A JSON value for a reader; whole numbers in a list of their own are the sizes of a kernel or a stride."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list):
        sizes = len(value) in (2, 3) and all(type(entry) is int for entry in value)
        return times(value) if sizes else ", ".join(map(_text, value))
    return "none" if value is None else str(value)


def _training_time(logging: Mapping[str, Sequence[Any]]) -> str:
    starts, ends = logging["epoch_start_timestamps"], logging["epoch_end_timestamps"]
    minutes = round(sum(end - start for start, end in zip(starts, ends, strict=False)) / 60)
    return f"{len(ends)} epochs in {minutes // 60} h {minutes % 60} min"


def _step_time(epochs: Sequence[Mapping[str, Any]]) -> str:
    """Where the time of the training steps went."""
    seconds = {part: sum(epoch[f"seconds/{part}"] for epoch in epochs) for part in ("all", *_PARTS)}
    shares = ", ".join(f"{words} {seconds[part] / seconds['all']:.0%}" for part, words in _PARTS.items())
    return f"Training steps: {shares}"


def _dice_of_cases(report: ReportInput, labels: Labels) -> list[_CaseDice]:
    """The cases of the summary, the worst first, those without any Dice last."""
    cases = []
    for entry in report.summary["metric_per_case"] if report.summary else ():
        name = Path(entry["prediction_file"]).name.removesuffix(report.dataset_json["file_ending"])
        metrics = class_metrics(entry["metrics"], labels)
        cases.append(_CaseDice(name, {label: values["Dice"] for label, values in metrics.items()}))
    return sorted(cases, key=lambda case: (math.isnan(case.mean), case.mean))


def _known(scores: Iterable[float]) -> list[float]:
    return [score for score in scores if not math.isnan(score)]


def _class_row(name: str, scores: list[float]) -> dict[str, Any]:
    known = _known(scores)
    numbers = known or [math.nan]
    return {
        "name": name,
        "dice": (mean(numbers), median(numbers), min(numbers), max(numbers)),
        "cases": len(known),
        "empty": len(scores) - len(known),
    }


def _legend(labels: Labels) -> list[tuple[str, str]]:
    """Colour and meaning of every value in the label files; a value of several regions belongs to each."""
    meanings: dict[int, list[str]] = defaultdict(list)
    for name, value in labels.foreground.items():
        for member in value if isinstance(value, tuple) else (value,):
            meanings[member].append(name)
    return [(figures.colour(value), " + ".join(names)) for value, names in sorted(meanings.items())]


def _pictures(report: ReportInput, cases: list[_CaseDice], ignore: int | None) -> list[tuple[str, str, str]]:
    """Case, remark and slices of the best, median and worst case, or of the first three where none has a Dice."""
    available = {picture.case: picture for picture in report.pictures}
    ranked = [case for case in cases if case.case in available and not math.isnan(case.mean)]
    remarks = {name: "" for name in list(available)[:3]}
    if ranked:
        chosen = {"best": ranked[-1], "median": ranked[len(ranked) // 2], "worst": ranked[0]}
        remarks = {case.case: f"{rank}, mean Dice {case.mean:.3f}" for rank, case in chosen.items()}
    window = None
    if report.dataset_json["channel_names"]["0"] == "CT":  # its grey values mean the same in every case
        statistics = report.fingerprint["foreground_intensity_properties_per_channel"]["0"]
        window = (statistics["percentile_00_5"], statistics["percentile_99_5"])
    shown = []
    for name, remark in remarks.items():
        _, images, reference, prediction = available[name]
        shown.append((name, remark, figures.slices(images[0], reference, prediction, ignore, window)))
    return shown
