"""Being asked to stop: SIGINT (Ctrl-C) and SIGTERM (a queue, a shutdown) end a run at the next safe point."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from umamba_seg.errors import Stopped

_USUAL = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}


class StopRequest:
    """Listens to the signals within ``with``. A second one ends the process the way it usually would.

    Args:
        doing: What is done before the run ends, for the user.
        continuing: The option that goes on afterwards.

    Attributes:
        signum: The signal that came, 0 before.
    """

    def __init__(self, doing: str = "saving a checkpoint", continuing: str = "--c") -> None:
        self._doing, self._continuing = doing, continuing
        self.signum = 0
        self._at_once = False
        self._before: dict = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():  # elsewhere Python lets nobody listen
            self._before = {signum: signal.signal(signum, self._receive) for signum in _USUAL}
        return self

    def __exit__(self, *_error) -> None:
        for signum, handler in self._before.items():
            signal.signal(signum, handler)

    def _receive(self, signum: int, _frame) -> None:
        self.signum = signum
        for number, handler in _USUAL.items():
            signal.signal(number, handler)
        # Not through the logger: the signal may have come in the middle of its work.
        os.write(2, f"{signal.Signals(signum).name}: {self._doing}; once more ends at once\n".encode())
        if self._at_once:
            raise Stopped(signum, self._continuing)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Where nothing is half done, as while waiting for data, the signal raises :class:`Stopped` right away."""
        self._at_once = True
        try:
            if self.signum:
                raise Stopped(self.signum, self._continuing)
            yield
        finally:
            self._at_once = False
