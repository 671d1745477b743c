"""The parts of an epoch's time."""

import contextlib

import pytest
import torch

from umamba_seg.train import times
from umamba_seg.train.times import StepTimes

CPU, CUDA = torch.device("cpu"), torch.device("cuda", 1)


@pytest.fixture
def now(monkeypatch) -> list[float]:
    """A clock that the test moves: ``now[0] += 3``."""
    time = [100.0]
    monkeypatch.setattr(times.time, "perf_counter", lambda: time[0])
    return time


@pytest.fixture
def gpu(monkeypatch, now) -> list[float]:
    """The clock of a simulated GPU: events take its time when they are recorded. Moving ``gpu[0]`` is its work."""
    time = [7.0]

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == CUDA
            self.at = time[0]

        def synchronize(self):
            now[0] += 1  # the CPU was that far ahead

        def elapsed_time(self, other):
            return (other.at - self.at) * 1000

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    return time


def iteration(step_times: StepTimes, clock: list[float]) -> None:
    with step_times.loader:
        clock[0] += 1
    with step_times.compute:
        clock[0] += 4
    with step_times.step:
        clock[0] += 2
    clock[0] += 0.5


def test_sums_the_parts_and_starts_anew(now):
    step_times = StepTimes(CPU)
    iteration(step_times, now)
    iteration(step_times, now)
    assert step_times.take(30) == {
        "seconds": {"loader": 2, "forward_backward": 8, "step": 4, "other": 1, "all": 15},
        "samples_per_second": 2,
    }
    iteration(step_times, now)
    assert step_times.take(30)["seconds"] == {
        "loader": 1, "forward_backward": 4, "step": 2, "other": 0.5, "all": 7.5,
    }  # fmt: skip


def test_a_part_that_fails_counts(now):
    step_times = StepTimes(CPU)
    with contextlib.suppress(StopIteration), step_times.loader:
        now[0] += 3
        raise StopIteration
    assert step_times.take(1)["seconds"]["loader"] == 3


def test_on_a_gpu_its_own_clock_counts_and_is_read_at_the_end(now, gpu):
    step_times = StepTimes(CUDA)
    iteration(step_times, gpu)
    iteration(step_times, gpu)
    now[0] += 12
    taken = step_times.take(30)["seconds"]
    assert taken == {"loader": 2, "forward_backward": 8, "step": 4, "other": 1, "all": 15}
    now[0] += 3
    assert step_times.take(0)["seconds"] == {"loader": 0, "forward_backward": 0, "step": 0, "other": 3, "all": 3}
