"""Workers of dask.distributed: on this machine, as jobs of SLURM, or of a scheduler that runs already."""

from __future__ import annotations

import importlib.util
import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from umamba_seg import settings
from umamba_seg.errors import UserError

if TYPE_CHECKING:
    from distributed import Client

_LOCAL, _SLURM = "local", "slurm"
_ANSWER_SECONDS = 30  # of a scheduler


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


@contextmanager
def connect(where: str, workers: int | None, device: str | None) -> Iterator[Client]:
    """A client of the scheduler; one that was started for it ends with it.

    Args:
        where, workers: As :func:`require_cluster` has let them pass.
        device: ``cpu``, ``cuda`` or None: a local cluster has a worker for every GPU, or a single one on a CPU.

    Raises:
        UserError: The scheduler does not answer.
    """
    from distributed import Client

    if "://" in where:
        try:
            client = Client(where, timeout=_ANSWER_SECONDS)
        except (OSError, ValueError) as error:  # no answer; no address
            what = f"no scheduler answers there ({error})"
            raise UserError(
                f"--cluster {where}", what, "check the address, or start one with `dask scheduler`"
            ) from None
        with client:
            yield client
        return
    with _own_cluster(where, workers, device) as cluster, Client(cluster) as client:
        yield client


def _own_cluster(where: str, workers: int | None, device: str | None):
    if where == _LOCAL:
        return _local_cluster(workers, device)
    import dask.config
    from dask_jobqueue.slurm import SLURMCluster

    name = _config_name(where)
    # Left to itself, dask starts several in a job, and each loads the model.
    processes = dask.config.get(f"jobqueue.{name}.processes") or 1
    return SLURMCluster(n_workers=processes * (workers or 0), processes=processes, config_name=name)


def _local_cluster(workers: int | None, device: str | None):
    """A worker for every GPU, or a single one on a CPU, whose cores one network keeps busy."""
    import torch
    from distributed import LocalCluster

    workers = workers or max(1, torch.cuda.device_count() if device in (None, "cuda") else 1)
    options: dict[str, Any] = {
        "n_workers": workers,
        "threads_per_worker": max(1, settings.cores() // workers),
        "memory_limit": 0,  # a case says itself when there is too little; dask would kill it at an even share
        "dashboard_address": "127.0.0.1:0",  # a free port, as there may be another cluster
        "silence_logs": logging.ERROR,  # that a worker takes its time to end is not worth a word
    }
    return LocalCluster(**options)
