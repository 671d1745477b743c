"""Runs in processes of their own: how they end, and what signals do."""

import signal
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from umamba_seg.errors import Stopped, UserError
from umamba_seg.reproduce import execute
from umamba_seg.reproduce.execute import Task, Workshop, finish, finish_on_worker, run
from umamba_seg.reproduce.runs import jobs_of
from umamba_seg.reproduce.steps import Machine, Step
from umamba_seg.train.stopping import StopRequest


@pytest.fixture
def command(monkeypatch):
    """``command(code)`` lets every run be this Python code."""

    def let(code: str) -> None:
        started = execute.subprocess.Popen
        monkeypatch.setattr(
            execute.subprocess, "Popen", lambda _words, **how: started([sys.executable, "-c", code], **how)
        )

    return let


STEP = Step("train", ("train", "-d", "4"))


def test_a_run_knows_the_folders_and_its_surroundings(command, folders, tmp_path):
    command(f"import os; open({str(tmp_path / 'seen')!r}, 'w').write(os.environ['nnUNet_raw'] + os.environ['GPU'])")
    run(STEP, folders, StopRequest(), {"GPU": "3"})
    assert (tmp_path / "seen").read_text() == f"{folders.raw}3"


def test_a_run_that_fails_is_named(command, folders):
    command("raise SystemExit(2)")
    with pytest.raises(UserError, match=r"umamba-seg train -d 4: ended with exit code 2"):
        run(STEP, folders, StopRequest())


def test_a_signal_is_passed_on_and_the_end_waited_for(command, folders, tmp_path):
    command(
        "import signal, time, pathlib\n"
        f"def end(*_): pathlib.Path({str(tmp_path / 'saved')!r}).touch(); raise SystemExit(143)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        f"pathlib.Path({str(tmp_path / 'ready')!r}).touch()\n"
        "time.sleep(60)"
    )
    stop = StopRequest()

    def ask() -> None:
        while not (tmp_path / "ready").is_file():
            time.sleep(0.02)
        stop.signum = signal.SIGTERM

    threading.Thread(target=ask).start()
    with pytest.raises(Stopped) as stopped:
        run(STEP, folders, stop)
    assert stopped.value.signum == signal.SIGTERM
    assert (tmp_path / "saved").is_file()


def test_a_command_that_leaves_nothing_is_not_run_for_ever(monkeypatch, small_job):
    ran = []
    monkeypatch.setattr(execute, "run", lambda step, *_: ran.append(step))
    with pytest.raises(UserError, match="ended well, but left not what it should"):
        finish(Task(small_job(), 0, Machine()), StopRequest())
    assert len(ran) == 1


def test_what_fails_does_not_stop_the_others(monkeypatch, small_table, folders):
    jobs = jobs_of(small_table(training="seeds = [0, 1]"), folders)
    trained = []

    def half(step, *_):
        if step.command[0] == "plan_and_preprocess":
            return
        if "0" in step.command[step.command.index("--seed") :]:
            raise UserError("train", "broke", "mend it")
        trained.append(step)

    jobs[0].raw.mkdir(parents=True)
    monkeypatch.setattr(execute, "run", half)
    monkeypatch.setattr(execute, "is_measured", lambda job: True)
    monkeypatch.setattr(execute.Task, "next_step", lambda task: None if trained else _step(task))
    workshop = Workshop(Machine())
    workshop.work_off(jobs, {})
    assert [job.seed for job in workshop.failures] == [0]
    assert "broke" in workshop.failures[jobs[0]]
    assert len(trained) == 1


def test_a_data_set_is_converted_once_whatever_comes_of_it(monkeypatch, small_table, folders, tmp_path):
    jobs = jobs_of(small_table(training="seeds = [0, 1]", dataset='convert = ["msd"]'), folders)
    ran = []

    def fail(step, *_):
        ran.append(step.what)
        raise UserError("convert", "a label is missing", "mend it")

    monkeypatch.setattr(execute, "run", fail)
    workshop = Workshop(Machine())
    workshop.work_off(jobs, {"liver": tmp_path})
    assert ran == ["convert"]
    assert set(workshop.failures) == set(jobs)


def test_a_worker_that_is_told_to_end_fails_its_run_alone(monkeypatch, small_job):
    distributed = pytest.importorskip("distributed")

    def stopped(*_):
        raise Stopped(signal.SIGTERM, "the same command")

    job = small_job()
    job.preprocessed.mkdir(parents=True)
    worker = SimpleNamespace(state=SimpleNamespace(nthreads=1), name="one", address="tcp://elsewhere:1")
    monkeypatch.setattr(distributed, "get_worker", lambda: worker)
    monkeypatch.setattr(execute, "finish", stopped)
    with pytest.raises(UserError, match="was ended by signal 15 on tcp://elsewhere:1; the same command goes on"):
        finish_on_worker(Task(job, 0, Machine("cpu")))


def _step(task: Task) -> Step:
    return Step("train", ("train", "--seed", str(task.job.seed)))
