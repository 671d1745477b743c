"""The ops under torch's tracers: opcheck, compile, export, checkpointing and autocast; and in dry runs."""

from __future__ import annotations

import gc
import inspect
import weakref
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from kernel_testing import (
    FAST,
    INTERPRETED,
    Target,
    assert_same_bits,
    conv_arguments,
    on,
    relative_rms,
    results,
    scan_arguments,
)
from umamba_kernels import (
    Direction,
    Order,
    causal_conv1d,
    dispatch,
    dry_run,
    implementation,
    mamba_inner,
    native,
    selective_scan,
)
from umamba_kernels.causal_conv1d.op import BACKENDS as CONVOLUTIONS
from umamba_kernels.selective_scan.op import BACKENDS as SCANS

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


# ---- Dry runs --------------------------------------------------------------------------------------------------------


class Case(NamedTuple):
    """A call of an op, ``run(**tensors(length), backend=...)``."""

    run: Callable[..., Tensor]
    tensors: Callable[[int], dict[str, Tensor]]


def block_tensors(
    length: int, ways: int, without: tuple[str, ...] = (), dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """Leaves of a block: x and z side by side, (1, L, 2 d), and the parameters of all directions, stacked."""
    d, n, rank = 4, 3, 2
    generator = torch.Generator().manual_seed(length)
    shapes = {"A": (d, n), "x_proj": (rank + 2 * n, d), "dt_proj": (d, rank), "dt_bias": (d,), "D": (d,)}
    shapes |= {"conv_weight": (d, 4), "conv_bias": (d,)}
    tensors = {name: torch.randn(ways, *shape, generator=generator) for name, shape in shapes.items()}
    tensors["A"] = -tensors["A"].exp()
    tensors["xz"] = torch.randn(1, length, 2 * d, generator=generator).to(dtype)
    return {name: x.requires_grad_() for name, x in tensors.items() if name not in without}


def block_of(orders: list[Order], gated: bool, xz: Tensor, backend: str | None = None, **stacked: Tensor) -> Tensor:
    x, z = xz.transpose(1, 2).chunk(2, 1)
    ways = [{name: y[i] for name, y in stacked.items()} for i in range(len(orders))]
    directions = [Direction(**way, order=order) for way, order in zip(ways, orders, strict=True)]
    return mamba_inner(x, directions, z if gated else None, backend=backend)


def conv_tensors(length: int, *without: str) -> dict[str, Tensor]:
    tensors = conv_arguments(length, dtype=torch.float32)
    return {name: x for name, x in tensors.items() if name not in without}


SEGMAMBA = [Order(), Order(reverse=True), Order(slices=3)]
CASES = {
    "convolution": Case(partial(causal_conv1d, activation="silu", order=ORDER), conv_tensors),
    "convolution alone": Case(causal_conv1d, lambda length: conv_tensors(length, "bias")),
    "scan": Case(
        partial(selective_scan, delta_softplus=True, order=ORDER),
        partial(scan_arguments, batch=1, d=40, dtype=torch.float32),  # two of Triton's blocks of channels
    ),
    "scan alone, float16": Case(
        partial(selective_scan, delta_softplus=True),
        partial(scan_arguments, groups=2, without=("D", "z", "delta_bias"), dtype=torch.float16),
    ),
    "block": Case(partial(block_of, SEGMAMBA, True), partial(block_tensors, ways=3)),
    "block, float16": Case(
        partial(block_of, [ORDER], True), partial(block_tensors, ways=1, without=("conv_bias",), dtype=torch.float16)
    ),
    "block alone": Case(
        partial(block_of, [Order()], False), partial(block_tensors, ways=1, without=("D", "conv_weight", "conv_bias"))
    ),
}

TRITON = [Target("triton", "cuda").param()] if torch.cuda.is_available() else INTERPRETED
WITH_KERNELS = [Target("cpu", "cpu").param(), *TRITON]


class Allocations(TorchDispatchMode):
    """The storages that ops allocate, those inside our own ops included; not what aten's kernels need in between.

    Attributes:
        in_use: Bytes of them that are in use, after every allocation.
    """

    def __init__(self):
        super().__init__()
        self._now = 0
        self.in_use: list[int] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if (run := implementation(func.name())) is not None:
            with self:
                return run(*args, **kwargs)
        found = func(*args, **kwargs)
        given = storages((args, kwargs))
        for key, storage in storages(found).items():
            if key not in given and storage.nbytes():
                self._change(storage.nbytes())
                self.in_use.append(self._now)
                weakref.finalize(storage, self._change, -storage.nbytes())
        return found

    def _change(self, size: int) -> None:
        self._now += size


def storages(tree) -> dict[int, torch.UntypedStorage]:
    leaves = (x.untyped_storage() if isinstance(x, Tensor) else x for x in tree_leaves(tree))
    return {x._cdata: x for x in leaves if isinstance(x, torch.UntypedStorage)}


def allocations(run: Callable[..., Tensor], tensors: dict[str, Tensor]) -> list[int]:
    """Bytes in use after every allocation of a run and its gradients."""
    with Allocations() as recorded:
        out = run(**tensors)
        torch.autograd.grad(out, list(tensors.values()), torch.ones_like(out))
    return recorded.in_use


def dry_allocations(backend: str, case: Case, length: int) -> list[int]:
    """The same of a dry run. A planner uses fake CPU tensors, whatever the device that it plans for."""
    with dry_run(backend), FakeTensorMode() as mode:
        return allocations(case.run, {name: mode.from_tensor(x) for name, x in case.tensors(length).items()})


def real_allocations(target: Target, case: Case, length: int) -> list[int]:
    return allocations(partial(case.run, backend=target.backend), on(target, case.tensors(length)))


@pytest.fixture
def as_on_an_h100(monkeypatch, target):
    """Triton's kernels cut sequences as on an H100, and what the interpreter keeps alive of a launch ends with it."""
    if target.backend != "triton":
        yield
        return
    from umamba_kernels.causal_conv1d import triton_conv
    from umamba_kernels.selective_scan import triton_scan

    monkeypatch.setattr(triton_scan, "_multiprocessors", lambda device: 132)
    if target.interpreted:
        launch = triton_scan.launcher
        monkeypatch.setattr(triton_scan, "launcher", lambda *which: partial(and_collect, launch(*which)))
        monkeypatch.setattr(triton_conv, "launcher", lambda *which: partial(and_collect, launch(*which)))
        monkeypatch.setattr(triton_scan, "CHUNK", 4)  # so that few tokens are several chunks
    gc.freeze()
    yield
    gc.unfreeze()


def and_collect(run: Callable[..., object], *args, **options) -> None:
    run(*args, **options)
    gc.collect()  # the interpreter leaves its arguments in a cycle of references


@pytest.fixture
def proved(monkeypatch):
    """Every backend passes its proof, which takes the interpreter long; tests of others still see a real one."""
    for backends in (CONVOLUTIONS, SCANS):
        monkeypatch.setattr(backends, "_proved", set())
        monkeypatch.setattr(backends, "_error", lambda module, device: 0.0)


class Noticed(Exception):
    """Something was called that a dry run must not call."""


def notice(*_args, **_options):
    raise Noticed


@pytest.fixture
def unproved(monkeypatch):
    """No backend has been proved, and a proof is noticed."""
    for backends in (CONVOLUTIONS, SCANS):
        monkeypatch.setattr(backends, "_proved", set())
        monkeypatch.setattr(backends, "_error", notice)


@pytest.fixture
def unlaunchable(monkeypatch, target, proved):
    """A launch of a kernel is noticed."""
    functions = "umamba_scan_forward", "umamba_scan_backward", "umamba_conv_forward", "umamba_conv_backward"
    monkeypatch.setattr(native, "_load", lambda: SimpleNamespace(**dict.fromkeys(functions, notice)))
    if target.backend == "triton":
        from umamba_kernels.selective_scan.triton_scan import forward_kernel

        monkeypatch.setattr(type(forward_kernel), "__getitem__", notice, raising=False)


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.usefixtures("as_on_an_h100", "proved")
def test_a_dry_run_allocates_what_a_run_does(target, case):
    length = 300 if target.backend == "cpu" else 6  # where tokens cost nothing, several chunks
    real = real_allocations(target, case, length)
    assert real == dry_allocations(target.backend, case, length)
    assert max(real) > sum(x.nbytes for x in case.tensors(length).values())  # that of the gradients


@pytest.mark.parametrize("target", TRITON)
@pytest.mark.usefixtures("as_on_an_h100", "proved")
def test_a_dry_run_allocates_what_a_run_of_several_segments_does(target, monkeypatch):
    from umamba_kernels.selective_scan import triton_scan

    case, length = CASES["scan"], triton_scan.CHUNK + 2
    whole = dry_allocations("triton", case, length)
    monkeypatch.setattr(triton_scan, "segment_tokens", lambda *_args, **_options: triton_scan.CHUNK)
    cut = dry_allocations("triton", case, length)
    assert len(cut) > len(whole)
    assert cut == real_allocations(target, case, length)


@pytest.mark.parametrize("target", TRITON)
def test_a_dry_run_cuts_the_sequence_for_an_h100(target, monkeypatch):
    from umamba_kernels.selective_scan import triton_scan

    found = dry_allocations("triton", CASES["scan"], 4096)
    for multiprocessors, same in ((132, True), (1, False)):
        monkeypatch.setattr(triton_scan, "_multiprocessors", lambda device, number=multiprocessors: number)
        assert (dry_allocations("triton", CASES["scan"], 4096) == found) is same


@pytest.mark.parametrize("target", TRITON)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_kernels_with_assembly_get_the_memory_of_interpreted_ones(target, case, monkeypatch):
    from umamba_kernels import triton_common

    found = []
    for interpreted in (True, False):
        monkeypatch.setattr(triton_common, "INTERPRETED", interpreted)
        found.append(dry_allocations("triton", case, 300))
    assert found[0] == found[1]


@pytest.mark.parametrize("target", WITH_KERNELS)
@pytest.mark.parametrize("name", ["convolution", "scan", "block"])
@pytest.mark.usefixtures("unlaunchable")
def test_a_dry_run_launches_nothing(target, name):
    """Neither on tensors that hold data nor on fake ones, which have no address to give."""
    case = CASES[name]
    tensors = on(target, case.tensors(6))
    with dry_run(target.backend):
        out = case.run(**tensors)
    dry_allocations(target.backend, case, 6)
    assert out.shape == case.run(**case.tensors(6), backend="chunked").shape
    with pytest.raises(Noticed):
        case.run(**tensors, backend=target.backend)


@pytest.mark.parametrize("target", FAST + INTERPRETED)
@pytest.mark.parametrize("name", ["convolution", "scan", "block"])
@pytest.mark.usefixtures("unproved")
def test_a_dry_run_proves_nothing(target, name):
    dry_allocations(target.backend, CASES[name], 6)
    with pytest.raises(Noticed):
        CASES[name].run(**on(target, CASES[name].tensors(6)), backend=target.backend)


def test_the_innermost_dry_run_chooses_for_every_device_and_caller():
    usual = dispatch.choose("op", None, "cpu")
    with dry_run("triton"):
        with dry_run("chunked"):
            assert dispatch.choose("op", None, "cuda") == dispatch.choose("op", "cpu", "cpu") == "chunked"
        with pytest.raises(Noticed), dry_run("chunked"):
            notice()
        assert dispatch.choose("op", None, "cpu") == dispatch.choose("op", "chunked", "cpu") == "triton"
    assert dispatch.choose("op", None, "cpu") == usual
    assert dispatch.choose("op", "chunked", "cpu") == "chunked"


@pytest.mark.parametrize("target", FAST)
def test_a_dry_run_leaves_no_trace_in_later_results(target):
    case = CASES["block"]
    tensors, run = on(target, case.tensors(6)), partial(case.run, backend=target.backend)
    wanted = results(run, tensors)
    dry_allocations(target.backend, case, 6)
    assert_same_bits(results(run, tensors), wanted)


OPS = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("umamba_kernels::")]


def test_ops_are_found():
    ours = {"causal_conv1d", "selective_scan", "mamba_inner"}
    assert {f"umamba_kernels::{name}{part}" for name in ours for part in ("", "_backward")} <= set(OPS)


@pytest.mark.parametrize("name", OPS)
def test_every_op_tells_what_it_runs(name):
    """Not that of another op: its arguments are the op's."""
    run = implementation(name)
    assert run is not None
    schema = getattr(torch.ops.umamba_kernels, name.removeprefix("umamba_kernels::")).default._schema
    assert list(inspect.signature(run).parameters) == [argument.name for argument in schema.arguments]


def test_ops_of_others_have_no_implementation_here():
    assert implementation("aten::add") is None
