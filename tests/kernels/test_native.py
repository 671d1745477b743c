"""The native CPU backend beyond what the tests of the ops ask of every backend: instruction sets and partitions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from kernel_testing import relative_rms
from umamba_kernels import Order, available_backends, dispatch, native
from umamba_kernels.causal_conv1d import cpu as conv
from umamba_kernels.causal_conv1d import reference as conv_reference
from umamba_kernels.selective_scan import cpu as scan
from umamba_kernels.selective_scan import reference as scan_reference

LIBRARY = native.LIBRARY
STATUS = available_backends()["cpu"]
SETS = native.instruction_sets() if STATUS.available else []
pytestmark = [
    pytest.mark.skipif(not STATUS.available, reason=STATUS.reason),
    pytest.mark.usefixtures("poisoned_memory"),
]


@pytest.fixture(params=SETS)
def _instruction_set(request):
    native.use_instruction_set(request.param)
    assert native.instruction_set() == request.param
    yield
    native.use_instruction_set(SETS[0])


def scan_tensors(batch: int, d: int, length: int, n: int, groups: int = 1, dtype=torch.float32) -> list[Tensor]:
    """u, delta, A, B, C, D, z and delta_bias."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(batch, d, length)] * 2 + [(d, n)] + [(batch, groups, n, length)] * 2 + [(d,), (batch, d, length), (d,)]
    tensors = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    tensors[2] = -tensors[2].exp()
    return [x.to(dtype) for x in tensors]


def run_scan(tensors: list[Tensor], order: Order, softplus: bool = True) -> list[Tensor]:
    """out, last state and all gradients, by the library."""
    generator = torch.Generator().manual_seed(1)
    out, last, states = scan.forward(*tensors, softplus, order, True)
    dout, dlast = (torch.randn(x.shape, generator=generator).to(x) for x in (out, last))
    return [out, last, *scan.backward(dout, dlast, *tensors, states, softplus, order)]


def run_scan_reference(tensors: list[Tensor], order: Order, softplus: bool = True) -> list[Tensor]:
    """The same by autograd in float64."""
    generator = torch.Generator().manual_seed(1)
    leaves = [x.double().requires_grad_() for x in tensors]
    out, last = scan_reference.selective_scan(*leaves, softplus, order)
    weights = [torch.randn(x.shape, generator=generator) for x in (out, last)]
    weights = [w.to(tensors[0].dtype).double() for w in weights]
    return [out.detach(), last.detach(), *torch.autograd.grad((out, last), leaves, weights)]


# Widths around a block of 16 channels and lanes of 4, 8, 16; chunks of 64 tokens; 400 channels make partitions of two
# blocks, 40 channels in 4 groups blocks that end within a group.
@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize(
    ("batch", "d", "length", "n", "groups"),
    [
        (2, 1, 1, 1, 1),
        (1, 15, 64, 3, 1),
        (2, 17, 65, 4, 1),
        (1, 40, 70, 16, 4),
        (2, 33, 193, 17, 1),
        (1, 400, 66, 5, 1),
    ],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
def test_scan(batch, d, length, n, groups, dtype, tolerance):
    tensors = scan_tensors(batch, d, length, n, groups, dtype)
    order = Order(reverse=True, slices=2 if length % 2 == 0 else 1)
    for got, wanted in zip(run_scan(tensors, order), run_scan_reference(tensors, order), strict=True):
        assert relative_rms(got, wanted) < tolerance


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("width", [1, 3, 4, 70])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-6), (torch.float64, 1e-12)], ids=str)
def test_convolution(width, dtype, tolerance):
    order = Order(slices=3)
    generator = torch.Generator().manual_seed(0)
    shapes = (2, 18, 300), (18, width), (18,), (2, 18, 300)
    x, weight, bias, dout = (torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes)
    leaves = [y.double().requires_grad_() for y in (x, weight, bias)]
    out = conv_reference.causal_conv1d(*leaves, True, order)
    wanted = out.detach(), *torch.autograd.grad(out, leaves, dout.double())
    got = conv.forward(x, weight, bias, True, order), *conv.backward(dout, x, weight, bias, True, order)
    for y, w in zip(got, wanted, strict=True):
        assert relative_rms(y, w) < tolerance


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("step", [1e-8, 1e-3, 10.0, 50.0])
def test_constant_steps(step):
    """The same rounding in every token: slow decays must not drift, fast ones must not cancel in the gradient of A."""
    tensors = scan_tensors(1, 16, 257, 16)
    tensors[1].fill_(step)
    tensors[7].zero_()
    tensors[2] = -torch.arange(1.0, 17.0).expand(16, 16)
    got, wanted = run_scan(tensors, Order(), False), run_scan_reference(tensors, Order(), False)
    for x, w in zip(got, wanted, strict=True):
        assert relative_rms(x, w) < 5e-6


