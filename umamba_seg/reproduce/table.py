"""A table of a paper as a TOML file: what it prints, where each number comes from, and what is run beside it.

The packaged ones lie in ``configs/papers``. A number without a source cannot be read, so none can be printed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from umamba_seg.config import Table, configs_folder, read_toml
from umamba_seg.errors import UserError

Status = Literal["official", "secondary", "computed", "inferred", "read-off-chart", "unknown"]
STATUSES: dict[Status, str] = {
    "official": "from the authors' repository, the paper's PDF or the project's documentation",
    "secondary": "as a third party transcribed it",
    "computed": "computed from the official code",
    "inferred": "from memory, and agrees with a computed check",
    "read-off-chart": "read by eye from a chart, of low precision",
    "unknown": "not found",
}
CostName = Literal["parameters", "multiply_adds", "training_bytes", "seconds"]
_Key = Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")]


class Published(Table):
    """A number as it was published.

    Attributes:
        value: A number, or what stands in its place, such as "OOM"; None where it was not found.
        sd: Its standard deviation over cases.
        status: How it came here.
        source: Key of the table's sources.
    """

    value: float | str | None = None
    sd: float | None = None
    status: Status
    source: str | None = None

    @model_validator(mode="after")
    def _has_a_source(self) -> Published:
        if (self.value is None) != (self.status == "unknown"):
            raise ValueError('a number that was not found has the status "unknown" and no value, and only such a one')
        if self.value is not None and self.source is None:
            raise ValueError(f"the published number {self.value} has no source")
        return self


class Training(Table):
    """How the networks of a table, or of one row, are planned and trained.

    Attributes:
        seeds: One training for each.
        budget, gpu_memory_target, vram_gb: As the options of ``plan_and_preprocess``; one of them.
        recipe: As its ``--recipe``; None for the budget's own options.
        epochs: As ``train --epochs``; None for what budget and recipe say.
    """

    seeds: tuple[Annotated[int, Field(ge=0)], ...] = Field(default=(0,), min_length=1)
    budget: Literal["cpu"] | None = None
    gpu_memory_target: float | None = Field(default=None, gt=0)
    vram_gb: float | None = Field(default=None, gt=0)
    recipe: str | None = None
    epochs: int | None = Field(default=None, ge=1)

    @model_validator(mode="after")
    def _has_one_budget(self) -> Training:
        given = [self.budget, self.gpu_memory_target, self.vram_gb]
        if sum(value is not None for value in given) != 1:
            raise ValueError("give one of budget, gpu_memory_target and vram_gb")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"a seed stands twice in {self.seeds}")
        return self


class CostSetting(Table):
    """On what the costs of networks are counted where there are no plans yet.

    Attributes:
        patch_size: Voxels.
        spacing: mm per voxel along each axis, by which a U-Net halves its axes; the same on all by default.
        batch_size, input_channels, num_classes: Of the network's input and output.
        source: Where patch and batch come from, in words.
    """

    patch_size: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=2, max_length=3)
    spacing: tuple[Annotated[float, Field(gt=0)], ...] | None = None
    batch_size: int = Field(ge=1)
    input_channels: int = Field(ge=1)
    num_classes: int = Field(ge=2)
    source: str = Field(min_length=1)


class PaperDataset(Table):
    """A data set of a table.

    Attributes:
        dataset: Its name in nnU-Net's raw form; None where it cannot be had, or no network is run on it.
        section: The heading of it in datasets.md.
        convert: Arguments of ``umamba-seg convert`` but ``-i``, ``-d`` and ``--name``; empty without a converter.
        configuration: Of the plans.
        folds: Numbers of folds, or "all".
        scored: The cases that are measured: those that the folds hold out, or imagesTs with labelsTs.
        mirroring: Whether test cases are predicted with mirroring; cases that folds hold out always are.
        protocol: Of ``umamba-seg evaluate``.
        metrics: Its ``--metrics``, for the protocol "nnunet".
        split: How the paper splits the cases and what is done here, in words.
        split_sha256: Of the folds, see :func:`umamba_seg.reproduce.splits.split_hash`; None where they are not fixed.
        notes: What else a reader must know.
        costs: Setting of the cost columns.
    """

    dataset: str | None = Field(default=None, pattern=r"^Dataset\d{3}_\w+$")
    section: str
    convert: tuple[str, ...] = ()
    configuration: Literal["2d", "3d_fullres", "3d_lowres"] = "3d_fullres"
    folds: tuple[Annotated[int, Field(ge=0)] | Literal["all"], ...] = Field(default=(0,), min_length=1)
    scored: Literal["validation", "test"] = "validation"
    mirroring: bool = True
    protocol: str = "nnunet"
    metrics: str | None = None
    split: str = Field(min_length=1)
    split_sha256: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    notes: tuple[str, ...] = ()
    costs: CostSetting

    @model_validator(mode="after")
    def _folds_can_be_scored(self) -> PaperDataset:
        if "all" in self.folds and (len(self.folds) > 1 or self.scored == "validation"):
            raise ValueError('fold "all" holds no case out: it stands alone, and test cases are scored')
        if not self.mirroring and self.scored == "validation":
            raise ValueError("mirroring = false is for test cases alone")
        return self


class Column(Table):
    """A column of a table.

    Attributes:
        name: By which rows name their published numbers.
        title: What is printed.
        dataset: Key of the data set; None for a column of the paper that we do not measure.
        metric: Of the protocol; None where nothing is measured.
        target: The class that is measured; None for the mean over classes.
        cost: Which cost stands here instead of a metric.
        scale: What our number is multiplied by to have the paper's unit.
    """

    name: _Key
    title: str
    dataset: _Key | None = None
    metric: str | None = None
    target: str | None = None
    cost: CostName | None = None
    scale: float = Field(default=1, gt=0)

    @model_validator(mode="after")
    def _is_one_of_a_kind(self) -> Column:
        if (self.metric or self.cost) and self.dataset is None:
            raise ValueError(f"the column {self.name} measures, but has no data set")
        if self.metric and self.cost:
            raise ValueError(f"the column {self.name} is a metric and a cost")
        return self


class Row(Table):
    """A method of a table.

    Attributes:
        method: As the paper calls it.
        network: Ours, where we have it.
        training: What differs from the table's training.
        published: Numbers by column.
    """

    method: str = Field(min_length=1)
    network: str | None = None
    training: dict = Field(default_factory=dict)
    published: dict[_Key, Published] = Field(default_factory=dict)


class PaperTable(Table):
    """A table of a paper, or one of ours, whose rows have no published numbers.

    Attributes:
        name: Of the file, without ending.
        title: What it shows.
        paper: Where it was published; empty for ours.
        notes: What a reader must know.
        sources: Where the numbers come from, by key.
        training: Of all rows.
        datasets, columns, rows: Its parts.
    """

    name: _Key
    title: str = Field(min_length=1)
    paper: str = ""
    notes: tuple[str, ...] = ()
    sources: dict[_Key, str] = Field(default_factory=dict)
    training: Training
    datasets: dict[_Key, PaperDataset]
    columns: tuple[Column, ...] = Field(min_length=1)
    rows: tuple[Row, ...] = Field(min_length=1)

    @model_validator(mode="after")
    def _fits_together(self) -> PaperTable:
        names = [column.name for column in self.columns]
        if len(set(names)) < len(names):
            raise ValueError("two columns have one name")
        for column in self.columns:
            if column.dataset is not None and column.dataset not in self.datasets:
                raise ValueError(
                    f"the column {column.name} is of the data set {column.dataset}, which is not described"
                )
        for row in self.rows:
            self._require_columns_and_sources(row)
            self.training_of(row)
        return self

    def _require_columns_and_sources(self, row: Row) -> None:
        if unknown := set(row.published) - {column.name for column in self.columns}:
            raise ValueError(f"{row.method} has numbers for {sorted(unknown)}, which are no columns")
        for column, number in row.published.items():
            if number.source is not None and number.source not in self.sources:
                raise ValueError(f"the source {number.source} of {row.method}, {column}, is not among the sources")

    def training_of(self, row: Row) -> Training:
        """The table's training with what the row changes of it; a budget of the row replaces the table's."""
        base = self.training.model_dump()
        if {"budget", "gpu_memory_target", "vram_gb"} & set(row.training):
            base |= {"budget": None, "gpu_memory_target": None, "vram_gb": None}
        return Training.model_validate(base | row.training)

    def measured(self, dataset: str) -> bool:
        """Whether networks are run on a data set."""
        return any(column.dataset == dataset and column.metric for column in self.columns) and (
            self.datasets[dataset].dataset is not None
        )


def papers() -> list[str]:
    """Names of the packaged tables."""
    return sorted(path.stem for path in (configs_folder() / "papers").glob("*.toml"))


def read_table(name: str) -> PaperTable:
    """A packaged table by its name, or the one in a file, whose name ends in ``.toml``.

    Raises:
        UserError: There is none, or it holds unknown or impossible values, such as a number without a source.
    """
    if not name.endswith(".toml") and name not in papers():
        raise UserError(f"table {name}", "there is none of this name", f"choose one of {', '.join(papers())}")
    path = Path(name) if name.endswith(".toml") else configs_folder() / "papers" / f"{name}.toml"
    table = read_toml(path, PaperTable)
    if table.name != path.stem:
        raise UserError(path, f'its name is "{table.name}"', f'write name = "{path.stem}", as the file is called')
    return table
