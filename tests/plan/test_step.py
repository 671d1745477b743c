"""The training step of plans is the trainer's; what it takes on this machine."""

from __future__ import annotations

import platform
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from umamba_seg.networks import find
from umamba_seg.plan.memory import training_memory
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.step import Setting, TrainingStep, build_network, make_optimizer, measure
from umamba_seg.plan.topology import topology_for

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
ADAMW = TrainingOptions(optimizer="AdamW", initial_lr=1e-3, weight_decay=0.5)


def small_network(*patch: int) -> tuple[dict, Setting]:
    """Architecture and setting of a small U-Net for two channels and three classes."""
    spec, topology = find("plain_conv_unet"), topology_for(patch, base_features=8)
    return spec.architecture(spec.planned(topology)), Setting(topology, 2, 3, 2)


def test_sgd_is_nnunets():
    weights = [nn.Parameter(torch.zeros(1))]
    theirs, _ = nnUNetTrainer.configure_optimizers(
        SimpleNamespace(
            network=SimpleNamespace(parameters=lambda: iter(weights)),
            initial_lr=1e-2,
            weight_decay=3e-5,
            num_epochs=1000,
        )
    )
    ours = make_optimizer(TrainingOptions(), weights)
    assert type(ours) is type(theirs)
    assert ours.defaults == theirs.defaults


def test_sgd_takes_its_options():
    options = TrainingOptions(initial_lr=0.1, weight_decay=0.5, momentum=0.8, nesterov=False)
    defaults = make_optimizer(options, [nn.Parameter(torch.zeros(1))]).defaults
    assert {key: defaults[key] for key in ("lr", "weight_decay", "momentum", "nesterov")} == {
        **{"lr": 0.1, "weight_decay": 0.5, "momentum": 0.8, "nesterov": False}
    }


@pytest.mark.parametrize(("name", "kind"), [("Adam", torch.optim.Adam), ("AdamW", torch.optim.AdamW)])
def test_adam_and_adamw_take_their_options(name, kind):
    options = TrainingOptions(optimizer=name, initial_lr=1e-3, weight_decay=0.5, betas=(0.8, 0.9), eps=1e-5)
    optimizer = make_optimizer(options, [nn.Parameter(torch.zeros(1))])
    assert type(optimizer) is kind
    assert {key: optimizer.defaults[key] for key in ("lr", "weight_decay", "betas", "eps")} == {
        **{"lr": 1e-3, "weight_decay": 0.5, "betas": (0.8, 0.9), "eps": 1e-5}
    }


def test_a_step_changes_all_weights_but_the_head_of_the_coarsest_output():
    """The loss of that output weighs nothing."""
    architecture, setting = small_network(32, 32)
    step = TrainingStep(build_network(architecture, setting, CPU), setting, TrainingOptions(), CPU)
    before = {name: weight.detach().clone() for name, weight in step.network.named_parameters()}
    step.run()
    kept = {name for name, weight in step.network.named_parameters() if torch.equal(weight, before[name])}
    assert kept == {"decoder.seg_layers.0.weight", "decoder.seg_layers.0.bias"}


class Pointwise(nn.Module):
    """One convolution, whose logits are large numbers, and one output."""

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool):
        super().__init__()
        self.conv = nn.Conv2d(input_channels, num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return 1e4 * self.conv(x)


def pointwise(*patch: int) -> tuple[dict, Setting]:
    name = f"{Pointwise.__module__}.{Pointwise.__name__}"
    architecture = {"network_class_name": name, "arch_kwargs": {}, "_kw_requires_import": []}
    return architecture, Setting(topology_for(patch), 2, 3, 2)


@pytest.mark.parametrize("norm", [12, 3])
def test_gradients_are_clipped_to_the_norm_of_the_options(norm):
    architecture, setting = pointwise(32, 32)
    options = TrainingOptions(gradient_clip=norm)
    step = TrainingStep(build_network(architecture, setting, CPU), setting, options, CPU)
    step.run()
    found = nn.utils.get_total_norm([weight.grad for weight in step.network.parameters()])
    assert float(found) == pytest.approx(norm, rel=1e-4)


class Recorder(nn.Module):
    """One convolution, and the precision that it answered in."""

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool):
        super().__init__()
        self.conv = nn.Conv2d(input_channels, num_classes, 1)
        self.answered: torch.dtype | None = None

    def forward(self, x: Tensor) -> Tensor:
        logits = self.conv(x)
        self.answered = logits.dtype
        return logits


@pytest.mark.parametrize(
    ("precision", "dtype"), [("auto", torch.float32), ("float32", torch.float32), ("bfloat16", torch.bfloat16)]
)
def test_the_forward_pass_runs_in_the_precision_of_the_options(precision, dtype):
    _, setting = pointwise(16, 16)
    network = Recorder(2, 3, deep_supervision=True)
    TrainingStep(network, setting, TrainingOptions(precision=precision), CPU).run()
    assert network.answered == dtype


def test_steps_are_measured_on_this_machine():
    """Tensors so large that the operating system gives and takes each, whatever lies free from before."""
    architecture, setting = pointwise(1536, 1536)
    found = measure(architecture, setting, ADAMW, CPU, steps=1)
    traced = training_memory(architecture, setting, "cpu", ADAMW)
    assert found.seconds > 0
    assert found.device == platform.machine()
    assert traced.peak / 2 < found.bytes < 2 * traced.peak


def test_a_network_that_fails_ends_the_measurement():
    architecture, setting = small_network(32, 32)
    threads = threading.active_count()
    with pytest.raises(RuntimeError, match="but got input of size"):
        measure(architecture, replace(setting, topology=topology_for((16, 16, 16))), ADAMW, CPU)
    assert threading.active_count() == threads
