"""Where raw data, preprocessed data and results live: nnU-Net's three environment variables, or one root folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from umamba_seg.errors import UserError

_VARIABLES = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
_DATASET_NAME = re.compile(r"Dataset(\d{3})_\w+")


@dataclass(frozen=True)
class Folders:
    """nnU-Net's three folders."""

    raw: Path
    preprocessed: Path
    results: Path

    def export(self) -> Folders:
        """Make the folders known to nnU-Net, in this process and in its workers."""
        os.environ.update(self.variables())
        return self

    def variables(self) -> dict[str, str]:
        """The same as environment variables of another process."""
        return dict(zip(_VARIABLES, map(str, (self.raw, self.preprocessed, self.results)), strict=True))

    def dataset_name(self, dataset: str) -> str:
        """Resolve ``-d``: a number such as ``4`` or a name such as ``Dataset004_Hippocampus``.

        Raises:
            UserError: No such data set, or two of the same number.
        """
        if _DATASET_NAME.fullmatch(dataset):
            pattern = dataset
        elif dataset.isdigit() and int(dataset) < 1000:
            pattern = f"Dataset{int(dataset):03d}_*"
        else:
            raise UserError(
                f"-d {dataset}",
                "neither a number from 0 to 999 nor a name like Dataset004_Hippocampus",
                "give one of the two",
            )
        found = sorted({name for base in (self.raw, self.preprocessed) for name in _folders(base, pattern)})
        if not found:
            known = sorted(_folders(self.raw, "Dataset[0-9][0-9][0-9]_*"))
            raise UserError(
                f"-d {dataset}",
                f"no such data set in {self.raw} (there: {', '.join(known) or 'none'})",
                "make one with `umamba-seg convert`, or point --root or nnUNet_raw at the folder that holds it",
            )
        if len(found) > 1:
            raise UserError(
                f"-d {dataset}", f"means {' and '.join(found)}", "give the full name, or rename one of them"
            )
        return found[0]


def _folders(base: Path, pattern: str) -> list[str]:
    return [path.name for path in base.glob(pattern) if path.is_dir()]


def resolve(root: str | Path | None) -> Folders:
    """Folders from ``--root DIR`` (nnUNet_raw/, nnUNet_preprocessed/, nnUNet_results/ in it), else from the variables.

    Raises:
        UserError: No root is given and a variable is missing.
    """
    if root is not None:
        base = Path(root).expanduser().resolve()
        return Folders(*(base / variable for variable in _VARIABLES))
    missing = [variable for variable in _VARIABLES if not os.environ.get(variable)]
    if missing:
        raise UserError(
            "folders",
            f"no --root DIR was given and {', '.join(missing)} {'is' if len(missing) == 1 else 'are'} not set",
            f"give --root DIR ({', '.join(_VARIABLES)} are made in it), or set nnU-Net's three environment variables",
        )
    return Folders(*(Path(os.environ[variable]).expanduser().resolve() for variable in _VARIABLES))
