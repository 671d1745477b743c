"""The traced memory of a training step: beside a real step on the CPU, and by the rules of CUDA's autocast."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import ClassVar

import psutil
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, find
from umamba_seg.networks.blocks.mamba import TokenLayer
from umamba_seg.plan import memory
from umamba_seg.plan.memory import training_memory
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.step import Setting, TrainingStep, build_network
from umamba_seg.plan.topology import topology_for

pytestmark = pytest.mark.usefixtures("one_thread")

CPU = torch.device("cpu")
HALF, FLOAT = torch.float16, torch.float32
SGD, ADAMW, CE = TrainingOptions(), TrainingOptions(optimizer="AdamW"), TrainingOptions(loss="ce")


def planned(name: str, *patch: int, features: int = 8, batch_size: int = 2) -> tuple[dict, Setting]:
    """Architecture and setting of a network, with so many channels in nnU-Net's first stage, for three classes."""
    spec = find(name)
    levels = spec.levels
    topology = topology_for(patch, base_features=features) if levels is None else levels.topology(patch, features / 32)
    return spec.architecture(spec.planned(topology)), Setting(topology, 1, 3, batch_size)


def of_class(network: type, **arguments) -> tuple[dict, Setting]:
    """The same for a class of this module, which is built with ``arguments``, on a patch of 16×16×16."""
    name = f"{network.__module__}.{network.__name__}"
    architecture = {"network_class_name": name, "arch_kwargs": arguments, "_kw_requires_import": []}
    return architecture, Setting(topology_for((16, 16, 16)), 1, 3, 2)


# ---------------------------------------------------------------------------------------------------------- a real step


def rise_in_a_real_step(architecture: dict, setting: Setting, options: TrainingOptions) -> int:
    """Bytes at the highest that torch's allocator rises in a step, above what is there before it."""
    step = TrainingStep(build_network(architecture, setting, CPU), setting, options, CPU)
    step.run()  # the optimizer has its state from now on
    step.optimizer.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        step.run()
    assert profiler.profiler is not None
    events = profiler.profiler.kineto_results.events()
    records = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    now = highest = 0
    for _, size in records:
        now += size
        highest = max(highest, now)
    return highest


@pytest.mark.parametrize(
    ("network", "options"),
    [
        (("plain_conv_unet", 32, 32, 32), SGD),
        (("plain_conv_unet", 128, 96), ADAMW),
        (("residual_encoder_unet", 96, 128), SGD),
        (("umamba_bot", 32, 32, 32), ADAMW),
        (("umamba_enc", 128, 96), SGD),
        (("segmamba", 32, 32, 48), TrainingOptions(loss="ce")),
        (("nnmamba_ds", 32, 48, 48), ADAMW),
        (("lightmunet", 64, 64), TrainingOptions(optimizer="Adam")),
    ],
    ids=lambda value: "-".join(map(str, value)) if isinstance(value, tuple) else f"{value.optimizer}-{value.loss}",
)
def test_traced_peak_is_that_of_a_real_step(network, options):
    """What a real step takes beyond the trace is oneDNN's, inside of convolutions: tensors in another layout."""
    architecture, setting = planned(*network)
    traced = training_memory(architecture, setting, "cpu", options)
    real = traced.weights + traced.optimizer + rise_in_a_real_step(architecture, setting, options)
    assert traced.peak == pytest.approx(real, rel=0.03)


@pytest.mark.parametrize(("optimizer", "states"), [("SGD", 1), ("Adam", 2), ("AdamW", 2)])
def test_weights_and_the_states_of_the_optimizer_are_counted_once(optimizer, states):
    architecture, setting = planned("plain_conv_unet", 16, 16, 16)
    network = build_network(architecture, setting, CPU)
    weights = sum(weight.numel() * 4 for weight in network.parameters())
    traced = training_memory(architecture, setting, "cpu", TrainingOptions(optimizer=optimizer))
    assert traced.weights == weights
    assert traced.optimizer == pytest.approx(states * weights, rel=0.01)  # Adam counts its steps beside them


class Tied(nn.Module):
    """Two convolutions that share their weight."""

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool):
        super().__init__()
        self.enter = nn.Conv3d(input_channels, num_classes, 1, bias=False)
        self.first, self.second = (nn.Conv3d(num_classes, num_classes, 3, padding=1, bias=False) for _ in range(2))
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.enter(x)))


