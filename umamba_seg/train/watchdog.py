"""Ends a training that waits for something that does not come."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import threading
from collections.abc import Callable, Iterator
from typing import NamedTuple

from umamba_seg.errors import UserError

LIMIT = 600.0  # seconds for a batch: a slow network folder may take minutes
STEP_LIMIT = 3600.0  # seconds for a training step: compiling the first may take half an hour

_STDERR = 2  # not sys.stderr, which may have been replaced by something without a file
_LOOKS = 20  # of a wait, before it is too long


class _Wait(NamedTuple):
    what: str
    state: Callable[[], str]
    looks: int


class Watchdog:
    """Looks from a thread of its own at what the training waits for.

    A wait is counted in looks, not by a clock: while the whole process is stopped (Ctrl-Z, a sleeping machine) nothing
    looks.

    Args:
        on_stall: Called once, in the thread of the watchdog, with what to tell the user; the stacks of all threads are
            on stderr by then.
        limit: Seconds for a wait that names no limit of its own.
    """

    def __init__(self, on_stall: Callable[[UserError], None], limit: float = LIMIT):
        self._on_stall, self._interval = on_stall, limit / _LOOKS
        self._wait: _Wait | None = None
        self._seen: _Wait | None = None
        self._looks = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @contextlib.contextmanager
    def waiting_for(self, what: str, state: Callable[[], str], limit: float | None = None) -> Iterator[None]:
        """Mark a wait.

        Args:
            what: For example ``the next batch``.
            state: Says what is known about it, when it takes too long.
            limit: Seconds.
        """
        self._wait = _Wait(what, state, _LOOKS if limit is None else math.ceil(limit / self._interval))
        try:
            yield
        finally:
            self._wait = None

    def close(self) -> None:
        """Look no longer."""
        self._closed.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._closed.wait(self._interval) and not self._look():
            pass

    def _look(self) -> bool:
        """Count one more look at the same wait. Whether it was too long, which has been told then."""
        wait = self._wait
        self._looks = self._looks + 1 if wait is self._seen else 0
        self._seen = wait
        if wait is None or self._looks < wait.looks:
            return False
        self._tell(wait)
        return True

    def _tell(self, wait: _Wait) -> None:
        faulthandler.dump_traceback(file=_STDERR, all_threads=True)
        self._on_stall(
            UserError(
                wait.what,
                f"nothing came for {wait.looks * self._interval:.0f} s: {wait.state()}",
                "see whether disk, network folder and GPU answer (the stacks of all threads stand above), "
                "then go on with --c",
            )
        )
