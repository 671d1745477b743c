"""Step 4: plans + fold -> checkpoint.

nnU-Net's trainer gives the network, the split, the augmentation, the pseudo Dice and the final validation. The loop is
ours: every batch is a function of seed and number, a bad step is never applied, training stops within an iteration when
it is asked to, and goes on from any iteration with the bits that it would have had.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import sys
import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm import tqdm

from umamba_seg.errors import Stopped, UserError
from umamba_seg.files import write_json
from umamba_seg.layout import use_fast_layout
from umamba_seg.log import logger, quiet, step_bar
from umamba_seg.networks.own import require_class
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import PLANS_TABLE, require_network
from umamba_seg.plan.precision import FLOAT32, Precision, choose_precision
from umamba_seg.train import BEST, BEST_PTH, FINAL, FINAL_PTH, LATEST, PREVIOUS
from umamba_seg.train.base import BaseTrainer, plain
from umamba_seg.train.checkpoints import (
    load_optimizer,
    load_weights,
    network_tensors,
    optimizer_tensors,
    read_checkpoint,
    save_pth,
    weights_of,
    write_checkpoint,
)
from umamba_seg.train.clock import Clock
from umamba_seg.train.data import Loader
from umamba_seg.train.distributed import Group
from umamba_seg.train.records import Records
from umamba_seg.train.schedules import learning_rate
from umamba_seg.train.sentinel import Action, BadStep, Buffers, Recovery, find_blame, worst
from umamba_seg.train.state import State
from umamba_seg.train.stopping import StopRequest
from umamba_seg.train.times import StepTimes
from umamba_seg.train.watchdog import STEP_LIMIT, Watchdog

_STATISTICS_BATCHES = 10  # for the running statistics of batch norms
_NEXT_BATCH = "the next batch"
_NO_SCALER = torch.GradScaler("cpu", enabled=False)


class _Rewind(Exception):
    """The last checkpoint is the state to go on from."""


class UMambaSegTrainer(BaseTrainer):
    """Trains a fold with the options in ``plans["umamba_seg"]["training"]`` (see :class:`TrainingOptions`)."""

    dataloader_train: Loader
    dataloader_val: Loader

    def __init__(
        self,
        plans: dict,
        configuration: str,
        fold: int | str,
        dataset_json: dict,
        device: torch.device = torch.device("cuda"),  # noqa: B008  (nnU-Net inspects this very signature)
    ):
        self.group = Group.of_environment()
        super().__init__(plans, configuration, fold, dataset_json, device)  # type: ignore[arg-type]
        self.device, self.local_rank = device, self.group.rank  # nnU-Net takes the first GPU
        options = TrainingOptions.read(plans[PLANS_TABLE]["training"], "plans")
        self.options = options
        self.initial_lr, self.weight_decay = options.initial_lr, options.weight_decay
        self.oversample_foreground_percent = options.oversample_foreground
        self.num_epochs = options.epochs or sys.maxsize  # nnU-Net wants a number
        self.num_iterations_per_epoch = options.iterations_per_epoch
        self.num_val_iterations_per_epoch = options.val_iterations_per_epoch
        planned = self.configuration_manager.configuration
        require_network(planned, f"plans {plans['plans_name']}, {configuration}")
        require_class(planned["architecture"]["network_class_name"], planned["architecture"]["arch_kwargs"])
        self.output_strides = planned["output_strides"]
        self.enable_deep_supervision = len(self.output_strides) > 1
        self.mirroring = planned.get("mirroring")
        self.precision = choose_precision(options.precision, device)
        self.grad_scaler = torch.GradScaler(device.type, enabled=self.precision.needs_scaler)
        self.workers = 0
        self.clock = Clock(math.inf if options.max_minutes is None else options.max_minutes * 60)
        self.recovery = Recovery()
        self.times = StepTimes(device)
        self.epoch_times: dict = {}  # of the training steps of this epoch
        self.records: Records | None = None

        # Where training stands, with nnU-Net's current_epoch; all of it is in the checkpoints.
        self.step = 0  # iterations of this epoch that are done
        self.iterations = 0  # in all
        self.drawn = self.validated = 0  # batches of the two streams
        self.losses: list[float] = []  # of this epoch
        self.schedule_start = 0  # the epoch in which the schedule began

        self._progress = 0.0
        self._closing = 0.0  # seconds that an epoch takes after its last training iteration
        self._saved = time.monotonic()
        self._stop = StopRequest()

    # ------------------------------------------------------------------------------------------------------- set-up

    def initialize(self) -> None:
        torch.manual_seed(self.options.seed)  # the weights that training begins with
        super().initialize()
        use_fast_layout(self.network, self.device)
        self._buffers = Buffers(self.network)
        self.network = self.group.wrap(self.network, self.device)

    # ------------------------------------------------------------------------------------------------------ the loop

    def run_training(self) -> None:
        """Train until epochs or time are spent or nothing improves, from wherever training stands.

        :meth:`on_train_start` comes first.

        Raises:
            Stopped: A signal came; a checkpoint is written.
            UserError: A case cannot be read, a worker has died, the disk is full, or the numbers are beyond help.
        """
        self.clock.start()
        self._watchdog = Watchdog(self._end_stalled)
        try:
            with self._stop:
                with step_bar("training", self._bar_total()) as bar:
                    self._run_epochs(bar)
                self.clock.stop()
                self.on_train_end()
                if signum := self._agree()[0]:  # it came after the last iteration: the final validation is left to --c
                    raise Stopped(signum)
        except Stopped as stop:
            self._note("end", reason=signal.Signals(stop.signum).name)
            raise
        finally:
            self._watchdog.close()
            self.close()

    def close(self) -> None:
        """End the loaders and the records."""
        self.dataloader_train.close()
        self.dataloader_val.close()
        if self.records is not None:
            self.records.close()

    def on_train_start(self) -> None:
        """Make what training needs, and a checkpoint to go back to."""
        if not self.was_initialized:
            self.initialize()
        self.set_deep_supervision_enabled(self.enable_deep_supervision)
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        if self.group.leads:
            folder = Path(self.output_folder)
            self.print_plans()
            if self.mirroring is not None:
                logger.info("mirroring along axes %s: %s", self.mirroring["axes"], self.mirroring["reason"])
            self._save_debug_information()
            self.records = Records(folder, self.current_epoch)
            self._note("start", epoch=self.current_epoch, iteration=self.iterations)
            self._save_latest()
            (folder / FINAL).unlink(missing_ok=True)  # a training that goes on is no longer final
            (folder / "validation" / "summary.json").unlink(missing_ok=True)  # nor validated
        self.group.wait()

    def _run_epochs(self, bar: tqdm) -> None:
        while (end := self._end_of_training()) is None:
            try:
                self._train_epoch(bar)
                self._validate_epoch()
                self._end_epoch()
            except _Rewind:
                self._rewind()
            except Stopped:
                self._save_latest()
                raise
        logger.info("training ends: %s", end)
        self._note("end", reason=end)

    def _end_of_training(self) -> str | None:
        """Why training ends here; None when it goes on."""
        if self.current_epoch >= self.num_epochs:
            return f"{self.num_epochs} epochs"
        if self._agree()[1]:
            return f"{self.options.max_minutes:g} minutes"
        scores = self.logger.get_value("ema_fg_dice", None)[self.schedule_start :]
        patience = self.options.early_stop
        if patience is not None and len(scores) > patience and max(scores[-patience:]) <= max(scores[:-patience]):
            return f"the pseudo Dice has not risen for {patience} epochs"
        return None

    def _agree(self) -> tuple[int, bool]:
        """The signal that came, and whether the time is over: what has to be the same in all processes.

        The learning rate follows the time, so that the progress is agreed on here, too.
        """
        over = self.clock.left <= self._closing
        begun = self.num_epochs - self.schedule_start
        progress = max(self.clock.progress, (self.current_epoch - self.schedule_start) / max(begun, 1))
        signum, over, self._progress = self.group.largest(self.device, self._stop.signum, over, progress)
        return int(signum), bool(over)

    @property
    def progress(self) -> float:
        """Share of the budget that is spent, 0 to 1."""
        return max(self.clock.progress, self.current_epoch / self.num_epochs)

    def learning_rate(self) -> float:
        """Of the moment: the schedule's, less what the recovery from bad numbers has taken off."""
        epochs, done = self.num_epochs - self.schedule_start, self.current_epoch - self.schedule_start
        warmup = self.options.warmup_epochs or (1 if self.schedule_start else 0)  # an extension begins gently
        warmup = min(warmup, epochs // 2)
        progress = self._progress
        if done < warmup:  # otherwise it changes from epoch to epoch, as nnU-Net's does
            progress = max(progress, (done + self.step / self.num_iterations_per_epoch) / epochs)
        rate = learning_rate(self.options, progress, warmup / max(epochs, 1))
        return rate * self.recovery.learning_rate_factor

    def _train_epoch(self, bar: tqdm) -> None:
        if self.step == 0:
            with quiet():  # nnU-Net remarks on logging twice, when an epoch begins again
                self.on_epoch_start()
                self.on_train_epoch_start()
        self.network.train()
        begun = self.step
        self.times.take(0)  # what lies between the training steps of two epochs does not count
        while self.step < self.num_iterations_per_epoch:
            signum, over = self._agree()
            if signum:
                raise Stopped(signum)
            if over and self.step:
                break
            batch = self._next(self.dataloader_train)
            self.lr_scheduler.step()
            with self._watchdog.waiting_for("a training step", lambda: f"on {self.device}", STEP_LIMIT):
                loss = self._train_iteration(batch)
            self.drawn += 1
            self.step += 1
            self.iterations += 1
            self.losses.append(loss)
            self._show(bar)
            if time.monotonic() - self._saved > 60 * self.options.checkpoint_minutes:
                self._save_latest()
        self.epoch_times = self.times.take((self.step - begun) * self.configuration_manager.batch_size)

    def _next(self, loader: Loader) -> dict:
        """The next batch. Nothing is half done while it is waited for."""
        listening = self._stop.at_once() if self.group.size == 1 else contextlib.nullcontext()
        with self.times.loader, self._watchdog.waiting_for(_NEXT_BATCH, loader.state), listening:
            try:
                return next(loader)
            except (UserError, RuntimeError):  # the latter when a worker failed by a bug
                self._save_latest()
                raise

    def _train_iteration(self, batch: dict) -> float:
        """One step of the optimizer, taken only when loss and gradients are finite. Returns the loss."""
        data, target = self.on_device(batch)
        precision = self.precision_now()
        self._buffers.keep()
        loss, norm = self._gradients(data, target, precision)
        while not (math.isfinite(loss) and math.isfinite(norm)):
            if self._recover(batch["keys"], data, target, precision) is Action.SKIP:
                break
            precision = self.precision_now()
            loss, norm = self._gradients(data, target, precision)
        self._apply(precision)
        return loss

    def precision_now(self) -> Precision:
        return FLOAT32 if self.recovery.needs_float32(self.iterations) else self.precision

    def _gradients(self, data: Tensor, target: Any, precision: Precision) -> tuple[float, float]:
        """Loss, and norm of the gradients before they were clipped: the mean over the processes."""
        self._seed_step()
        scaler = self._scaler(precision)
        with self.times.compute:
            self.optimizer.zero_grad(set_to_none=True)
            with precision.autocast(self.device):
                output = self.network(data)
                loss = self.loss(output, target)
                if self.group.size > 1 and self.enable_deep_supervision:
                    loss = loss + 0 * output[-1].sum()  # it has no weight in the loss, but each layer must be heard of
            scaler.scale(loss).backward()
        with self.times.step:
            scaler.unscale_(self.optimizer)
            norm = nn.utils.clip_grad_norm_(self.network.parameters(), self.options.gradient_clip)
        values = torch.stack([loss.detach().float(), norm.float()]).tolist()  # the one synchronisation of a step
        loss, norm = self.group.mean(self.device, *values)  # not finite in all processes if it is so in one
        return loss, norm

    def _seed_step(self) -> None:
        """What is random in the network (dropout) depends on the number of the iteration alone."""
        torch.manual_seed(int(np.random.SeedSequence((self.options.seed, self.iterations)).generate_state(1)[0]))

    def _scaler(self, precision: Precision) -> torch.GradScaler:
        return self.grad_scaler if precision.needs_scaler else _NO_SCALER

    def _apply(self, precision: Precision) -> None:
        scaler = self._scaler(precision)
        with self.times.step:
            scaler.step(self.optimizer)
            scaler.update()

    def _validate_epoch(self) -> None:
        """nnU-Net's pseudo Dice. The counts of batches change at its end, so that it may be broken off."""
        before = self.clock.spent
        settled = self._settle_batch_norms()
        self.network.eval()
        outputs = []
        with torch.no_grad():
            for _ in range(self.num_val_iterations_per_epoch):
                if signum := self._agree()[0]:
                    raise Stopped(signum)
                outputs.append(self.validation_step(self._next(self.dataloader_val)))
        counts = {key: np.sum([output[key] for output in outputs], 0) for key in ("tp_hard", "fp_hard", "fn_hard")}
        sums = self.group.sum(self.device, *(float(value) for count in counts.values() for value in count))
        val_loss = self.group.mean(self.device, float(np.mean([output["loss"] for output in outputs])))[0]
        self.logger.log("train_losses", float(np.mean(self.losses)), self.current_epoch)
        shared = dict(zip(counts, np.split(np.array(sums), len(counts)), strict=True))
        self.on_validation_epoch_end([{"loss": val_loss, **shared}])
        self.drawn += settled
        self.validated += len(outputs)
        self._closing = self.clock.spent - before

    def _settle_batch_norms(self) -> int:
        """Take the running statistics of batch norms from a few training batches and the weights of this moment.

        Their moving average over small batches lags behind the weights: of an nnMamba with a training loss of 0.74 it
        made a validation loss of 1e10, and 0.74 with the statistics of eight batches. Training does not use them.
        Source: Wu and Johnson, Rethinking "Batch" in BatchNorm, arXiv:2105.07576, Sec. 3.

        Returns:
            How many batches that took.
        """
        network = self.plain_network
        if not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()):
            return 0
        self._seed_step()
        batches = (self._next(self.dataloader_train)["data"].to(self.device) for _ in range(_STATISTICS_BATCHES))
        with self.precision_now().autocast(self.device):
            update_bn(batches, network)
        return _STATISTICS_BATCHES

    # ---------------------------------------------------------------------------------------------- bad numbers, ends

    def _recover(self, keys: list[str], data: Tensor, target: Any, precision: Precision) -> Action:
        """Find out why a step is not finite, and what :class:`Recovery` says about it: SKIP or RETRY.

        Raises:
            _Rewind: Go on from the last checkpoint.
            UserError: Nothing more is to be tried.
        """
        self._buffers.restore()
        self._seed_step()
        scale = self.grad_scaler.get_scale() if precision.needs_scaler else None
        found = find_blame(
            self.plain_network, self.loss, data, target, keys, lambda: precision.autocast(self.device), scale or 1.0
        )
        blame = worst(self.group.gather(found))
        step = BadStep(self.current_epoch, self.iterations, precision.name, self.learning_rate(), scale, blame)
        action = self.recovery.decide(step)
        self._note("recovery", action=action.value, epoch=step.epoch, iteration=step.iteration, found=step.found)
        if action is Action.GIVE_UP:
            if self.group.leads:
                write_json(Path(self.output_folder) / "numerics.json", self.recovery.report())
            raise self.recovery.error(self.output_folder, step)
        if action is not Action.SKIP:  # after that _apply does it
            self._scaler(precision).update()  # it takes note of one bad step at a time
        if action is Action.REWIND:
            raise _Rewind
        return action

    def _rewind(self) -> None:
        """What was learnt about the numbers stays, and the time is spent."""
        kept = self.recovery, self.clock, self._best_ema  # the last is that of the file which is there
        self.close()
        self.load_checkpoint(str(Path(self.output_folder) / LATEST))
        self.recovery, self.clock, self._best_ema = kept
        self.group.wait()  # until all have read what is replaced now
        self.dataloader_train, self.dataloader_val = self.get_dataloaders()
        if self.group.leads:
            self.records = Records(Path(self.output_folder), self.current_epoch)
        self._save_latest()

    def _end_stalled(self, error: UserError) -> None:
        """Called in the watchdog's thread. While this one waits for data, it changes nothing that is saved."""
        print(f"umamba-seg: {error}", file=sys.stderr, flush=True)
        threading.Timer(60, os._exit, [2]).start()  # the disk of the checkpoint may not answer either
        try:
            if error.where == _NEXT_BATCH:
                self._save_latest()
        finally:
            os._exit(2)

    def on_train_end(self) -> None:
        """The final checkpoint takes the place of the latest."""
        if self.group.leads:
            self._save(FINAL, FINAL_PTH)
            for name in (LATEST, PREVIOUS):
                (Path(self.output_folder) / name).unlink(missing_ok=True)
        self.group.wait()

    # ------------------------------------------------------------------------------------------------- what one sees

    def _bar_total(self) -> int:
        limited = self.options.max_minutes is not None
        return int(self.clock.limit) if limited else self.num_epochs * self.num_iterations_per_epoch

    def _show(self, bar: tqdm) -> None:
        """Seconds under a time budget, iterations otherwise: the bar's time left is right in both cases."""
        bar.update((int(self.clock.spent) if self.options.max_minutes is not None else self.iterations) - bar.n)

    def _end_epoch(self) -> None:
        epoch = self.current_epoch
        self.logger.log("epoch_end_timestamps", time.time(), epoch)
        self.current_epoch, self.step, self.losses = epoch + 1, 0, []
        last = {name: values[-1] for name, values in self.logger.get_checkpoint().items()}
        seconds = last["epoch_end_timestamps"] - last["epoch_start_timestamps"]
        is_best = self._best_ema is None or last["ema_fg_dice"] > self._best_ema
        if is_best:
            self._best_ema = float(last["ema_fg_dice"])
        if not self.group.leads:
            return
        if is_best:
            self._save(BEST, BEST_PTH)
        self.logger.plot_progress_png(self.output_folder)
        self._write_record()
        dice = dict(zip(self.foreground_names(), plain(last["dice_per_class_or_region"]), strict=True))
        self._log_epoch(epoch, last, dice, seconds, self.epoch_times)

    def _note(self, kind: str, **values) -> None:
        """Add an event to log.jsonl, in the process that writes it."""
        if self.records is not None:
            self.records.event(kind, **values)

    def _log_epoch(self, epoch: int, last: dict, dice: dict, seconds: float, times: dict) -> None:
        left = self.clock.spent * (1 / self.progress - 1)
        of_all = f"/{self.options.epochs}" if self.options.epochs else ""
        line = (
            f"epoch {epoch + 1}{of_all}  train loss {last['train_losses']:.3f}  val loss {last['val_losses']:.3f}  "
            f"pseudo Dice: {'  '.join(f'{name} {value:.3f}' for name, value in dice.items())}  "
            f"lr {last['lrs']:.1e}  {seconds:.0f} s  {times['samples_per_second']:.1f} samples/s, "
            f"{times['seconds']['loader'] / times['seconds']['all']:.0%} waiting for data"
        )
        logger.info("%s  (%s left)", line, timedelta(seconds=round(left)))
        super().print_to_log_file(line, also_print_to_console=False)
        if not math.isfinite(last["val_losses"]):
            logger.warning("the validation loss of this epoch is %s", last["val_losses"])
            self._note("warning", epoch=epoch, found=f"the validation loss is {last['val_losses']}")
        if self.records is not None:
            self.records.epoch(
                epoch,
                {
                    "loss/train": last["train_losses"],
                    "loss/val": last["val_losses"],
                    "pseudo_dice/mean": float(last["mean_fg_dice"]),
                    "pseudo_dice/mean_smoothed": float(last["ema_fg_dice"]),
                    **{f"pseudo_dice/{name}": value for name, value in dice.items()},
                    "learning_rate": last["lrs"],
                    **{f"seconds/{name}": value for name, value in times["seconds"].items()},
                    "samples_per_second": times["samples_per_second"],
                },
            )

    def _write_record(self) -> None:
        """training.json: what the report and a script need to know, without opening a checkpoint."""
        record = {
            "configuration": self.configuration_name,
            "device": str(self.device),
            "parameters": sum(weight.numel() for weight in self.network.parameters()),
            "iterations": self.iterations,
            "seconds": self.clock.spent,
            "logging": plain(self.logger.get_checkpoint()),
        }
        write_json(Path(self.output_folder) / "training.json", record)

    # --------------------------------------------------------------------------------------------------- checkpoints

    def save_checkpoint(self, filename: str) -> None:
        """Write network, optimizer and all that training needs to go on from here; see :func:`write_checkpoint`."""
        tensors, groups = optimizer_tensors(self.optimizer)
        state = State(
            options=self.options.model_dump(),
            prediction=self.prediction(),
            optimizer=groups,
            grad_scaler=self.grad_scaler.state_dict(),
            recovery=self.recovery,
            logging=plain(self.logger.get_checkpoint()),
            best_ema=self._best_ema,
            epoch=self.current_epoch,
            step=self.step,
            iterations=self.iterations,
            drawn=self.drawn,
            validated=self.validated,
            losses=self.losses,
            schedule_start=self.schedule_start,
            epoch_seconds=self._epoch_seconds(),
            seconds_spent=self.clock.spent,
            closing_seconds=self._closing,
            threads=torch.get_num_threads(),
        )
        path = Path(filename)
        previous = path.with_name(PREVIOUS) if path.name == LATEST else None
        tensors |= network_tensors(self.plain_network.state_dict())
        write_checkpoint(path, tensors, state.model_dump(), previous=previous)

    def _epoch_seconds(self) -> float:
        """Since this epoch began; 0 between epochs."""
        starts: list[float] = self.logger.get_checkpoint()["epoch_start_timestamps"]
        return time.time() - starts[-1] if self.step else 0.0

    def _save(self, name: str, pth: str) -> None:
        """A checkpoint, and beside it the network in nnU-Net's form."""
        folder = Path(self.output_folder)
        self.save_checkpoint(str(folder / name))
        save_pth(folder / pth, {"network_weights": self.plain_network.state_dict()} | self.prediction())

    def _save_latest(self) -> None:
        if self.group.leads:
            self.save_checkpoint(str(Path(self.output_folder) / LATEST))
        self._saved = time.monotonic()

    def load_checkpoint(self, filename_or_checkpoint: str) -> None:
        """Restore all that :meth:`save_checkpoint` writes.

        Raises:
            UserError: It is missing or damaged, or does not fit the plans.
        """
        path = Path(filename_or_checkpoint)
        tensors, state = read_checkpoint(path)
        self.restore(path, tensors, State.read(state, path))

    def restore(self, path: Path, tensors: dict[str, Tensor], state: State) -> None:
        """As :meth:`load_checkpoint`, from what was read of ``path``."""
        if not self.was_initialized:
            self.initialize()
        load_weights(self.plain_network, {"network_weights": weights_of(tensors)}, path)
        load_optimizer(self.optimizer, tensors, state.optimizer, path)
        if self.grad_scaler.is_enabled() and state.grad_scaler:
            self.grad_scaler.load_state_dict(state.grad_scaler)
        self.recovery = state.recovery
        self.logger.load_checkpoint(state.logging)
        self._best_ema = state.best_ema
        self.current_epoch, self.step = state.epoch, state.step
        self.iterations, self.drawn, self.validated = state.iterations, state.drawn, state.validated
        self.losses = state.losses
        self.schedule_start, self._closing = state.schedule_start, state.closing_seconds
        if self.step:  # the pause does not count
            self.logger.get_checkpoint()["epoch_start_timestamps"][-1] = time.time() - state.epoch_seconds
        running = self.clock.is_running
        self.clock = Clock(self.clock.limit, state.seconds_spent)
        if running:
            self.clock.start()
        self.inference_allowed_mirroring_axes = state.prediction["inference_allowed_mirroring_axes"]
        if self.options.deterministic and state.threads != torch.get_num_threads():
            logger.warning(
                "%s: trained with %d threads, now there are %d: sums may differ in their last bits",
                path, state.threads, torch.get_num_threads(),
            )  # fmt: skip

    def begin_extension(self) -> None:
        """Start the schedule anew from here."""
        self.schedule_start = self.current_epoch
