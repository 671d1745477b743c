"""The choice of a backend: explicit ones are honoured or refused, automatic ones are logged, all are proved."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
import torch

from umamba_kernels import Backend, available_backends, causal_conv1d, dispatch, selective_scan
from umamba_kernels.selective_scan import chunked, op


@pytest.fixture
def with_a_broken_backend(monkeypatch):
    backends = {"broken": Backend(False, "its library is missing"), **available_backends()}
    monkeypatch.setattr(dispatch, "available_backends", lambda device_type: backends)


@pytest.mark.parametrize("backend", [name for name, status in available_backends().items() if status.available])
def test_every_backend_serves_every_op(backend):
    x, matrix = torch.zeros(1, 2, 3), torch.zeros(1, 1, 3)
    assert causal_conv1d(x, torch.zeros(2, 4), backend=backend).shape == x.shape
    assert selective_scan(x, x, torch.zeros(2, 1), matrix, matrix, backend=backend).shape == x.shape


@pytest.mark.parametrize("device", ["cpu", "cuda", "mps"])
def test_every_backend_gives_a_reason(device):
    backends = available_backends(device)
    assert set(backends) == {"triton", "cpu", "chunked", "reference"}
    assert all(status.reason for status in backends.values())
    assert backends["chunked"].available


def test_backends_of_other_devices_are_refused_with_the_reason(monkeypatch):
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    x = torch.zeros(1, 2, 3)
    with pytest.raises(
        ValueError, match="backend 'triton' is not available: for NVIDIA and AMD GPUs, the tensors are on"
    ):
        causal_conv1d(x, torch.zeros(2, 4), backend="triton")
    assert not available_backends("cuda")["cpu"].available


def test_triton_has_to_be_installed(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert available_backends("cuda")["triton"] == Backend(
        False, "the package triton is missing; it comes with torch's builds for GPUs"
    )


def test_explicit_choice_is_honoured():
    assert dispatch.choose("op", "reference", "cpu") == "reference"


def test_the_interpreter_is_never_the_automatic_choice(monkeypatch):
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    assert list(available_backends())[-1] == "triton"


def test_automatic_choice_is_the_first_that_can_run(with_a_broken_backend):
    usable = [name for name, status in available_backends().items() if status.available]
    assert dispatch.choose("op", None, "cpu") == usable[0]


def test_unknown_backend_is_refused():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match=r"causal_conv1d: backend 'cuda' is unknown; available: .*chunked, reference"):
        causal_conv1d(x, torch.zeros(2, 4), backend="cuda")


def test_unavailable_backend_is_refused_with_the_reason(with_a_broken_backend):
    message = r"op: backend 'broken' is not available: its library is missing; available: .*chunked, reference"
    with pytest.raises(ValueError, match=message):
        dispatch.choose("op", "broken", "cpu")


def test_automatic_choice_is_logged_once_per_op_and_device(caplog):
    caplog.set_level(logging.INFO, logger="umamba_kernels")
    best = next(name for name, status in available_backends().items() if status.available)
    for name in ("first op", "second op", "first op"):
        dispatch.choose(name, None, "cpu")
    dispatch.choose("third op", "reference", "cpu")
    assert caplog.messages == [
        f"first op runs on the backend '{best}' on cpu (automatic choice)",
        f"second op runs on the backend '{best}' on cpu (automatic choice)",
    ]


@pytest.mark.parametrize("wrong", [lambda out: out * 1.001, lambda out: out * torch.nan])
def test_a_backend_that_differs_is_refused(monkeypatch, wrong):
    def forward(*args):
        out, *rest = chunked.forward(*args)
        return wrong(out), *rest

    backends = dispatch.Implementations("selective_scan", {}, op._error)
    module = SimpleNamespace(__name__="broken", forward=forward, backward=chunked.backward)
    monkeypatch.setattr(backends, "module", lambda backend, device: module)
    with pytest.raises(RuntimeError, match=r"broken differs from the reference on this machine \(cpu\) by .* not used"):
        backends.proved(None, torch.device("cpu"))


def test_a_sound_backend_is_proved_once():
    cases = []
    backends = dispatch.Implementations(
        "op", {"chunked": "umamba_kernels.order"}, lambda module, device: cases.append(module) or 1e-7
    )
    first, second = (backends.proved("chunked", torch.device("cpu")) for _ in range(2))
    assert first is second
    assert len(cases) == 1
