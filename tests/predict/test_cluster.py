"""Cases on workers of dask.distributed: others do those of workers that die, and what cannot work is refused."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.predict.cluster import Cluster
from umamba_seg.predict.folder import Case, Job
from umamba_seg.scheduler import connect, require_cluster
from umamba_seg.train.stopping import StopRequest

pytest.importorskip("distributed")

HOW = {"folds": ["0"], "mirroring": False, "device": "cpu"}

# Run by every worker when it starts, twice: it dies of one case once, and of another one always.
DEADLY = """
import os, signal
from pathlib import Path
from umamba_seg.predict.folder import Job

def mortal(segment):
    def segment_or_die(self, predictor, case, prepared):
        marker = Path({marker!r})
        if case.name == "deadly" or (case.name == "once" and not marker.exists()):
            if case.name == "once":
                marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return segment(self, predictor, case, prepared)
    return segment_or_die

if Job.segment.__name__ == "segment":
    Job.segment = mortal(Job.segment)
"""


@pytest.fixture
def images(trained, tmp_path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    sources = sorted([*trained.raw.glob("imagesTr/*.nii.gz"), *trained.raw.glob("imagesTs/*.nii.gz")])
    for name, source in zip(("deadly", "first", "last", "once"), sources, strict=False):
        (folder / f"{name}_0000.nii.gz").symlink_to(source)
    return folder


def labels(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.nii.gz")}


@pytest.fixture
def expected(trained, images, umamba_seg, tmp_path) -> dict[str, bytes]:
    words = ("-i", images, "-m", trained.model, "-f", 0, "-device", "cpu", "--disable_tta")
    umamba_seg("predict", *words, "-o", tmp_path / "expected").succeeded()
    return labels(tmp_path / "expected")


@pytest.mark.slow
def test_workers_that_die_lose_their_cases_to_others(trained, images, expected, tmp_path):
    import dask
    from distributed import LocalCluster

    from umamba_seg.predict.folder import predict_folder
    from umamba_seg.predict.predictor import Predictor

    script = tmp_path / "deadly.py"
    script.write_text(DEADLY.format(marker=str(tmp_path / "died")))
    workers = {"n_workers": 2, "threads_per_worker": 1, "memory_limit": 0, "preload": str(script)}
    predictor = Predictor.load(trained.model, device="cpu", folds=["0"], mirroring=False)
    with (
        dask.config.set({"distributed.scheduler.allowed-failures": 1}),
        LocalCluster(**workers, dashboard_address=None, silence_logs=60) as cluster,
        pytest.raises(CasesFailed, match=r"deadly: 2 workers died over it, the last on tcp://.*--ram-gb") as failed,
    ):
        predict_folder(predictor, images, tmp_path / "out", engine=Cluster(cluster.scheduler_address, None, HOW))
    assert (tmp_path / "died").exists()
    assert list(failed.value.failures) == ["deadly"]
    del expected["deadly.nii.gz"]
    assert labels(tmp_path / "out") == expected
    states = {name: entry["status"] for name, entry in manifest(tmp_path / "out").items()}
    assert states == {"deadly": "failed", "first": "done", "last": "done", "once": "done"}
    assert not list((tmp_path / "out").glob(".*"))


def manifest(output: Path) -> dict[str, dict]:
    return json.loads((output / "manifest.json").read_text())["cases"]


@pytest.mark.slow
def test_a_cluster_of_this_machine(trained, images, expected, umamba_seg, tmp_path):
    words = ("-i", images, "-m", trained.model, "-f", 0, "-device", "cpu", "--disable_tta", "--json")
    (images / "broken_0000.nii.gz").write_bytes(b"no image")
    done = umamba_seg("predict", *words, "-o", tmp_path / "out", "--cluster", "local", "--workers", 2)
    assert done.code == 3
    assert set(done.result["failed"]) == {"broken"}
    assert "broken_0000.nii.gz" in done.result["failed"]["broken"]
    assert labels(tmp_path / "out") == expected
    assert manifest(tmp_path / "out")["first"]["device"] == "cpu"
    (images / "broken_0000.nii.gz").unlink()
    again = umamba_seg("predict", *words, "-o", tmp_path / "out", "--resume").succeeded().result
    assert again["skipped"] == ["deadly", "first", "last", "once"]


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """What stands for SLURM: sbatch runs the script at once, as job 7; the scripts are kept in the folder."""
    jobs = tmp_path / "jobs"
    jobs.mkdir()
    commands = {
        "sbatch": f'cp "$1" {jobs}/script; setsid bash {jobs}/script > {jobs}/log 2>&1 & echo $! >> {jobs}/pid; '
        "echo Submitted batch job 7",
        "scancel": f"for pid in $(cat {jobs}/pid); do kill -- -$pid; done",
    }
    for name, command in commands.items():
        (jobs / name).write_text(f"#!/bin/bash\n{command}\n")
        (jobs / name).chmod(0o700)
    monkeypatch.setenv("PATH", f"{jobs}{os.pathsep}{os.environ['PATH']}")
    return jobs


SETTINGS = {"jobqueue.mine": {"cores": 1, "memory": "4GB", "queue": "gpu", "interface": "lo", "walltime": "01:00:00"}}


@pytest.mark.slow
def test_a_cluster_of_slurm_jobs(trained, images, expected, umamba_seg, tmp_path, slurm):
    import dask
    import dask_jobqueue  # noqa: F401  (it adds its defaults to dask's configuration)

    words = ("-i", images, "-m", trained.model, "-f", 0, "-device", "cpu", "--disable_tta", "--json")
    defaults = dask.config.get("jobqueue.slurm")
    with dask.config.set({"jobqueue.mine": {**defaults, **SETTINGS["jobqueue.mine"]}}):
        done = umamba_seg("predict", *words, "-o", tmp_path / "out", "--cluster", "slurm:mine", "--workers", 1)
    assert done.code == 0, (slurm / "log").read_text() + done.err
    assert labels(tmp_path / "out") == expected
    script = (slurm / "script").read_text()
    for part in ("#SBATCH -p gpu", "#SBATCH -t 01:00:00", "--nthreads 1", sys.executable):
        assert part in script


@pytest.mark.parametrize(
    ("where", "workers", "message"),
    [
        ("cloud", None, "--cluster cloud: no such kind of cluster; give local, slurm, slurm:CONFIG or a scheduler's"),
        ("tcp://host:1", 3, "--workers 3: the workers of a running scheduler are counted there; leave it out"),
    ],
)
def test_clusters_that_make_no_sense(where, workers, message):
    with pytest.raises(UserError, match=message):
        require_cluster(where, workers)


def test_slurm_needs_its_configuration(tmp_path, monkeypatch):
    import dask

    with pytest.raises(UserError, match=r"jobqueue.slurm in dask's configuration does not say cores and memory"):
        require_cluster("slurm", 2)
    with pytest.raises(UserError, match=r"jobqueue.other in dask's configuration does not say"):
        require_cluster("slurm:other", 2)
    with dask.config.set(SETTINGS):
        with pytest.raises(UserError, match="the number of jobs is missing; give --workers N"):
            require_cluster("slurm:mine", None)
        monkeypatch.setenv("PATH", str(tmp_path))
        with pytest.raises(UserError, match="there is no sbatch here"):
            require_cluster("slurm:mine", 2)


@pytest.mark.parametrize(("where", "missing"), [("local", "distributed"), ("slurm", "dask_jobqueue")])
def test_the_packages_are_asked_for(monkeypatch, where, missing):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name == missing else find(name, *args))
    with pytest.raises(
        UserError, match=rf"the package {missing} is not installed; pip install 'umamba-seg\[cluster\]'"
    ):
        require_cluster(where, 1)


def test_a_scheduler_that_does_not_answer(monkeypatch):
    monkeypatch.setattr("umamba_seg.scheduler._ANSWER_SECONDS", 0.5)
    with (
        pytest.raises(UserError, match=r"--cluster tcp://127\.0\.0\.1:9: no scheduler answers there"),
        connect("tcp://127.0.0.1:9", None, None),
    ):
        pass


def test_a_scheduler_that_dies_ends_the_run(tmp_path):
    file = tmp_path / "scheduler.json"
    words = ("--port", "0", "--no-dashboard", "--scheduler-file", str(file))
    scheduler = subprocess.Popen(
        [sys.executable, "-m", "distributed.cli.dask_scheduler", *words], stderr=subprocess.DEVNULL
    )
    while not file.exists() or not file.read_text():
        assert scheduler.poll() is None
        time.sleep(0.1)
    engine = Cluster(json.loads(file.read_text())["address"], None, HOW)
    job = Job(tmp_path, tmp_path, tmp_path, None, False, None)
    model: Any = SimpleNamespace(model_folder=tmp_path, model_hash="ab")
    record: Any = None  # no case is ever finished, as there is no worker
    killer = threading.Timer(1, scheduler.kill)
    killer.start()
    try:
        with pytest.raises(UserError, match=r"--cluster tcp://.*: the scheduler is gone.* go on with --resume"):
            engine(model, [Case("a", {}), Case("b", {})], job, record, StopRequest())
    finally:
        killer.join()
        scheduler.wait()
