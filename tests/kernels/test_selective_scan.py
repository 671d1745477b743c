"""Selective scan: the backends against each other, against a loop in numpy, and at the edges of what is allowed."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from umamba_kernels import Order, available_backends, selective_scan

BACKENDS = [name for name, status in available_backends().items() if status.available]
FAST = [name for name in BACKENDS if name != "reference"]
ORDERS = [Order(), Order(reverse=True), Order(slices=3), Order(reverse=True, slices=3)]
TOLERANCE = {torch.float64: 1e-10, torch.float32: 2e-6}  # relative RMS; kernels/README.md states them


@pytest.fixture(autouse=True)
def _poison_empty_memory():
    """torch.empty holds NaN while algorithms are deterministic, so that a value nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def arguments(
    length: int,
    *,
    batch: int = 2,
    d: int = 4,
    states: int = 3,
    groups: int | None = None,
    dtype: torch.dtype = torch.float64,
    without: tuple[str, ...] = (),
) -> dict[str, Tensor]:
    """Leaf tensors for every argument but those in ``without``; B and C have three axes without ``groups``."""
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
    return {name: x.to(dtype).requires_grad_() for name, x in tensors.items() if name not in without}


def results(tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    """out, last state and the gradient of every tensor, for a random weight on each entry of both results."""
    out, last_state = selective_scan(**tensors, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(0)
    weights = [torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype) for x in (out, last_state)]
    gradients = torch.autograd.grad((out, last_state), list(tensors.values()), weights)
    named = {f"d{name}": gradient for name, gradient in zip(tensors, gradients, strict=True)}
    return {"out": out.detach(), "last_state": last_state.detach(), **named}


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


def numpy_scan(tensors: dict[str, Tensor], delta_softplus: bool, order: Order) -> tuple[np.ndarray, np.ndarray]:
    """The definition in numpy, one channel after the other. B and C have groups."""
    u, delta, A, B, C, D, z, bias = (x.detach().numpy() for x in tensors.values())
    (batch, d, length), groups = u.shape, B.shape[1]
    out, last_state = np.zeros_like(u), np.zeros((batch, *A.shape))
    for b in range(batch):
        for i in range(d):
            group, state = i // (d // groups), np.zeros(A.shape[1])
            for t in addresses(length, order):
                step = delta[b, i, t] + bias[i]
                if delta_softplus:
                    step = np.log1p(np.exp(step)) if step <= 20 else step
                state = np.exp(step * A[i]) * state + step * B[b, group, :, t] * u[b, i, t]
                y = C[b, group, :, t] @ state + D[i] * u[b, i, t]
                out[b, i, t] = y * z[b, i, t] / (1 + np.exp(-z[b, i, t]))
            last_state[b, i] = state
    return out, last_state


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_definition(backend, order, delta_softplus):
    tensors = arguments(21, groups=2)
    with torch.no_grad():
        tensors["delta"] *= 10  # on both sides of softplus' threshold
        if not delta_softplus:
            tensors["delta"].abs_()
            tensors["delta_bias"].abs_()
    got = selective_scan(**tensors, delta_softplus=delta_softplus, order=order, return_last_state=True, backend=backend)
    for x, wanted in zip(got, numpy_scan(tensors, delta_softplus, order), strict=True):
        assert relative_rms(x, torch.from_numpy(wanted)) < 1e-12


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 63, 100, 131])
def test_agrees_with_reference(backend, length, dtype):
    tensors = arguments(length, dtype=dtype)
    wanted = results(tensors, delta_softplus=True, backend="reference")
    assert_close(results(tensors, delta_softplus=True, backend=backend), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("without", [("D",), ("z",), ("delta_bias",), ("D", "z", "delta_bias")])
def test_agrees_with_reference_without(backend, without):
    tensors = arguments(63, without=without)
    wanted = results(tensors, delta_softplus=True, backend="reference")
    assert_close(results(tensors, delta_softplus=True, backend=backend), wanted, 1e-10)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_agrees_with_reference_in_groups_and_orders(backend, groups, order):
    tensors = arguments(63, groups=groups)
    wanted = results(tensors, delta_softplus=True, order=order, backend="reference")
    assert_close(results(tensors, delta_softplus=True, order=order, backend=backend), wanted, 1e-10)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("order", ORDERS[1:], ids=str)
def test_order_equals_permuted_tensors(backend, order):
    tensors = arguments(63)
    index = torch.tensor(addresses(63, order))
    permuted = {name: x[..., index] if x.shape[-1] == 63 else x for name, x in tensors.items()}
    plain = selective_scan(**permuted, backend=backend)
    ordered = selective_scan(**tensors, order=order, backend=backend)
    assert relative_rms(ordered[..., index], plain) < 1e-12


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    tensors = arguments(9, batch=1, d=2, states=2)

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(tensors, values, strict=True))
        return selective_scan(**named, delta_softplus=True, return_last_state=True, order=ORDERS[-1], backend=backend)

    assert torch.autograd.gradcheck(scan, tuple(tensors.values()))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("delta", [10.0, 50.0])
def test_large_steps(backend, delta):
    """Decays down to e^-150 lose no digits, in dA neither."""
    tensors = arguments(100, dtype=torch.float32, without=("delta_bias",))
    with torch.no_grad():
        tensors["delta"].fill_(delta)
        tensors["A"].copy_(-torch.arange(1.0, 4.0).expand(4, 3))
    doubles = {name: x.detach().double().requires_grad_() for name, x in tensors.items()}
    assert_close(results(tensors, backend=backend), results(doubles, backend="reference"), TOLERANCE[torch.float32])


