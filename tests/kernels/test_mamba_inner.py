"""The inner Mamba block against its definition, and at the edges of what is allowed."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from kernel_testing import FAST, INTERPRETED, TOLERANCE, Target, assert_same_bits, relative_rms
from umamba_kernels import Direction, Order, mamba_inner

MAMBA = (Order(),)
SEGMAMBA = (Order(), Order(reverse=True), Order(slices=5))
VMAMBA = (Order(), Order(slices=5), Order(reverse=True), Order(reverse=True, slices=5))
D, N, RANK = 6, 4, 3

pytestmark = pytest.mark.usefixtures("poisoned_memory")


def parameters(dtype: torch.dtype, seed: int, without: tuple[str, ...] = ()) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"A": (D, N), "x_proj": (RANK + 2 * N, D), "dt_proj": (D, RANK), "dt_bias": (D,), "D": (D,)}
    shapes |= {"conv_weight": (D, 4), "conv_bias": (D,)}
    tensors = {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    return {name: x.to(dtype).requires_grad_() for name, x in tensors.items() if name not in without}


def results(target: Target, orders, *, length=40, dtype=torch.float64, without=(), batch=2) -> dict[str, Tensor]:
    """The output and all gradients; x and z are halves of one tensor with channels last."""
    generator = torch.Generator().manual_seed(length)
    xz = torch.randn(batch, length, 2 * D, generator=generator, dtype=torch.float64)
    xz = xz.to(target.device, dtype).requires_grad_()
    x, z = xz.transpose(1, 2).chunk(2, 1)
    ways = [parameters(dtype, i, without) for i in range(len(orders))]
    ways = [{name: y.detach().to(target.device).requires_grad_() for name, y in way.items()} for way in ways]
    directions = [Direction(**way, order=order) for way, order in zip(ways, orders, strict=True)]
    out = mamba_inner(x, directions, None if "z" in without else z, backend=target.backend)
    weights = torch.randn(out.shape, generator=generator, dtype=torch.float64).to(out)
    leaves = {"xz": xz} | {f"{name} of {i}": y for i, way in enumerate(ways) for name, y in way.items()}
    gradients = torch.autograd.grad(out, list(leaves.values()), weights)
    return {"out": out.detach()} | dict(zip(leaves, gradients, strict=True))


REFERENCE = Target("reference", "cpu")
WITHOUT = [(), ("z",), ("D",), ("conv_bias",), ("conv_weight", "conv_bias"), ("z", "D", "conv_weight", "conv_bias")]


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("orders", [MAMBA, SEGMAMBA, VMAMBA], ids=["one", "three", "four"])
@pytest.mark.parametrize("without", WITHOUT, ids=str)
def test_agrees_with_the_definition(target, orders, without):
    got, wanted = (results(where, orders, without=without) for where in (target, REFERENCE))
    errors = {name: relative_rms(got[name], wanted[name]) for name in wanted}
    assert max(errors.values()) < TOLERANCE[torch.float64], errors


@pytest.mark.parametrize("target", INTERPRETED)
def test_interpreted(target):
    got, wanted = (results(where, SEGMAMBA, length=10) for where in (target, REFERENCE))
    assert max(relative_rms(got[name], wanted[name]) for name in wanted) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("length", [1, 63, 64, 65, 300])
def test_lengths_in_float32(target, length):
    got = results(target, MAMBA, length=length, dtype=torch.float32)
    wanted = results(REFERENCE, MAMBA, length=length, dtype=torch.float32)
    errors = {name: relative_rms(got[name], wanted[name]) for name in wanted}
    assert max(errors.values()) < TOLERANCE[torch.float32], errors


@pytest.mark.parametrize("target", FAST)
def test_same_bits_every_time(target):
    first, second = (results(target, SEGMAMBA, dtype=torch.float32) for _ in range(2))
    assert_same_bits(first, second)


@pytest.mark.parametrize("target", FAST)
@pytest.mark.parametrize("empty", [{"length": 0}, {"batch": 0}], ids=str)
def test_nothing_in_nothing_out(target, empty):
    found = results(target, (Order(), Order(reverse=True)), **empty)
    assert not any(x.any() for x in found.values())


@pytest.mark.parametrize("target", FAST)
def test_keeps_the_input_and_the_states_only(target):
    """For the gradient: x and z as they are (one tensor here), the parameters, and N / 64 or so of an activation."""
    length, saved = 2048, {}
    xz = torch.randn(1, length, 2 * D, device=target.device, requires_grad=True)
    x, z = xz.transpose(1, 2).chunk(2, 1)
    way = {name: y.detach().to(target.device).requires_grad_() for name, y in parameters(torch.float32, 0).items()}

    def keep(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        mamba_inner(x, [Direction(**way)], z, backend=target.backend)
    assert sum(saved.values()) < 1.5 * xz.untyped_storage().nbytes()


X = torch.zeros(2, D, 10)


def direction(**changes) -> Direction:
    return Direction(**{name: x.detach() for name, x in parameters(torch.float32, 0).items()} | changes)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((X, []), "mamba_inner: directions is empty, wanted one or more"),
        ((X[0], [direction()]), r"mamba_inner: x has shape \(6, 10\), wanted \(batch, d, L\)"),
        ((X, [direction()], X[:1]), r"mamba_inner: z has shape \(1, 6, 10\), wanted \(2, 6, 10\)"),
        ((X, [direction(A=torch.zeros(5, N))]), r"directions\[0\].A has shape \(5, 4\), wanted \(6, N\)"),
        ((X, [direction(x_proj=torch.zeros(5, D))]), r"directions\[0\].x_proj has shape \(5, 6\), wanted \(11, 6\)"),
        ((X, [direction(dt_bias=torch.zeros(D).half())]), r"directions\[0\].dt_bias has dtype torch.float16"),
        ((X, [direction(), direction(D=None)]), r"directions\[1\]: D is given in some directions only"),
        (
            (X, [direction(), direction(A=torch.zeros(D, 5), x_proj=torch.zeros(13, D))]),
            r"wanted that of directions\[0\].A",
        ),
        ((X, [direction(conv_weight=None)]), r"directions\[0\]: conv_bias is given without conv_weight"),
        ((X, [direction(order=Order(slices=3))]), r"directions\[0\]: slices = 3 does not divide the length 10"),
        ((X.double(), [direction()]), r"directions\[0\].A has dtype torch.float32, wanted torch.float64"),
    ],
)
def test_bad_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        mamba_inner(*arguments)


def test_backends_are_chosen_as_for_the_single_ops():
    with pytest.raises(ValueError, match="backend 'cuda' is unknown; available: "):
        mamba_inner(X, [direction()], backend="cuda")
