"""Training one fold from its plans: start, continue or extend it, then validate."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch
from torch import Tensor

from umamba_seg import settings
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate import class_metrics, summary_table
from umamba_seg.files import read_json, write_json
from umamba_seg.log import logger, quiet
from umamba_seg.plan.adopt import channel_names
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import PLANS_TABLE, input_channels
from umamba_seg.plan.probe import is_out_of_memory
from umamba_seg.preprocess import origin_of
from umamba_seg.text import gib, times
from umamba_seg.train import FINAL
from umamba_seg.train.cascade import discard
from umamba_seg.train.checkpoints import read_checkpoint
from umamba_seg.train.distributed import Group
from umamba_seg.train.manifest import record_start
from umamba_seg.train.pretrained import Source, load_pretrained
from umamba_seg.train.state import State
from umamba_seg.train.trainer import UMambaSegTrainer


@dataclass(frozen=True)
class _Saved:
    """A checkpoint that was read whole.

    Attributes:
        damaged: Newer ones that were not.
    """

    path: Path
    tensors: dict[str, Tensor]
    state: State
    damaged: tuple[Path, ...] = ()

    @property
    def is_final(self) -> bool:
        return self.path.name == FINAL


def train_fold(
    plans: dict,
    configuration: str,
    fold: int | str,
    dataset_json: dict,
    device: torch.device,
    *,
    overrides: dict,
    checkpoints: list[Path],
    extra_epochs: int | None = None,
    pretrained: Path | None = None,
    workers: int | None = None,
    only_validation: bool = False,
    save_probabilities: bool = False,
) -> dict | None:
    """Train a fold and validate it on its held-out cases. nnU-Net's folders must have been exported.

    Args:
        plans: As planned.
        configuration: A configuration of the plans.
        fold: Number of a fold of splits_final.json, or ``all``.
        dataset_json: The data set's description.
        device: Where to train.
        overrides: Training options in the place of the plan's, or of those that the checkpoint was trained with.
        checkpoints: Continue from the first of these that is whole; from the beginning when there are none.
        extra_epochs: Train a finished fold for so many more, with a schedule of their own.
        pretrained: A model folder that gives the weights to begin with.
        workers: Processes that augment; None for what cores and memory allow.
        only_validation: Train no further; validate the checkpoint.
        save_probabilities: Keep the validation's probabilities.

    Returns:
        ``model_folder``, ``fold``, ``cases``, ``epochs``, ``iterations``, ``seconds`` of training, ``foreground_dice``,
        ``dice`` per class, and ``summary``; None in all processes of a distributed training but the first.

    Raises:
        Stopped: A signal ended the training.
        UserError: No checkpoint can be read, or training ended before its time; the message says why.
    """
    planned = TrainingOptions.read(plans[PLANS_TABLE]["training"], f"plans {plans['plans_name']}")
    saved = _first_whole(checkpoints)
    options = planned if saved is None else TrainingOptions.read(saved.state.options, str(saved.path))
    options = _extended(options, saved, extra_epochs) if extra_epochs else options.overridden(**overrides)
    if saved is not None and saved.is_final and overrides and not only_validation:
        raise UserError(saved.path, "this training is finished", "train on with `umamba-seg extend --epochs N`")
    group = Group.of_environment()
    if not group.leads:
        logger.setLevel(logging.WARNING)  # the first process speaks for all
    ours = plans[PLANS_TABLE] | {"training": options.model_dump()}
    in_effect = plans | {PLANS_TABLE: ours, "continue_training": saved is not None}
    with quiet(), _torch_set_up(options, device):
        trainer = UMambaSegTrainer(in_effect, configuration, fold, dataset_json, group.device(device))
        group.join(trainer.device)
        try:
            report = _weights(trainer, saved, pretrained)
            if not only_validation:
                trainer.workers = _workers(trainer, workers)
                if extra_epochs:
                    trainer.begin_extension()
                _train(trainer, plans, planned, saved, report)
            elif saved is not None and not saved.is_final:
                logger.warning("the training is not finished: %s is validated", saved.path.name)
            return _validate(trainer, save_probabilities)
        finally:
            group.leave()


def _first_whole(checkpoints: list[Path]) -> _Saved | None:
    """The first that is not damaged; each that is gets named."""
    for number, path in enumerate(checkpoints, 1):
        try:
            tensors, state = read_checkpoint(path)
            return _Saved(path, tensors, State.read(state, path), tuple(checkpoints[: number - 1]))
        except UserError as error:
            if number == len(checkpoints):
                raise
            logger.warning("%s; the one before it, %s, is used", error, checkpoints[number].name)
    return None


def _extended(options: TrainingOptions, saved: _Saved | None, extra_epochs: int) -> TrainingOptions:
    if saved is None or not saved.is_final:
        where = "extend" if saved is None else saved.path
        raise UserError(where, "this training is not finished", "finish it with `umamba-seg train --c`")
    return options.model_copy(update={"epochs": saved.state.epoch + extra_epochs, "max_minutes": None})


@contextmanager
def _torch_set_up(options: TrainingOptions, device: torch.device) -> Iterator[None]:
    """Fast kernels, or those that always give the same bits."""
    if device.type == "cuda":  # as nnU-Net's own command does
        torch.set_num_threads(1)
        torch.backends.cudnn.benchmark = not options.deterministic
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts
    before = torch.are_deterministic_algorithms_enabled()
    # On a GPU torch has no deterministic cross entropy, and warns of it instead.
    torch.use_deterministic_algorithms(options.deterministic, warn_only=device.type == "cuda")
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def _weights(trainer: UMambaSegTrainer, saved: _Saved | None, pretrained: Path | None) -> dict | None:
    """Build the network and give it those of the checkpoint, or of another model, whose report is returned."""
    trainer.initialize()
    if saved is not None:
        trainer.restore(saved.path, saved.tensors, saved.state)
        logger.info(
            "from %s: epoch %d, %d iterations, %.0f s of training",
            saved.path, trainer.current_epoch, trainer.iterations, trainer.clock.spent,
        )  # fmt: skip
    if pretrained is None:
        return None
    labels = Labels.from_json(trainer.dataset_json, Path("dataset.json"))
    source = Source.read(pretrained)
    planned = trainer.configuration_manager.configuration
    source.require_same_network(planned, f"plans {trainer.plans_manager.plans_name}, {trainer.configuration_name}")
    channels = channel_names(trainer.dataset_json)
    report = load_pretrained(trainer.plain_network, source, labels=labels, channel_names=channels)
    logger.info("%s", report.as_text())
    return report.as_json()


def _train(
    trainer: UMambaSegTrainer, plans: dict, planned: TrainingOptions, saved: _Saved | None, pretrained: dict | None
) -> None:
    if trainer.progress >= 1:
        logger.warning("nothing is left to train: give more with `umamba-seg extend --epochs N`")
    logger.info("training %s", trainer.output_folder)
    if trainer.group.leads:
        _describe_model(Path(trainer.output_folder).parent, plans, trainer)
        for path in saved.damaged if saved else ():  # it must not be kept in the place of the whole one
            path.replace(path.with_suffix(".damaged"))
        if saved is None and trainer.configuration_manager.next_stage_names:
            discard(Path(trainer.output_folder), Path(trainer.preprocessed_dataset_folder_base), trainer.do_split()[1])
    trainer.on_train_start()
    if trainer.group.leads:
        begins = "pretrained weights" if pretrained else "the beginning"
        record_start(
            Path(trainer.output_folder),
            planned,
            trainer.options,
            device=trainer.device,
            processes=trainer.group.size,
            workers=trainer.workers,
            begins=begins if saved is None else f"{saved.path.name}, epoch {trainer.current_epoch}",
            origin=origin_of(Path(trainer.preprocessed_dataset_folder_base), plans, trainer.configuration_name),
            pretrained=pretrained,
        )
    try:
        trainer.run_training()
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise _out_of_memory(trainer) from error
        raise


def _describe_model(model: Path, plans: dict, trainer: UMambaSegTrainer) -> None:
    """What prediction needs beside the folds, under nnU-Net's names; the plans as they were made."""
    write_json(model / "plans.json", plans)
    write_json(model / "dataset.json", trainer.dataset_json)
    fingerprint = "dataset_fingerprint.json"
    shutil.copyfile(Path(trainer.preprocessed_dataset_folder_base) / fingerprint, model / fingerprint)


