"""An outcome as Markdown, HTML, CSV and a picture. The first two show the same sheets of text."""

from __future__ import annotations

import base64
import csv
import io
import math
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from typing import NamedTuple

from umamba_seg import figures
from umamba_seg.evaluate import instances
from umamba_seg.evaluate.metrics import METRICS, Metric
from umamba_seg.networks import all_networks
from umamba_seg.reproduce.outcome import LETTERS, Measured, Outcome, Paired, Place, metric_of, source_numbers
from umamba_seg.reproduce.runs import budget_of
from umamba_seg.reproduce.scan import decimals_of
from umamba_seg.reproduce.table import STATUSES, Column, PaperTable, Published

NOTHING = "–"
_UNDEFINED = "undefined"


class Cell(NamedTuple):
    """What is printed, and what stands behind it."""

    text: str
    tip: str = ""


_EMPTY = Cell(NOTHING)


class Sheet(NamedTuple):
    """A table of text.

    Attributes:
        title: Its heading.
        note: Below the heading.
        headers: Of each column: what it belongs to, and what it is of that; one of them may be empty.
        rows: As many cells as headers, the first of them names the row.
    """

    title: str
    note: str
    headers: Sequence[tuple[str, str]]
    rows: Sequence[Sequence[Cell]]


def as_markdown(outcome: Outcome) -> str:
    """The whole outcome as GitHub's Markdown."""
    table = outcome.table
    parts = [f"# {table.title}", *([table.paper] if table.paper else [])]
    for sheet in _sheets(outcome):
        parts += [f"## {sheet.title}", *([sheet.note] if sheet.note else []), _markdown_table(sheet)]
    if outcome.answers:
        parts += ["## What follows", "\n".join(f"- {line}" for line in outcome.answers)]
    parts += ["## What these numbers stand on", "\n".join(f"- {line}" for line in outcome.footer)]
    return "\n\n".join(parts) + "\n"


def _markdown_table(sheet: Sheet) -> str:
    lines = [[" ".join(filter(None, header)) for header in sheet.headers]]
    lines.append(["---", *["---:"] * (len(sheet.headers) - 1)])
    lines += [[cell.text for cell in row] for row in sheet.rows]
    return "\n".join(f"| {' | '.join(text.replace('|', '&#124;') for text in line)} |" for line in lines)


