"""Step 4: training. What others need to find its results stands here; nothing of it loads torch."""

from __future__ import annotations

from pathlib import Path

TRAINER_NAME = "UMambaSegTrainer"  # result folders are named after the trainer's class

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")  # as nnU-Net continues them


def model_folder(results: Path, plans: dict, configuration: str) -> Path:
    """Where training writes: ``nnUNet_results/DatasetNNN_Name/Trainer__plans__configuration``."""
    return results / plans["dataset_name"] / f"{TRAINER_NAME}__{plans['plans_name']}__{configuration}"


def last_checkpoint(fold_folder: Path) -> Path | None:
    """The checkpoint that a training would be continued from."""
    return next((fold_folder / name for name in _CHECKPOINTS if (fold_folder / name).is_file()), None)
