"""Precision by the device, and what a device does not have."""

from __future__ import annotations

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.plan.precision import FLOAT32, Precision, choose_precision

CPU, CUDA, MPS = map(torch.device, ("cpu", "cuda", "mps"))


@pytest.fixture
def gpu(monkeypatch):
    """``gpu(bfloat16=False)`` lets torch find a GPU that has bfloat16 by emulation alone."""

    def install(*, bfloat16: bool) -> None:
        monkeypatch.setattr(
            torch.cuda, "is_bf16_supported", lambda including_emulation=True: bfloat16 or including_emulation
        )
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda _device: "Tesla V100")

    return install


@pytest.mark.parametrize("device", [CPU, MPS], ids=str)
def test_float32_where_there_is_no_cuda(device):
    assert choose_precision("auto", device) == FLOAT32


@pytest.mark.parametrize(("bfloat16", "dtype"), [(True, torch.bfloat16), (False, torch.float16)])
def test_gpus_choose_bfloat16_where_they_have_it(gpu, bfloat16, dtype):
    gpu(bfloat16=bfloat16)
    assert choose_precision("auto", CUDA) == Precision(dtype)


@pytest.mark.parametrize(
    ("requested", "device"),
    [("float32", CPU), ("bfloat16", CPU), ("float32", CUDA), ("float16", CUDA), ("bfloat16", CUDA), ("float32", MPS)],
)
def test_what_is_asked_for_is_honoured(gpu, requested, device):
    gpu(bfloat16=True)
    assert choose_precision(requested, device) == Precision(getattr(torch, requested))


@pytest.mark.parametrize(
    ("requested", "device", "reason"),
    [
        ("float16", CPU, "a CPU computes in float32 or bfloat16"),
        ("float16", MPS, "networks run in float32 on mps"),
        ("bfloat16", MPS, "networks run in float32 on mps"),
        ("bfloat16", CUDA, "Tesla V100 only emulates it"),
    ],
)
def test_what_a_device_does_not_have_is_refused(gpu, requested, device, reason):
    gpu(bfloat16=False)
    with pytest.raises(UserError, match=f"precision {requested}: {reason}.*; choose another"):
        choose_precision(requested, device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_autocast_casts_to_the_precision_and_only_float16_needs_a_scaler(dtype):
    precision, ones = Precision(dtype), torch.ones(2, 2)
    context = precision.autocast(CPU)
    for _ in range(2):
        with context:
            assert (ones @ ones).dtype == dtype
    assert precision.needs_scaler == (dtype == torch.float16)
