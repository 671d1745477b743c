"""Whatever goes wrong ends a training with its cause and what to do, and leaves a checkpoint that loads."""

import json
import shutil
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from umamba_seg.train.checkpoints import read_checkpoint

SHORT = ("--epochs", 2, "--iterations-per-epoch", 4, "--workers", 0)


def state_of(fold, name: str = "latest") -> dict:
    return read_checkpoint(fold.folder / f"checkpoint_{name}.safetensors")[1]


def failed(run) -> str:
    """What a training printed that ended with a message, and no traceback."""
    assert run.wait() == 2, run.err
    assert "Traceback" not in run.err
    return run.err.splitlines()[-1]


@pytest.fixture
def own_data(fold, trained) -> Path:
    """The preprocessed cases of the fold, to be broken."""
    link = fold.root / "nnUNet_preprocessed"
    link.unlink()
    shutil.copytree(trained.root / "nnUNet_preprocessed", link)
    return next(link.glob("*/*mm_*/*_seg.b2nd")).parent


@pytest.fixture
def small_disk(fold):
    """Eight megabytes for the results."""
    results = fold.root / "nnUNet_results"
    results.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(results)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"a disk cannot be mounted here: {mounted.stderr.strip()}")
    yield results
    subprocess.run(["umount", str(results)], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("prepare", [{}, {"disk_that_claims_to_be_empty": {}}])
def test_a_full_disk(fold, small_disk, prepare):
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(4 * 2**20))
    message = failed(fold.train(*SHORT, prepare=prepare))
    assert "cannot be written" in message
    assert "free some space on this disk; the checkpoint that was there is kept, continue with --c" in message
    assert state_of(fold)["iterations"] == 0
    assert not list(fold.folder.glob(".*.part"))


@pytest.mark.slow
def test_a_worker_that_is_killed(fold):
    run = fold.train(*SHORT[:-1], 1, "--iterations-per-epoch", 10**6)
    while "training " not in run.err or not (fold.folder / "run.json").exists():
        time.sleep(0.05)
    forkserver = next(
        child for child in psutil.Process(run.pid).children() if "forkserver" in " ".join(child.cmdline())
    )
    forkserver.children()[0].kill()
    message = failed(run)
    assert "loader worker" in message
    assert "it was killed by SIGKILL" in message
    assert "most likely the system ran out of memory" in message
    assert "--workers" in message
    assert "synth_" in message, "names the cases"
    state_of(fold)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 1])
def test_a_truncated_case(fold, own_data, workers):
    for file in own_data.glob("*[0-9].b2nd"):
        with file.open("r+b") as opened:
            opened.truncate(file.stat().st_size // 2)
    message = failed(fold.train(*SHORT[:-1], workers))
    assert f"umamba-seg: {own_data}" in message
    assert "this preprocessed file cannot be read" in message
    assert "plan_and_preprocess" in message
    assert state_of(fold)["iterations"] == 0


@pytest.mark.slow
def test_a_case_that_is_deleted_while_training(fold, own_data):
    run = fold.train(*SHORT, "--iterations-per-epoch", 10**6)
    while not (fold.folder / "run.json").exists():
        time.sleep(0.02)
    for file in own_data.glob("*_seg.b2nd"):
        file.unlink()
    message = failed(run)
    assert "_seg.b2nd: this preprocessed file cannot be read" in message
    state_of(fold)


@pytest.mark.slow
def test_a_nan_in_an_image(fold):
    message = failed(fold.train(*SHORT, prepare={"nan_in_input": {"number": 2}}))
    assert "the input is the first that is not finite: 1 of " in message
    assert "channel 0 of synth_" in message
    assert "look at the raw images of these cases" in message
    assert state_of(fold)["iterations"] == 0
    report = json.loads((fold.folder / "numerics.json").read_text())
    assert [event["action"] for event in report["events"]] == ["give up"]


@pytest.mark.slow
def test_gradients_that_overflow_for_good(fold):
    message = failed(fold.train(*SHORT, prepare={"overflow": {"first": 2, "times": 10**6}}))
    assert "training gave up in epoch 0, iteration 2" in message
    assert "the gradient of the weight of " in message
    for tried in ("at 0.5 times", "at 0.25 times", "at 0.125 times"):
        assert f"back to the last checkpoint, {tried} the planned learning rate" in message
    state_of(fold)


@pytest.mark.slow
def test_gradients_that_overflow_once_are_recovered_from(fold):
    run = fold.train(*SHORT, prepare={"overflow": {"first": 2, "times": 2}})
    assert run.wait() == 0, run.err
    state = state_of(fold, "final")
    assert state["iterations"] == 8
    assert state["recovery"]["rewinds"] == 1
    assert state["logging"]["lrs"][1] < 0.5 * state["options"]["initial_lr"]
    lines = [json.loads(line) for line in (fold.folder / "log.jsonl").read_text().splitlines()]
    assert [line["action"] for line in lines if line["event"] == "recovery"] == ["rewind"]


@pytest.mark.slow
def test_a_batch_that_never_comes(fold):
    message = failed(fold.train(*SHORT, prepare={"stall": {"number": 2, "limit": 3.0}}))
    assert "the next batch: nothing came for 3 s: batch 2 with cases synth_" in message
    assert "made by this process" in message
    assert state_of(fold)["iterations"] == 2


@pytest.mark.slow
def test_no_budget_left_is_not_an_error(fold):
    run = fold.train(*SHORT)
    assert run.wait() == 0, run.err
    run = fold.train("--c")
    assert run.wait() == 0, run.err
    assert "nothing is left to train" in run.err
    state_of(fold, "final")


def test_a_signal_that_is_not_ours_is_left_alone():
    from umamba_seg.train.stopping import StopRequest

    before = signal.getsignal(signal.SIGTERM)
    with StopRequest() as stop:
        assert signal.getsignal(signal.SIGTERM) != before
        assert not stop.signum
    assert signal.getsignal(signal.SIGTERM) == before
