"""Which backend runs an op, and why another does not."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import logging
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import ModuleType

import torch

from umamba_kernels import native
from umamba_kernels.tracing import dry_backend

logger = logging.getLogger("umamba_kernels")

_TOLERANCE = 1e-4  # relative RMS in float32; sound backends stay below 1e-5


@dataclass(frozen=True)
class Backend:
    """Where a backend stands on this machine.

    Args:
        available: Whether it can run here.
        reason: What it is and when it is used, or why it cannot run.
    """

    available: bool
    reason: str


def available_backends(device_type: str = "cpu") -> dict[str, Backend]:
    """Every backend by name, best first; the first available one is the automatic choice.

    Args:
        device_type: Where the tensors lie: "cpu", "cuda" (ROCm as well), "mps"...
    """
    backends = {
        "triton": _triton(device_type),
        "cpu": _cpu(device_type),
        "chunked": Backend(True, "plain torch, chunks of the sequence in parallel; runs on every device"),
        "reference": Backend(True, "the definition, one token after the other; slow, runs only when asked for"),
    }
    if device_type == "cpu":
        backends["triton"] = backends.pop("triton")  # interpreted it is the slowest of all
    return backends


def choose(op: str, backend: str | None, device_type: str) -> str:
    """Name of the backend that runs ``op``.

    Args:
        op: Name of the op, for messages.
        backend: The caller's explicit choice, honoured or refused; None picks the best available one, which is logged
            once per op and type of device.
        device_type: Where the tensors lie.

    Raises:
        ValueError: The explicit choice is unknown or cannot run here; the message says why and lists those that can.
    """
    if (dry := dry_backend()) is not None:
        return dry
    backends = available_backends(device_type)
    usable = [name for name, status in backends.items() if status.available]
    if backend is None:
        _log_once(op, usable[0], device_type)
        return usable[0]
    if backend in usable:
        return backend
    problem = f"is not available: {backends[backend].reason}" if backend in backends else "is unknown"
    raise ValueError(f"{op}: backend {backend!r} {problem}; available: {', '.join(usable)}")


class Implementations:
    """The modules of an op that hold its backends, each proved against the reference before its first use.

    Args:
        op: Name of the op, for messages.
        modules: Import path by name of the backend.
        error: Runs a small case on a device by a module and returns the largest relative RMS of its results and
            gradients against the reference.
    """

    def __init__(self, op: str, modules: dict[str, str], error: Callable[[ModuleType, torch.device], float]):
        self._op, self._modules, self._error = op, modules, error
        self._proved: set[tuple[str, str]] = set()

    def module(self, backend: str | None, device: torch.device) -> ModuleType:
        """The module of a backend, or of the best one, for what it says of shapes.

        Raises:
            ValueError: The backend cannot run there.
        """
        return importlib.import_module(self._modules[choose(self._op, backend, device.type)])

    def proved(self, backend: str | None, device: torch.device) -> ModuleType:
        """The same module, once it has given the reference's numbers on this type of device.

        Raises:
            ValueError: The backend cannot run there.
            RuntimeError: It gives other numbers.
        """
        module = self.module(backend, device)
        if dry_backend() is None and (module.__name__, device.type) not in self._proved:
            # In a thread of its own, which knows nothing of the caller's autocast, and can differentiate: ops run below
            # autograd.
            with ThreadPoolExecutor(1) as thread:
                error = thread.submit(self._error, module, device).result()
            if not error <= _TOLERANCE:
                raise RuntimeError(
                    f"{self._op}: {module.__name__} differs from the reference on this machine ({device.type}) by "
                    f"{error:.1e} (relative RMS, wanted {_TOLERANCE:.0e} or less) and is not used; choose another "
                    "backend=... and report this with the versions of torch, triton, driver and compiler"
                )
            self._proved.add((module.__name__, device.type))
        return module


def relative_rms(got: torch.Tensor, wanted: torch.Tensor) -> float:
    """``|got - wanted| / |wanted|``, NaN if either has one."""
    got, wanted = (x.detach().cpu().double() for x in (got, wanted))  # MPS has no float64
    return ((got - wanted).norm() / wanted.norm().clamp(min=torch.finfo(torch.float64).tiny)).item()


def _triton(device_type: str) -> Backend:
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    if device_type != "cuda" and not (interpreted and device_type == "cpu"):
        return Backend(False, f"for NVIDIA and AMD GPUs, the tensors are on '{device_type}'")
    if importlib.util.find_spec("triton") is None:
        return Backend(False, "the package triton is missing; it comes with torch's builds for GPUs")
    if interpreted:
        return Backend(True, "Triton's interpreter (TRITON_INTERPRET=1), to check the GPU kernels; very slow")
    return Backend(True, "fused GPU kernels, compiled at first use")


@functools.cache
def _cpu(device_type: str) -> Backend:
    if device_type != "cpu":
        return Backend(False, f"for CPUs, the tensors are on '{device_type}'")
    try:
        sets = native.instruction_sets()
    except OSError as error:
        return Backend(False, str(error))
    return Backend(True, f"C++, threaded by torch.get_num_threads(); instruction sets here: {', '.join(sets)}")


@functools.cache
def _log_once(op: str, backend: str, device_type: str) -> None:
    logger.info("%s runs on the backend '%s' on %s (automatic choice)", op, backend, device_type)