@pytest.mark.parametrize("backend", BACKENDS)
def test_decays_may_underflow(backend):
    tensors = arguments(100, dtype=torch.float32, without=("delta_bias",))
    with torch.no_grad():
        tensors["delta"].fill_(1e4)
    assert all(x.isfinite().all() for x in results(tensors, backend=backend).values())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(backend, dtype):
    tensors = arguments(63, dtype=torch.float32)
    halves = {
        name: x.detach().to(dtype if name in ("u", "delta", "B", "C", "z") else x.dtype) for name, x in tensors.items()
    }
    halves = {name: x.requires_grad_() for name, x in halves.items()}
    singles = {name: x.detach().float().requires_grad_() for name, x in halves.items()}
    got = results(halves, delta_softplus=True, backend=backend)
    assert got["out"].dtype == dtype
    assert got["last_state"].dtype == torch.float32
    assert all(got[f"d{name}"].dtype == x.dtype for name, x in halves.items())
    wanted = results(singles, delta_softplus=True, backend=backend)
    assert torch.equal(got["last_state"], wanted["last_state"])
    assert torch.equal(got["out"], wanted["out"].to(dtype))
    # The weights of the results are rounded too, hence the room for the gradients.
    assert_close(got, wanted, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gate_is_applied_before_half_precision_overflows(backend):
    u, delta = torch.full((1, 1, 8), 1e4, dtype=torch.float16), torch.full((1, 1, 8), 10.0)
    A, matrix = torch.full((1, 1), -0.01), torch.ones(1, 1, 8)
    assert selective_scan(u, delta, A, matrix, matrix, backend=backend).isinf().any()
    gate = torch.full_like(delta, -12.0)
    assert selective_scan(u, delta, A, matrix, matrix, z=gate, backend=backend).isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_changes_nothing(backend):
    tensors = arguments(63, dtype=torch.float32)
    wanted = selective_scan(**tensors, delta_softplus=True, backend=backend)
    with torch.autocast("cpu", torch.bfloat16):
        got = selective_scan(**tensors, delta_softplus=True, backend=backend)
    assert torch.equal(got, wanted)


@pytest.mark.parametrize("backend", BACKENDS)
def test_channels_last_strides(backend):
    tensors = arguments(63)
    strided = {
        name: x.detach().transpose(1, 2).contiguous().transpose(1, 2).requires_grad_() if x.dim() == 3 else x
        for name, x in tensors.items()
    }
    assert not strided["u"].is_contiguous()
    assert_close(results(strided, backend=backend), results(tensors, backend=backend), 1e-12)


def test_last_state_is_returned_on_request_only():
    out = selective_scan(**arguments(5))
    assert isinstance(out, Tensor)
    with_state = selective_scan(**arguments(5), return_last_state=True)
    assert isinstance(with_state, tuple)
    assert with_state[1].shape == (2, 4, 3)


ZEROS = {name: x.detach() for name, x in arguments(6, dtype=torch.float32, groups=2).items()}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u", torch.zeros(2, 4), r"u has shape \(2, 4\), wanted \(batch, d, L\)"),
        ("u", torch.zeros(2, 4, 0), r"u has shape \(2, 4, 0\) and is empty, wanted an extent of 1 or more"),
        ("u", torch.zeros(2, 4, 6, dtype=torch.int64), r"u has dtype torch.int64, wanted torch.float32 or"),
        ("delta", torch.zeros(2, 4, 5), r"delta has shape \(2, 4, 5\), wanted \(2, 4, 6\)"),
        ("delta", torch.zeros(2, 4, 6).double(), r"delta has dtype torch.float64, wanted torch.float32 or torch.bf"),
        ("A", torch.zeros(3, 3), r"A has shape \(3, 3\), wanted \(4, N\)"),
        ("A", torch.zeros(4, 3).half(), r"A has dtype torch.float16, wanted torch.float32$"),
        ("B", torch.zeros(2, 2, 5, 6), r"B has shape \(2, 2, 5, 6\), wanted \(2, groups, 3, 6\)"),
        ("B", torch.zeros(2, 5, 6), r"B has shape \(2, 5, 6\), wanted \(2, 3, 6\)"),
        ("C", torch.zeros(2, 3, 6), r"C has shape \(2, 3, 6\), wanted \(2, 2, 3, 6\)"),
        ("D", torch.zeros(5), r"D has shape \(5,\), wanted \(4\)"),
        ("z", torch.zeros(2, 4, 7), r"z has shape \(2, 4, 7\), wanted \(2, 4, 6\)"),
        ("delta_bias", torch.zeros(4).half(), r"delta_bias has dtype torch.float16, wanted torch.float32$"),
        ("D", torch.zeros(4, device="meta"), r"D is on meta, wanted cpu"),
        ("order", Order(slices=4), r"slices = 4 does not divide the length 6"),
    ],
)
def test_bad_arguments_are_named(name, value, message):
    with pytest.raises(ValueError, match=message):
        selective_scan(**(ZEROS | {name: value}))


def test_groups_divide_channels():
    three_groups = torch.zeros(2, 3, 3, 6)
    with pytest.raises(ValueError, match="B and C have 3 groups, wanted a divisor of the 4 channels"):
        selective_scan(**(ZEROS | {"B": three_groups, "C": three_groups}))


def test_double_input_wants_double_parameters():
    tensors = arguments(6) | {"A": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"A has dtype torch.float32, wanted torch.float64"):
        selective_scan(**tensors)
