"""The time budget."""

import math

import pytest

from umamba_seg.train import clock
from umamba_seg.train.clock import Clock


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """A clock that the test moves: ``now[0] += 3``."""
    time = [100.0]
    monkeypatch.setattr(clock.time, "monotonic", lambda: time[0])
    return time


def test_counts_from_its_start_on_top_of_earlier_runs(now):
    timer = Clock(60, spent=10)
    assert timer.spent == 10
    timer.start()
    now[0] += 20
    assert (timer.spent, timer.left, timer.progress) == (30, 30, 0.5)
    now[0] += 100
    assert timer.progress == 1


def test_without_a_limit_there_is_no_progress(now):
    timer = Clock(math.inf)
    timer.start()
    now[0] += 1e6
    assert timer.progress == 0
    assert timer.left == math.inf
