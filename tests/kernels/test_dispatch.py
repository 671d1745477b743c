"""The choice of a backend: explicit ones are honoured or refused, automatic ones are logged."""

from __future__ import annotations

import logging

import pytest
import torch

from umamba_kernels import Backend, available_backends, causal_conv1d, dispatch, selective_scan


@pytest.fixture
def with_a_broken_backend(monkeypatch):
    backends = {"broken": Backend(False, "its library is missing"), **available_backends()}
    monkeypatch.setattr(dispatch, "available_backends", lambda: backends)


@pytest.mark.parametrize("backend", available_backends())
def test_every_backend_serves_every_op(backend):
    x, matrix = torch.zeros(1, 2, 3), torch.zeros(1, 1, 3)
    assert causal_conv1d(x, torch.zeros(2, 4), backend=backend).shape == x.shape
    assert selective_scan(x, x, torch.zeros(2, 1), matrix, matrix, backend=backend).shape == x.shape


def test_every_backend_gives_a_reason():
    assert all(status.reason for status in available_backends().values())


def test_explicit_choice_is_honoured():
    assert dispatch.choose("op", "reference") == "reference"


def test_automatic_choice_is_the_first_that_can_run(with_a_broken_backend):
    assert dispatch.choose("op", None) == "chunked"


def test_unknown_backend_is_refused():
    x = torch.zeros(1, 2, 3)
    with pytest.raises(ValueError, match="causal_conv1d: backend 'cuda' is unknown; available: chunked, reference"):
        causal_conv1d(x, torch.zeros(2, 4), backend="cuda")


def test_unavailable_backend_is_refused_with_the_reason(with_a_broken_backend):
    message = "op: backend 'broken' is not available: its library is missing; available: chunked, reference"
    with pytest.raises(ValueError, match=message):
        dispatch.choose("op", "broken")


def test_automatic_choice_is_logged_once_per_op(caplog):
    caplog.set_level(logging.INFO, logger="umamba_kernels")
    for op in ("first op", "second op", "first op"):
        dispatch.choose(op, None)
    dispatch.choose("third op", "reference")
    assert caplog.messages == [
        "first op runs on the backend 'chunked' (automatic choice)",
        "second op runs on the backend 'chunked' (automatic choice)",
    ]
