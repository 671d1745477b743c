"""Waiting too long, told without waiting: the tests look for the watchdog."""

import threading
from collections.abc import Iterator

import pytest

from umamba_seg.train.watchdog import Watchdog


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def watchdog(told) -> Iterator[Watchdog]:
    """One that looks every hour by itself, with a limit of twenty hours."""
    watchdog = Watchdog(lambda error: told.append(str(error)), limit=20 * 3600)
    yield watchdog
    watchdog.close()


def looks(watchdog: Watchdog, times: int) -> list[bool]:
    return [watchdog._look() for _ in range(times)]


def test_a_wait_beyond_the_limit_is_told_once_with_the_stacks(watchdog, told, capfd):
    with watchdog.waiting_for("the next batch", lambda: "batch 7 with cases a, b"):
        assert looks(watchdog, 21) == [False] * 20 + [True]
    assert told == [
        "the next batch: nothing came for 72000 s: batch 7 with cases a, b; see whether disk, network folder and GPU "
        "answer (the stacks of all threads stand above), then go on with --c"
    ]
    assert "test_a_wait_beyond_the_limit_is_told_once_with_the_stacks" in capfd.readouterr().err


def test_waits_one_after_another_are_not_one(watchdog, told):
    for _ in range(5):
        with watchdog.waiting_for("the next batch", lambda: ""):
            looks(watchdog, 15)
    assert told == []


def test_between_waits_anything_may_take_its_time(watchdog, told):
    with watchdog.waiting_for("the next batch", lambda: ""):
        pass
    looks(watchdog, 100)
    assert told == []


def test_a_wait_has_a_limit_of_its_own(watchdog, told):
    with watchdog.waiting_for("the step", lambda: "", limit=60 * 3600):
        assert looks(watchdog, 61) == [False] * 60 + [True]


def test_an_error_ends_the_wait(watchdog, told):
    with pytest.raises(OSError, match="gone"), watchdog.waiting_for("the next batch", lambda: ""):
        raise OSError("gone")
    looks(watchdog, 100)
    assert told == []


def test_it_looks_by_itself_in_a_thread_of_its_own():
    tellers, told = [], threading.Event()
    watchdog = Watchdog(lambda error: (tellers.append(threading.current_thread().name), told.set()), limit=0.02)
    with watchdog.waiting_for("the next batch", lambda: ""):
        assert told.wait(timeout=60)
    watchdog.close()
    assert tellers == ["watchdog"]
    assert not watchdog._thread.is_alive()
