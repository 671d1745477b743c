"""What a training step of a network takes of a device's memory, traced on tensors without data.

One model for all networks, with no formula for any: the trainer's step is run on fake tensors, and every storage is
counted from its allocation to its end. So the peak holds weights, gradients, the optimizer's state, activations in the
precision that autocast gives them, what our scans keep and compute again, and the buffers inside them. It takes neither
a GPU nor memory.

A plan must not depend on where it is made. The rules of a GPU are therefore played on fake CPU tensors everywhere:
autocast casts as it does on CUDA, and our ops allocate what their Triton kernels do. cuDNN's workspace is the one part
that is assumed: a convolution of half precision gets room for its input and output in another layout, as cuDNN's tensor
cores take channels last.
"""

from __future__ import annotations

import importlib.util
import weakref
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from umamba_kernels import dry_run, implementation
from umamba_seg.errors import UserError
from umamba_seg.networks import build_from
from umamba_seg.plan.options import PrecisionName, TrainingOptions
from umamba_seg.plan.precision import Precision, choose_precision
from umamba_seg.plan.step import Setting, TrainingStep, build_network
from umamba_seg.text import times

_CPU = torch.device("cpu")
_HALF = torch.float16, torch.bfloat16
_BLOCK = 512  # bytes, of which torch's allocator on GPUs hands out multiples
_CONVOLUTIONS = torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default

# What autocast runs in float32 on CUDA (torch 2.13, ATen/autocast_mode.h), by the names that Python calls it by.
# fmt: off
_FLOAT32 = frozenset((
    "acos", "asin", "cosh", "erfinv", "exp", "expm1", "log", "log10", "log2", "log1p", "reciprocal", "rsqrt", "sinh",
    "tan", "pow", "__rpow__", "__rdiv__", "softplus", "layer_norm", "native_layer_norm", "rms_norm", "group_norm",
    "cosine_similarity", "nll_loss", "cross_entropy", "kl_div", "l1_loss", "smooth_l1_loss", "huber_loss", "mse_loss",
    "binary_cross_entropy_with_logits", "dist", "cdist", "renorm", "logsumexp", "norm",
    "frobenius_norm", "nuclear_norm", "linalg_vector_norm", "linalg_matrix_norm", "pdist", "prod", "softmax",
    "log_softmax", "cumprod", "cumsum", "sum", "interpolate", "upsample",
))

# What the CPU's autocast runs in float32, or in the widest of its arguments' precisions, and CUDA's leaves alone.
_LEFT_ALONE = frozenset((
    "avg_pool3d", "max_pool3d", "adaptive_avg_pool3d", "adaptive_max_pool3d", "max_unpool2d", "max_unpool3d", "pad",
    "cat", "concat", "concatenate", "stack",
))
# fmt: on


@dataclass(frozen=True)
class TrainingMemory:
    """Bytes of a training step.

    Attributes:
        weights: Weights and buffers of the network.
        optimizer: The optimizer's state.
        peak: The most that is in use at once, those two included.
    """

    weights: int
    optimizer: int
    peak: int


def training_memory(architecture: dict, setting: Setting, device_type: str, options: TrainingOptions) -> TrainingMemory:
    """Trace a training step.

    Args:
        architecture: Of the plans.
        setting: What the network is trained on.
        device_type: "cuda" for the precision of GPUs and Triton kernels; else that of CPUs and their C++ kernels.
        options: Of the training; optimizer, loss and precision count.

    Raises:
        UserError: The network does not run in the setting, Triton is not there to plan for a GPU, or a CPU does not
            have the precision that is asked for.
    """
    on_gpu = device_type == "cuda"
    if on_gpu and importlib.util.find_spec("triton") is None:
        raise UserError(
            "a plan for GPUs",
            "our kernels there are written in Triton, and the package triton is missing",
            "install it, which pip can on Linux, or plan with --budget cpu",
        )
    with torch.device("meta"):
        network = build_network(architecture, setting, torch.device(device_type))
    precision = _on_a_gpu(options.precision) if on_gpu else choose_precision(options.precision, _CPU)
    counter = _Counter(_BLOCK if on_gpu else 1)
    with ExitStack() as modes:
        modes.enter_context(dry_run("triton" if on_gpu else "cpu"))
        modes.enter_context(FakeTensorMode())
        modes.enter_context(counter)
        if on_gpu:
            modes.enter_context(_CudaAutocast())
        try:
            return _trace(TrainingStep(on_fake_cpu(network), setting, options, _CPU, precision), counter, on_gpu)
        except (RuntimeError, ValueError) as error:  # networks and norms refuse an extent that does not fit
            raise UserError(
                f"network {architecture['network_class_name']}",
                f"does not run on a patch of {times(setting.topology.patch_size)}: {error}",
                "choose another patch",
            ) from error


