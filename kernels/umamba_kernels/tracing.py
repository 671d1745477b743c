"""Running the ops without their arithmetic, to see what they allocate."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar

_IMPLEMENTATIONS: dict[str, Callable] = {}
_BACKEND: ContextVar[str | None] = ContextVar("umamba_kernels_dry_run", default=None)


@contextlib.contextmanager
def dry_run(backend: str) -> Iterator[None]:
    """Context in which ``backend`` is the choice for every tensor and caller, and its kernels are not launched.

    Results, what is kept for the gradient, and buffers are allocated as ever and hold nothing. On fake CPU tensors
    (those of ``torch._subclasses.FakeTensorMode``) the memory of GPU kernels can so be traced without a GPU; that they
    run on is taken to be an H100. A dispatch mode sees what an op allocates inside itself when it calls
    :func:`implementation`. The backend "reference" is no op: a caller who names it gets it.

    It holds in the calling thread, where torch differentiates what lies on the CPU, but not what lies on a GPU.

    Args:
        backend: "triton", "cpu" or "chunked".
    """
    token = _BACKEND.set(backend)
    try:
        yield
    finally:
        _BACKEND.reset(token)


def implements(op: str) -> Callable[[Callable], Callable]:
    """Decorator of the function that ``op`` runs, under whatever the op is made by."""

    def note(function: Callable) -> Callable:
        return _IMPLEMENTATIONS.setdefault(op, function)

    return note


def implementation(op: str) -> Callable | None:
    """The function that an op of this package runs, such as "umamba_kernels::mamba_inner"; None for other ops."""
    return _IMPLEMENTATIONS.get(op)


def dry_backend() -> str | None:
    """The backend of the innermost :func:`dry_run`, None outside."""
    return _BACKEND.get()
