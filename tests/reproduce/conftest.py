"""Tables that are small enough to be run."""

import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from umamba_seg.evaluate.case import ClassScores
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.evaluate.metrics import Counts
from umamba_seg.evaluate.protocols import Target, choose_protocol
from umamba_seg.evaluate.results import build_results, write_results
from umamba_seg.files import write_json
from umamba_seg.paths import Folders, resolve
from umamba_seg.reproduce.runs import Job, jobs_of
from umamba_seg.reproduce.table import PaperTable, read_table

TEXT = """
name = "small"
title = "A small table"
paper = "Nobody: Nothing, 2026"
notes = ["Made up."]

[sources]
us = "made up for a test"

[training]
budget = "cpu"
recipe = "{recipe}"
{training}

[datasets.liver]
dataset = "Dataset901_Tiny"
section = "hippocampus"
metrics = "dice,nsd@1mm"
split = "whatever nnU-Net makes"
{dataset}

[datasets.liver.costs]
patch_size = [32, 32, 16]
batch_size = 2
input_channels = 1
num_classes = 4
source = "made up"

[[columns]]
name = "dice"
title = "Dice"
dataset = "liver"
metric = "dice"

[[columns]]
name = "size"
title = "Parameters"
dataset = "liver"
cost = "parameters"

[[rows]]
method = "nnU-Net"
published.dice = {{ value = 0.9, status = "official", source = "us" }}

[[rows]]
method = "U-Mamba_Bot"
network = "umamba_bot"
published.dice = {{ value = 0.91, sd = 0.1, status = "secondary", source = "us" }}
{rows}
"""

RECIPE = """
source = "made up"

[training]
epochs = 1
iterations_per_epoch = 2
val_iterations_per_epoch = 1
"""


@pytest.fixture(scope="session")
def quick_recipe(tmp_path_factory) -> Path:
    """A recipe of two iterations."""
    file = tmp_path_factory.mktemp("recipe") / "quick.toml"
    file.write_text(RECIPE)
    return file


@pytest.fixture
def small_table(tmp_path, quick_recipe) -> Callable[..., PaperTable]:
    """``small_table(training="seeds = [0, 1]", dataset=..., rows=...)`` is a table of a tiny data set."""

    def make(training: str = "", dataset: str = "", rows: str = "") -> PaperTable:
        file = tmp_path / "small.toml"
        file.write_text(
            textwrap.dedent(TEXT).format(recipe=quick_recipe, training=training, dataset=dataset, rows=rows)
        )
        return read_table(str(file))

    return make


@pytest.fixture
def folders(tmp_path) -> Folders:
    return resolve(tmp_path / "root")


@pytest.fixture
def small_job(small_table, folders) -> Callable[..., Job]:
    """``small_job(dataset="folds = [0, 1]")`` is what the table's only network is run for."""
    return lambda **parts: jobs_of(small_table(**parts), folders)[0]


COLUMNS = [
    {"name": "dice", "title": "Dice", "dataset": "liver", "metric": "dice"},
    {"name": "hd95", "title": "HD95 (mm)", "dataset": "liver", "metric": "hd95"},
]
COSTS = {"patch_size": [32, 32, 16], "batch_size": 2, "input_channels": 1, "num_classes": 3, "source": "made up"}


@pytest.fixture
def paper() -> Callable[..., PaperTable]:
    """``paper({"U-Mamba_Bot": "umamba_bot"}, seeds=(0, 1), dataset={"folds": [1]}, table={"notes": [...]})``.

    A row may also be a dictionary.
    """

    def make(rows, columns=COLUMNS, seeds=(0,), dataset=None, table=None) -> PaperTable:
        liver = {
            "dataset": "Dataset901_Tiny",
            "section": "hippocampus",
            "metrics": "dice,hd95",
            "split": "nnU-Net's",
            "costs": COSTS,
        }
        content = {
            "name": "made",
            "title": "A made-up table",
            "training": {"budget": "cpu", "epochs": 6, "seeds": seeds},
            "datasets": {"liver": liver | (dataset or {})},
            "columns": columns,
            "rows": [
                {"method": method} | (row if isinstance(row, dict) else {"network": row})
                for method, row in rows.items()
            ],
        }
        return PaperTable.model_validate(content | (table or {}))

    return make


@pytest.fixture
def finish() -> Callable[..., Path]:
    """``finish(job, dice=[0.8, 0.9])`` leaves what a job leaves that was trained and measured.

    Numbers are (cases,) or, of the classes ``left`` and ``right``, (cases, 2). Returns metrics.json.
    """

    def leave(job: Job, *, case: str = "case", options: dict | None = None, **numbers: Sequence) -> Path:
        values = {metric: np.array(found, float).reshape(len(found), -1) for metric, found in numbers.items()}
        shape = next(iter(values.values())).shape
        names = [f"{case}_{number:02d}" for number in range(shape[0])]
        classes = ("left", "right")[: shape[1]]
        metrics = tuple(values)
        rules = choose_protocol(job.dataset.protocol, metrics if job.dataset.protocol == "nnunet" else None)
        targets = {name: Target((value,), rules.metrics) for value, name in enumerate(classes, start=1)}

        def scores(row: int) -> dict[str, ClassScores]:
            return {
                name: ClassScores(
                    "present", Counts(9, 1, 1, 89), {m: float(found[row, column]) for m, found in values.items()}
                )
                for column, name in enumerate(classes)
            }

        cases = [CaseScores(name, scores(row), "", ()) for row, name in enumerate(names)]
        about = {"references": "labels", "endings": [".nii.gz"], "missing": [], "ignore_label": None}
        job.segmentations.mkdir(parents=True)
        splits = [{"train": ["t_1", "t_2", "t_3"], "val": [f"case_{number:02d}" for number in range(shape[0])]}]
        job.preprocessed.mkdir(parents=True, exist_ok=True)
        write_json(job.preprocessed / "splits_final.json", splits)
        for folder in job.fold_folders:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(folder / "run.json", _manifest(options or {}))
        path = job.segmentations / "metrics.json"
        write_results(build_results(cases, targets, rules, about), path)
        return path

    return leave


def _manifest(options: dict) -> dict:
    """A run.json."""
    start = {
        "overrides": {"epochs": {"planned": 60, "run": 6}},
        "device": "a CPU",
        "processes": 1,
        "threads": 2,
        "versions": {"umamba_seg": "0.1", "torch": "2.9"},
    }
    return {"training": {"recipe": "", "epochs": 6, "iterations_per_epoch": 50} | options, "starts": [start]}
