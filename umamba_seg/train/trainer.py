"""Step 4: plans + fold -> checkpoint, by nnU-Net's training loop.

What differs from nnU-Net's trainer: options come from the plans, training may be bounded by wall time, the console
shows one line an epoch, and checkpoints hold plain values that load without trusting a pickle.
"""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import write_json
from umamba_seg.layout import use_fast_layout
from umamba_seg.log import logger, quiet, step_bar
from umamba_seg.networks.own import require_class
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import PLANS_TABLE, require_network
from umamba_seg.plan.step import half_precision, make_optimizer
from umamba_seg.train.checkpoints import load_checkpoint, load_weights, save_checkpoint
from umamba_seg.train.clock import Clock

_STATISTICS_BATCHES = 10  # for the running statistics of batch norms
_SCALER_MAY_SKIP = 10  # losses in a row that are not finite; halving ten times takes 65536 to 64


class ProgressPolyLR(PolyLRScheduler):
    """nnU-Net's polynomial decay over the share of the budget that is spent (epochs or time, whichever is further)."""

    def __init__(self, optimizer: torch.optim.Optimizer, initial_lr: float, progress: Callable[[], float]):
        self._progress = progress
        super().__init__(optimizer, initial_lr, max_steps=1)

    def step(self, current_step=None) -> None:
        super().step(self._progress())


