"""Measure what the trainer's loop costs beyond forward pass, backward pass and the step of the optimizer.

    umamba-seg plan_and_preprocess -d 4 --network segmamba --budget cpu --root ROOT
    python scripts/loop_overhead.py ROOT 4 docs/loop_overhead.csv --plans umamba_bot_cpu segmamba_cpu

One process, one network and the same batches for both, taken from memory: a turn of the trainer's own loop, with all
that it does between two batches (looking for bad numbers, times, signals, the watchdog, the schedule, seeds), is
followed by a turn of the bare steps. "loop %" is the median of (trainer / bare - 1) over these pairs of turns; with a
chance of 95 % the true median is within "from %" and "to %". A checkpoint is timed by itself, and "checkpoint %" is its
share of the time from one to the next. The exit code is 1 if both together are more than 2 %.

Turns on a CPU are measured in CPU time and with one thread, so that what else the machine does disturbs them little.
The loop's own work does not grow with the threads: with n of them its share is at most n times as large.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import math
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

import umamba_seg
from umamba_seg import settings
from umamba_seg.files import read_json
from umamba_seg.log import quiet
from umamba_seg.paths import resolve
from umamba_seg.plan.plans import PLANS_TABLE, read_plans
from umamba_seg.plan.step import device_name
from umamba_seg.train import LATEST
from umamba_seg.train.data import Loader
from umamba_seg.train.trainer import UMambaSegTrainer

BATCHES = 4  # that are held in memory
WARM_UP = 3  # turns that do not count
TURN = {"cpu": 1, "cuda": 20}  # steps; where the CPU runs ahead of a GPU, that is not to be cut short at each
CHECKPOINTS = 5
LIMIT = 2.0  # per cent
COLUMNS = (
    *("network", "configuration", "patch", "batch", "precision", "steps", "bare ms", "trainer ms"),
    *("loop %", "from %", "to %", "checkpoint ms", "checkpoint %", "device", "torch", "umamba_seg"),
)


class Feed:
    """Gives the trainer batches from memory, and after each turn of its loop lets the bare steps have theirs.

    Args:
        trainer: Who asks for batches.
        source: Where they come from, once.

    Attributes:
        turns: Seconds of the trainer's and the bare turn, in pairs.
    """

    def __init__(self, trainer: UMambaSegTrainer, source: Loader):
        batches = list(itertools.islice(source, BATCHES))
        source.close()
        self._trainer, self._batches, self._given = trainer, itertools.cycle(batches), 0
        self._bare_batches = itertools.cycle(batches)
        self.turns: list[tuple[float, float]] = []

    def __next__(self) -> dict:
        length = TURN[self._trainer.device.type]
        if self._given % length == 0:
            now = self._now()
            if self._given:
                for _ in range(length):
                    bare_step(self._trainer, next(self._bare_batches))
                bare_end = self._now()
                self.turns.append((now - self._begun, bare_end - now))
            self._begun = self._now()
        self._given += 1
        return next(self._batches)

    def state(self) -> str:
        """What the watchdog would tell."""
        return "taken from memory"

    def close(self) -> None:
        """Nothing is left to close."""

    def _now(self) -> float:
        if self._trainer.device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize(self._trainer.device)
        return time.perf_counter()


class FedTrainer(UMambaSegTrainer):
    """The trainer on a :class:`Feed`."""

    def get_dataloaders(self):
        training, validation = super().get_dataloaders()
        self.feed = Feed(self, training)
        return self.feed, validation


def bare_step(trainer: UMambaSegTrainer, batch: dict) -> None:
    """A training step of the trainer's network and optimizer, and nothing else."""
    device, network, optimizer, scaler = trainer.device, trainer.network, trainer.optimizer, trainer.grad_scaler
    data, target = batch["data"].to(device, non_blocking=True), batch["target"]
    if isinstance(target, list):
        target = [part.to(device, non_blocking=True) for part in target]
    else:
        target = target.to(device, non_blocking=True)
    optimizer.zero_grad(set_to_none=True)
    with trainer.precision.autocast(device):
        loss = trainer.loss(network(data), target)
    scaler.scale(loss).backward()
    scaler.unscale_(optimizer)
    nn.utils.clip_grad_norm_(network.parameters(), trainer.options.gradient_clip)
    scaler.step(optimizer)
    scaler.update()


