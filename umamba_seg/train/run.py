"""Training one fold from its plans: start or continue, then validate."""

from __future__ import annotations

from pathlib import Path

import psutil
import torch

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate import class_metrics, summary_table
from umamba_seg.files import read_json
from umamba_seg.log import logger, quiet
from umamba_seg.plan.plans import PLANS_TABLE
from umamba_seg.plan.probe import is_out_of_memory
from umamba_seg.text import gib, times
from umamba_seg.train.trainer import UMambaSegTrainer


def train_fold(
    plans: dict,
    configuration: str,
    fold: int | str,
    dataset_json: dict,
    device: torch.device,
    *,
    checkpoint: Path | None = None,
    only_validation: bool = False,
    save_probabilities: bool = False,
) -> dict:
    """Train a fold and validate it on its held-out cases. nnU-Net's folders must have been exported.

    Args:
        plans: With the training options in place.
        configuration: A configuration of the plans.
        fold: Number of a fold of splits_final.json, or ``all``.
        dataset_json: The data set's description.
        device: Where to train.
        checkpoint: Continue from here.
        only_validation: Train no further; validate the checkpoint.
        save_probabilities: Keep the validation's probabilities.

    Returns:
        ``model_folder``, ``fold``, ``cases``, ``epochs``, ``iterations``, ``seconds`` of training, ``foreground_dice``,
        ``dice`` per class, and ``summary``.

    Raises:
        UserError: The checkpoint cannot be read, the loss is no longer finite, or memory runs out.
    """
    if device.type == "cuda":  # as nnU-Net's own command does
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = True
    with quiet():
        resuming = {"continue_training": checkpoint is not None}
        trainer = UMambaSegTrainer(plans | resuming, configuration, fold, dataset_json, device)
        if checkpoint is not None:
            trainer.load_checkpoint(str(checkpoint))
    folder = Path(trainer.output_folder)
    if checkpoint is not None:
        logger.info("from %s: epoch %d, %.0f s of training", checkpoint, trainer.current_epoch, trainer.clock.spent)
    if only_validation and checkpoint is not None and checkpoint.name != "checkpoint_final.pth":
        logger.warning("the training is not finished: %s is validated", checkpoint.name)
    if not only_validation:
        if trainer.progress >= 1:
            logger.warning("nothing is left to train: give more with --epochs or --max-minutes")
        if checkpoint is not None and checkpoint.name == "checkpoint_final.pth":
            checkpoint.rename(folder / "checkpoint_latest.pth")  # it is no longer final; a kill must find the newest
        logger.info("training %s", folder)
        try:
            trainer.run_training()
        except RuntimeError as error:
            if is_out_of_memory(error):
                raise _out_of_memory(plans, configuration, device) from error
            raise
    return _validate(trainer, folder, save_probabilities)


def _out_of_memory(plans: dict, configuration: str, device: torch.device) -> UserError:
    """Names the plan, what was in use, and the command that plans smaller."""
    planned, ours = plans["configurations"][configuration], plans[PLANS_TABLE]
    if device.type == "cuda":
        name, peak = torch.cuda.get_device_name(device), torch.cuda.max_memory_allocated(device)
        whole = torch.cuda.get_device_properties(device).total_memory
    else:
        name, peak, whole = "this machine", psutil.Process().memory_info().rss, psutil.virtual_memory().total
    estimate = planned.get("planning", {}).get("estimated_bytes")
    planned_for = "" if estimate is None else f"; the plan's estimate is {gib(estimate)}"
    # A plan for a GPU of so many GiB stays a tenth below what could be had here.
    smaller = f"--vram-gb {max(1, int(peak / 2**30))}" if device.type == "cuda" else "--budget cpu"
    network = "NAME" if ours["budget"] == "cpu" else ours["network"]  # for a CPU there is no smaller plan of the same
    return UserError(
        f"plans {plans['plans_name']}, {configuration}",
        f"memory ran out at patch {times(planned['patch_size'])}, batch {planned['batch_size']}: {gib(peak)} "
        f"of the {gib(whole)} of {name} were in use{planned_for}",
        f"close what else uses it, or plan smaller: `umamba-seg plan_and_preprocess -d {plans['dataset_name']} "
        f"--network {network} {smaller}`",
    )


def _validate(trainer: UMambaSegTrainer, folder: Path, save_probabilities: bool) -> dict:
    with quiet():
        training_cases, validation_cases = trainer.do_split()
    logger.info("validating fold %s on %d cases", trainer.fold, len(validation_cases))
    with quiet():
        trainer.perform_actual_validation(save_probabilities)
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