def _plain(value):
    """Numpy scalars and arrays, tuples and lists as plain Python values (what ``weights_only`` loading accepts)."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value


class UMambaSegTrainer(nnUNetTrainer):
    """nnU-Net's trainer with options from ``plans["umamba_seg"]["training"]`` (see :class:`TrainingOptions`)."""

    # nnU-Net begins with None for these; they are set by the time they are used.
    network: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: ProgressPolyLR
    dataloader_train: Iterator[dict]
    dataloader_val: Iterator[dict]
    output_folder: str

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net inspects this very signature)
    ):
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[arg-type]
        options = TrainingOptions.read(plans[PLANS_TABLE]["training"], "plans")
        self.options = options
        self.initial_lr, self.weight_decay = options.initial_lr, options.weight_decay
        self.num_epochs = options.epochs or sys.maxsize  # nnU-Net wants a number
        self.num_iterations_per_epoch = options.iterations_per_epoch
        self.num_val_iterations_per_epoch = options.val_iterations_per_epoch
        self.save_every = 10
        planned = self.configuration_manager.configuration
        require_network(planned, f"plans {plans['plans_name']}, {configuration}")
        require_class(planned["architecture"]["network_class_name"])
        self.output_strides: list[list[int]] = planned["output_strides"]
        self.enable_deep_supervision = len(self.output_strides) > 1
        self.clock = Clock(math.inf if options.max_minutes is None else options.max_minutes * 60)
        self.iterations = 0
        self._bad_losses = 0

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return max(self.clock.progress, self.current_epoch / self.num_epochs)

    def initialize(self) -> None:
        super().initialize()
        use_fast_layout(self.network, self.device)

    def configure_optimizers(self):
        optimizer = make_optimizer(self.options, self.network.parameters())
        return optimizer, ProgressPolyLR(optimizer, self.initial_lr, lambda: self.progress)

    def _do_i_compile(self) -> bool:
        """Only when asked for: compiling takes minutes."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Of the network's outputs, whose number nnU-Net would derive from the strides of a U-Net."""
        if not self.enable_deep_supervision:
            return None
        return [[1 / step for step in strides] for strides in self.output_strides]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing for a network with one output: it need not have nnU-Net's switch."""
        if self.enable_deep_supervision:
            super().set_deep_supervision_enabled(enabled)

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's plot needs a library that it does not install."""

    def print_to_log_file(self, *args, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """To the log file; to the console only as a debug message."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)
        logger.debug(" ".join(map(str, args)).strip())

    # ------------------------------------------------------------------------------------------------------ the loop

    def run_training(self) -> None:
        """Epochs until the epochs or the time are spent. The time left is shown; the last epoch may be shorter."""
        self.clock.start()
        with quiet():
            self.on_train_start()
        closing = 0.0  # seconds that an epoch takes after its last training iteration
        with self._saving_on_interrupt(), step_bar("training", self._bar_total()) as bar:
            while self.current_epoch < self.num_epochs and self.clock.left > closing:
                self.on_epoch_start()
                self._train_epoch(closing, bar)
                before = self.clock.spent
                self._validate_epoch()
                self._end_epoch()
                closing = self.clock.spent - before
        self.clock.stop()
        with quiet():
            self.on_train_end()

    @contextlib.contextmanager
    def _saving_on_interrupt(self) -> Iterator[None]:
        """On Ctrl-C keep what is learnt: `--c` then begins the broken epoch again."""
        try:
            yield
        except KeyboardInterrupt:
            for values in self.logger.get_checkpoint().values():
                del values[self.current_epoch :]  # what the broken epoch has logged so far
            self.current_epoch -= 1  # save_checkpoint counts the epoch as done
            self.save_checkpoint(str(Path(self.output_folder) / "checkpoint_latest.pth"))
            raise

    def _train_epoch(self, closing: float, bar: tqdm) -> None:
        self.on_train_epoch_start()
        outputs = []
        for _ in range(self.num_iterations_per_epoch):
            self.lr_scheduler.step()
            outputs.append(self.train_step(next(self.dataloader_train)))
            self.iterations += 1
            self._refuse_divergence(float(outputs[-1]["loss"]))
            self._show(bar)
            if self.clock.left < closing:
                break
        self.on_train_epoch_end(outputs)

    def _refuse_divergence(self, loss: float) -> None:
        """End training on a loss that is not finite; with a gradient scaler, which skips such steps, after several."""
        self._bad_losses = 0 if math.isfinite(loss) else self._bad_losses + 1
        if self._bad_losses > (0 if self.grad_scaler is None else _SCALER_MAY_SKIP):
            raise UserError(
                self.output_folder,
                f"the loss became {loss} in epoch {self.current_epoch}, iteration {self.iterations}",
                "the last checkpoint is kept; lower umamba_seg.training.initial_lr in the plans "
                f"(it is {self.initial_lr:g}) and train again",
            )

    def _validate_epoch(self) -> None:
        self._settle_batch_norms()
        with torch.no_grad():
            self.on_validation_epoch_start()
            batches = (next(self.dataloader_val) for _ in range(self.num_val_iterations_per_epoch))
            self.on_validation_epoch_end([self.validation_step(batch) for batch in batches])

    def _settle_batch_norms(self) -> None:
        """Take the running statistics of batch norms from a few training batches and the weights of this moment.

        Their moving average over small batches lags behind the weights: of an nnMamba with a training loss of 0.74 it
        made a validation loss of 1e10, and 0.74 with the statistics of eight batches. Training does not use them.
        Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, Sec. 3.
        """
        batches = (next(self.dataloader_train)["data"].to(self.device) for _ in range(_STATISTICS_BATCHES))
        with half_precision(self.device):
            update_bn(batches, self.network)

    def _bar_total(self) -> int:
        limited = self.options.max_minutes is not None
        return int(self.clock.limit) if limited else self.num_epochs * self.num_iterations_per_epoch

    def _show(self, bar: tqdm) -> None:
        """Seconds under a time budget, iterations otherwise: the bar's time left is right in both cases."""
        bar.update((int(self.clock.spent) if self.options.max_minutes is not None else self.iterations) - bar.n)

    def _end_epoch(self) -> None:
        self.on_epoch_end()  # saves, plots progress.png and counts the epoch
        self._write_record()
        last = {name: values[-1] for name, values in self.logger.get_checkpoint().items()}
        dice = "  ".join(
            f"{name} {value:.3f}"
            for name, value in zip(self._foreground_names(), last["dice_per_class_or_region"], strict=True)
        )
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        left = self.clock.spent * (1 / max(self.progress, 1e-9) - 1)
        of_all = f"/{self.options.epochs}" if self.options.epochs else ""
        logger.info(
            "epoch %d%s  train loss %.3f  val loss %.3f  pseudo Dice: %s  lr %.1e  %.0f s  (%s left)",
            self.current_epoch, of_all, last["train_losses"], last["val_losses"], dice, last["lrs"], seconds,
            timedelta(seconds=round(left)),
        )  # fmt: skip

    def _write_record(self) -> None:
        """training.json: what the report and a script need to know, without opening a checkpoint."""
        record = {
            "configuration": self.configuration_name,
            "device": str(self.device),
            "parameters": sum(weight.numel() for weight in self.network.parameters()),
            "iterations": self.iterations,
            "seconds": self.clock.spent,
            "logging": _plain(self.logger.get_checkpoint()),
        }
        write_json(Path(self.output_folder) / "training.json", record)

    def _foreground_names(self) -> list[str]:
        """In the order of nnU-Net's pseudo Dice: regions as dataset.json lists them, labels by value."""
        labels = Labels.from_json(self.dataset_json, Path("dataset.json"))
        if labels.has_regions:
            return list(labels.foreground)
        return sorted(labels.foreground, key=lambda name: labels.foreground[name])

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """nnU-Net's validation of the held-out cases, behind a bar that moves when a case is loaded."""
        _, cases = self.do_split()
        plain = self.dataset_class
        with step_bar("validating", len(cases)) as bar:

            class Counted(plain):  # type: ignore[valid-type, misc]
                def load_case(self, identifier):
                    bar.update()
                    return super().load_case(identifier)

            self.dataset_class = Counted
            super().perform_actual_validation(save_probabilities)
        self.dataset_class = plain

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """nnU-Net's checkpoint in plain values.

        ``trainer_name`` names nnU-Net's own trainer: its predictor looks the class up among its own, and ours adds
        nothing to prediction (the network is found through the plans).
        """
        checkpoint = {
            "network_weights": self._plain_network().state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": _plain(self.logger.get_checkpoint()),
            "_best_ema": _plain(self._best_ema),
            "current_epoch": self.current_epoch + 1,
            "iterations": self.iterations,
            "seconds_spent": self.clock.spent,
            "init_args": {"configuration": self.configuration_name, "fold": self.fold},
            "trainer_name": nnUNetTrainer.__name__,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
        }
        save_checkpoint(Path(filename), checkpoint)

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore network, optimizer, epoch, time spent and logs. Nothing but plain values is unpickled."""
        if not self.was_initialized:
            self.initialize()
        path = Path(filename_or_checkpoint)
        checkpoint = load_checkpoint(path, self.device)
        load_weights(self._plain_network(), checkpoint, path)
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.current_epoch = checkpoint["current_epoch"]
        self.iterations = checkpoint["iterations"]
        self.clock = Clock(self.clock.limit, checkpoint["seconds_spent"])
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    def _plain_network(self) -> nn.Module:
        """The network without the wrapper of torch.compile."""
        return getattr(self.network, "_orig_mod", self.network)
