"""What could change a number of a table, in sentences: a reader must see it change when the number may have."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from umamba_seg.datasets.splits import Split
from umamba_seg.evaluate import instances, protocols, statistics
from umamba_seg.files import read_json
from umamba_seg.plan.plans import read_plans
from umamba_seg.plan.recipes import read_recipe
from umamba_seg.preprocess import origin_of
from umamba_seg.reproduce.outcome import LETTERS, Costs, Place, Run, metric_of, source_numbers
from umamba_seg.reproduce.runs import Job, budget_of, training_options
from umamba_seg.reproduce.splits import split_hash
from umamba_seg.reproduce.table import STATUSES, PaperDataset, PaperTable, Training
from umamba_seg.text import many, shorten

_SHOWN_DIGITS = 12
"""Of a SHA-256."""
_BY_THE_TABLE = {"epochs", "seed", "iterations_per_epoch"}
"""Options that the table itself sets when a training starts, or that are seen to differ from it."""


def footer(
    table: PaperTable,
    groups: Mapping[Place, Sequence[Job]],
    runs: Mapping[Place, Sequence[Run]],
    splits: Mapping[str, Sequence[Split]],
    costs: Iterable[Costs],
    remarks: Sequence[str],
    failed: Mapping[Job, str],
) -> list[str]:
    """All that stands below a table.

    Args:
        table: As it was run.
        groups: The jobs of each row and data set.
        runs: Those of them that were measured.
        splits: Of the data sets that have some.
        costs: Of all networks.
        remarks: What differs from the table's file.
        failed: Jobs that failed, and why.
    """
    lines = [f"changed for this run: {remark}" for remark in remarks]
    rules: dict[str, list[str]] = defaultdict(list)
    for key, dataset in table.datasets.items():
        done = [run for place, found in runs.items() if place.key == key for run in found]
        lines += [f"{key}: {line}" for line in _of_dataset(table, key, dataset, done, splits.get(key))]
        for rule in _protocol(dataset, done) if table.measured(key) else ():
            rules[rule].append(key)
    lines += [f"{_listed(keys)}: {rule}" for rule, keys in rules.items()]
    lines += _trainings(table, runs)
    lines += _recipes(table)
    lines += _machines(runs)
    lines += _timed(costs)
    lines += [f"FAILED: {job}: {why}" for job, why in failed.items()]
    lines += _missing(table, groups, runs, failed)
    lines += _left_out(table, runs)
    lines += _explanations(table, runs)
    return [" ".join(line.split()) for line in [*lines, *table.notes, *_sources(table)]]


def options_of(run: Run) -> list[dict[str, Any]]:
    """The training options of each fold, as run.json has them; those without one are left out."""
    return [manifest["training"] for manifest in _manifests(run)]


def _manifests(run: Run) -> list[dict[str, Any]]:
    files = [folder / "run.json" for folder in run.job.fold_folders]
    return [read_json(file) for file in files if file.is_file()]


# ----------------------------------------------------------------------------------------------------------- data sets


def _of_dataset(
    table: PaperTable, key: str, dataset: PaperDataset, runs: Sequence[Run], splits: Sequence[Split] | None
) -> Iterator[str]:
    if table.measured(key):
        trained, scored = _trained(dataset, splits), _scored(dataset, runs, splits)
        yield f"{dataset.dataset}, {dataset.configuration}, {trained}; {scored}"
        yield _hash(dataset, splits)
        yield from _other_cases(dataset, runs, splits)
        yield from _other_data(runs)
    else:
        yield "no network is run on it here"
    yield f"split: {dataset.split}"
    yield from dataset.notes


def _trained(dataset: PaperDataset, splits: Sequence[Split] | None) -> str:
    if dataset.folds == ("all",):
        cases = f" ({many(len({*splits[0]['train'], *splits[0]['val']}), 'case')})" if splits else ""
        return f"trained on all cases{cases}"
    word = "fold" if len(dataset.folds) == 1 else "folds"
    sizes = [len(split["train"]) for split in _folds(dataset, splits)]
    cases = f" ({_listed(dict.fromkeys(sizes))} training cases)" if sizes else ""
    return f"{word} {_listed(dataset.folds)}{cases}"


def _folds(dataset: PaperDataset, splits: Sequence[Split] | None) -> list[Split]:
    """Those that the table trains, as far as they are there."""
    return [split for number, split in enumerate(splits or ()) if number in dataset.folds]


def _scored(dataset: PaperDataset, runs: Sequence[Run], splits: Sequence[Split] | None) -> str:
    cases = {len(run.metrics.values) for run in runs}
    if not runs and dataset.scored == "validation" and splits:
        cases = {len(_held_out(dataset, splits))}
    number = f" {' or '.join(map(str, sorted(cases)))}" if cases else ""
    if dataset.scored == "test":
        mirrored = "" if dataset.mirroring else ", predicted without mirroring"
        return f"scored: the{number} cases of imagesTs{mirrored}"
    return f"scored: the{number} cases that {'it holds' if len(dataset.folds) == 1 else 'they hold'} out"


def _held_out(dataset: PaperDataset, splits: Sequence[Split]) -> set[str]:
    return {case for split in _folds(dataset, splits) for case in split["val"]}


def _hash(dataset: PaperDataset, splits: Sequence[Split] | None) -> str:
    fixed = dataset.split_sha256
    wanted = f"the table's {fixed[:_SHOWN_DIGITS]}" if fixed else ""
    if dataset.folds == ("all",):
        return "no split counts, as the training takes all cases"
    if splits is None:
        return f"there is no splits_final.json; {wanted or 'the table fixes no split'}"
    found = split_hash(splits)
    shown = f"SHA-256 of the folds {found[:_SHOWN_DIGITS]}"
    if not fixed:
        return f"{shown}; the table fixes none"
    if found == fixed:
        return f"{shown}, as the table fixes it"
    return f"{shown}, NOT {wanted}, so that numbers do not compare"


def _other_cases(dataset: PaperDataset, runs: Sequence[Run], splits: Sequence[Split] | None) -> list[str]:
    """Cases that are scored and should not be, or the other way round; a line for all trainings of which it is true."""
    found: dict[str, list[str]] = defaultdict(list)
    for run in runs:
        who, scored = f"{run.job.network} with seed {run.job.seed}", set(run.metrics.values)
        missing = set(run.metrics.missing)
        if dataset.scored == "validation":
            held_out = _held_out(dataset, splits) if splits else scored
            missing = held_out - scored
            if strange := sorted(scored - held_out):
                found[f"NOT the split of the training: no fold holds out {shorten(strange)}, scored of"].append(who)
        if missing:
            found[f"{many(len(missing), 'case')} not scored ({shorten(sorted(missing))}) of"].append(who)
    return [f"{text} {_listed(names)}" for text, names in found.items()]


def _other_data(runs: Sequence[Run]) -> list[str]:
    """Trainings of which a part, or all, had data that was preprocessed from other raw files than are known now."""
    changed = [run.job for run in runs if _is_of_other_data(run)]
    if not changed:
        return []
    who = _listed(f"{job.network} with seed {job.seed}" for job in changed)
    return [
        f"NOT the data of the training: raw files of another size or time were preprocessed since that of {who} began"
    ]


def _is_of_other_data(run: Run) -> bool:
    job = run.job
    if not (job.preprocessed / f"{job.plans}.json").is_file():
        return False
    now = origin_of(job.preprocessed, read_plans(job.preprocessed, job.plans), job.dataset.configuration)
    starts = [start for manifest in _manifests(run) for start in manifest["starts"]]
    return bool({start.get("data") for start in starts} - {None, now})  # None: an older version's, or nnU-Net's data


def _protocol(dataset: PaperDataset, runs: Sequence[Run]) -> Iterator[str]:
    if runs:
        source, notes = runs[0].content["protocol"]["source"], [run.content["protocol"]["notes"] for run in runs]
        metrics = runs[0].content["metrics"]
    else:
        rules = {**protocols.PROTOCOLS, **instances.PROTOCOLS}[dataset.protocol]
        source, notes = rules.source, [list(rules.notes)]
        metrics = rules.metrics if isinstance(rules, protocols.Protocol) else instances.METRICS
        metrics = dataset.metrics.split(",") if dataset.metrics else metrics
    yield f"protocol {dataset.protocol} ({source}); measured: {_listed(metrics)}"
    yield from dict.fromkeys(f"protocol {dataset.protocol}: {note}" for found in notes for note in found)


# ----------------------------------------------------------------------------------------------------------- trainings


def _trainings(table: PaperTable, runs: Mapping[Place, Sequence[Run]]) -> list[str]:
    """A line for all rows that are trained alike."""
    rows: dict[str, list[str]] = defaultdict(list)
    networks = [(number, row) for number, row in enumerate(table.rows) if row.network is not None]
    for number, row in networks:
        done = [run for place, found in runs.items() if place.row == number for run in found]
        rows[_training(table, number, done)].append(row.method)
    return [
        f"training of {'all networks' if len(methods) == len(networks) else _listed(methods)}: {text}"
        for text, methods in rows.items()
    ]


def _training(table: PaperTable, number: int, runs: Sequence[Run]) -> str:
    training = table.training_of(table.rows[number])
    parts = [f"seed{'s' * (len(training.seeds) > 1)} {_listed(training.seeds)}"]
    parts.append(f"budget {budget_of(training).name}: {budget_of(training).meaning}")
    parts.append(f"recipe {training.recipe}" if training.recipe else "no recipe: the options of the budget")
    options = [found for run in runs for found in options_of(run)]
    if options:
        lengths = dict.fromkeys(f"{found['epochs']} epochs of {found['iterations_per_epoch']}" for found in options)
        parts.append(f"{' or '.join(lengths)} iterations (run.json)")
        parts += _contradictions(training, options)
    elif training.epochs is not None:
        parts.append(f"{training.epochs} epochs")
    parts += _overrides(runs)
    without = sum(len(run.job.fold_folders) - len(_manifests(run)) for run in runs)
    parts += [f"{many(without, 'fold')} without run.json, of which no more is known"] if without else []
    return "; ".join(parts)


def _recipes(table: PaperTable) -> list[str]:
    """Where they come from."""
    trainings = [table.training_of(row) for row in table.rows if row.network is not None]
    names = dict.fromkeys(training.recipe for training in trainings if training.recipe is not None)
    return [f"recipe {name}: {read_recipe(name).source}" for name in names]


def _contradictions(training: Training, options: Sequence[Mapping[str, Any]]) -> list[str]:
    """Where run.json has something else than the table."""
    found = []
    recipes = {option["recipe"] for option in options} - {training.recipe or ""}
    if recipes:
        found.append(f"NOT the table's recipe: run.json has {_listed(sorted(name or 'none' for name in recipes))}")
    asked = training_options(training)
    if asked.epochs is not None and {option["epochs"] for option in options} != {asked.epochs}:
        found.append(f"NOT the table's {asked.epochs} epochs")
    if {option["iterations_per_epoch"] for option in options} != {asked.iterations_per_epoch}:
        found.append(f"NOT the table's {asked.iterations_per_epoch} iterations in each")
    return found


def _overrides(runs: Sequence[Run]) -> list[str]:
    """Options that a start changed, besides those that the table sets."""
    starts = [start for run in runs for manifest in _manifests(run) for start in manifest["starts"]]
    changed = dict.fromkeys(
        f"{name} {change['run']} instead of the plan's {change['planned']}"
        for start in starts
        for name, change in start["overrides"].items()
        if name not in _BY_THE_TABLE
    )
    return list(changed)


def _machines(runs: Mapping[Place, Sequence[Run]]) -> list[str]:
    found = dict.fromkeys(
        _machine(start)
        for done in runs.values()
        for run in done
        for manifest in _manifests(run)
        for start in manifest["starts"]
    )
    return [f"trained on {machine}" for machine in found]


def _timed(costs: Iterable[Costs]) -> list[str]:
    machines = dict.fromkeys(cost.machine for cost in costs if cost.seconds is not None)
    return [
        f"seconds per iteration: of a training step on random data, measured for this table on {machine}"
        for machine in machines
    ]


def _machine(start: Mapping[str, Any]) -> str:
    processes = f", {start['processes']} processes" if start["processes"] > 1 else ""
    versions = _listed(f"{name} {version}" for name, version in start["versions"].items())
    return f"{start['device']}, {many(start['threads'], 'thread')}{processes}; {versions}"


def _missing(
    table: PaperTable,
    groups: Mapping[Place, Sequence[Job]],
    runs: Mapping[Place, Sequence[Run]],
    failed: Mapping[Job, str],
) -> Iterator[str]:
    """Seeds that are not in a number that is there."""
    for place, jobs in groups.items():
        done = {run.job.seed for run in runs[place]}
        seeds = [job.seed for job in jobs if job.seed not in done and job not in failed]
        if runs[place] and seeds:
            method = table.rows[place.row].method
            yield f"{place.key}, {method}: not run yet with seed {_listed(seeds)}, and without it in the mean"


def _left_out(table: PaperTable, runs: Mapping[Place, Sequence[Run]]) -> Iterator[str]:
    """How many numbers of each column are undefined or infinite: a mean leaves them out."""
    for column in table.columns:
        done = [run for place, found in runs.items() if place.key == column.dataset for run in found]
        if not column.metric or not done:
            continue
        found = [
            numbers[metric_of(column)]
            for run in done
            for name, numbers in run.content["statistics"].items()
            if column.target in (None, name) and metric_of(column) in numbers
        ]
        counts = {word: sum(numbers.get(word, 0) for numbers in found) for word in ("undefined", "infinite")}
        words = " and ".join(f"{number} {word}" for word, number in counts.items() if number)
        if words:
            total = sum(numbers["cases"] for numbers in found) + sum(counts.values())
            where = f"{column.dataset}, {column.title}"
            yield f"{where}: {words} of {total} numbers (of all cases, classes and trainings) are in no mean"


# -------------------------------------------------------------------------------------------------------- explanations


def _explanations(table: PaperTable, runs: Mapping[Place, Sequence[Run]]) -> Iterator[str]:
    if any(runs.values()):
        yield (
            f"interval: {statistics.CONFIDENCE:.0%}, {statistics.METHOD}; the same cases of all seeds are drawn, so "
            "that it holds the noise between cases, not that between trainings"
        )
    if any(len(found) > 1 for found in runs.values()):
        yield "sd of seeds: standard deviation between trainings of one network with other seeds"
    if any(row.published for row in table.rows):
        yield (
            "a difference between ours and a published number is one of two tables, not a test: data, split, machine "
            "and training may differ, and cases are not paired"
        )


def _sources(table: PaperTable) -> Iterator[str]:
    """Legend of the published numbers, and where they come from."""
    found = [number for row in table.rows for number in row.published.values()]
    statuses = {number.status for number in found}
    legend = [
        f"{LETTERS[name]} {meaning}" for name, meaning in STATUSES.items() if name in LETTERS and name in statuses
    ]
    if legend:
        yield f"letters behind published numbers: {'; '.join(legend)}; the number is that of the source"
    if any(number.sd is not None for number in found):
        yield "± behind a published number is the standard deviation that the paper gives"
    if "unknown" in statuses:
        yield f"unknown: {STATUSES['unknown']}"
    for key, number in source_numbers(table).items():
        yield f"source {number}: {table.sources[key]}"


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
