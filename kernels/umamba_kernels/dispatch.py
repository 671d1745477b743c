"""Which backend runs an op, and why another does not."""

from __future__ import annotations

import functools
import logging
from dataclasses import dataclass

logger = logging.getLogger("umamba_kernels")


@dataclass(frozen=True)
class Backend:
    """Where a backend stands on this machine.

    Args:
        available: Whether it can run here.
        reason: What it is and when it is used, or why it cannot run.
    """

    available: bool
    reason: str


def available_backends() -> dict[str, Backend]:
    """Every backend by name, best first; the first available one is the automatic choice."""
    return {
        "chunked": Backend(True, "plain torch, chunks of the sequence in parallel; runs on every device"),
        "reference": Backend(True, "the definition, one token after the other; slow, runs only when asked for"),
    }


def choose(op: str, backend: str | None) -> str:
    """Name of the backend that runs ``op``.

    Args:
        op: Name of the op, for messages.
        backend: The caller's explicit choice, honoured or refused; None picks the best available one, which is logged
            once per op.

    Raises:
        ValueError: The explicit choice is unknown or cannot run here; the message says why and lists those that can.
    """
    backends = available_backends()
    usable = [name for name, status in backends.items() if status.available]
    if backend is None:
        _log_once(op, usable[0])
        return usable[0]
    if backend in usable:
        return backend
    problem = f"is not available: {backends[backend].reason}" if backend in backends else "is unknown"
    raise ValueError(f"{op}: backend {backend!r} {problem}; available: {', '.join(usable)}")


@functools.cache
def _log_once(op: str, backend: str) -> None:
    logger.info("%s runs on the backend '%s' (automatic choice)", op, backend)
