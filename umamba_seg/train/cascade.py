"""Between the stages of a cascade: segmentations by the first one, on the grid of the second one's images.

The final validation of a first stage's fold leaves them where nnU-Net's loader looks for them,
``MODEL_FOLDER_OF_THE_FIRST/predicted_next_stage/SECOND/CASE.b2nd``. A case is segmented by the folds that hold it out
(the last one to be validated is kept), and by fold ``all`` only where none does. So the second stage learns from
segmentations as it will get them, of cases that the first has not seen.
"""

from __future__ import annotations

import glob
import shutil
from collections.abc import Iterable, Sequence
from itertools import chain
from pathlib import Path

from umamba_seg.datasets.splits import load_splits
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, move_into_place
from umamba_seg.log import logger
from umamba_seg.text import shorten
from umamba_seg.train import FINAL, FINAL_PTH, model_folder

NEXT_STAGE = "predicted_next_stage"  # nnU-Net's name


def makers(preprocessed: Path, cases: Iterable[str]) -> dict[str, list[str]]:
    """The folds of the first stage that segment each case.

    Args:
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name``.
        cases: Of the data set.
    """
    file = preprocessed / "splits_final.json"
    splits = load_splits(file) if file.is_file() else []
    held_out = [set(split["val"]) for split in splits]
    return {case: [str(fold) for fold, val in enumerate(held_out) if case in val] or ["all"] for case in cases}


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
        UserError: Names the cases, and the folds of the first stage that segment them or whose training is not done.
    """
    previous = plans["configurations"][configuration].get("previous_stage")
    if previous is None:
        return
    model = model_folder(results, plans, previous)
    folder = model / NEXT_STAGE / configuration
    missing = [case for case in cases if not (folder / f"{case}.b2nd").is_file()]
    if missing:
        folds = sorted({folds[-1] for folds in makers(preprocessed, missing).values()})
        raise UserError(
            folder,
            f"holds no segmentations by {previous} of {shorten(missing)}",
            f"run `umamba-seg train -c {previous}` with -f {', '.join(folds)} first; its final validation leaves them "
            "(--val repeats it)",
        )
    of_case = makers(preprocessed, cases)
    done = {fold for fold in set(chain(*of_case.values())) if _is_done(model / f"fold_{fold}")}
    if left := {case: folds for case, folds in of_case.items() if done.isdisjoint(folds)}:
        folds = sorted({folds[-1] for folds in left.values()})
        raise UserError(
            model,
            f"no fold that segments {shorten(list(left))} has a final checkpoint, so that nobody knows what {folder} "
            "holds of them",
            f"run `umamba-seg train -c {previous}` with -f {', '.join(folds)} to the end first",
        )


def _is_done(fold_folder: Path) -> bool:
    return any((fold_folder / name).is_file() for name in (FINAL, FINAL_PTH))


def discard(fold_folder: Path, preprocessed: Path, cases: Iterable[str]) -> None:
    """Remove, for a fold of the first stage that is trained anew, what one before it has left for next stages.

    Args:
        fold_folder: Of the first stage.
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name``.
        cases: That the fold is validated on.
    """
    fold = fold_folder.name.removeprefix("fold_")
    own = [case for case, folds in makers(preprocessed, cases).items() if fold in folds]
    stale = [path for case in own for path in fold_folder.parent.glob(f"{NEXT_STAGE}/*/{glob.escape(case)}.b2nd")]
    for path in stale:
        path.unlink()
    if (unpublished := fold_folder / NEXT_STAGE).is_dir():  # of a validation that was killed
        shutil.rmtree(unpublished)
    if stale:
        where = fold_folder.parent / NEXT_STAGE
        logger.info("removed %d segmentations of an earlier training of fold %s: %s", len(stale), fold, where)


def publish(fold_folder: Path, cases: Iterable[str]) -> None:
    """Move what a validation has left for next stages from the fold's own folder to where their training reads it.

    There are whole files only, whenever a validation is killed.

    Args:
        fold_folder: Of the first stage; its ``predicted_next_stage`` is removed.
        cases: Those that this fold segments; see :func:`makers`.
    """
    left, kept = fold_folder / NEXT_STAGE, set(cases)
    if not left.is_dir():
        return
    for stage in sorted(left.iterdir()):
        target = make_folder(fold_folder.parent / NEXT_STAGE / stage.name)
        whole = [file for file in sorted(stage.glob("*.b2nd")) if file.stem in kept]
        for file in whole:
            move_into_place(file, target / file.name)
        logger.info("%d segmentations for %s: %s", len(whole), stage.name, target)
    shutil.rmtree(left)
