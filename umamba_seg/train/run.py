"""Training one fold from its plans: start or continue, validate, report."""

from __future__ import annotations

from pathlib import Path

import torch

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import read_json
from umamba_seg.errors import UserError
from umamba_seg.evaluate import class_metrics, summary_table
from umamba_seg.log import logger, quiet
from umamba_seg.train.trainer import UMambaSegTrainer

_CHECKPOINTS = ("checkpoint_final.pth", "checkpoint_latest.pth", "checkpoint_best.pth")  # as nnU-Net continues them


def _checkpoint(folder: Path) -> Path | None:
    return next((folder / name for name in _CHECKPOINTS if (folder / name).is_file()), None)


def train_fold(
    plans: dict,
    configuration: str,
    fold: int | str,
    dataset_json: dict,
    device: torch.device,
    *,
    resume: bool = False,
    only_validation: bool = False,
    save_probabilities: bool = False,
) -> dict:
    """Train a fold, validate it on its held-out cases and write its report.

    Args:
        plans: With the training options in place.
        configuration: A configuration of the plans.
        fold: Number of a fold of splits_final.json, or ``all``.
        dataset_json: The data set's description.
        device: Where to train.
        resume: Continue from the last checkpoint.
        only_validation: Train no further; validate the last checkpoint.
        save_probabilities: Keep the validation's probabilities.

    Returns:
        ``model_folder``, ``fold``, ``cases``, ``epochs``, ``iterations``, ``seconds``, ``foreground_dice``, ``dice``
        per class, and ``summary``.

    Raises:
        UserError: Results are there already and neither continued nor only validated, or there are none to continue.
    """
    with quiet():
        trainer = UMambaSegTrainer(
            plans | {"continue_training": resume or only_validation}, configuration, fold, dataset_json, device
        )
    folder = Path(trainer.output_folder)
    checkpoint = _checkpoint(folder)
    if resume or only_validation:
        if checkpoint is None:
            raise UserError(folder, "no checkpoint to go on from", "leave out --c and --val to start a training")
        with quiet():
            trainer.load_checkpoint(str(checkpoint))
        logger.info("continuing from %s, epoch %d", checkpoint, trainer.current_epoch)
    elif checkpoint is not None:
        raise UserError(folder, f"{checkpoint.name} is there already", "continue with --c, or move the folder away")
    if not only_validation:
        logger.info("training %s", folder)
        trainer.run_training()
    return _validate(trainer, folder, save_probabilities)


def _validate(trainer: UMambaSegTrainer, folder: Path, save_probabilities: bool) -> dict:
    logger.info("validating fold %s", trainer.fold)
    with quiet():
        trainer.perform_actual_validation(save_probabilities)
    with quiet():
        training_cases, validation_cases = trainer.do_split()
    summary_file = folder / "validation" / "summary.json"
    summary = read_json(summary_file)
    labels = Labels.from_json(trainer.dataset_json, folder.parent / "dataset.json")
    logger.info("%s", summary_table(summary, labels))
    return {
        "model_folder": str(folder.parent),
        "fold": trainer.fold,
        "epochs": trainer.current_epoch,
        "iterations": trainer.iterations,
        "seconds": trainer.clock.spent,
        "foreground_dice": summary["foreground_mean"]["Dice"],
        "dice": {name: metrics["Dice"] for name, metrics in class_metrics(summary["mean"], labels).items()},
        "summary": str(summary_file),
        "cases": {"training": len(training_cases), "validation": len(validation_cases)},
    }
