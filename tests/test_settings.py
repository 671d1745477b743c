"""Worker counts."""

import os
from types import SimpleNamespace

import pytest

from umamba_seg import settings


@pytest.mark.parametrize(("cores", "gib", "expected"), [(2, 24, 2), (64, 3, 2), (64, 64, 8), (1, 0.5, 1)])
def test_workers_fit_cores_and_memory(monkeypatch, cores, gib, expected):
    monkeypatch.setattr(settings, "cores", lambda: cores)
    monkeypatch.setattr(settings.psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * 2**30))
    assert settings.workers(None) == expected
    assert settings.workers(3) == 3


@pytest.mark.parametrize(
    ("cores", "on_cpu", "expected"), [(2, True, "0"), (16, True, "2"), (16, False, "12"), (4, False, "4")]
)
def test_augmentation_leaves_the_cores_to_a_network_on_the_cpu(monkeypatch, cores, on_cpu, expected):
    monkeypatch.setattr(settings, "cores", lambda: cores)
    monkeypatch.setenv("nnUNet_n_proc_DA", "0")  # so that it is restored
    monkeypatch.delenv("nnUNet_n_proc_DA")
    settings.configure_augmentation(on_cpu)
    assert os.environ["nnUNet_n_proc_DA"] == expected


def test_nnunets_own_variable_wins(monkeypatch):
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    settings.configure_augmentation(on_cpu=True)
    assert os.environ["nnUNet_n_proc_DA"] == "5"
