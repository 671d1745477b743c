"""Between the stages of a cascade: segmentations by the first one, on the grid of the second one's images.

The final validation of a first stage's fold leaves them where nnU-Net's loader looks for them,
``MODEL_FOLDER_OF_THE_FIRST/predicted_next_stage/SECOND/CASE.b2nd``. Each case has one maker: the fold that holds it
out, and fold ``all`` only where none does. So the second stage learns from segmentations as it will get them, of cases
that the first has not seen.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from umamba_seg.datasets.splits import load_splits
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, move_into_place
from umamba_seg.log import logger
from umamba_seg.text import shorten
from umamba_seg.train import model_folder

NEXT_STAGE = "predicted_next_stage"  # nnU-Net's name


def makers(preprocessed: Path, cases: Iterable[str]) -> dict[str, str]:
    """The fold of the first stage that segments each case.

    Args:
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name``.
        cases: Of the data set.
    """
    file = preprocessed / "splits_final.json"
    splits = load_splits(file) if file.is_file() else []
    folds = {case: str(fold) for fold, split in enumerate(splits) for case in split["val"]}
    return {case: folds.get(case, "all") for case in cases}


def require_previous_stage(
    results: Path, preprocessed: Path, plans: dict, configuration: str, cases: Sequence[str]
) -> None:
    """Refuse to train a second stage on cases that the first one has not segmented.

    Args:
        results, preprocessed: nnU-Net's folders, the latter of the data set.
        plans: As planned.
        configuration: One of the plans; nothing is asked of one that is no second stage.
        cases: To train and to validate on.

    Raises:
        UserError: Names the cases, and the folds of the first stage that segment them.
    """
    previous = plans["configurations"][configuration].get("previous_stage")
    if previous is None:
        return
    folder = model_folder(results, plans, previous) / NEXT_STAGE / configuration
    missing = [case for case in cases if not (folder / f"{case}.b2nd").is_file()]
    if missing:
        folds = sorted(set(makers(preprocessed, missing).values()))
        raise UserError(
            folder,
            f"holds no segmentations by {previous} of {shorten(missing)}",
            f"run `umamba-seg train -c {previous}` with -f {', '.join(folds)} first; its final validation leaves them "
            "(--val repeats it)",
        )


def publish(fold_folder: Path, cases: Iterable[str]) -> None:
    """Move what a validation has left for next stages from the fold's own folder to where their training reads it.

    There are whole files only, whenever a validation is killed.

    Args:
        fold_folder: Of the first stage; its ``predicted_next_stage`` is removed.
        cases: Those to keep.
    """
    left = fold_folder / NEXT_STAGE
    if not left.is_dir():
        return
    for stage in sorted(left.iterdir()):
        target = make_folder(fold_folder.parent / NEXT_STAGE / stage.name)
        whole = [stage / f"{case}.b2nd" for case in cases if (stage / f"{case}.b2nd").is_file()]
        for file in whole:
            move_into_place(file, target / file.name)
        logger.info("%d segmentations for %s: %s", len(whole), stage.name, target)
    shutil.rmtree(left)
