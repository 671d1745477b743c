"""The same over dask.distributed: workers are handed whole cases, and one that dies loses its case to another.

The client finds the cases and writes the manifest; images, model and results lie in folders that all machines share.
"""

from __future__ import annotations

import importlib.util
import logging
import platform
import shutil
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umamba_seg import settings
from umamba_seg.errors import UserError
from umamba_seg.log import logger, quiet

if TYPE_CHECKING:
    from distributed import Client, Future

    from umamba_seg.predict.folder import Case, Job, Record
    from umamba_seg.predict.predictor import Predictor
    from umamba_seg.train.stopping import StopRequest

_LOCAL, _SLURM = "local", "slurm"
_ANSWER_SECONDS = 30  # of a scheduler
_LOOK_SECONDS = 5  # between looks at how many workers there are


def require_cluster(where: str, workers: int | None) -> None:
    """Refuse a cluster that cannot be had. Loads no torch.

    Args:
        where: ``local``, ``slurm``, ``slurm:CONFIG`` with a section of dask-jobqueue's configuration, or the address of
            a scheduler, such as ``tcp://host:8786``.
        workers: How many are wanted, or None.

    Raises:
        UserError: A package, SLURM or its configuration is missing, or the words make no sense.
    """
    _require_package("distributed")
    if "://" in where:
        if workers is not None:
            what = "the workers of a running scheduler are counted there"
            raise UserError(f"--workers {workers}", what, "leave it out, or start more of them")
    elif where.partition(":")[0] == _SLURM:
        _require_slurm(_config_name(where), workers)
    elif where != _LOCAL:
        remedy = "give local, slurm, slurm:CONFIG or a scheduler's address such as tcp://host:8786"
        raise UserError(f"--cluster {where}", "no such kind of cluster", remedy)


def _require_package(name: str) -> None:
    if importlib.util.find_spec(name) is None:
        raise UserError("--cluster", f"the package {name} is not installed", "pip install 'umamba-seg[cluster]'")


def _config_name(where: str) -> str:
    return where.partition(":")[2] or _SLURM


def _require_slurm(name: str, workers: int | None) -> None:
    _require_package("dask_jobqueue")
    import dask.config
    import dask_jobqueue  # noqa: F401  (it adds its defaults to dask's configuration)

    found = dask.config.get(f"jobqueue.{name}", None)
    if found is None or found.get("cores") is None or found.get("memory") is None:
        what = f"jobqueue.{name} in dask's configuration does not say cores and memory of a job"
        raise UserError("--cluster slurm", what, "write them into ~/.config/dask/jobqueue.yaml, see docs/prediction.md")
    if workers is None:
        raise UserError("--cluster slurm", "the number of jobs is missing", "give --workers N")
    if shutil.which("sbatch") is None:
        raise UserError("--cluster slurm", "there is no sbatch here", "start from a login node of the cluster")


@dataclass(frozen=True)
class Cluster:
    """An engine of :func:`~umamba_seg.predict.folder.predict_folder`.

    Attributes:
        where: See :func:`require_cluster`.
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
            with self._client() as client, _Handout(client, job, model) as handout:
                handout.work_off(cases, record, stop)
        except (CommClosedError, CancelledError):
            what = "the scheduler is gone, or has dropped the cases"
            raise UserError(f"--cluster {self.where}", what, "look at its log, and go on with --resume") from None

    @contextmanager
    def _client(self) -> Iterator[Client]:
        from distributed import Client

        if "://" in self.where:
            try:
                client = Client(self.where, timeout=_ANSWER_SECONDS)
            except (OSError, ValueError) as error:  # no answer; no address
                what = f"no scheduler answers there ({error})"
                raise UserError(
                    f"--cluster {self.where}", what, "check the address, or start one with `dask scheduler`"
                ) from None
            with client:
                yield client
            return
        with self._own_cluster() as cluster, Client(cluster) as client:
            yield client

    def _own_cluster(self):
        if self.where == _LOCAL:
            return _local_cluster(self.workers, self.how["device"])
        import dask.config
        from dask_jobqueue.slurm import SLURMCluster

        name = _config_name(self.where)
        # Left to itself, dask starts several in a job, and each loads the model.
        processes = dask.config.get(f"jobqueue.{name}.processes") or 1
        return SLURMCluster(n_workers=processes * (self.workers or 0), processes=processes, config_name=name)


def _local_cluster(workers: int | None, device: str | None):
    """A worker for every GPU, or a single one on a CPU, whose cores one network keeps busy."""
    import torch
    from distributed import LocalCluster

    workers = workers or max(1, torch.cuda.device_count() if device in (None, "cuda") else 1)
    options: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": max(1, settings.cores() // workers),
        "memory_limit": 0,  # a case says itself when there is too little; dask would kill it at an even share
        "dashboard_address": None,
        "silence_logs": logging.ERROR,  # that a worker takes its time to end is not worth a word
    }
    return LocalCluster(**options)


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
