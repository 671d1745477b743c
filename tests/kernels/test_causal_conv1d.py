"""Causal convolution: the backends against each other, against a loop in numpy, and at the edges of what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from umamba_kernels import Order, available_backends, causal_conv1d

BACKENDS = [name for name, status in available_backends().items() if status.available]
FAST = [name for name in BACKENDS if name != "reference"]
ORDERS = [Order(), Order(reverse=True), Order(slices=3), Order(reverse=True, slices=3)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}  # relative RMS; kernels/README.md states them


def arguments(length: int, *, width: int = 4, d: int = 4, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(length)
    shapes = {"x": (2, d, length), "weight": (d, width), "bias": (d,)}
    return {
        name: torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()
        for name, shape in shapes.items()
    }


def results(tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """The output and the gradient of every tensor, for a random weight on each entry of the output."""
    out = causal_conv1d(**tensors, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    gradients = torch.autograd.grad(out, list(tensors.values()), weights.to(out.dtype))
    return {"out": out.detach(), **{f"d{name}": x for name, x in zip(tensors, gradients, strict=True)}}


def relative_rms(x: Tensor, wanted: Tensor) -> float:
    assert x.shape == wanted.shape
    error, scale = (y.detach().double().square().mean().sqrt().item() for y in (x.double() - wanted.double(), wanted))
    return error / scale if scale > 0 else error


def assert_close(got: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    errors = {name: relative_rms(got[name], wanted[name]) for name in wanted}
    assert all(error < tolerance for error in errors.values()), errors


def addresses(length: int, order: Order) -> list[int]:
    """The definition of a scan order, token by token."""
    visited = [(t % order.slices) * (length // order.slices) + t // order.slices for t in range(length)]
    return visited[::-1] if order.reverse else visited


def numpy_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, order: Order) -> np.ndarray:
    """The definition in numpy, token by token."""
    width, visited, out = weight.shape[1], addresses(x.shape[-1], order), np.zeros_like(x)
    for t, address in enumerate(visited):
        for j in range(min(width, t + 1)):
            out[..., address] += weight[:, width - 1 - j] * x[..., visited[t - j]]
    return out + bias[:, None]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_definition(backend, order, activation):
    tensors = arguments(21)
    wanted = numpy_conv(*(x.detach().numpy() for x in tensors.values()), order)
    if activation is not None:
        wanted = wanted / (1 + np.exp(-wanted))
    got = causal_conv1d(**tensors, activation=activation, order=order, backend=backend)
    assert relative_rms(got, torch.from_numpy(wanted)) < 1e-12


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 63, 100, 131])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_agrees_with_reference(backend, length, width, dtype):
    tensors = arguments(length, width=width, dtype=dtype)
    wanted = results(tensors, activation="silu", backend="reference")
    assert_close(results(tensors, activation="silu", backend=backend), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_agrees_with_reference_without_bias(backend, order):
    tensors = arguments(63)
    del tensors["bias"]
    wanted = results(tensors, order=order, backend="reference")
    assert_close(results(tensors, order=order, backend=backend), wanted, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, activation="silu", order=Order(slices=3), backend=backend)

    assert torch.autograd.gradcheck(convolve, tuple(arguments(9, d=2).values()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(backend, dtype):
    tensors = {name: x.detach().to(dtype) for name, x in arguments(63).items()}
    got = causal_conv1d(**tensors, backend=backend)
    wanted = causal_conv1d(**{name: x.float() for name, x in tensors.items()}, backend=backend)
    assert got.dtype == dtype
    assert torch.equal(got, wanted.to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    tensors = arguments(63, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = causal_conv1d(**tensors, backend=backend)
    assert torch.equal(got, causal_conv1d(**tensors, backend=backend))


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_strides(backend):
    tensors = arguments(63)
    strided = tensors | {"x": tensors["x"].detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_()}
    assert not strided["x"].is_contiguous()
    assert_close(results(strided, backend=backend), results(tensors, backend=backend), 1e-12)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(4, 6), r"x has shape \(4, 6\), wanted \(batch, d, L\)"),
        ("x", torch.zeros(2, 4, 0), r"x has shape \(2, 4, 0\) and is empty, wanted an extent of 1 or more"),
        ("weight", torch.zeros(4, 1, 4), r"weight has shape \(4, 1, 4\), wanted \(4, width\)"),
        ("weight", torch.zeros(4, 4).double(), r"weight has dtype torch.float64, wanted torch.float32 or"),
        ("weight", torch.zeros(4, 4, device="meta"), r"weight is on meta, wanted cpu"),
        ("bias", torch.zeros(3), r"bias has shape \(3,\), wanted \(4\)"),
        ("activation", "relu", r"activation = 'relu', wanted None, 'silu' or 'swish'"),
        ("order", Order(slices=4), r"slices = 4 does not divide the length 6"),
    ],
)
def test_bad_arguments_are_named(name, value, message):
    tensors = {key: x.detach() for key, x in arguments(6, dtype=torch.float32).items()}
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**(tensors | {name: value}))
