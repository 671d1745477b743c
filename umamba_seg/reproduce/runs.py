"""A table resolved into what must be run for it: one job for every network, data set and seed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.networks import all_networks, find
from umamba_seg.networks.catalog import BASELINE
from umamba_seg.paths import Folders
from umamba_seg.plan.budgets import Budget, cpu_budget, gpu_budget, vram_budget
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.recipes import read_recipe
from umamba_seg.reproduce.table import PaperDataset, PaperTable, Row, Training
from umamba_seg.train import TRAINER_NAME


@dataclass(frozen=True)
class Job:
    """A network on a data set with a seed: planned once, trained in each fold, measured once.

    Attributes:
        row: Its row in the table.
        network: Its name.
        key: Of the data set in the table.
        dataset: What the table says of that.
        training: How it is trained.
        seed: Of the training.
        plans: Name of its plans.
        like: Plans whose patch, depth and batch it takes; None to plan by the budget.
        folders: nnU-Net's.
    """

    row: int
    network: str
    key: str
    dataset: PaperDataset
    training: Training
    seed: int
    plans: str
    like: str | None
    folders: Folders

    def __str__(self) -> str:
        return f"{self.network} on {self.key}, seed {self.seed}"

    @property
    def name(self) -> str:
        """Of the data set, in nnU-Net's raw form."""
        assert self.dataset.dataset is not None  # there is no job otherwise
        return self.dataset.dataset

    @property
    def raw(self) -> Path:
        return self.folders.raw / self.name

    @property
    def preprocessed(self) -> Path:
        return self.folders.preprocessed / self.name

    @property
    def model(self) -> Path:
        """The model folder."""
        return self.folders.results / self.name / f"{TRAINER_NAME}__{self.plans}__{self.dataset.configuration}"

    @property
    def fold_folders(self) -> list[Path]:
        return [self.model / f"fold_{fold}" for fold in self.dataset.folds]

    @property
    def predictions(self) -> Path:
        """Where the test cases are predicted."""
        return self._of_folds("reproduced_test")

    def _of_folds(self, name: str) -> Path:
        """A folder of what is made with these folds, and no others."""
        folds = "" if self.dataset.folds == ("all",) else f"_folds_{'_'.join(map(str, self.dataset.folds))}"
        return self.model / f"{name}{folds}"

    @property
    def segmentations(self) -> Path:
        """Where the segmentations that are measured lie, and metrics.json beside them."""
        if self.counts_cells:
            return self._of_folds("reproduced_cells")
        if self.dataset.scored == "test":
            return self.predictions
        if len(self.dataset.folds) == 1:
            return self.fold_folders[0] / "validation"
        return self._of_folds("reproduced")

    @property
    def references(self) -> Path:
        """The reference segmentations of the same cases, and maybe of others."""
        if self.counts_cells:
            return self.raw / "instancesTs"
        return self.raw / "labelsTs" if self.dataset.scored == "test" else self.preprocessed / "gt_segmentations"

    @property
    def counts_cells(self) -> bool:
        """Whether cells are counted, not classes measured."""
        return self.dataset.protocol == "umamba_cells"


def budget_of(training: Training) -> Budget:
    """What the networks of a table may cost."""
    if training.vram_gb is not None:
        return vram_budget(training.vram_gb)
    if training.gpu_memory_target is not None:
        return gpu_budget(training.gpu_memory_target)
    return cpu_budget()


def training_options(training: Training) -> TrainingOptions:
    """All options of a training, of which a table says a few: the others are those of its recipe or its budget.

    Raises:
        UserError: There is no such recipe.
    """
    options = budget_of(training).training
    if training.recipe is not None:
        options = read_recipe(training.recipe).applied(options)
    return options.overridden(epochs=training.epochs)


def changed(
    table: PaperTable,
    *,
    seeds: Sequence[int] | None = None,
    epochs: int | None = None,
    folds: Sequence[int] | None = None,
    only: Sequence[str] | None = None,
    with_noscan: bool = False,
) -> tuple[PaperTable, list[str]]:
    """The table as the user wants it run, and in sentences what differs from its file.

    Args:
        table: As it was read.
        seeds, epochs, folds: In the place of the table's.
        only: The networks that are run; the rows of others keep their published numbers alone.
        with_noscan: Whether each Mamba network is followed by its twin without the scan, and the table ends with the
            ResEnc U-Net.

    Raises:
        UserError: The table has none of the networks, or nothing to change.
    """
    for option, given in (("--seeds", seeds), ("--folds", folds)):
        if given is not None and len(set(given)) < len(given):
            raise UserError(f"{option} {' '.join(map(str, given))}", "names one twice", "name each once")
    own = {name for name, given in (("seeds", seeds), ("epochs", epochs)) if given is not None}
    rows = [
        row.model_copy(update={"training": {name: value for name, value in row.training.items() if name not in own}})
        for row in table.rows
    ]
    table, remarks = table.model_copy(update={"rows": tuple(rows)}), []
    if with_noscan:
        table = table.model_copy(update={"rows": _with_twins(table.rows)})
    if only is not None:
        table = _restricted(table, only)
        remarks.append(f"only {', '.join(only)} were asked for")
    training = table.training
    if seeds is not None and tuple(seeds) != training.seeds:
        remarks.append(f"seeds {_listed(seeds)} instead of the table's {_listed(training.seeds)}")
        training = training.model_copy(update={"seeds": tuple(seeds)})
    if epochs is not None and epochs != training.epochs:
        remarks.append(f"{epochs} epochs instead of {training.epochs or 'those of budget and recipe'}")
        training = training.model_copy(update={"epochs": epochs})
    if folds is not None:
        datasets, found = _with_folds(table, folds)
        remarks += found
        table = table.model_copy(update={"datasets": datasets})
    return table.model_copy(update={"training": training}), remarks


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))