@pytest.mark.usefixtures("_instruction_set")
def test_softplus_keeps_small_steps():
    tensors = scan_tensors(1, 16, 65, 4)
    tensors[1].copy_(torch.linspace(-60, 30, 65))
    tensors[7].zero_()
    tensors[0].zero_()
    tensors[0][..., 20] = 1  # the one token that drives the states; softplus of -32 is 1e-14
    for x, w in zip(run_scan(tensors, Order()), run_scan_reference(tensors, Order()), strict=True):
        assert relative_rms(x, w) < 2e-6


@pytest.mark.parametrize("shape", [(1, 96, 257, 16, 1), (3, 24, 130, 4, 4), (1, 400, 70, 3, 1)])
def test_bits_do_not_depend_on_threads_and_spans(shape, monkeypatch):
    tensors = scan_tensors(*shape)
    monkeypatch.setattr(scan, "_UPDATES_PER_THREAD", 1)
    wanted = run_scan(tensors, Order())
    threads = torch.get_num_threads()
    try:
        for count, share in ((1, 1), (2, 1), (7, 1 << 15), (3, 4 << 20)):
            torch.set_num_threads(count)
            monkeypatch.setattr(scan, "_SHARES_BYTES", share)
            assert all(torch.equal(x, w) for x, w in zip(run_scan(tensors, Order()), wanted, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.usefixtures("_instruction_set")
def test_nan_stays_in_its_sample():
    tensors = scan_tensors(3, 20, 70, 4)
    wanted = run_scan(tensors, Order())
    for x in tensors[:2]:
        x[1, 3, 10] = float("nan")
    got = run_scan(tensors, Order())
    assert got[0][1, 3, 10:].isnan().all()
    for i in (0, 1, 2, 3, 5, 6, 8):  # all but the gradients of parameters, which are sums over the samples
        assert torch.equal(got[i][::2], wanted[i][::2])


@pytest.mark.usefixtures("_instruction_set")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("channels_last", [False, True])
def test_half_precision_is_rounded_as_torch_does(dtype, channels_last):
    """All 65536 bit patterns in, and products with results on every side of a tie, an overflow and an underflow out."""
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    x = bits.view(dtype).reshape(1, 64, 1024)
    if channels_last:
        x = x.transpose(1, 2).contiguous().transpose(1, 2)
    for factor in (1.0, 1.0 + 2.0**-11, 1.0 + 2.0**-9, 0.7, 1e-3, 3e3):
        weight = torch.full((64, 1), factor)
        out = conv.forward(x, weight, None, False, Order())
        assert torch.equal(out.isnan(), x.isnan())
        assert torch.equal(out[~x.isnan()], (x.float() * factor).to(dtype)[~x.isnan()])


@pytest.mark.usefixtures("_instruction_set")
def test_expanded_and_overlapping_strides():
    u, delta, A, B, C, D, z, bias = scan_tensors(2, 20, 70, 4)
    tensors = [u[:1, :, :1].expand(2, 20, 70), delta[..., ::2].repeat_interleave(2, -1), A.t().contiguous().t()]
    tensors += [B[:, :, :1].expand_as(B), C.as_strided(C.shape, (1, 1, 1, 1)), D, z[:, :1].expand(2, 20, 70), bias]
    dense = [x.contiguous() for x in tensors]
    for x, w in zip(run_scan(tensors, Order()), run_scan(dense, Order()), strict=True):
        assert torch.equal(x, w)


def test_wrong_names_are_refused():
    with pytest.raises(ValueError, match=r"instruction set 'mmx', wanted one of .*baseline"):
        native.use_instruction_set("mmx")


def test_a_missing_or_wrong_library_is_named(monkeypatch, tmp_path):
    def reason_with(path: Path) -> str:
        monkeypatch.setattr(native, "LIBRARY", path)
        native._load.cache_clear()
        with pytest.raises(OSError, match=r"g\+\+ or clang\+\+") as error:
            native.instruction_sets()
        return str(error.value)

    try:
        assert "absent.so does not exist" in reason_with(tmp_path / "absent.so")
        broken = tmp_path / "broken.so"
        broken.write_bytes(b"no library")
        assert "broken.so cannot be loaded" in reason_with(broken)
        monkeypatch.setattr(native, "ABI", native.ABI + 1)
        assert "is of another version" in reason_with(LIBRARY)
    finally:
        monkeypatch.undo()
        native._load.cache_clear()
    assert native.instruction_sets() == SETS


def test_without_the_library_plain_torch_is_chosen(monkeypatch, tmp_path):
    monkeypatch.setattr(native, "LIBRARY", tmp_path / "absent.so")
    native._load.cache_clear()
    dispatch._cpu.cache_clear()
    try:
        assert dispatch.choose("op", None, "cpu") == "chunked"
        with pytest.raises(ValueError, match=r"backend 'cpu' is not available: .*absent.so does not exist"):
            dispatch.choose("op", "cpu", "cpu")
    finally:
        monkeypatch.undo()
        native._load.cache_clear()
        dispatch._cpu.cache_clear()
