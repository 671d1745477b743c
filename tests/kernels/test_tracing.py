"""The ops under torch's tracers: opcheck, compile, export, checkpointing and autocast."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from kernel_testing import FAST, conv_arguments, on, relative_rms, scan_arguments
from umamba_kernels import Direction, Order, causal_conv1d, mamba_inner, selective_scan

ORDER = Order(reverse=True, slices=2)


class Block(nn.Module):
    """Two directions of a Mamba block on (batch, L, 6), the second in a sliced order."""

    def __init__(self, backend: str):
        super().__init__()
        torch.manual_seed(0)
        d, n, rank = 6, 4, 2
        self.backend = backend
        self.in_proj = nn.Linear(d, 2 * d)
        shapes = {"A": (d, n), "x_proj": (rank + 2 * n, d), "dt_proj": (d, rank), "dt_bias": (d,), "D": (d,)}
        shapes |= {"conv_weight": (d, 4), "conv_bias": (d,)}
        self.ways = nn.ModuleList(
            nn.ParameterDict({name: torch.randn(shape) for name, shape in shapes.items()}) for _ in range(2)
        )

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, 1)
        directions = [
            Direction(**{**way, "A": -way["A"].exp()}, order=order)
            for way, order in zip(self.ways, (Order(), ORDER), strict=True)
        ]
        return mamba_inner(x, directions, z, backend=self.backend).transpose(1, 2)


def gradients(block: nn.Module, tokens: torch.Tensor, run) -> list[torch.Tensor]:
    tokens = tokens.detach().requires_grad_()
    out = run(tokens)
    return [out, *torch.autograd.grad(out.square().sum(), [tokens, *block.parameters()])]


def assert_equal(got: list[torch.Tensor], wanted: list[torch.Tensor]) -> None:
    for x, y in zip(got, wanted, strict=True):
        assert relative_rms(x, y) < 1e-5


@pytest.fixture(params=FAST)
def target(request):
    return request.param


@pytest.fixture
def block(target):
    return Block(target.backend).to(target.device)


def tokens(block: Block, length: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(length)
    return torch.randn(2, length, 6, generator=generator).to(block.in_proj.weight.device)


@pytest.mark.parametrize("grad", [True, False])
def test_opcheck_of_the_scan(target, grad):
    tensors = [x.requires_grad_(grad) for x in on(target, scan_arguments(10, groups=2)).values()]
    op = torch.ops.umamba_kernels.selective_scan.default
    torch.library.opcheck(op, (*tensors, True, True, 5, grad, target.backend))
    torch.library.opcheck(op, (*tensors[:5], None, None, None, False, False, 1, grad, target.backend))


@pytest.mark.parametrize("grad", [True, False])
def test_opcheck_of_the_convolution(target, grad):
    x, weight, bias = (y.requires_grad_(grad) for y in on(target, conv_arguments(10)).values())
    op = torch.ops.umamba_kernels.causal_conv1d.default
    torch.library.opcheck(op, (x, weight, bias, True, True, 5, target.backend))
    torch.library.opcheck(op, (x, weight, None, False, False, 1, target.backend))


def test_opcheck_of_the_block(block, target):
    x, z = (y.detach().requires_grad_() for y in block.in_proj(tokens(block, 10)).transpose(1, 2).chunk(2, 1))
    lists = [[way[name].detach().requires_grad_() for way in block.ways] for name in Direction._fields[:-1]]
    op = torch.ops.umamba_kernels.mamba_inner.default
    torch.library.opcheck(op, (x, z, *lists, [False, True], [1, 5], True, target.backend))
    without_convolution = [*lists[:5], [], []]
    torch.library.opcheck(op, (x, None, *without_convolution, [False, True], [1, 5], True, target.backend))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # torch's own, inside inductor
def test_compiled_in_one_graph_for_every_length(block):
    torch._dynamo.reset()
    compiled = torch.compile(block, fullgraph=True, dynamic=True)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for length in (50, 64, 130):
            assert_equal(
                gradients(block, tokens(block, length), compiled), gradients(block, tokens(block, length), block)
            )


def test_single_ops_inside_a_full_graph(target):
    torch._dynamo.reset()

    def both(x, weight, delta, A, B, C):
        u = causal_conv1d(x, weight, activation="silu", backend=target.backend)
        return selective_scan(u, delta, A, B, C, delta_softplus=True, order=ORDER, backend=target.backend)

    compiled = torch.compile(both, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (20, 44):
        scan = on(target, scan_arguments(length))
        tensors = [scan["u"], *on(target, {"weight": conv_arguments(5)["weight"]}).values()]
        tensors += [scan[name] for name in ("delta", "A", "B", "C")]
        wanted, got = both(*tensors), compiled(*tensors)
        assert_equal([got], [wanted])
        assert_equal(*(list(torch.autograd.grad(out.sum(), tensors)) for out in (got, wanted)))


def test_export_keeps_the_length_open(block):
    length = torch.export.Dim("length", min=2, max=5000)
    exported = torch.export.export(block, (tokens(block, 48),), dynamic_shapes=({1: 2 * length},)).module()
    for number in (4, 200):
        assert_equal([exported(tokens(block, number))], [block(tokens(block, number))])


def test_checkpointing_changes_nothing(block):
    x = tokens(block, 40)
    wanted = gradients(block, x, block)
    got = gradients(block, x, lambda y: checkpoint(block, y, use_reentrant=False))
    assert all(torch.equal(x, y) for x, y in zip(got, wanted, strict=True))


def test_under_autocast_the_block_takes_the_dtype_of_its_input(block, target):
    x = tokens(block, 40)
    wanted = gradients(block, x, block)
    with torch.autocast(target.device, torch.bfloat16):
        out = block(x)
    assert out.dtype == torch.bfloat16
    got = torch.autograd.grad(out.float().square().sum(), list(block.parameters()))
    for y, want in zip(got, wanted[2:], strict=True):
        assert ((y - want).norm() / want.norm()).item() < 5e-2
