"""Step 4: training. What others need to find its results stands here; nothing of it loads torch."""

from __future__ import annotations

from pathlib import Path

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