def as_html(outcome: Outcome, picture: bytes | None) -> str:
    """The same as one HTML file that needs nothing beside it, with the sources as tooltips.

    Args:
        outcome: Of the table.
        picture: What :func:`as_picture` makes of it.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("umamba_seg"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("reproduce.html").render(
        table=outcome.table,
        sheets=[(sheet, _spans(sheet)) for sheet in _sheets(outcome)],
        answers=outcome.answers,
        footer=outcome.footer,
        picture=None if picture is None else base64.b64encode(picture).decode("ascii"),
    )


def _spans(sheet: Sheet) -> list[tuple[str, int]]:
    """Headings over several columns, and how many each spans."""
    spans: list[tuple[str, int]] = []
    for name, _ in sheet.headers:
        if spans and name and spans[-1][0] == name:
            spans[-1] = (name, spans[-1][1] + 1)
        else:
            spans.append((name, 1))
    return spans


# -------------------------------------------------------------------------------------------------------------- sheets


def _sheets(outcome: Outcome) -> list[Sheet]:
    table = outcome.table
    keys = [*table.datasets, None]
    groups = [group for group in (_group(outcome, key) for key in keys) if group.rows]
    costs = [_cost_sheet(outcome, key) for key in table.datasets if any(place.key == key for place in outcome.costs)]
    return [*groups, *costs, *([_pair_sheet(outcome)] if outcome.differences else [])]


def _group(outcome: Outcome, key: str | None) -> Sheet:
    """The columns of a data set, or those of none; the rows that have a number there."""
    table = outcome.table
    headers, columns = [("", "method")], [[Cell(row.method, row.network or "") for row in table.rows]]
    for column in table.columns:
        if column.dataset == key:
            for part, cells in _parts(outcome, column):
                headers.append((column.title, part))
                columns.append(cells)
    for part, cells in _extents(outcome, key):
        headers.append(("", part))
        columns.append(cells)
    rows = [row for row in zip(*columns, strict=True) if any(cell.text != NOTHING for cell in row[1:])]
    return Sheet("Columns of the paper alone" if key is None else key, "", headers, rows)


def _parts(outcome: Outcome, column: Column) -> Iterator[tuple[str, list[Cell]]]:
    """Published and ours, its interval, and how far they are apart; without those that have nothing to show."""
    table = outcome.table
    published = [row.published.get(column.name) for row in table.rows]
    show = _formatter(column, [number for number in published if number])
    ours = [_ours(outcome, number, column) for number in range(len(table.rows))]
    numbers = [number * column.scale if isinstance(number, float) else math.nan for number in ours]
    measured = [outcome.cells.get((number, column.name)) for number in range(len(table.rows))]
    show_finely = _formatter(column, [number for number in published if number], finest=column.metric is not None)
    parts = {
        "published": [_published(table, number, show) if number else _EMPTY for number in published],
        "ours" if any(published) else "": [
            _our_cell(outcome, place, column, number, show) for place, number in enumerate(ours)
        ],
        "95 % interval": [_interval(found, column, show) if found else _EMPTY for found in measured],
        "sd of seeds": [
            Cell(show_finely(found.spread * column.scale)) if found and not math.isnan(found.spread) else _EMPTY
            for found in measured
        ],
        "ours − published": [_difference(one, number, show) for one, number in zip(numbers, published, strict=True)],
    }
    for name, cells in parts.items():
        if any(cell.text != NOTHING for cell in cells):
            yield name, cells


def _ours(outcome: Outcome, row: int, column: Column) -> float | str | None:
    """Our number, or why there is none; None where there cannot be one."""
    if column.dataset is None:
        return None
    place = Place(row, column.dataset)
    if column.cost is not None and place in outcome.costs:
        cost = getattr(outcome.costs[place], column.cost)
        return "not measured" if cost is None else float(cost)
    if found := outcome.cells.get((row, column.name)):
        return found.value
    return outcome.missing[place].word if column.metric and place in outcome.missing else None


def _our_cell(
    outcome: Outcome, row: int, column: Column, number: float | str | None, show: Callable[[float], str]
) -> Cell:
    if number is None:
        return _EMPTY
    place = Place(row, str(column.dataset))
    if isinstance(number, str):
        return Cell(number, outcome.missing[place].why if place in outcome.missing else "")
    return Cell(show(number * column.scale), _tip(outcome, place, column))


def _tip(outcome: Outcome, place: Place, column: Column) -> str:
    if column.cost is not None:
        return outcome.costs[place].setting
    found, protocol = outcome.cells[place.row, column.name], outcome.table.datasets[place.key].protocol
    seeds = f"seed{'s' * (len(found.seeds) > 1)} {', '.join(map(str, found.seeds))}"
    return f"{metric_of(column)} by the protocol {protocol}, {found.cases} cases, {seeds}"


def _interval(found: Measured, column: Column, show: Callable[[float], str]) -> Cell:
    if math.isnan(found.low):
        return _EMPTY
    return Cell(f"{show(found.low * column.scale)} to {show(found.high * column.scale)}")


def _difference(ours: float, published: Published | None, show: Callable[[float], str]) -> Cell:
    if published is None or not isinstance(published.value, float) or math.isnan(ours):
        return _EMPTY
    apart = ours - published.value
    return Cell(f"{'+' * (apart >= 0)}{show(apart)}")


def _published(table: PaperTable, number: Published, show: Callable[[float], str]) -> Cell:
    """With the letter of its status and the number of its source."""
    if number.value is None:
        return Cell("unknown", STATUSES["unknown"])
    source = str(number.source)
    text = show(number.value) if isinstance(number.value, float) else number.value
    spread = "" if number.sd is None else f" ± {show(number.sd)}"
    about = "≈" * (number.status == "read-off-chart")
    mark = f"({LETTERS[number.status]}{source_numbers(table)[source]})"
    return Cell(f"{about}{text}{spread} {mark}", f"{STATUSES[number.status]}: {table.sources[source]}")


def _formatter(column: Column, published: Sequence[Published], finest: bool = False) -> Callable[[float], str]:
    """How the numbers of a column are printed: with the most decimals that are published, or what suits them.

    ``finest`` is the larger of the two, for what is smaller than the numbers themselves.
    """
    digits = [_decimals(value) for one in published for value in (one.value, one.sd) if isinstance(value, float)]
    if not digits and column.metric is None:
        return _three_figures
    if not digits or finest:
        usual = 2 if _definition(metric_of(column)).unit else 3
        digits.append(max(0, usual - round(math.log10(column.scale))))
    most = max(digits)
    return lambda value: _UNDEFINED if math.isnan(value) else f"{value:.{most}f}"


def _decimals(value: float) -> int:
    return max(0, -int(Decimal(repr(value)).normalize().as_tuple().exponent))


def _definition(metric: str) -> Metric:
    return instances.METRICS[metric] if metric in instances.METRICS else METRICS[metric.partition("@")[0]]


def _three_figures(value: float) -> str:
    """At least three figures, and all of them before the point."""
    if not value:
        return "0"
    return f"{value:,.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def _extents(outcome: Outcome, key: str | None) -> Iterator[tuple[str, list[Cell]]]:
    """How many seeds and cases our numbers of a data set are of."""
    names = [column.name for column in outcome.table.columns if column.dataset == key and column.metric]
    found = [
        next((outcome.cells[row, name] for name in names if (row, name) in outcome.cells), None)
        for row in range(len(outcome.table.rows))
    ]
    if any(found):
        yield "seeds", [Cell(str(len(one.seeds)), ", ".join(map(str, one.seeds))) if one else _EMPTY for one in found]
        yield "cases", [Cell(str(one.cases)) if one else _EMPTY for one in found]


def _cost_sheet(outcome: Outcome, key: str) -> Sheet:
    found = {place.row: costs for place, costs in outcome.costs.items() if place.key == key}
    settings = {costs.setting for costs in found.values()}
    names = ["parameters (M)", "multiply-adds (G)", "memory of a training step (GiB)", "seconds per iteration"]
    rows = []
    for row in sorted(found):
        costs = found[row]
        numbers = [costs.parameters / 1e6, costs.multiply_adds / 1e9, costs.training_bytes / 2**30]
        seconds = "not measured" if costs.seconds is None else _three_figures(costs.seconds)
        cells = [*map(_three_figures, numbers), seconds, *([costs.setting] if len(settings) > 1 else [])]
        rows.append([Cell(outcome.table.rows[row].method), *map(Cell, cells)])
    headers = ["method", *names, *(["setting"] if len(settings) > 1 else [])]
    note = next(iter(settings)) if len(settings) == 1 else ""
    return Sheet(f"Costs on {key}", note, [("", name) for name in headers], rows)


def _pair_sheet(outcome: Outcome) -> Sheet:
    several = any(len(pair.seeds) > 1 for pair in outcome.differences)
    headers = ["pair", "data set", "metric", "difference", "95 % interval"]
    headers += ["with other seeds as well"] * several
    headers += ["cases", "seeds", "won/tied/lost", "Holm's p", "parameters", "time"]
    rows = [_pair_row(outcome, pair, several) for pair in outcome.differences]
    note = "The first minus the second in every case; of its costs, the ratio."
    return Sheet("Networks beside each other", note, [("", name) for name in headers], rows)


def _pair_row(outcome: Outcome, pair: Paired, several: bool) -> list[Cell]:
    one, digits = pair.difference, decimals_of(pair)

    def interval(low: float, high: float) -> str:
        return NOTHING if math.isnan(low) else f"{low:.{digits}f} to {high:.{digits}f}"

    first, second = (outcome.table.rows[row].method for row in (pair.first, pair.second))
    cells = [f"{second} − {first}", pair.key, f"{pair.metric} ({pair.unit})" if pair.unit else pair.metric]
    cells += [_UNDEFINED if math.isnan(one.mean) else f"{one.mean:+.{digits}f}", interval(one.low, one.high)]
    cells += [interval(pair.over_seeds.low, pair.over_seeds.high)] * several
    cells += [str(one.cases), str(len(pair.seeds)), f"{one.won}/{one.tied}/{one.lost}"]
    cells.append(NOTHING if math.isnan(one.p) else "< 0.001" if one.corrected_p < 0.001 else f"{one.corrected_p:.2g}")
    cells += [_ratio(outcome, pair, name) for name in ("parameters", "seconds")]
    return list(map(Cell, cells))


def _ratio(outcome: Outcome, pair: Paired, name: str) -> str:
    costs = [outcome.costs.get(Place(row, pair.key)) for row in (pair.second, pair.first)]
    above, below = (None if found is None else getattr(found, name) for found in costs)
    return NOTHING if above is None or below is None else f"×{above / below:.2f}"


# ----------------------------------------------------------------------------------------------------------------- CSV

_FIELDS = (
    *("table", "method", "network", "dataset", "column", "metric", "target"),
    *("published", "published_sd", "status", "source", "ours", "low", "high", "spread", "seeds", "cases", "difference"),
    *("protocol", "folds", "scored", "split_sha256", "budget", "recipe", "epochs"),
    *("parameters", "multiply_adds", "training_bytes", "seconds"),
)


def as_csv(outcome: Outcome) -> str:
    """A line for each row and column; ours, its interval and spread are in the paper's unit, as the difference is.

    Numbers have six figures; a field without a number is empty.
    """
    sheet = io.StringIO()
    writer = csv.writer(sheet, lineterminator="\n")
    writer.writerow(_FIELDS)
    for row in range(len(outcome.table.rows)):
        for column in outcome.table.columns:
            line = _line(outcome, row, column)
            writer.writerow([_field(line.get(name)) for name in _FIELDS])
    return sheet.getvalue()


def _line(outcome: Outcome, number: int, column: Column) -> dict[str, object]:
    table = outcome.table
    row, found = table.rows[number], outcome.cells.get((number, column.name))
    line: dict[str, object] = {
        "table": table.name,
        "method": row.method,
        "network": row.network,
        "column": column.title,
        "metric": column.metric or column.cost,
        "target": column.target,
    }
    if published := row.published.get(column.name):
        source = None if published.source is None else table.sources[published.source]
        line |= {"published": published.value, "published_sd": published.sd, "status": published.status}
        line["source"] = source
    ours = _ours(outcome, number, column)
    if isinstance(ours, float):
        line["ours"] = ours * column.scale
        if published and isinstance(published.value, float):
            line["difference"] = ours * column.scale - published.value
    if found:
        scaled = {name: getattr(found, name) * column.scale for name in ("low", "high", "spread")}
        line |= scaled | {"seeds": " ".join(map(str, found.seeds)), "cases": found.cases}
    if column.dataset is not None:
        line |= _of_dataset(outcome, Place(number, column.dataset))
    return line


def _of_dataset(outcome: Outcome, place: Place) -> dict[str, object]:
    dataset = outcome.table.datasets[place.key]
    line: dict[str, object] = {
        "dataset": dataset.dataset or place.key,
        "protocol": dataset.protocol,
        "folds": " ".join(map(str, dataset.folds)),
        "scored": dataset.scored,
        "split_sha256": outcome.splits.get(place.key),
    }
    if outcome.table.rows[place.row].network is not None:
        training = outcome.table.training_of(outcome.table.rows[place.row])
        line |= {"budget": budget_of(training).name, "recipe": training.recipe}
        line["epochs"] = " ".join(map(str, outcome.epochs.get(place, ())))
    if costs := outcome.costs.get(place):
        line |= {name: getattr(costs, name) for name in ("parameters", "multiply_adds", "training_bytes", "seconds")}
    return line


def _field(value: object) -> object:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    return f"{value:.6g}" if isinstance(value, float) else value


# ------------------------------------------------------------------------------------------------------------- picture


def as_picture(outcome: Outcome) -> bytes | None:
    """Our numbers with their intervals, a panel for each column that was measured, as PNG; None if none was."""
    table = outcome.table
    columns = [column for column in table.columns if any(name == column.name for _, name in outcome.cells)]
    if not columns:
        return None
    names = [column.name for column in columns]
    rows = [
        number
        for number, row in enumerate(table.rows)
        if any((number, name) in outcome.cells or name in row.published for name in names)
    ]
    ambiguous = len({column.title for column in columns}) < len(columns)
    panels = []
    for column in columns:
        title = f"{column.dataset}: {column.title}" if ambiguous else column.title
        better = {"higher": "better →", "lower": "← better"}.get(str(_definition(metric_of(column)).better), "")
        panels.append(figures.Dots(title, better, [_dot(outcome, number, column) for number in rows]))
    return figures.dots(panels)


def _dot(outcome: Outcome, number: int, column: Column) -> figures.Dot:
    row, found = outcome.table.rows[number], outcome.cells.get((number, column.name))
    ours = (found.value, found.low, found.high) if found else (math.nan, math.nan, math.nan)
    value, low, high = (one * column.scale for one in ours)
    published = row.published.get(column.name)
    theirs = published.value if published and isinstance(published.value, float) else math.nan
    twin = row.network is not None and row.network in {spec.twin for spec in all_networks()}
    return figures.Dot(row.method, value, low, high, theirs, twin)
