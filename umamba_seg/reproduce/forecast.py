"""What will be run for a table, and what that takes in time and memory, before it is run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.log import table as as_table
from umamba_seg.reproduce.outcome import Costs
from umamba_seg.reproduce.runs import Job, training_options
from umamba_seg.reproduce.steps import (
    Machine,
    Step,
    convert_step,
    fold_step,
    is_measured,
    plan_step,
    predict_step,
    require_test_cases,
)
from umamba_seg.text import gib

_UNKNOWN = "?"


def steps_of(job: Job, source: Path | None, machine: Machine) -> list[Step]:
    """All commands that a job lacks.

    Raises:
        UserError: It cannot be run.
    """
    if job.raw.is_dir():
        require_test_cases(job)
    steps = [convert_step(job, source), plan_step(job, machine)]
    steps += [fold_step(job, fold, machine) for fold in job.dataset.folds]
    return [step for step in (*steps, predict_step(job, machine)) if step is not None]


def forecast(
    jobs: Sequence[Job], sources: Mapping[str, Path], machine: Machine, costs: Mapping[tuple[int, str], Costs]
) -> dict:
    """What is to be done, as JSON.

    Returns:
        ``runs``: for each job what it is, what it lacks, iterations of a fold, seconds per iteration, hours of what is
        left to train, bytes of a training step, and why it cannot be run; ``commands`` in their order.
    """
    runs, commands = [], []
    for job in jobs:
        cost, obstacle, steps = costs[job.row, job.key], None, []
        absent = not job.raw.is_dir() and job.key not in sources
        if not absent:
            try:
                steps = steps_of(job, sources.get(job.key), machine)
            except UserError as error:
                obstacle = str(error)
        folds = sum(step.command[0] == "train" and "--val" not in step.command for step in steps)
        iterations = _iterations(job)
        hours = None
        if iterations is not None and cost.seconds is not None and obstacle is None:
            hours = (len(job.dataset.folds) if absent else folds) * iterations * cost.seconds / 3600
        runs.append(
            {
                "network": job.network,
                "dataset": job.name,
                "seed": job.seed,
                "folds": list(job.dataset.folds),
                "plans": job.plans,
                "lacks": "the data set" if absent else "cannot be run" if obstacle else _lacks(job, steps),
                "obstacle": obstacle,
                "setting": cost.setting,
                "iterations": iterations,
                "seconds": cost.seconds,
                "hours": hours,
                "training_bytes": cost.training_bytes,
            }
        )
        commands += [f"umamba-seg {step}" for step in steps]
    return {"runs": runs, "commands": list(dict.fromkeys(commands))}


def _iterations(job: Job) -> int | None:
    """Of one fold; None where time ends it."""
    options = training_options(job.training)
    return None if options.epochs is None else options.epochs * options.iterations_per_epoch


def _lacks(job: Job, steps: Sequence[Step]) -> str:
    if steps:
        return ", ".join(step.what for step in steps)
    return "nothing" if is_measured(job) else "measuring"


def as_text(found: dict) -> str:
    """The same for a terminal."""
    runs = found["runs"]
    rows = [
        [
            run["network"],
            run["dataset"],
            run["seed"],
            " ".join(map(str, run["folds"])),
            run["lacks"],
            _UNKNOWN if run["iterations"] is None else run["iterations"],
            _UNKNOWN if run["seconds"] is None else f"{run['seconds']:.2f}",
            _UNKNOWN if run["hours"] is None else f"{run['hours']:.2f}",
            gib(run["training_bytes"]),
        ]
        for run in runs
    ]
    headers = ["network", "data set", "seed", "folds", "lacks", "iterations", "s each", "hours left", "memory"]
    known = [run["hours"] for run in runs if run["hours"] is not None]
    settings = [f"{run['network']}: {run['setting']}" for run in runs]
    parts = [as_table(rows, headers), "\n".join(dict.fromkeys(settings))]
    parts.append(
        f"{len(runs)} runs, {sum(known):.1f} hours of training on this device one after the other"
        + ("" if len(known) == len(runs) else f"; of {len(runs) - len(known)} the time is not known here")
    )
    parts.append(
        "iterations: of one fold. s each: of a training step on random data, measured here, where the plan is for such "
        "a device. memory: of a training step, traced. Validation, prediction and planning come on top."
    )
    obstacles = [f"{run['network']}, seed {run['seed']}: {run['obstacle']}" for run in runs if run["obstacle"]]
    if obstacles:
        parts.append("\n".join(["cannot be run:", *obstacles]))
    if found["commands"]:
        parts.append("\n".join(found["commands"]))
    return "\n\n".join(parts)
