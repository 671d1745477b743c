"""How much of this machine a run may use; nnU-Net is told through the environment variables that it reads at import."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.text import gib

BATCHES_AHEAD = 2  # of a worker that augments, so that it need not wait for the training to fetch one

# What one worker of nnU-Net costs before it holds a case: an interpreter with torch and nnunetv2 loaded.
_WORKER_BYTES = 1.5 * 2**30
# One that augments is forked from a process that has them loaded: 0.34 GiB of its own, measured.
_AUGMENTER_BYTES = 0.5 * 2**30
_SCRATCH = 30  # patches: what augmenting one holds at a time, the larger one that it is cut from included; measured
_VARIABLE = "nnUNet_n_proc_DA"  # nnU-Net's own for the same
_SHARED_MEMORY = Path("/dev/shm")  # batches of workers lie there; a container may give 64 MiB


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


def augmentation_workers(requested: int | None, on_cpu: bool, patch_bytes: int, items: int, processes: int = 1) -> int:
    """Processes that augment training batches; 0 for none beside the training's own. The choice is logged.

    A network that trains on the CPU keeps all cores busy by itself, and a second busy process makes an iteration three
    times as long (1.85 s against 0.61 s, measured on two cores): there it takes eight cores to spare one.

    Args:
        requested: ``--workers``; it wins, then nnU-Net's variable ``nnUNet_n_proc_DA``, then what the machine has.
        on_cpu: Whether the network trains on the CPU.
        patch_bytes: Of one image and segmentation as the network sees them.
        items: Samples of a batch that one process of the training takes.
        processes: Of a distributed training, on this machine.

    Raises:
        UserError: The variable is no number of processes.
    """
    if requested is not None:
        chosen, reason = requested, "--workers"
    elif (variable := os.environ.get(_VARIABLE)) is not None:
        chosen, reason = _count(variable), _VARIABLE
    else:
        chosen, reason = _affordable(on_cpu, patch_bytes, items, processes)
    logger.info("workers that augment: %s (%s)", chosen or "none, the training's own process does it", reason)
    return chosen


def _affordable(on_cpu: bool, patch_bytes: int, items: int, processes: int) -> tuple[int, str]:
    """What cores and memory allow each of ``processes``, and what they are."""
    share = cores() // processes
    batches = items * BATCHES_AHEAD * patch_bytes
    memory = psutil.virtual_memory().available
    shared = shutil.disk_usage(_SHARED_MEMORY).free if _SHARED_MEMORY.is_dir() else memory
    limits = (
        share // 8 if on_cpu else min(share, 12),
        int(memory / processes / (_AUGMENTER_BYTES + _SCRATCH * patch_bytes + batches)),
        int(shared / processes / batches),
    )
    busy = " that the network keeps busy" if on_cpu else ""
    among = f" for {processes} processes" if processes > 1 else ""
    found = f"{cores()} cores{busy}, {gib(memory)} of memory and {gib(shared)} of shared memory are free{among}"
    return min(limits), found


def _count(variable: str) -> int:
    if not variable.isdecimal():
        raise UserError(_VARIABLE, f"{variable!r} is no number of processes", "set it to 0 or more, or unset it")
    return int(variable)
