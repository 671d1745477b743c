"""The results as a table for a terminal."""

from __future__ import annotations

import textwrap

from umamba_seg.log import table
from umamba_seg.text import shorten

_COLUMNS = ("mean", "low", "high", "median", "min", "max", "cases", "undefined", "infinite")
_WIDTH = 118


def results_table(results: dict) -> str:
    """Every metric of every class and over classes, how often a class was empty, and what the reader must know.

    Args:
        results: Content of metrics.json.
    """
    rows = []
    for metric, description in results["metrics"].items():
        shown = f"{metric} ({description['unit']})" if description["unit"] in ("mm", "px") else metric
        for name, numbers in results["statistics"].items():
            if metric in numbers:
                rows.append([shown, name, *(numbers[metric][column] for column in _COLUMNS)])
        if description["better"]:
            rows.append([shown, "over classes", *(results["overall"][metric][column] for column in _COLUMNS[:3])])
    if len(results["cases"]) == 1:  # the interval of one case says nothing
        rows = [[*row[:3], "–", "–", *row[5:]] for row in rows]
    confidence = f"{results['settings']['interval']['confidence']:.0%}"
    counts = [[name, *numbers.values()] for name, numbers in results["counts"].items()]
    return "\n\n".join(
        [
            table(rows, ["metric", "class", "mean", f"{confidence} from", "to", *_COLUMNS[3:]]),
            table(counts, ["class", "cases", "both empty", "missed", "invented"]),
            "\n".join(textwrap.fill(line, _WIDTH, subsequent_indent="  ") for line in _footer(results)),
        ]
    )


def _footer(results: dict) -> list[str]:
    protocol, settings = results["protocol"], results["settings"]
    lines = [f"protocol {protocol['name']}: {protocol['source']}", *(f"* {note}" for note in protocol["notes"])]
    if settings["left_out"]:
        lines.append(f"* left out: {', '.join(settings['left_out'])}")
    lines.append(f"over classes: {_MEANS[protocol['means']]}")
    lines.append("missed: the reference holds the class, the prediction does not; invented: the other way round")
    rules: dict[str, list[str]] = {}
    for metric, rule in protocol["empty"].items():
        rules.setdefault(_rule(rule), []).append(metric)
    lines += [f"{', '.join(metrics)} of an empty mask: {rule}" for rule, metrics in rules.items()]
    lines.append(f"mean, median, min and max are of finite numbers; interval: {settings['interval']['method']}")
    if settings["headers_differ"]:
        found = shorten(list(settings["headers_differ"]))
        lines.append(f"headers of predictions differ from their references', whose spacing is used: {found}")
    if settings["missing"]:
        lines.append(
            f"{len(settings['missing'])} cases were not predicted and left out: {shorten(settings['missing'])}"
        )
    if settings["without_spacing"]:
        lines.append("TIFF volumes have no spacing: it is taken as 1, so that mm are voxels and ml thousands of voxels")
    if settings["unnamed_values"]:
        lines.append(f"values without a label count as background: {shorten(list(settings['unnamed_values']))}")
    return lines


_MEANS = {
    "classes": "mean of the classes' means",
    "cases": "mean over cases of the mean over the classes in each",
    "pooled": "mean of the classes; means are of the voxels of all cases counted together",
}


def _rule(rule: dict) -> str:
    return ", ".join(f"{state.replace('_', ' ')} {value:g}" for state, value in rule.items())
