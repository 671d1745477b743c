"""What the tests of the kernels share: where they run, inputs, results with gradients, and the comparison."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from umamba_kernels import Order, available_backends


class Target(NamedTuple):
    """A backend on a device. ``on(target, tensors)`` moves inputs."""

    backend: str
    device: str

    def __str__(self) -> str:
        return f"{self.backend}-{self.device}"

    @property
    def interpreted(self) -> bool:
        return self.backend == "triton" and self.device == "cpu"

    def param(self):
        """Parameter of a test, skipped with the reason where the backend does not run."""
        status = available_backends(self.device).get(self.backend)
        return pytest.param(self, id=str(self), marks=pytest.mark.skipif(not status.available, reason=status.reason))


_GPU = [Target("triton", "cuda"), Target("chunked", "cuda")] if torch.cuda.is_available() else []
INTERPRETED = [] if torch.cuda.is_available() else [Target("triton", "cpu").param()]  # for tiny shapes only
TRUNCATES = "Triton's interpreter truncates to bfloat16, GPUs round"
FAST = [target.param() for target in (Target("chunked", "cpu"), Target("cpu", "cpu"), *_GPU)]
ALL = [*FAST, Target("reference", "cpu").param()]

ORDERS = [Order(), Order(reverse=True), Order(slices=3), Order(reverse=True, slices=3)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}  # relative RMS


def addresses(length: int, order: Order) -> list[int]:
    """The definition of a scan order, token by token."""
    visited = [(t % order.slices) * (length // order.slices) + t // order.slices for t in range(length)]
    return visited[::-1] if order.reverse else visited


def on(target: Target, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """New leaves on the target's device with the same strides, gaps and overlaps: their whole storage is copied."""
    leaves = {}
    for name, x in tensors.items():
        storage = torch.empty(0, dtype=x.dtype).set_(x.untyped_storage()).to(target.device, copy=True)
        copy = storage.as_strided(x.shape, x.stride(), x.storage_offset())
        leaves[name] = copy.requires_grad_(x.requires_grad)
    return leaves


def doubles(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """New leaves in float64."""
    return {name: x.detach().double().requires_grad_() for name, x in tensors.items()}


def results(op: Callable, tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """Outputs and the gradient of every tensor, for a random weight on each entry of the outputs."""
    outputs = op(**tensors, **options)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x) for x in outputs]
    gradients = torch.autograd.grad(outputs, list(tensors.values()), weights)
    named = {f"d{name}": gradient for name, gradient in zip(tensors, gradients, strict=True)}
    return {f"out{i}": x.detach() for i, x in enumerate(outputs)} | named


def relative_rms(x: Tensor, wanted: Tensor) -> float:
    assert x.shape == wanted.shape
    x, wanted = x.detach().double().cpu(), wanted.detach().double().cpu()
    scale = wanted.square().mean().sqrt().item()
    error = (x - wanted).square().mean().sqrt().item()
    return error / scale if scale > 0 else error


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: relative_rms(got[name], wanted[name]) for name in wanted}
    assert all(error < tolerance for error in errors.values()), errors


def assert_same_bits(got: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    different = [name for name in wanted if not torch.equal(got[name], wanted[name])]
    assert not different


def conv_arguments(length: int, *, width: int = 4, d: int = 4, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Leaves for every tensor of the causal convolution."""
    generator = torch.Generator().manual_seed(length)
    shapes = {"x": (2, d, length), "weight": (d, width), "bias": (d,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def scan_arguments(
    length: int,
    *,
    batch: int = 2,
    d: int = 4,
    states: int = 3,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
    without: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Leaves for every tensor of the scan but those in ``without``; B and C have three axes without ``groups``.

    With a half precision the parameters A, D and delta_bias are float32, as the scan wants them.
    """
    generator = torch.Generator().manual_seed(length)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    bc_shape = (batch, states, length) if groups is None else (batch, groups, states, length)
    tensors = {
        "u": normal(batch, d, length),
        "delta": normal(batch, d, length),
        "A": -normal(d, states).exp(),
        "B": normal(*bc_shape),
        "C": normal(*bc_shape),
        "D": normal(d),
        "z": normal(batch, d, length),
        "delta_bias": normal(d),
    }
    parameters = {"A", "D", "delta_bias"}
    wide = torch.promote_types(dtype, torch.float32)
    return {
        name: x.to(wide if name in parameters else dtype).requires_grad_()
        for name, x in tensors.items()
        if name not in without
    }