def forward_memory(architecture: dict, setting: Setting) -> int:
    """Trace a forward pass without gradients, in float32 on a CPU.

    Args:
        architecture: Of the plans.
        setting: What the network runs on.

    Returns:
        Bytes that are in use at most, without the weights.
    """
    with torch.device("meta"):
        channels = {"input_channels": setting.input_channels, "num_classes": setting.num_classes}
        network = build_from(architecture, **channels, deep_supervision=False)
    counter = _Counter(1)
    with dry_run("cpu"), FakeTensorMode(), counter, torch.no_grad():
        network = on_fake_cpu(network)
        before = counter.now
        network(torch.randn(setting.batch_size, setting.input_channels, *setting.topology.patch_size))
    return counter.peak - before


def _on_a_gpu(requested: PrecisionName) -> Precision:
    """Where the GPU may choose, float16: networks widen some of it to float32, so that it takes more than bfloat16."""
    return Precision(torch.float16 if requested == "auto" else getattr(torch, requested))


def on_fake_cpu(network: nn.Module) -> nn.Module:
    """The network with tensors of the surrounding fake mode instead of those on "meta", in place."""
    fake: dict[Tensor, Tensor] = {}  # modules may share tensors

    def replaced(tensor: Tensor) -> Tensor:
        if tensor not in fake:
            empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype)
            is_weight = isinstance(tensor, nn.Parameter)
            fake[tensor] = nn.Parameter(empty, tensor.requires_grad) if is_weight else empty
        return fake[tensor]

    for module in network.modules():
        own = chain(module.named_parameters(recurse=False), module.named_buffers(recurse=False))
        for name, tensor in list(own):
            setattr(module, name, replaced(tensor))
    return network


def _trace(step: TrainingStep, counter: _Counter, on_gpu: bool) -> TrainingMemory:
    """What a step takes when the optimizer has its state, as in all steps but the first."""
    if on_gpu:  # torch's default there; it takes copies of all gradients at once
        for group in step.optimizer.param_groups:
            group["foreach"] = True
    tensors = (*step.network.parameters(), *step.network.buffers())
    weights = sum(counter.size(tensor) for tensor in tensors)
    for weight in step.network.parameters():
        weight.grad = torch.empty_like(weight)
    step.optimizer.step()
    step.optimizer.zero_grad(set_to_none=True)
    counter.peak = counter.now
    optimizer = counter.now - weights
    step.run()
    return TrainingMemory(weights, optimizer, counter.peak)


class _CudaAutocast(TorchFunctionMode):
    """Adds to the CPU's autocast what CUDA's has beside it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        name, kwargs = getattr(func, "__name__", ""), kwargs or {}
        if not torch.is_autocast_enabled("cpu"):
            return func(*args, **kwargs)
        if name in _LEFT_ALONE:
            with torch.autocast("cpu", enabled=False):
                return func(*args, **kwargs)
        if name in _FLOAT32:
            args, kwargs = tree_map(_as_float32, (args, kwargs))
        return func(*args, **kwargs)


def _as_float32(x):
    return x.float() if isinstance(x, Tensor) and x.dtype in _HALF else x


class _Counter(TorchDispatchMode):
    """Counts the bytes of the storages that ops allocate, those inside our own ops included.

    Args:
        block: What sizes are rounded up to.

    Attributes:
        now, peak: Bytes in use, and the most so far.
    """

    def __init__(self, block: int):
        super().__init__()
        self._block = block
        self._alive: dict[int, weakref.ref] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        run = implementation(func.name())
        if run is not None:
            with self:
                return run(*args, **(kwargs or {}))
        results = func(*args, **(kwargs or {}))
        self._add(results)
        if func in _CONVOLUTIONS and args[0].dtype in _HALF:
            # Forward of input and output; backward, one after the other, of the output's gradient and the input, or its
            # gradient, which is as large.
            sides = (args[0], results) if isinstance(results, Tensor) else args[:2]
            self.peak = max(self.peak, self.now + sum(map(self.size, sides)))
        return results

    def size(self, tensor: Tensor) -> int:
        """Bytes of a tensor's storage."""
        return -(-tensor.untyped_storage().nbytes() // self._block) * self._block

    def _add(self, results) -> None:
        for tensor in tree_leaves(results):
            if isinstance(tensor, Tensor):
                self._add_storage(tensor.untyped_storage()._cdata, tensor)
        self.peak = max(self.peak, self.now)

    def _add_storage(self, key: int, tensor: Tensor) -> None:
        if key in self._alive:
            return
        size = self.size(tensor)
        self.now += size

        def gone(_reference) -> None:
            del self._alive[key]
            self.now -= size

        self._alive[key] = weakref.ref(tensor.untyped_storage(), gone)