def _workers(trainer: UMambaSegTrainer, requested: int | None) -> int:
    group, planned = trainer.group, trainer.configuration_manager
    channels = input_channels(planned.configuration, trainer.dataset_json)
    voxel_bytes = 4 * channels + 2  # float32 images, int16 labels
    patch_bytes = math.prod(planned.patch_size) * voxel_bytes
    items = len(group.share(planned.batch_size))
    return settings.augmentation_workers(
        requested, trainer.device.type == "cpu", patch_bytes, items, processes=group.local_size
    )


def _out_of_memory(trainer: UMambaSegTrainer) -> UserError:
    """Names the plan, what was in use, and the command that plans smaller."""
    plans, device = trainer.plans_manager.plans, trainer.device
    planned, ours = trainer.configuration_manager.configuration, plans[PLANS_TABLE]
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
        f"plans {plans['plans_name']}, {trainer.configuration_name}",
        f"memory ran out at patch {times(planned['patch_size'])}, batch {planned['batch_size']}: {gib(peak)} "
        f"of the {gib(whole)} of {name} were in use{planned_for}",
        f"close what else uses it, or plan smaller: `umamba-seg plan_and_preprocess -d {plans['dataset_name']} "
        f"--network {network} {smaller}`",
    )


def _validate(trainer: UMambaSegTrainer, save_probabilities: bool) -> dict | None:
    folder = Path(trainer.output_folder)
    training_cases, validation_cases = trainer.do_split()
    logger.info("validating fold %s on %d cases", trainer.fold, len(validation_cases))
    trainer.perform_actual_validation(save_probabilities)
    if not trainer.group.leads:
        return None
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
