"""Writing a raw data set whole or not at all."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

from umamba_seg.errors import UserError


@contextlib.contextmanager
def new_dataset(raw: Path, dataset_id: int, name: str) -> Iterator[Path]:
    """Yield an empty hidden folder in ``raw`` that becomes ``raw/DatasetNNN_Name`` when the block ends well.

    After any error or Ctrl-C the folder is removed: a half written data set never has the name of a whole one.

    Raises:
        UserError: The number or name is not allowed, or a data set has the number already.
    """
    target = raw / dataset_name(dataset_id, name)
    taken = sorted(path.name for path in raw.glob(f"Dataset{dataset_id:03d}_*") if path.is_dir())
    if taken:
        what = f"there is a data set {dataset_id} already"
        raise UserError(raw / taken[0], what, "remove it, or give another number")
    draft = raw / f".{target.name}.{os.getpid()}"
    draft.mkdir(parents=True)
    try:
        yield draft
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def dataset_name(dataset_id: int, name: str) -> str:
    """``DatasetNNN_Name``.

    Raises:
        UserError: nnU-Net does not allow the number or the name.
    """
    if not 1 <= dataset_id <= 999:
        raise UserError("data set number", f"{dataset_id} is out of range", "give a number from 1 to 999")
    if not re.fullmatch(r"\w+", name):
        raise UserError("data set name", f"{name!r} is not allowed", "use letters, digits and underscores only")
    return f"Dataset{dataset_id:03d}_{name}"
