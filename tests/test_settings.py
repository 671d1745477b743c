"""Worker counts."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from umamba_seg import settings
from umamba_seg.errors import UserError


@pytest.fixture
def machine(monkeypatch):
    """``machine(cores, gib)`` is the one that the settings see, with as much shared memory as memory."""

    def choose(cores: int, gib: float, shared_gib: float | None = None) -> None:
        shared = gib if shared_gib is None else shared_gib
        monkeypatch.setattr(settings, "cores", lambda: cores)
        monkeypatch.setattr(settings.psutil, "virtual_memory", lambda: SimpleNamespace(available=gib * 2**30))
        monkeypatch.setattr(settings.shutil, "disk_usage", lambda folder: SimpleNamespace(free=shared * 2**30))
        monkeypatch.setattr(settings, "_SHARED_MEMORY", Path("/"))  # it is there on every machine
        monkeypatch.delenv("nnUNet_n_proc_DA", raising=False)

    return choose


@pytest.mark.parametrize(("cores", "gib", "expected"), [(2, 24, 2), (64, 3, 2), (64, 64, 8), (1, 0.5, 1)])
def test_workers_fit_cores_and_memory(machine, cores, gib, expected):
    machine(cores, gib)
    assert settings.workers(None) == expected
    assert settings.workers(3) == 3


PATCH = 128**3 * 6  # 12 MiB: one channel and its segmentation


@pytest.mark.parametrize(("cores", "on_cpu", "expected"), [(2, True, 0), (16, True, 2), (16, False, 12), (4, False, 4)])
def test_augmentation_leaves_the_cores_to_a_network_on_the_cpu(machine, cores, on_cpu, expected):
    machine(cores, 64)
    assert settings.augmentation_workers(None, on_cpu, PATCH, items=2) == expected


@pytest.mark.parametrize(
    ("gib", "shared_gib", "expected"),
    [
        (64, None, 12),
        (4, None, 4),  # an interpreter, a patch in work with what it was cut from, and batches ahead: 0.9 GiB
        (0.8, None, 0),
        (64, 1 / 16, 1),  # docker's 64 MiB of shared memory: batches ahead are 48 MiB
    ],
)
def test_augmentation_fits_memory(machine, gib, shared_gib, expected):
    machine(64, gib, shared_gib)
    assert settings.augmentation_workers(None, False, PATCH, items=2) == expected


@pytest.mark.parametrize(("cores", "gib", "expected"), [(16, 64, 4), (64, 16, 4), (2, 64, 0)])
def test_processes_of_a_distributed_training_share_the_machine(machine, cores, gib, expected):
    machine(cores, gib)
    assert settings.augmentation_workers(None, False, PATCH, items=2, processes=4) == expected


def test_requests_win_over_nnunets_variable_and_that_over_the_machine(machine, monkeypatch, caplog):
    machine(16, 64)
    monkeypatch.setenv("nnUNet_n_proc_DA", "5")
    with caplog.at_level("INFO", "umamba_seg"):
        assert settings.augmentation_workers(None, True, PATCH, items=2) == 5
        assert settings.augmentation_workers(0, True, PATCH, items=2) == 0
        monkeypatch.delenv("nnUNet_n_proc_DA")
        assert settings.augmentation_workers(None, True, PATCH, items=2) == 2
    assert caplog.messages == [
        "workers that augment: 5 (nnUNet_n_proc_DA)",
        "workers that augment: none, the training's own process does it (--workers)",
        "workers that augment: 2 (16 cores that the network keeps busy, 64.00 GiB of memory and 64.00 GiB of shared "
        "memory are free)",
    ]


def test_nnunets_variable_must_be_a_number(machine, monkeypatch):
    machine(16, 64)
    monkeypatch.setenv("nnUNet_n_proc_DA", "many")
    with pytest.raises(UserError, match="nnUNet_n_proc_DA: 'many' is no number of processes; set it to 0 or more"):
        settings.augmentation_workers(None, False, PATCH, items=2)
