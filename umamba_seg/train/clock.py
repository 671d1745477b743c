"""The time budget of a training."""

from __future__ import annotations

import time


class Clock:
    """Wall time spent on training, against a limit.

    Args:
        limit: Seconds; infinite for no limit.
        spent: Seconds that earlier runs of the same training took.
    """

    def __init__(self, limit: float, spent: float = 0.0):
        self.limit = limit
        self._before = spent
        self._started: float | None = None

    def start(self) -> None:
        """Begin to count."""
        self._started = time.monotonic()

    def stop(self) -> None:
        """Count no further."""
        self._before, self._started = self.spent, None

    @property
    def is_running(self) -> bool:
        """Whether it counts."""
        return self._started is not None

    @property
    def spent(self) -> float:
        """Seconds spent so far."""
        return self._before + (0.0 if self._started is None else time.monotonic() - self._started)

    @property
    def left(self) -> float:
        """Seconds left; infinite without a limit."""
        return self.limit - self.spent

    @property
    def progress(self) -> float:
        """Share of the limit that is spent, 0 to 1; 0 without a limit."""
        return min(self.spent / self.limit, 1.0)
