"""What goes wrong in trainings of tests: each function arranges for it in the process that it is called in."""

import os
import shutil
import signal
import time
from functools import partial
from types import SimpleNamespace

import torch

from umamba_seg.train import run, trainer
from umamba_seg.train.data import Samples
from umamba_seg.train.distributed import Group
from umamba_seg.train.trainer import UMambaSegTrainer
from umamba_seg.train.watchdog import Watchdog

_VALIDATE = run._validate  # which the zygote leaves out


def validate() -> None:
    """The final validation is not left out."""
    run._validate = _VALIDATE


def nan_in_input(number: int) -> None:
    """Training batch ``number`` holds a NaN in its last sample."""
    batch_of = Samples.batch

    def batch(self, drawn):
        made = batch_of(self, drawn)
        if drawn == number and self._origin[1] == 0:
            made["data"][-1, 0].view(-1)[7] = torch.nan
        return made

    Samples.batch = batch


def overflow(first: int, times: int) -> None:
    """From iteration ``first`` on, ``times`` gradients of the first weight are too large for float32."""
    step_of, left = UMambaSegTrainer._train_iteration, [times]

    def enlarged(gradient):
        left[0] -= 1
        return gradient * 1e38 * 1e38 if left[0] >= 0 else gradient

    def step(self, batch):
        if self.iterations < first:
            return step_of(self, batch)
        handle = next(self.plain_network.parameters()).register_hook(enlarged)
        try:
            return step_of(self, batch)
        finally:
            handle.remove()

    UMambaSegTrainer._train_iteration = step


def slow(seconds: float) -> None:
    """Every batch takes so much longer."""
    batch_of = Samples.batch

    def batch(self, drawn):
        time.sleep(seconds)
        return batch_of(self, drawn)

    Samples.batch = batch


def stall(number: int, limit: float) -> None:
    """Training batch ``number`` never comes; the watchdog waits for ``limit`` seconds."""
    batch_of = Samples.batch

    def batch(self, drawn):
        if drawn == number and self._origin[1] == 0:
            time.sleep(3600)
        return batch_of(self, drawn)

    Samples.batch = batch
    trainer.Watchdog = partial(Watchdog, limit=limit)


def disk_that_claims_to_be_empty() -> None:
    """As with a quota: that the disk is full shows when it is written to."""
    shutil.disk_usage = lambda _: SimpleNamespace(free=2**40)


def first_gradients(file: str) -> None:
    """The gradients of the first iteration, in float64, are written to ``file``, and training ends."""
    wrap_of = Group.wrap
    Group.wrap = lambda self, network, *args, **how: wrap_of(self, network.double(), *args, **how)

    def iteration(self, batch):
        data, target = self.on_device(batch)
        loss, norm = self._gradients(data.double(), target, self.precision)
        gradients = {name: weight.grad for name, weight in self.plain_network.named_parameters()}
        torch.save({"loss": loss, "norm": norm, "keys": batch["keys"], "gradients": gradients}, file)
        raise KeyboardInterrupt

    UMambaSegTrainer._train_iteration = iteration


def signal_at_the_end() -> None:
    """SIGTERM comes while the last epoch is ended."""
    end_of = UMambaSegTrainer._end_epoch

    def end(self):
        if self.current_epoch + 1 == self.num_epochs:
            os.kill(os.getpid(), signal.SIGTERM)
        end_of(self)

    UMambaSegTrainer._end_epoch = end
