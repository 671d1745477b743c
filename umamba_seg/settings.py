"""How much of this machine a run may use, told to nnU-Net through the environment variables that it reads at import."""

from __future__ import annotations

import os

import psutil

# What one worker of nnU-Net costs before it holds a case: an interpreter with torch and nnunetv2 loaded.
_WORKER_BYTES = 1.5 * 2**30


def cores() -> int:
    """Processors that this process may use (task sets included; a container's time quota is not seen)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def workers(requested: int | None, limit: int = 8) -> int:
    """Worker processes for reading, preprocessing and exporting: ``-np`` or what cores and free memory allow."""
    if requested is not None:
        return requested
    by_memory = int(psutil.virtual_memory().available / _WORKER_BYTES)
    return max(1, min(cores(), by_memory, limit))


def configure_nnunet(processes: int) -> None:
    """Set nnU-Net's worker counts. Call it before the first import of nnunetv2.

    Args:
        processes: Workers for preprocessing, export and evaluation.
    """
    os.environ["nnUNet_def_n_proc"] = str(processes)


def configure_augmentation(on_cpu: bool) -> None:
    """Set how many processes augment training batches, unless nnU-Net's own variable does.

    A network that trains on the CPU keeps all cores busy by itself, and a second busy process makes an iteration three
    times as long (1.85 s against 0.61 s, measured on two cores). Augmentation then runs between the iterations: 0
    processes, up to where one core in eight can be spared.
    """
    os.environ.setdefault("nnUNet_n_proc_DA", str(cores() // 8 if on_cpu else min(cores(), 12)))
