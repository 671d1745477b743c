"""Selective scan: every backend against the definition, for values and all gradients, and at the edges."""

from __future__ import annotations

import importlib
import itertools
import math
import random
from functools import cache
from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
    doubles,
    on,
    relative_rms,
    results,
    scan_arguments,
)
from umamba_kernels import Order, selective_scan

OPTIONAL = ("D", "z", "delta_bias")

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def scan_results(tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    return results(selective_scan, tensors, return_last_state=True, **options)


def scan_on(target: Target, tensors: dict[str, Tensor], **options) -> dict[str, Tensor]:
    return scan_results(on(target, tensors), backend=target.backend, **options)


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


@pytest.mark.parametrize("target", ALL)
@pytest.mark.parametrize("order", ORDERS, ids=str)
@pytest.mark.parametrize("delta_softplus", [True, False])
def test_definition(target, order, delta_softplus):
    tensors = scan_arguments(21, groups=2)
    with torch.no_grad():
        tensors["delta"] *= 10  # on both sides of softplus' threshold
        if not delta_softplus:
            tensors["delta"].abs_()
            tensors["delta_bias"].abs_()
    got = scan_on(target, tensors, delta_softplus=delta_softplus, order=order)
    for name, wanted in zip(("out0", "out1"), numpy_scan(tensors, delta_softplus, order), strict=True):
        assert relative_rms(got[name], torch.from_numpy(wanted)) < 1e-12


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("length", [1, 2, 7, 63, 65])
def test_lengths_and_dtypes(target, length, dtype):
    tensors = scan_arguments(length, dtype=dtype)
    wanted = scan_results(doubles(tensors), delta_softplus=True, backend="reference")
    assert_close(scan_on(target, tensors, delta_softplus=True), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize(
    "without", [*itertools.combinations(OPTIONAL, 1), *itertools.combinations(OPTIONAL, 2), OPTIONAL]
)
def test_options_left_out(target, without):
    tensors = scan_arguments(33, without=without)
    wanted = scan_results(tensors, delta_softplus=True, backend="reference")
    assert_close(scan_on(target, tensors, delta_softplus=True), wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("order", ORDERS, ids=str)
def test_groups_and_orders(target, groups, order):
    tensors = scan_arguments(33, groups=groups)
    wanted = scan_results(tensors, delta_softplus=True, order=order, backend="reference")
    assert_close(scan_on(target, tensors, delta_softplus=True, order=order), wanted, TOLERANCE[torch.float64])


@pytest.mark.parametrize("target", INTERPRETED)
@pytest.mark.parametrize(
    ("length", "groups", "order", "without", "dtype"),
    [
        (1, 1, Order(), (), torch.float32),
        (65, 1, Order(), OPTIONAL, torch.float32),
        (33, 2, Order(reverse=True), ("z",), torch.float64),
        (33, 1, Order(slices=3), ("D", "delta_bias"), torch.float32),
        (33, 2, Order(reverse=True, slices=11), (), torch.bfloat16),
        (34, 1, Order(reverse=True, slices=17), ("delta_bias",), torch.float16),
    ],
    ids=str,
)
def test_interpreted(target, length, groups, order, without, dtype):
    tensors = scan_arguments(length, groups=groups, without=without, dtype=dtype)
    wanted = scan_results(doubles(tensors), delta_softplus=True, order=order, backend="reference")
    assert_close(scan_on(target, tensors, delta_softplus=True, order=order), wanted, TOLERANCE[dtype])


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize(("d", "states"), [(1, 1), (5, 16), (33, 4), (40, 17)])
def test_channels_and_states(target, d, states):
    tensors = scan_arguments(18, d=d, states=states, dtype=torch.float32)
    wanted = scan_results(doubles(tensors), delta_softplus=True, backend="reference")
    assert_close(scan_on(target, tensors, delta_softplus=True), wanted, TOLERANCE[torch.float32])


class Case(NamedTuple):
    """A point of the grid. The constants of ``step`` are what the steps are close to."""

    length: int
    d: int
    states: int
    groups: int
    without: tuple[str, ...]
    delta_softplus: bool
    layout: str
    order: str
    step: str
    dtype: torch.dtype

    def __str__(self) -> str:
        return "-".join(str(x).removeprefix("torch.") if not isinstance(x, tuple) else "".join(x) for x in self)

    @property
    def size(self) -> int:
        return self.d * self.states * self.length


GRID = Case(
    (1, 7, 255, 256, 257, 4099, 32768),
    (1, 5, 64, 96, 640),
    (1, 4, 8, 16, 17, 64),
    (1, 4),
    ((), ("D",), ("z",), ("delta_bias",), OPTIONAL),
    (True, False),
    ("channels first", "channels last", "sliced"),
    ("forward", "reverse", "slices", "reverse slices"),
    ("normal", "tiny", "10", "50"),
    (torch.float32, torch.bfloat16),
)
LARGEST = 2e7  # batch * d * N * L, where the reference keeps its history


def covering(seed: int = 0) -> list[Case]:
    """Cases that hold every pair of values that can go together, by greedy choice among random candidates."""
    choice = random.Random(seed)
    missing = {
        ((i, a), (j, b))
        for (i, values), (j, others) in itertools.combinations(enumerate(GRID), 2)
        for a, b in itertools.product(values, others)
    }
    cases = []
    while True:
        candidates = [Case(*(choice.choice(values) for values in GRID)) for _ in range(3000)]
        allowed = [case for case in candidates if case.d % case.groups == 0 and case.size <= LARGEST]
        pairs, best = max(
            ((missing & set(itertools.combinations(enumerate(case), 2)), case) for case in allowed),
            key=lambda found: (len(found[0]), -found[1].size),
        )
        if not pairs:
            return cases
        missing -= pairs
        cases.append(best)


def case_order(case: Case) -> Order:
    divisor = next((s for s in range(2, case.length + 1) if case.length % s == 0), 1)
    return Order("reverse" in case.order, divisor if "slices" in case.order else 1)


def case_arguments(case: Case) -> dict[str, Tensor]:
    tensors = scan_arguments(
        case.length,
        batch=1 if case.size > LARGEST / 2 else 2,
        d=case.d,
        states=case.states,
        groups=case.groups,
        dtype=torch.float32,
        without=case.without,
    )
    step = {"tiny": 1e-8 if case.length <= 257 else 1e-3, "10": 10.0, "50": 50.0}.get(case.step)
    with torch.no_grad():
        tensors["A"].copy_(-torch.arange(1.0, case.states + 1).expand_as(tensors["A"]))
        if step is not None:
            spread = torch.rand(tensors["delta"].shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
            # Close together: among decays of e^-45 and e^-55 the few largest would make dA a difference of few numbers,
            # which is as wrong in the float32 reference.
            steps = step * (0.99 + 0.02 * spread)
            tensors["delta"].copy_(steps.expm1().log() if case.delta_softplus and step < 20 else steps)
            if "delta_bias" in tensors:
                tensors["delta"] -= tensors["delta_bias"].unsqueeze(-1)
        elif not case.delta_softplus:
            tensors["delta"].abs_()
            if "delta_bias" in tensors:
                tensors["delta_bias"].abs_()
    half = {name: x.to(case.dtype) if x.dim() > 2 else x for name, x in tensors.items()}
    return {name: laid_out(x.detach(), case.layout).requires_grad_() for name, x in half.items()}


def laid_out(x: Tensor, layout: str) -> Tensor:
    """The same values with other strides. Parameters (d) and (d, N) are transposed as well."""
    if layout == "channels first" or x.dim() == 1:
        return x
    if layout == "channels last" or x.dim() == 2:
        return x.transpose(-1, -2).contiguous().transpose(-1, -2)
    padded = torch.full((*x.shape[:-2], x.shape[-2] + 3, 2 * x.shape[-1]), math.nan, dtype=x.dtype)
    view = padded[..., 2:-1, ::2]
    view.copy_(x)
    return view


@cache
def case_expected(case: Case) -> dict[str, Tensor]:
    tensors = doubles(case_arguments(case))
    options = {"delta_softplus": case.delta_softplus, "order": case_order(case)}
    return scan_results(tensors, backend="reference", **options)


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize(
    "case",
    [pytest.param(case, id=str(case), marks=[pytest.mark.slow] * (case.length > 257)) for case in covering()],
)
def test_grid(case, target):
    tensors = case_arguments(case)
    assert (case.layout == "channels first") == all(x.is_contiguous() for x in tensors.values()) or 1 in case[:3]
    got = scan_on(target, tensors, delta_softplus=case.delta_softplus, order=case_order(case))
    assert_close(got, case_expected(case), TOLERANCE[case.dtype])


@pytest.mark.slow
@pytest.mark.parametrize("target", FAST[1:])
def test_large_case_agrees_with_chunked_in_double(target):
    """Where the reference's history would not fit: a stage of SegMamba."""
    tensors = scan_arguments(32768, batch=1, d=96, states=16, dtype=torch.float32)
    wanted = scan_results(doubles(tensors), delta_softplus=True, backend="chunked")
    assert_close(scan_on(target, tensors, delta_softplus=True), wanted, TOLERANCE[torch.float32])


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("order", ORDERS[1:], ids=str)
def test_order_equals_permuted_tensors(target, order):
    tensors = scan_arguments(63)
    index = torch.tensor(addresses(63, order))
    permuted = {name: x[..., index] if x.shape[-1] == 63 else x for name, x in tensors.items()}
    plain = scan_on(target, permuted)["out0"]
    assert relative_rms(scan_on(target, tensors, order=order)["out0"][..., index], plain) < 1e-12


@pytest.mark.parametrize("target", FAST + INTERPRETED)
def test_gradcheck(target):
    tensors = on(target, scan_arguments(5, batch=1, d=2, states=2))

    def scan(*values: Tensor) -> tuple[Tensor, Tensor]:
        named = dict(zip(tensors, values, strict=True))
        options = {"delta_softplus": True, "order": Order(True, 5), "backend": target.backend}
        return selective_scan(**named, return_last_state=True, **options)

    assert torch.autograd.gradcheck(scan, tuple(tensors.values()), fast_mode=target.interpreted)


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize("step", [10.0, 50.0])
def test_large_steps(target, step):
    """Decays down to e^-150 lose no digits, in dA neither."""
    tensors = scan_arguments(60, dtype=torch.float32, without=("delta_bias",))
    with torch.no_grad():
        tensors["delta"].fill_(step)
        tensors["A"].copy_(-torch.arange(1.0, 4.0).expand(4, 3))
    assert_close(scan_on(target, tensors), scan_results(doubles(tensors), backend="reference"), 2e-6)


@pytest.mark.parametrize("target", FAST + INTERPRETED)
def test_decays_may_underflow(target):
    tensors = scan_arguments(40, dtype=torch.float32, without=("delta_bias",))
    with torch.no_grad():
        tensors["delta"].fill_(1e4)
    assert all(x.isfinite().all() for x in scan_on(target, tensors).values())


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_only_storage(target, dtype):
    if target.interpreted and dtype == torch.bfloat16:
        pytest.skip(TRUNCATES)
    halves = scan_arguments(33, dtype=dtype)
    singles = {name: x.detach().float().requires_grad_() for name, x in halves.items()}
    got = scan_on(target, halves, delta_softplus=True)
    assert got["out0"].dtype == dtype
    assert got["out1"].dtype == torch.float32
    assert all(got[f"d{name}"].dtype == x.dtype for name, x in halves.items())
    wanted = scan_on(target, singles, delta_softplus=True)
    assert torch.equal(got["out1"], wanted["out1"])
    assert torch.equal(got["out0"], wanted["out0"].to(dtype))
    # The weights of the results are rounded too, hence the room for the gradients.
    assert_close(got, wanted, 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("target", ALL)
def test_gate_is_applied_before_half_precision_overflows(target):
    u, delta = torch.full((1, 1, 8), 1e4, dtype=torch.float16), torch.full((1, 1, 8), 10.0)
    tensors = {
        "u": u,
        "delta": delta,
        "A": torch.full((1, 1), -0.01),
        "B": torch.ones(1, 1, 8),
        "C": torch.ones(1, 1, 8),
    }
    tensors = {name: x.to(target.device) for name, x in tensors.items()}
    assert selective_scan(**tensors, backend=target.backend).isinf().any()
    gate = torch.full_like(tensors["delta"], -12.0)
    assert selective_scan(**tensors, z=gate, backend=target.backend).isfinite().all()


@pytest.mark.parametrize("target", FAST + INTERPRETED)
def test_expanded_tensors(target):
    """Strides of zero, in the gradient of the output as well."""
    tensors = scan_arguments(20)
    expanded = {
        name: x.detach()[:1].expand_as(x).requires_grad_() if name in ("u", "B", "z") else x
        for name, x in tensors.items()
    }
    wanted = torch.autograd.grad(selective_scan(**expanded, backend="reference").sum(), list(expanded.values()))
    moved = on(target, expanded)
    got = torch.autograd.grad(selective_scan(**moved, backend=target.backend).sum(), list(moved.values()))
    assert max(map(relative_rms, got, wanted)) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_same_bits_every_time_and_for_any_number_of_threads(target, layout):
    tensors = scan_arguments(300, d=96, states=16, groups=2, dtype=torch.float32)
    tensors = {name: laid_out(x.detach(), layout).requires_grad_() for name, x in tensors.items()}
    threads, found = torch.get_num_threads(), []
    for number in (1, 2, 2):
        torch.set_num_threads(number)
        found.append(scan_on(target, tensors, delta_softplus=True))
    torch.set_num_threads(threads)
    assert_same_bits(found[1], found[0])
    assert_same_bits(found[2], found[0])


@pytest.mark.parametrize("target", ALL + INTERPRETED)
def test_nan_stays_in_its_sample(target):
    clean = scan_arguments(20, dtype=torch.float32)
    broken = {name: x.detach().clone().requires_grad_() for name, x in clean.items()}
    with torch.no_grad():
        for name in ("u", "delta", "B", "C", "z"):
            broken[name][1] = math.nan
    wanted, got = scan_on(target, clean, delta_softplus=True), scan_on(target, broken, delta_softplus=True)
    for name in ("out0", "out1", "du", "ddelta", "dB", "dC", "dz"):
        assert torch.equal(got[name][0], wanted[name][0])
    assert got["out0"][1].isnan().all()


@pytest.mark.parametrize("target", ALL + INTERPRETED)
@pytest.mark.parametrize("empty", ["batch", "length"])
def test_nothing_in_nothing_out(target, empty):
    tensors = scan_arguments(0) if empty == "length" else scan_arguments(5, batch=0)
    out, last_state = selective_scan(**on(target, tensors), return_last_state=True, backend=target.backend)
    assert out.shape == tensors["u"].shape
    assert last_state.shape == (tensors["u"].shape[0], 4, 3)
    assert not last_state.any()
    moved = on(target, tensors)
    selective_scan(**moved, delta_softplus=True, backend=target.backend).sum().backward()
    assert all(x.grad is None or not x.grad.any() for x in moved.values())
    assert moved["D"].grad.shape == (4,)


class _Largest(TorchDispatchMode):
    """The number of elements of the largest tensor that any torch call returns."""

    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(x, Tensor):
                self.numel = max(self.numel, x.untyped_storage().nbytes() // x.element_size())
        return out


@pytest.mark.parametrize("backend", [target.values[0].backend for target in FAST])
def test_no_tensor_holds_the_states_of_all_tokens(backend):
    batch, d, states, length = 1, 32, 16, 4096
    tensors = scan_arguments(length, batch=batch, d=d, states=states, groups=1, dtype=torch.float32)
    tensors = [x.detach() for x in tensors.values()]
    module = importlib.import_module(f"umamba_kernels.selective_scan.{backend}")
    with _Largest() as largest:
        out, last_state, kept = module.forward(*tensors, True, Order(), True)
        module.backward(out, last_state, *tensors, kept, True, Order())
    assert out.numel() <= largest.numel < 4 * out.numel() < batch * d * states * length


@pytest.mark.parametrize("target", ALL)
def test_autocast_changes_nothing(target):
    tensors = on(target, scan_arguments(63, dtype=torch.float32))
    wanted = selective_scan(**tensors, delta_softplus=True, backend=target.backend)
    with torch.autocast(target.device, torch.bfloat16):
        got = selective_scan(**tensors, delta_softplus=True, backend=target.backend)
    assert torch.equal(got, wanted)


def test_last_state_is_returned_on_request_only():
    out = selective_scan(**scan_arguments(5))
    assert isinstance(out, Tensor)
    with_state = selective_scan(**scan_arguments(5), return_last_state=True)
    assert isinstance(with_state, tuple)
    assert with_state[1].shape == (2, 4, 3)


def test_no_gradient_of_the_gradient():
    tensors = scan_arguments(5)
    out = selective_scan(**tensors, backend="chunked")
    (gradient,) = torch.autograd.grad(out.sum(), tensors["u"], create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(gradient.sum(), tensors["u"])


ZEROS = {name: x.detach() for name, x in scan_arguments(6, dtype=torch.float32, groups=2).items()}


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("u", torch.zeros(2, 4), r"u has shape \(2, 4\), wanted \(batch, d, L\)"),
        ("u", torch.zeros(2, 0, 6), r"u has shape \(2, 0, 6\), wanted a d of 1 or more"),
        ("u", torch.zeros(2, 4, 6, dtype=torch.int64), r"u has dtype torch.int64, wanted torch.float32 or"),
        ("delta", torch.zeros(2, 4, 5), r"delta has shape \(2, 4, 5\), wanted \(2, 4, 6\)"),
        ("delta", torch.zeros(1, 4, 6), r"delta has shape \(1, 4, 6\), wanted \(2, 4, 6\)"),
        ("delta", torch.zeros(2, 4, 6).double(), r"delta has dtype torch.float64, wanted torch.float32 or torch.bf"),
        ("A", torch.zeros(3, 3), r"A has shape \(3, 3\), wanted \(4, N\)"),
        ("A", torch.zeros(4, 3).half(), r"A has dtype torch.float16, wanted torch.float32$"),
        ("B", torch.zeros(2, 2, 5, 6), r"B has shape \(2, 2, 5, 6\), wanted \(2, groups, 3, 6\)"),
        ("B", torch.zeros(2, 5, 6), r"B has shape \(2, 5, 6\), wanted \(2, 3, 6\)"),
        ("B", torch.zeros(2, 3), r"B has shape \(2, 3\), wanted \(2, 3, 6\)"),
        ("C", torch.zeros(2, 3, 6), r"C has shape \(2, 3, 6\), wanted \(2, 2, 3, 6\)"),
        ("D", torch.zeros(5), r"D has shape \(5,\), wanted \(4\)"),
        ("z", torch.zeros(2, 4, 7), r"z has shape \(2, 4, 7\), wanted \(2, 4, 6\)"),
        ("delta_bias", torch.zeros(4).half(), r"delta_bias has dtype torch.float16, wanted torch.float32$"),
        ("D", torch.zeros(4, device="meta"), r"D is on meta, wanted cpu"),
        ("order", Order(slices=4), r"selective_scan: slices = 4 does not divide the length 6"),
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
    tensors = scan_arguments(6) | {"A": torch.zeros(4, 3)}
    with pytest.raises(ValueError, match=r"A has dtype torch.float32, wanted torch.float64"):
        selective_scan(**tensors)
