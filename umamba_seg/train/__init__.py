"""Step 4: training. What others need to find its results stands here; nothing of it loads torch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from umamba_seg.errors import UserError

TRAINER_NAME = "UMambaSegTrainer"  # result folders are named after the trainer's class

CHECKPOINTS = tuple(f"checkpoint_{name}.safetensors" for name in ("final", "latest", "previous", "best"))
FINAL, LATEST, PREVIOUS, BEST = CHECKPOINTS
FINAL_PTH, BEST_PTH = "checkpoint_final.pth", "checkpoint_best.pth"  # in nnU-Net's form, for prediction


def model_folder(results: Path, plans: dict, configuration: str) -> Path:
    """Where training writes: ``nnUNet_results/DatasetNNN_Name/Trainer__plans__configuration``."""
    return results / plans["dataset_name"] / f"{TRAINER_NAME}__{plans['plans_name']}__{configuration}"


def trained_files(fold_folder: Path) -> list[Path]:
    """What a training, or a conversion, has left in a fold: it must not be written over."""
    return [fold_folder / name for name in (*CHECKPOINTS, FINAL_PTH, BEST_PTH) if (fold_folder / name).is_file()]


def resumable(fold_folder: Path) -> list[Path]:
    """Those of a fold that a training could be continued from, the first choice first: the final one, then by age."""
    found = [fold_folder / name for name in CHECKPOINTS if (fold_folder / name).is_file()]
    return sorted(found, key=lambda path: (path.name == FINAL, path.stat().st_mtime_ns), reverse=True)


def trained_folds(model: Path, folds: Sequence[str] | None, checkpoint: str) -> list[str]:
    """The folds asked for, or every numbered fold that is trained, or fold all when there is no other.

    Args:
        model: A model folder.
        folds: Names of folds, or None.
        checkpoint: File in each fold's folder.

    Raises:
        UserError: There is no such folder, or a fold has no such checkpoint.
    """
    names = (path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    there = sorted(name for name in names if name.isdigit() or name == "all")
    if not model.is_dir():
        raise UserError(model, "no such folder", "name the folder of a model that `umamba-seg train` wrote")
    if not there:
        raise UserError(model, f"no fold_*/{checkpoint} is there", "train a fold first, or name another with -chk")
    wanted = folds or [fold for fold in there if fold != "all"] or there
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise UserError(
            f"-f {' '.join(missing)}", f"no {checkpoint} of this fold in {model}", f"choose among {', '.join(there)}"
        )
    return list(dict.fromkeys(wanted))