def _with_folds(table: PaperTable, folds: Sequence[int]) -> tuple[dict[str, PaperDataset], list[str]]:
    datasets, remarks = {}, []
    for key, dataset in table.datasets.items():
        if tuple(folds) == dataset.folds:
            datasets[key] = dataset
            continue
        if "all" in dataset.folds:
            raise UserError("--folds", f"{key} is trained on all cases", "leave it out")
        datasets[key] = dataset.model_copy(update={"folds": tuple(folds)})
        remarks.append(f"{key}: folds {_listed(folds)} instead of the table's {_listed(dataset.folds)}")
    return datasets, remarks


def _with_twins(rows: Sequence[Row]) -> tuple[Row, ...]:
    there = {row.network for row in rows}
    found = []
    for row in rows:
        found.append(row)
        twin = None if row.network is None else find(row.network).twin
        if twin is not None and twin not in there:
            found.append(Row(method=f"{row.method} without the scan", network=twin, training=row.training))
    if BASELINE not in there and there != {None}:
        found.append(Row(method="nnU-Net ResEnc", network=BASELINE))
    return tuple(found)


def _restricted(table: PaperTable, only: Sequence[str]) -> PaperTable:
    there = [row.network for row in table.rows if row.network is not None]
    if unknown := [name for name in only if name not in there]:
        remedy = f"choose among {', '.join(there) or 'none'}"
        raise UserError(f"--only {' '.join(only)}", f"the table {table.name} does not run {', '.join(unknown)}", remedy)
    for name in only:
        if (partner := _partner(table, name)) is not None and partner not in only:
            what = f"{name} takes patch and batch of {partner}, which is not among them"
            raise UserError(f"--only {' '.join(only)}", what, f"add {partner}")
    rows = [row if row.network in only else row.model_copy(update={"network": None}) for row in table.rows]
    return table.model_copy(update={"rows": tuple(rows)})


def jobs_of(table: PaperTable, folders: Folders, epochs_given: bool = False) -> list[Job]:
    """Everything that the table's networks are run for, in the order in which it can be run.

    A twin without the scan comes after its network, whose patch, depth and batch it takes, so that the scan is all that
    differs.

    Args:
        table: As it is to be run.
        folders: nnU-Net's.
        epochs_given: Whether the number of epochs is the user's own: such models have names of their own.
    """
    jobs: list[Job] = []
    for key in filter(table.measured, table.datasets):
        found = [
            job
            for number, row in enumerate(table.rows)
            if row.network is not None and dims_of(table.datasets[key]) in find(row.network).dims
            for job in _jobs_of_row(table, number, row, key, folders, epochs_given)
        ]
        jobs += sorted(found, key=lambda job: job.like is not None)
    return jobs


def dims_of(dataset: PaperDataset) -> int:
    """Number of spatial dimensions."""
    return 2 if dataset.configuration == "2d" else 3


def _jobs_of_row(table: PaperTable, number: int, row: Row, key: str, folders: Folders, epochs_given: bool) -> list[Job]:
    training, network = table.training_of(row), str(row.network)
    partner = _partner(table, network)
    jobs = []
    for seed in training.seeds:
        names = [_plans_name(table, name, training, seed, epochs_given) for name in (network, partner) if name]
        jobs.append(
            Job(
                row=number,
                network=network,
                key=key,
                dataset=table.datasets[key],
                training=training,
                seed=seed,
                plans=names[0],
                like=names[1] if partner else None,
                folders=folders,
            )
        )
    return jobs


def _partner(table: PaperTable, twin: str) -> str | None:
    """The network of the table whose twin without the scan this is."""
    there = {row.network for row in table.rows}
    return next((spec.name for spec in all_networks() if spec.twin == twin and spec.name in there), None)


def _plans_name(table: PaperTable, network: str, training: Training, seed: int, epochs_given: bool) -> str:
    recipe = [] if training.recipe is None else [Path(training.recipe).stem]
    epochs = [f"{training.epochs}epochs"] if epochs_given else []
    return "_".join([table.name, network, budget_of(training).name, *recipe, *epochs, f"seed{seed}"])
