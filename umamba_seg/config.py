"""TOML settings of whole jobs, validated; the packaged ones lie in ``configs``."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from umamba_seg.errors import UserError


class Table(BaseModel):
    """A table of a TOML file: it holds what it names and nothing else."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SyntheticData(Table):
    """Arguments of :func:`umamba_seg.datasets.synthetic.make_dataset`."""

    id: int = Field(ge=1, le=999)
    name: str
    train_cases: int = Field(ge=2)
    test_cases: int = Field(ge=1)
    shape: tuple[int, ...]
    spacing: tuple[float, ...]
    seed: int


class QuickstartPlan(Table):
    """What is planned."""

    network: str
    budget: Literal["cpu"]
    configuration: str


class QuickstartTraining(Table):
    """How long fold 0 is trained."""

    max_minutes: float = Field(gt=0)


class QuickstartConfig(Table):
    """The tables of quickstart.toml."""

    dataset: SyntheticData
    plan: QuickstartPlan
    training: QuickstartTraining


class RecipeConfig(Table):
    """A file of configs/networks, see :mod:`umamba_seg.plan.recipes`."""

    source: str = Field(min_length=1)
    training: dict[str, Any]


_Config = TypeVar("_Config", bound=Table)


def configs_folder() -> Path:
    """The packaged settings: beside the modules when installed, beside the package in a clone."""
    package = Path(__file__).parent
    return package / "configs" if (package / "configs").is_dir() else package.parent / "configs"


def read_quickstart(path: Path | None) -> QuickstartConfig:
    """Settings of the quickstart, the packaged ones by default.

    Raises:
        UserError: The file is missing, not TOML, or holds unknown or impossible values.
    """
    return read_toml(path or configs_folder() / "quickstart.toml", QuickstartConfig)


def read_recipe_config(path: Path) -> RecipeConfig:
    """The file of a recipe.

    Raises:
        UserError: The file is missing, not TOML, or has other tables.
    """
    return read_toml(path, RecipeConfig)


def read_toml(path: Path, model: type[_Config]) -> _Config:
    """Read and validate a TOML file.

    Raises:
        UserError: It is missing, not TOML, or holds unknown or impossible values.
    """
    try:
        return model.model_validate(tomllib.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(path, "no such file", "name a TOML file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(path, f"not TOML ({error})", "mend it") from None
    except ValidationError as error:
        raise UserError.of_validation(path, error) from None
