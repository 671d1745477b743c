"""The same over dask.distributed: workers are handed whole cases, and one that dies loses its case to another.

The client finds the cases and writes the manifest; images, model and results lie in folders that all machines share.
"""

from __future__ import annotations

import platform
import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umamba_seg.errors import UserError
from umamba_seg.log import logger, quiet
from umamba_seg.scheduler import connect, require_cluster

if TYPE_CHECKING:
    from distributed import Client, Future

    from umamba_seg.predict.folder import Case, Job, Record
    from umamba_seg.predict.predictor import Predictor
    from umamba_seg.train.stopping import StopRequest

_LOOK_SECONDS = 5  # between looks at how many workers there are


@dataclass(frozen=True)
class Cluster:
    """An engine of :func:`~umamba_seg.predict.folder.predict_folder`.

    Attributes:
        where: See :func:`~umamba_seg.scheduler.require_cluster`.
        workers: Processes of a local cluster, jobs of SLURM.
        how: Arguments of ``Predictor.load`` beside the model's folder.
    """

    where: str
    workers: int | None
    how: dict[str, Any]

    def __call__(
        self, predictor: Predictor, cases: Sequence[Case], job: Job, record: Record, stop: StopRequest
    ) -> None:
        """Work the cases off.

        Raises:
            UserError: The scheduler does not answer, or is gone.
            Stopped: A signal came. Cases that are not finished are lost.
        """
        require_cluster(self.where, self.workers)
        from distributed.comm.core import CommClosedError

        model = Model(predictor.model_folder.absolute(), predictor.model_hash, self.how)
        try:
            with (
                connect(self.where, self.workers, self.how["device"]) as client,
                _Handout(client, job, model) as handout,
            ):
                handout.work_off(cases, record, stop)
        except (CommClosedError, CancelledError):
            what = "the scheduler is gone, or has dropped the cases"
            raise UserError(f"--cluster {self.where}", what, "look at its log, and go on with --resume") from None


class _Handout:
    """Cases that are with workers: one for each, as dask suspects all that a dead worker holds."""

    def __init__(self, client: Client, job: Job, model: Model):
        self.running: dict[Future, Case] = {}
        self._client, self._job, self._model = client, job, model
        self._alone = False

    def __enter__(self) -> _Handout:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.cancel(list(self.running))

    def work_off(self, cases: Sequence[Case], record: Record, stop: StopRequest) -> None:
        """Give out all of them, and note what becomes of each."""
        waiting = deque(cases)
        while waiting or self.running:
            while waiting and len(self.running) < max(1, self._workers()):
                case = waiting.popleft()
                future = self._client.submit(segment_case, case, self._job, self._model, pure=False)
                self.running[future] = case
            with stop.at_once():
                finished = self._wait()
            for case in finished:
                record.finished(case)

    def _workers(self) -> int:
        """How many there are now."""
        there: Any = self._client.nthreads()
        return len(there)

    def _wait(self) -> list[Case]:
        """Those that are done or have failed; none if that takes long."""
        from distributed import wait

        try:
            wait(list(self.running), timeout=_LOOK_SECONDS, return_when="FIRST_COMPLETED")
        except TimeoutError:
            alone = not self._workers()
            if alone and not self._alone:
                logger.info("no worker is there; waiting for one")
            self._alone = alone
            return []
        finished = [future for future in self.running if future.done()]
        return [self._result(future, self.running.pop(future)) for future in finished]

    def _result(self, future: Future, case: Case) -> Case:
        from distributed import KilledWorker

        error = future.exception()
        if not isinstance(error, KilledWorker):
            return future.result()
        what = f"{error.allowed_failures + 1} workers died over it, the last on {error.last_worker.address}"
        case.cause = str(UserError(case.name, what, "look at their logs; memory may have run out, see --ram-gb"))
        return case


@dataclass(frozen=True)
class Model:
    """What a worker loads.

    Attributes:
        folder: Of the model.
        hash: Of its plans and checkpoints.
        how: See :class:`Cluster`.
    """

    folder: Path
    hash: str
    how: dict[str, Any]


_loaded: dict[str, Predictor] = {}  # of this worker: the model of its last case
_one_at_a_time = threading.Lock()  # a worker of several threads has them for torch


def segment_case(case: Case, job: Job, model: Model) -> Case:
    """What a worker does: all stages of a case. The case comes back with its files or the cause of its failure."""
    with _one_at_a_time, quiet():
        predictor = case.run("load", partial(_predictor, model, job))
        prepared = None if predictor is None else job.prepare(predictor, case)
        if predictor is not None and prepared is not None:
            prediction = job.segment(predictor, case, prepared)
            if prediction is not None:
                job.write(predictor, case, prediction, lambda _: None)
    return case


def _predictor(model: Model, job: Job) -> Predictor:
    """The model, loaded once by every worker."""
    host = platform.node()
    if not job.scratch.is_dir():
        raise UserError(job.output, f"is not there on {host}", "let all workers share it, under the same path")
    key = repr((model.hash, model.how))
    if key not in _loaded:
        _loaded.clear()
        _loaded[key] = _load(model, host)
    return _loaded[key]


def _load(model: Model, host: str) -> Predictor:
    from distributed import get_worker

    worker = get_worker()
    import torch

    from umamba_seg.predict.predictor import Predictor

    torch.set_num_threads(worker.state.nthreads)  # dask tells every library to use one
    device = model.how["device"]
    gpus = torch.cuda.device_count()
    if device == "cuda" and not gpus:
        raise UserError("-device cuda", f"not available on {host}", "start workers where there is a GPU")
    if gpus and device in (None, "cuda"):
        number = worker.name if isinstance(worker.name, int) else 0  # local workers are numbered and see all GPUs
        device = f"cuda:{number % gpus}"
    how: dict[str, Any] = model.how | {"device": device}
    predictor = Predictor.load(model.folder, **how)
    if predictor.model_hash != model.hash:
        raise UserError(model.folder, f"is another model on {host}", "let all workers share it")
    return predictor
