"""What the user sees: a logger, progress bars with the time left, and tables.

Everything here goes to stderr, so that stdout carries a command's result and nothing else (``--json`` depends on it).
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TypeVar

from tabulate import tabulate
from tqdm import tqdm

T = TypeVar("T")

logger = logging.getLogger("umamba_seg")


class _TqdmHandler(logging.Handler):
    """Prints a record above a running progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


def configure(verbose: bool) -> None:
    """Send our messages to stderr, those of the kernels too; ``verbose`` adds what nnU-Net prints."""
    handler = _TqdmHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    for ours in (logger, logging.getLogger("umamba_kernels")):
        ours.handlers = [handler]
        ours.setLevel(logging.DEBUG if verbose else logging.INFO)
        ours.propagate = False


def interactive() -> bool:
    """Whether somebody watches: bars are drawn on a terminal only, so that logs stay readable."""
    return sys.stderr.isatty()


def progress(items: Iterable[T], description: str, total: int | None = None) -> Iterable[T]:
    """Iterate over ``items`` behind a bar that shows the time left."""
    return tqdm(items, desc=description, total=total, file=sys.stderr, disable=not interactive())


def step_bar(description: str, total: int) -> tqdm:
    """A bar that its user moves; otherwise as :func:`progress`."""
    return tqdm(desc=description, total=total, file=sys.stderr, disable=not interactive())


def table(rows: Sequence[Sequence[object]], headers: Sequence[str]) -> str:
    """A table for a terminal. Floats get four digits; NaN is shown as ``nan``, never repaired."""
    return tabulate(rows, headers=headers, floatfmt=".4f", tablefmt="simple")


class _DebugStream(io.TextIOBase):
    def write(self, text: str) -> int:
        if text.strip():
            logger.debug(text.rstrip())
        return len(text)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Turn what a library prints to stdout into debug messages of ours."""
    with contextlib.redirect_stdout(_DebugStream()):
        yield


@contextlib.contextmanager
def only_messages() -> Iterator[None]:
    """Send everything that is printed to stderr, worker processes included, so that stdout can carry JSON alone."""
    sys.stdout.flush()
    saved = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(saved, 1)
        os.close(saved)