class Wide(nn.Module):
    """One convolution to many classes, so that the loss has most of the memory."""

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool):
        super().__init__()
        self.conv = nn.Conv3d(input_channels, 16 * num_classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


def test_the_loss_is_counted():
    with_dice, alone = (training_memory(*of_class(Wide), "cpu", options).peak for options in (SGD, CE))
    assert with_dice > 1.3 * alone


@pytest.mark.parametrize(("device", "asked", "usual"), [("cuda", "float32", "float16"), ("cpu", "float32", "bfloat16")])
def test_the_precision_is_counted(device, asked, usual):
    case = planned("plain_conv_unet", 32, 32, 32)
    more, less = (training_memory(*case, device, TrainingOptions(precision=name)).peak for name in (asked, usual))
    assert more > 1.3 * less


def test_where_the_gpu_chooses_the_half_that_takes_more_is_counted():
    """U-Mamba widens features of float16 that no norm bounds to float32."""
    case = planned("umamba_bot", 32, 32, 32)
    options = (TrainingOptions(precision=name) for name in ("auto", "float16", "bfloat16"))
    auto, float16, bfloat16 = (training_memory(*case, "cuda", each).peak for each in options)
    assert auto == float16 > 1.1 * bfloat16


def test_a_plan_for_cpus_in_float16_is_refused():
    with pytest.raises(UserError, match="precision float16: a CPU computes in float32 or bfloat16"):
        training_memory(*of_class(Wide), "cpu", TrainingOptions(precision="float16"))


def test_weights_that_layers_share_are_counted_once():
    assert training_memory(*of_class(Tied), "cpu", SGD).weights == 4 * (3 + 3 * 3 * 27)


# ---------------------------------------------------------------------------------------------------------------- CUDA


class Tokens(TokenLayer):
    """Normalises tokens after a product, and notes in which precision."""

    def __init__(self, channels: int):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def mix(self, tokens: Tensor) -> Tensor:
        y = self.linear(tokens)
        Recorder.precisions["token layer, inside"] = y.dtype
        return y


class Recorder(nn.Module):
    """Notes in which precision ops answer what a convolution answered."""

    precisions: ClassVar[dict[str, torch.dtype]] = {}

    def __init__(self, input_channels: int, num_classes: int, *, deep_supervision: bool):
        super().__init__()
        self.conv = nn.Conv3d(input_channels, num_classes, 3, padding=1)
        self.tokens = Tokens(num_classes)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        self.precisions["convolution"] = y.dtype
        self.precisions["token layer"] = self.tokens(y).dtype
        self.precisions.update({name: run(y).dtype for name, (run, _) in OPS.items()})
        return y


# By torch's lists of what autocast runs in which precision on CUDA; ops in neither keep that of their input.
OPS = {
    "product of matrices": (lambda y: y.float() @ y, HALF),
    "linear layer": (lambda y: F.linear(y.float(), y.new_zeros(5, y.shape[-1])), HALF),
    "transposed convolution": (lambda y: F.conv_transpose3d(y.float(), y.new_zeros(3, 3, 2, 2, 2), stride=2), HALF),
    "layer norm": (lambda y: F.layer_norm(y, y.shape[-1:]), FLOAT),
    "group norm": (lambda y: F.group_norm(y, 3), FLOAT),
    "instance norm": (F.instance_norm, HALF),
    "batch norm": (lambda y: F.batch_norm(y, None, None, training=True), HALF),
    "leaky ReLU": (F.leaky_relu, HALF),
    "GELU": (F.gelu, HALF),
    "SiLU": (F.silu, HALF),
    "softplus": (F.softplus, FLOAT),
    "softmax": (lambda y: y.softmax(1), FLOAT),
    "softmax, by keyword": (lambda y: torch.softmax(input=y, dim=1), FLOAT),
    "logarithm of softmax": (lambda y: F.log_softmax(y, dim=1), FLOAT),
    "exponential": (torch.exp, FLOAT),
    "square": (lambda y: y**2, FLOAT),
    "reciprocal": (lambda y: 1 / y, FLOAT),
    "sum": (lambda y: y.sum(1), FLOAT),
    "mean": (lambda y: y.mean(1), HALF),
    "norm": (lambda y: torch.linalg.vector_norm(y, dim=1), FLOAT),
    "linear upsampling": (lambda y: F.interpolate(y, scale_factor=2, mode="trilinear"), FLOAT),
    "nearest upsampling": (lambda y: F.interpolate(y, scale_factor=2), FLOAT),
    "average pooling": (lambda y: F.avg_pool3d(y, 2), HALF),
    "maximum pooling": (lambda y: F.max_pool3d(y, 2), HALF),
    "global pooling": (lambda y: F.adaptive_avg_pool3d(y, 1), HALF),
    "padding": (lambda y: F.pad(y, (1,) * 6, mode="replicate"), HALF),
    "concatenation": (lambda y: torch.cat((y, y.float())), FLOAT),
}
PRECISIONS = {name: precision for name, (_, precision) in OPS.items()} | {
    "convolution": HALF,
    "token layer": FLOAT,
    "token layer, inside": FLOAT,
}


@pytest.fixture(scope="module")
def precisions() -> dict[str, torch.dtype]:
    """What :class:`Recorder` notes in a plan for GPUs."""
    training_memory(*of_class(Recorder), "cuda", SGD)
    return dict(Recorder.precisions)


@pytest.mark.parametrize("op", PRECISIONS)
def test_a_plan_for_gpus_runs_ops_in_the_precision_of_cuda(precisions, op):
    assert precisions[op] == PRECISIONS[op]


def test_a_plan_for_cpus_runs_them_in_float32():
    training_memory(*of_class(Recorder), "cpu", SGD)
    assert set(Recorder.precisions.values()) == {FLOAT}


OTHER_NAMES = {  # by which Python calls what is listed under another
    "__pow__": "pow",
    "__rpow__": "pow",
    "__rdiv__": "reciprocal",
    "interpolate": "upsample_nearest3d",
    "upsample": "upsample_nearest3d",
    "cross_entropy": "log_softmax",
}


@pytest.fixture(scope="module")
def ops_in_float32() -> set[str]:
    """Those that autocast runs in float32 on CUDA, as the installed torch lists them."""
    header = Path(torch.__file__).parent / "include" / "ATen" / "autocast_mode.h"
    if not header.is_file():
        pytest.skip("this build of torch comes without its headers")
    lists = re.findall(r"#define AT_FORALL_(?:FP32|DIFFERENT)\w*\(_\)(.*?)\n\n", header.read_text(), re.DOTALL)
    assert len(lists) == 3
    return {name for ops in lists for name in re.findall(r"_\((?:ADD_NS\()?(\w+)", ops)}


def test_no_op_of_that_list_is_left_out(ops_in_float32):
    """Losses apart, which networks do not call."""
    homes = (torch, torch.linalg, torch.Tensor, F)
    callable_by_name = {getattr(value, "__name__", "") for home in homes for value in vars(home).values()}
    losses = {name for name in ops_in_float32 if name.endswith("_loss")}
    assert (ops_in_float32 & callable_by_name) - losses - memory._FLOAT32 == set()


def test_no_other_op_is_run_in_float32(ops_in_float32):
    assert {OTHER_NAMES.get(name, name) for name in memory._FLOAT32} - ops_in_float32 == set()


def test_half_precision_takes_less():
    architecture, setting = planned("plain_conv_unet", 32, 32, 32)
    on_gpu, on_cpu = (training_memory(architecture, setting, device, SGD).peak for device in ("cuda", "cpu"))
    assert 0.5 < on_gpu / on_cpu < 0.9


def test_convolutions_of_half_precision_have_a_workspace():
    """Room for input and output in another layout; backward for two tensors as large."""
    with FakeTensorMode(), memory._Counter(512) as counter:
        x = torch.empty(2, 4, 32, 32, dtype=HALF, requires_grad=True)
        weight = torch.empty(8, 4, 3, 3, dtype=HALF, requires_grad=True)
        both = counter.size(x) + 2 * counter.size(x)
        y = F.conv2d(x, weight, padding=1)
        assert counter.peak == counter.now + both
        gradient = torch.empty_like(y)
        counter.peak = counter.now
        y.backward(gradient)
        assert counter.peak == counter.now + both


def test_gpu_memory_is_handed_out_in_blocks():
    traced = training_memory(*of_class(Tied), "cuda", SGD)
    assert traced.weights == 512 + 1024
    assert traced.peak % 512 == 0


# ------------------------------------------------------------------------------------------------------ for any network


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_memory_grows_with_batch_and_patch(device):
    def peak(*patch: int, batch_size: int = 2) -> int:
        return training_memory(*planned("plain_conv_unet", *patch, batch_size=batch_size), device, SGD).peak

    smallest = peak(64, 64)
    assert smallest < peak(64, 64, batch_size=3)
    assert smallest < peak(64, 96)


def test_a_patch_that_no_machine_holds_is_traced_without_a_gpu_or_memory():
    before = psutil.Process().memory_info().rss
    traced = training_memory(*planned("umamba_bot", 512, 512, 512, features=32), "cuda", SGD)
    assert traced.peak > 2**39
    assert psutil.Process().memory_info().rss - before < 2**30
    assert not torch.cuda.is_initialized()


def test_a_network_that_does_not_run_on_its_patch_is_refused():
    topology = Topology((2, 2), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (4, 8))
    spec = find("plain_conv_unet")
    architecture = spec.architecture(spec.planned(topology))
    with pytest.raises(UserError, match=r"PlainConvUNet: does not run on a patch of 2×2: .*; choose another patch"):
        training_memory(architecture, Setting(topology, 1, 2, 2), "cpu", SGD)


def test_plans_for_gpus_need_triton(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "triton" else find_spec(name))
    case = planned("plain_conv_unet", 16, 16, 16)
    with pytest.raises(UserError, match=r"the package triton is missing; .* --budget cpu"):
        training_memory(*case, "cuda", SGD)
    assert training_memory(*case, "cpu", SGD).peak > 0
