"""Recipes: the training options of papers by name; the presets lie in ``configs/networks``.

A recipe is asked for, never assumed: what a paper gives replaces the options of the budget, the number of epochs
included, and what it does not give stays the budget's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_seg.config import configs_folder, read_recipe_config
from umamba_seg.errors import UserError
from umamba_seg.plan.options import TrainingOptions


@dataclass(frozen=True)
class Recipe:
    """How a paper trains.

    Args:
        name: Of the preset, or the path of the file.
        source: Paper and official file that the values come from.
        training: Those of the training options that the source gives.
    """

    name: str
    source: str
    training: dict[str, Any]

    @property
    def stem(self) -> str:
        """The name as a part of other names: of a file without its folder and ending."""
        return Path(self.name).stem

    def applied(self, options: TrainingOptions) -> TrainingOptions:
        """The options with the recipe's in place.

        Raises:
            UserError: They do not fit together.
        """
        values = options.model_dump() | self.training | {"recipe": self.name}
        return TrainingOptions.read(values, f"recipe {self.name}")


def recipes() -> list[str]:
    """Names of the presets."""
    return sorted(path.stem for path in _folder().glob("*.toml"))


def read_recipe(name: str) -> Recipe:
    """A preset by its name, or the recipe in a file, whose name ends in ``.toml``.

    Raises:
        UserError: There is none, or it holds unknown or impossible values.
    """
    if not name.endswith(".toml") and name not in recipes():
        raise UserError(f"recipe {name}", "there is none of this name", f"choose one of {', '.join(recipes())}")
    path = Path(name) if name.endswith(".toml") else _folder() / f"{name}.toml"
    config = read_recipe_config(path)
    TrainingOptions.read(config.training, str(path))
    return Recipe(name, config.source, config.training)


def _folder() -> Path:
    return configs_folder() / "networks"
