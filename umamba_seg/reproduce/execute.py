"""Doing what a table lacks: one run after the other here, or over dask's workers, each with its device.

Data sets are converted, planned and preprocessed here, and what comes out is measured here; folds are trained and test
cases segmented by whoever is free.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import CancelledError
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umamba_seg.errors import Stopped, UserError
from umamba_seg.log import logger
from umamba_seg.paths import Folders
from umamba_seg.reproduce.runs import Job
from umamba_seg.reproduce.steps import (
    Machine,
    Step,
    convert_step,
    fold_step,
    is_measured,
    measure,
    plan_step,
    predict_step,
    require_test_cases,
)
from umamba_seg.scheduler import connect
from umamba_seg.train.stopping import StopRequest

if TYPE_CHECKING:
    from distributed import Future

_LOOK_SECONDS = 0.2  # between looks at a run and at the signals
_ENDED_BY_SIGNAL = (130, 143)
_one_at_a_time = threading.Lock()  # a worker of several threads has them for torch


@dataclass(frozen=True)
class Task:
    """What one worker does at a time: a fold of a job, or its predictions.

    Attributes:
        job: It.
        fold: Which, or None to segment the test cases.
        machine: What commands are told.
    """

    job: Job
    fold: int | str | None
    machine: Machine

    def next_step(self) -> Step | None:
        if self.fold is None:
            return predict_step(self.job, self.machine)
        return fold_step(self.job, self.fold, self.machine)

    def __str__(self) -> str:
        part = "test cases" if self.fold is None else f"fold {self.fold}"
        return f"{self.job}, {part}"


@dataclass
class Workshop:
    """Where a table's runs are done.

    Attributes:
        machine: What commands are told.
        cluster: See :func:`umamba_seg.scheduler.require_cluster`; None to work here.
        workers: Of the cluster.
        failures: Why a job could not be finished.
    """

    machine: Machine
    cluster: str | None = None
    workers: int | None = None
    failures: dict[Job, str] = field(default_factory=dict)
    _unconverted: dict[str, UserError] = field(default_factory=dict)  # data set -> why

    def work_off(self, jobs: Sequence[Job], sources: Mapping[str, Path]) -> None:
        """Do all that the jobs lack. What fails is noted, and the others go on.

        Args:
            jobs: In an order in which they can be planned.
            sources: Data set of the table -> folder of its release.

        Raises:
            Stopped: A signal came; a training has saved a checkpoint.
            UserError: The scheduler does not answer.
        """
        with StopRequest("ending the run at work", "the same command") as stop:
            for job in jobs:
                self._attempt(job, lambda job=job: self._prepare(job, sources.get(job.key), stop))
            for tasks in (self._folds(jobs), self._predictions(jobs)):
                self._share_out([task for task in tasks if task.job not in self.failures], stop)
            for job in jobs:
                if stop.signum:
                    raise Stopped(stop.signum, "the same command")
                if job not in self.failures and not is_measured(job):
                    logger.info("measuring %s", job)
                    self._attempt(job, lambda job=job: measure(job, self.machine.processes))

    def _attempt(self, job: Job, act: Callable[[], None]) -> None:
        try:
            act()
        except UserError as error:
            logger.error("%s", error)
            self.failures.setdefault(job, str(error))

    def _prepare(self, job: Job, source: Path | None, stop: StopRequest) -> None:
        self._convert(job, source, stop)
        require_test_cases(job)
        if (step := plan_step(job, self.machine)) is not None:
            run(step, job.folders, stop)

    def _convert(self, job: Job, source: Path | None, stop: StopRequest) -> None:
        """Once for a data set, whatever comes of it."""
        if job.name in self._unconverted:
            raise self._unconverted[job.name]
        try:
            if (step := convert_step(job, source)) is not None:
                run(step, job.folders, stop)
        except UserError as error:
            self._unconverted[job.name] = error
            raise

    def _folds(self, jobs: Iterable[Job]) -> list[Task]:
        return [Task(job, fold, self.machine) for job in jobs for fold in job.dataset.folds]

    def _predictions(self, jobs: Iterable[Job]) -> list[Task]:
        return [Task(job, None, self.machine) for job in jobs if job.dataset.scored == "test"]

    def _share_out(self, tasks: Sequence[Task], stop: StopRequest) -> None:
        if self.cluster is None:
            for task in tasks:
                self._attempt(task.job, lambda task=task: finish(task, stop))
            return
        waiting = deque(task for task in tasks if self._lacks_something(task))
        if waiting:
            self._hand_out(self.cluster, waiting, stop)

    def _hand_out(self, where: str, waiting: deque[Task], stop: StopRequest) -> None:
        """To each worker one task at a time: dask suspects all that a dead worker holds."""
        from distributed.comm.core import CommClosedError

        futures: dict[Future, Task] = {}
        try:
            with ExitStack() as stack:
                client = stack.enter_context(connect(where, self.workers, self.machine.device))
                stack.callback(lambda: client.cancel(list(futures)))
                while waiting or futures:
                    there: Any = client.nthreads()
                    while waiting and len(futures) < max(1, len(there)):
                        task = waiting.popleft()
                        futures[client.submit(finish_on_worker, task, pure=False)] = task
                    self._collect(futures, stop)
        except (CommClosedError, CancelledError):
            what = "the scheduler is gone, or has dropped the runs"
            raise UserError(f"--cluster {where}", what, "look at its log; the same command goes on") from None

    def _lacks_something(self, task: Task) -> bool:
        found: list[Step | None] = []
        self._attempt(task.job, lambda: found.append(task.next_step()))
        return any(found)

    def _collect(self, futures: dict[Future, Task], stop: StopRequest) -> None:
        """Take what is done; nothing if that takes long."""
        from distributed import wait

        with stop.at_once():
            try:
                wait(list(futures), timeout=5, return_when="FIRST_COMPLETED")
            except TimeoutError:
                return
        for future in [future for future in futures if future.done()]:
            self._attempt(futures[future].job, lambda future=future: _result(future, futures.pop(future)))


def _result(future: Future, task: Task) -> None:
    from distributed import KilledWorker

    try:
        future.result()
    except KilledWorker as error:
        what = f"{error.allowed_failures + 1} workers died over it"
        raise UserError(str(task), what, "look at their logs; memory may have run out") from None
    logger.info("done: %s", task)


def finish(task: Task, stop: StopRequest, environment: Mapping[str, str] | None = None) -> None:
    """Do all that a task lacks.

    Raises:
        UserError: A command failed, or left nothing.
        Stopped: A signal came.
    """
    done = None
    while (step := task.next_step()) is not None:
        if step == done:
            raise UserError(str(task), f"`{step}` ended well, but left not what it should", "run it by hand")
        run(step, task.job.folders, stop, environment)
        done = step


def run(step: Step, folders: Folders, stop: StopRequest, environment: Mapping[str, str] | None = None) -> None:
    """Run a command in a process of its own. A signal to this one is passed on, and its end waited for.

    Raises:
        UserError: It failed.
        Stopped: A signal ended it.
    """
    logger.info("umamba-seg %s", step)
    command = [sys.executable, "-P", "-m", "umamba_seg.reproduce.child", *step.command]
    variables = os.environ | folders.variables() | dict(environment or {})
    told = False
    with subprocess.Popen(command, env=variables, start_new_session=True) as process:
        while (code := _wait(process)) is None:
            if stop.signum and not told:
                process.send_signal(stop.signum)
                told = True
    if stop.signum or code in _ENDED_BY_SIGNAL:
        raise Stopped(stop.signum or code - 128, "the same command")
    if code:
        raise UserError(
            f"umamba-seg {step}", f"ended with exit code {code}", "mend what its message says; the same command goes on"
        )


def _wait(process: subprocess.Popen) -> int | None:
    try:
        return process.wait(_LOOK_SECONDS)
    except subprocess.TimeoutExpired:
        return None


def finish_on_worker(task: Task) -> None:
    """What a worker of dask does: :func:`finish` with all its threads, and on a local cluster with its own GPU."""
    from distributed import get_worker

    worker = get_worker()
    environment = {"OMP_NUM_THREADS": str(worker.state.nthreads)}  # dask tells every library to use one
    if isinstance(worker.name, int) and task.machine.device != "cpu" and (gpus := _gpus()):
        environment["CUDA_VISIBLE_DEVICES"] = gpus[worker.name % len(gpus)]
    if not task.job.preprocessed.is_dir():
        raise UserError(
            task.job.preprocessed, "is not there on this worker", "let all workers share it, under the same path"
        )
    try:
        with _one_at_a_time:
            finish(task, StopRequest(), environment)
    except Stopped as stopped:  # of this worker, while the others go on
        what = f"was ended by signal {stopped.signum} on {worker.address}"
        raise UserError(str(task), what, "the same command goes on") from None


def _gpus() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    if given := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return given.split(",")
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