def interval_of_median(values: list[float]) -> tuple[float, float]:
    """Of 95 %, for values of any distribution: the binomial's, as a normal one, counted in the sorted values."""
    ordered, reach = sorted(values), 0.98 * math.sqrt(len(values))
    middle = (len(values) - 1) / 2
    return ordered[max(0, math.floor(middle - reach))], ordered[min(len(values) - 1, math.ceil(middle + reach))]


def checkpoint_seconds(trainer: UMambaSegTrainer) -> float:
    """Median of writing one."""
    seconds = []
    for _ in range(CHECKPOINTS):
        start = time.perf_counter()
        trainer.save_checkpoint(str(Path(trainer.output_folder) / LATEST))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure(plans: dict, configuration: str, dataset_json: dict, device: torch.device, steps: int) -> dict:
    """The row of a plan."""
    length = TURN[device.type]
    turns = math.ceil(steps / length)
    options = plans[PLANS_TABLE]["training"] | {
        "epochs": 1,
        "max_minutes": None,
        "iterations_per_epoch": (WARM_UP + turns) * length + 1,
        "val_iterations_per_epoch": 1,
    }
    plans = plans | {PLANS_TABLE: plans[PLANS_TABLE] | {"training": options}, "continue_training": False}
    with quiet():
        trainer = FedTrainer(plans, configuration, 0, dataset_json, device)
        trainer.on_train_start()
    trainer.run_training()
    pairs = trainer.feed.turns[WARM_UP:][:turns]  # batch norms are settled with batches after these
    overheads = [100 * (ours / bare - 1) for ours, bare in pairs]
    trainer_ms, bare_ms = (1000 * statistics.median(column) / length for column in zip(*pairs, strict=True))
    low, high = interval_of_median(overheads)
    checkpoint = checkpoint_seconds(trainer)
    share = 100 * checkpoint / (60 * trainer.options.checkpoint_minutes)
    planned = trainer.configuration_manager
    return {
        "network": plans[PLANS_TABLE]["network"],
        "configuration": configuration,
        "patch": "x".join(map(str, planned.patch_size)),
        "batch": planned.batch_size,
        "precision": trainer.precision.name,
        "steps": turns * length,
        "bare ms": f"{bare_ms:.1f}",
        "trainer ms": f"{trainer_ms:.1f}",
        "loop %": f"{statistics.median(overheads):.2f}",
        "from %": f"{low:.2f}",
        "to %": f"{high:.2f}",
        "checkpoint ms": f"{1000 * checkpoint:.0f}",
        "checkpoint %": f"{share:.3f}",
        "device": device_name(device),
        "torch": torch.__version__,
        "umamba_seg": umamba_seg.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="folder of nnU-Net's folders, with the preprocessed data set")
    parser.add_argument("dataset", help="its number or name")
    parser.add_argument("out", type=Path, help="the table (CSV)")
    parser.add_argument("--plans", nargs="+", required=True, help="such as umamba_bot_cpu; all their configurations")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    device = torch.device(args.device)
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = True  # as in training
    settings.configure_nnunet(1)
    too_slow = []
    with tempfile.TemporaryDirectory() as results, args.out.open("w", newline="") as file:
        folders = replace(resolve(args.root), results=Path(results)).export()
        dataset = folders.preprocessed / folders.dataset_name(args.dataset)
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for plans in (read_plans(dataset, name) for name in args.plans):
            for configuration in plans["configurations"]:
                row = measure(plans, configuration, read_json(dataset / "dataset.json"), device, args.steps)
                table.writerow(row)
                file.flush()
                print("  ".join(f"{key} {value}" for key, value in row.items()))
                if float(row["loop %"]) + float(row["checkpoint %"]) > LIMIT:
                    too_slow.append(f"{plans['plans_name']} {configuration}")
    if too_slow:
        sys.exit(f"more than {LIMIT} %: {', '.join(too_slow)}")


if __name__ == "__main__":
    main()
