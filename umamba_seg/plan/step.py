"""The training step that plans are made for, to be traced or measured: the trainer's, on data without content."""

from __future__ import annotations

import platform
import statistics
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from umamba_seg.layout import use_fast_layout
from umamba_seg.networks import Topology, build_from
from umamba_seg.plan.losses import make_loss
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.precision import Precision, choose_precision


@dataclass(frozen=True)
class Setting:
    """What a network is trained on.

    Args:
        topology: Patch and shape of the network.
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        batch_size: Samples of a training step.
    """

    topology: Topology
    input_channels: int
    num_classes: int
    batch_size: int


def make_optimizer(options: TrainingOptions, weights: Iterable[Tensor]) -> torch.optim.Optimizer:
    """The optimizer of a training."""
    rate, decay = options.initial_lr, options.weight_decay
    if options.optimizer == "SGD":
        return torch.optim.SGD(
            weights, lr=rate, weight_decay=decay, momentum=options.momentum, nesterov=options.nesterov
        )
    kind = {"Adam": torch.optim.Adam, "AdamW": torch.optim.AdamW}[options.optimizer]
    return kind(weights, lr=rate, weight_decay=decay, betas=options.betas, eps=options.eps)


def build_network(architecture: dict, setting: Setting, device: torch.device) -> nn.Module:
    """The network of a plan as the trainer builds it, in the layout of ``device`` but where torch builds by default."""
    network = build_from(
        architecture,
        input_channels=setting.input_channels,
        num_classes=setting.num_classes,
        deep_supervision=True,
    )
    return use_fast_layout(network, device)


class TrainingStep:
    """Forward pass, loss under deep supervision, backward pass, clipping, optimizer.

    Targets are label maps; those of regions, which are trained with a binary cross entropy, take somewhat more.

    Args:
        network: On the device.
        setting: What the network is trained on.
        options: Of the training; optimizer, loss and clipping count.
        device: Where the step runs.
        precision: Of the forward pass; by default what the options and the device choose.

    Raises:
        UserError: The device does not have the precision of the options.
    """

    def __init__(
        self,
        network: nn.Module,
        setting: Setting,
        options: TrainingOptions,
        device: torch.device,
        precision: Precision | None = None,
    ):
        self.network = network
        self.optimizer = make_optimizer(options, network.parameters())
        self._setting, self._options, self._device = setting, options, device
        self._precision = precision or choose_precision(options.precision, device)
        # A step that is traced as on a GPU runs on CPU tensors without data, which cannot be searched for overflows.
        scales = self._precision.needs_scaler and device.type == "cuda"
        self._scaler = torch.GradScaler(device.type, enabled=scales)

    def run(self) -> None:
        """One step."""
        self.optimizer.zero_grad(set_to_none=True)
        batch, patch = self._setting.batch_size, self._setting.topology.patch_size
        x = torch.randn(batch, self._setting.input_channels, *patch, device=self._device)
        with self._precision.autocast(self._device):
            logits = self.network(x)
            outputs = 1 if isinstance(logits, Tensor) else len(logits)
            if outputs == 1 and not isinstance(logits, Tensor):
                logits = logits[0]
            loss = self._loss(outputs)(logits, tree_map(_background, logits))
        self._scaler.scale(loss).backward()
        self._scaler.unscale_(self.optimizer)
        nn.utils.clip_grad_norm_(self.network.parameters(), self._options.gradient_clip)
        self._scaler.step(self.optimizer)
        self._scaler.update()

    def _loss(self, outputs: int) -> nn.Module:
        return make_loss(self._options, outputs=outputs, batch_dice=True, regions=False, ignore_label=None)


def _background(logits: Tensor) -> Tensor:
    return logits.new_zeros((len(logits), 1, *logits.shape[2:]), dtype=torch.int16)


@dataclass(frozen=True)
class Measurement:
    """What training steps took on a real device.

    Attributes:
        seconds: Median of a step.
        bytes: On a GPU the peak that torch allocated; on a CPU by how much the resident memory rose.
        device: Name of the GPU, or of the CPU's architecture.
    """

    seconds: float
    bytes: int
    device: str


def measure(
    architecture: dict, setting: Setting, options: TrainingOptions, device: torch.device, steps: int = 3
) -> Measurement:
    """Run training steps on random data, after one that only counts for the memory.

    Loading and augmenting data is not part of a step.

    Raises:
        RuntimeError: There is not enough memory (on CUDA its subclass torch.OutOfMemoryError).
    """
    with _peak_bytes(device) as peak, torch.backends.cudnn.flags(benchmark=True):
        step = TrainingStep(build_network(architecture, setting, device).to(device), setting, options, device)
        step.run()
        seconds = statistics.median(_timed(step, device) for _ in range(steps))
    return Measurement(seconds, peak.bytes, device_name(device))


def device_name(device: torch.device) -> str:
    """Of the GPU, or of the CPU's architecture."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()


def _timed(step: TrainingStep, device: torch.device) -> float:
    start = time.perf_counter()
    step.run()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


class _peak_bytes:
    """Peak of the device's memory within the context, in ``bytes``."""

    def __init__(self, device: torch.device):
        self._device = device
        self.bytes = 0

    def __enter__(self) -> _peak_bytes:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
        else:
            self._process, self._done = psutil.Process(), threading.Event()
            self._before = self._process.memory_info().rss
            self._sampler = threading.Thread(target=self._sample, daemon=True)
            self._sampler.start()
        return self

    def __exit__(self, *_error) -> None:
        if self._device.type == "cuda":
            self.bytes = torch.cuda.max_memory_allocated(self._device)
        else:
            self._done.set()
            self._sampler.join()

    def _sample(self) -> None:
        while not self._done.wait(0.005):
            self.bytes = max(self.bytes, self._process.memory_info().rss - self._before)
