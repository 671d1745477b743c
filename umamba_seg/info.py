"""Versions, devices, and which scan backend runs here and why."""

from __future__ import annotations

import platform
from importlib.metadata import version

import umamba_seg
from umamba_seg import settings
from umamba_seg.log import table

_LIBRARIES = ("torch", "nnunetv2", "numpy", "scipy", "SimpleITK", "nibabel", "batchgenerators")


def collect() -> dict:
    """The facts as JSON-able values: ``versions``, ``machine``, ``devices``, ``scan_backends`` by type of device."""
    import psutil
    import torch

    import umamba_kernels

    versions = {"umamba-seg": umamba_seg.__version__, "python": platform.python_version()}
    versions |= {name: version(name) for name in _LIBRARIES}
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "versions": versions,
        "machine": {
            "system": platform.platform(),
            "cores": settings.cores(),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        },
        "devices": ["cpu", *gpus],
        "scan_backends": {
            device: {
                name: {"available": backend.available, "reason": backend.reason}
                for name, backend in umamba_kernels.available_backends(device).items()
            }
            for device in ("cpu", *(("cuda",) if gpus else ()))
        },
    }


def as_text(facts: dict) -> str:
    """The facts as tables for a terminal."""
    machine = facts["machine"]
    parts = [
        table(list(facts["versions"].items()), ["package", "version"]),
        f"{machine['system']}, {machine['cores']} cores, {machine['memory_gib']} GiB",
        f"devices: {', '.join(facts['devices'])}",
        *(_backends(device, backends) for device, backends in facts["scan_backends"].items()),
    ]
    return "\n\n".join(parts)


def _backends(device: str, backends: dict) -> str:
    """The backends of a type of device, best first; the first that runs is the automatic choice."""
    chosen = next(name for name, backend in backends.items() if backend["available"])
    rows = [
        (name, "chosen" if name == chosen else "yes" if backend["available"] else "no", backend["reason"])
        for name, backend in backends.items()
    ]
    return table(rows, [f"scan backend on {device}", "runs", "because"])
