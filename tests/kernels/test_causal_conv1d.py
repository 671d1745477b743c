"""Causal convolution: the backends against each other, against a loop in numpy, and at the edges of what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from kernel_testing import (
    ALL,
    FAST,
    INTERPRETED,
    ORDERS,
    TOLERANCE,
    TRUNCATES,
    Target,
    addresses,
    assert_close,
    assert_same_bits,
    conv_arguments,
    doubles,
    on,
    relative_rms,
    results,
)
from umamba_kernels import Order, causal_conv1d

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def conv_on(target: Target, tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    return results(causal_conv1d, on(target, tensors), backend=target.backend, **options)


def numpy_conv(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, order: Order) -> np.ndarray:
    """The definition in numpy, token by token."""
    width, visited, out = weight.shape[1], addresses(x.shape[-1], order), np.zeros_like(x)
    for t, address in enumerate(visited):
        for j in range(min(width, t + 1)):
            out[..., address] += weight[:, width - 1 - j] * x[..., visited[t - j]]
    return out + bias[:, None]


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("activation", [None, "silu", "swish"])
def test_definition(target, order, activation):
    tensors = conv_arguments(21)
    wanted = numpy_conv(*(x.detach().numpy() for x in tensors.values()), order)
    if activation is not None:
        wanted = wanted / (1 + np.exp(-wanted))
    got = conv_on(target, tensors, activation=activation, order=order)["out0"]
    assert relative_rms(got, torch.from_numpy(wanted)) < 1e-12


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 63, 131])
@pytest.mark.parametrize("width", [1, 3, 4])
def test_lengths_widths_and_dtypes(target, length, width, dtype):
    tensors = conv_arguments(length, width=width, dtype=dtype)
    wanted = results(causal_conv1d, doubles(tensors), activation="silu", backend="reference")
    assert_close(conv_on(target, tensors, activation="silu"), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("d", [1, 5, 70])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_channels_and_orders_without_bias(target, d, order):
    tensors = conv_arguments(63, d=d)
    del tensors["bias"]
    wanted = results(causal_conv1d, tensors, order=order, backend="reference")
    assert_close(conv_on(target, tensors, order=order), wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("target", INTERPRETED)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize(
    ("length", "d", "width", "dtype"),
    [(1, 1, 4, torch.float32), (9, 5, 1, torch.float16), (63, 70, 3, torch.float64), (63, 4, 4, torch.bfloat16)],
    ids=str,
)
def test_interpreted(target, order, length, d, width, dtype):
    order = order if length > 1 else Order()
    tensors = conv_arguments(length, d=d, width=width, dtype=dtype)
    wanted = results(causal_conv1d, doubles(tensors), activation="silu", order=order, backend="reference")
    assert_close(conv_on(target, tensors, activation="silu", order=order), wanted, TOLERANCE[dtype])


@pytest.mark.slow
@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("order", [Order(), Order(reverse=True, slices=16)], ids=str)
def test_long(target, order):
    tensors = conv_arguments(32768, d=40, dtype=torch.float32)
    wanted = results(causal_conv1d, doubles(tensors), activation="silu", order=order, backend="reference")
    assert_close(conv_on(target, tensors, activation="silu", order=order), wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("target", FAST)
def test_gradcheck(target):
    def convolve(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return causal_conv1d(x, weight, bias, activation="silu", order=Order(slices=3), backend=target.backend)

    assert torch.autograd.gradcheck(convolve, tuple(on(target, conv_arguments(9, d=2)).values()))


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(target, dtype):
    if target.interpreted and dtype == torch.bfloat16:
        pytest.skip(TRUNCATES)
    halves = conv_arguments(63, dtype=dtype)
    singles = {name: x.detach().float().requires_grad_() for name, x in halves.items()}
    got, wanted = conv_on(target, halves), conv_on(target, singles)
    assert all(x.dtype == dtype for x in got.values())
    assert torch.equal(got["out0"], wanted["out0"].to(dtype))


@pytest.mark.parametrize("target", ALL)
def test_autocast_changes_nothing(target):
    tensors = on(target, conv_arguments(63, dtype=torch.float32))
    wanted = causal_conv1d(**tensors, backend=target.backend)
    with torch.autocast(target.device, torch.bfloat16):
        got = causal_conv1d(**tensors, backend=target.backend)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize("layout", ["channels last", "sliced", "expanded"])
def test_strides(target, layout):
    tensors = conv_arguments(40, d=6)
    x = tensors["x"].detach()
    strided = {
        "channels last": x.transpose(1, 2).contiguous().transpose(1, 2),
        "sliced": x.repeat(1, 2, 2)[:, :6, ::2],
        "expanded": x[:1].expand_as(x),
    }[layout]
    tensors["x"] = strided.requires_grad_()
    assert not tensors["x"].is_contiguous()
    wanted = results(causal_conv1d, tensors, activation="silu", backend="reference")
    assert_close(conv_on(target, tensors, activation="silu"), wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("target", FAST)
def test_same_bits_every_time_and_for_any_number_of_threads(target):
    tensors, threads, found = conv_arguments(1000, d=96, dtype=torch.float32), torch.get_num_threads(), []
    for number in (1, 2, 2):
        torch.set_num_threads(number)
        found.append(conv_on(target, tensors, activation="silu"))
    torch.set_num_threads(threads)
    # torch's own sums over a tensor depend on the number of threads; ours do not.
    if target.backend != "chunked":
        assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[1])


@pytest.mark.parametrize("target", ALL + INTERPRETED)
def test_nan_stays_in_its_sample(target):
    clean = conv_arguments(20, dtype=torch.float32)
    broken = {name: x.detach().clone().requires_grad_() for name, x in clean.items()}
    with torch.no_grad():
        broken["x"][1] = torch.nan
    wanted, got = conv_on(target, clean, activation="silu"), conv_on(target, broken, activation="silu")
    for name in ("out0", "dx"):
        assert torch.equal(got[name][0], wanted[name][0])
    assert got["out0"][1].isnan().all()


@pytest.mark.parametrize("target", ALL + INTERPRETED)
@pytest.mark.parametrize("shape", [(2, 4, 0), (0, 4, 6)])
def test_nothing_in_nothing_out(target, shape):
    tensors = on(target, conv_arguments(6) | {"x": torch.zeros(shape, dtype=torch.float64, requires_grad=True)})
    out = causal_conv1d(**tensors, activation="silu", backend=target.backend)
    assert out.shape == shape
    out.sum().backward()
    assert not any(x.grad.any() for x in tensors.values())


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("x", torch.zeros(4, 6), r"x has shape \(4, 6\), wanted \(batch, d, L\)"),
        ("x", torch.zeros(2, 0, 6), r"x has shape \(2, 0, 6\), wanted a d of 1 or more"),
        ("weight", torch.zeros(4, 1, 4), r"weight has shape \(4, 1, 4\), wanted \(4, width\)"),
        ("weight", torch.zeros(4, 4).double(), r"weight has dtype torch.float64, wanted torch.float32 or"),
        ("weight", torch.zeros(4, 4, device="meta"), r"weight is on meta, wanted cpu"),
        ("bias", torch.zeros(3), r"bias has shape \(3,\), wanted \(4\)"),
        ("activation", "relu", r"activation = 'relu', wanted None, 'silu' or 'swish'"),
        ("order", Order(slices=4), r"causal_conv1d: slices = 4 does not divide the length 6"),
    ],
)
def test_bad_arguments_are_named(name, value, message):
    tensors = {key: x.detach() for key, x in conv_arguments(6, dtype=torch.float32).items()}
    with pytest.raises(ValueError, match=message):
        causal_conv1d(**(tensors | {name: value}))
