"""A training goes on after any kill as if nothing had happened, and stops within seconds when it is asked to."""

import random
import signal
import time

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.train.checkpoints import read_checkpoint

SHORT = ("--epochs", 2, "--iterations-per-epoch", 6, "--workers", 0, "--deterministic")
SAVING_ALWAYS = ("--checkpoint-minutes", 1e-6)
KILLS = 20
LONG = ("--epochs", 3, "--iterations-per-epoch", 12, "--workers", 0, "--deterministic")  # not done before the last kill


def weights_and_moments(fold) -> dict[str, torch.Tensor]:
    return read_checkpoint(fold.folder / "checkpoint_final.safetensors")[0]


def assert_same_bits(one: dict, other: dict) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.fixture
def another(fold, tmp_path_factory):
    """A second fold of the same data, whose training nothing disturbs: its final tensors."""

    def train(*words) -> dict:
        root = fold.root.with_name("undisturbed")
        root.mkdir()
        for name in ("nnUNet_raw", "nnUNet_preprocessed"):
            (root / name).symlink_to(fold.root / name)
        run = fold.train(*words, "--root", root)  # the last of two counts
        assert run.wait() == 0, run.err
        moved = next(root.glob("nnUNet_results/*/*/fold_0/checkpoint_final.safetensors"))
        return read_checkpoint(moved)[0]

    return train


def wait_for(condition, run) -> None:
    while not condition() and not run.ended():
        time.sleep(0.002)


@pytest.mark.slow
def test_nothing_is_lost_when_training_is_killed_at_twenty_random_moments(fold, another):
    reference = another(*LONG)
    moments = random.Random(6)
    kills = {"starting": 0, "training": 0, "writing": 0}
    part = fold.folder / ".checkpoint_latest.safetensors.part"
    while sum(kills.values()) < KILLS:
        started = fold.folder.is_dir() and any(fold.folder.glob("checkpoint_*.safetensors"))
        words = ("--c", "--workers", 0) if started else (*LONG, *SAVING_ALWAYS)
        run = fold.train(*words, prepare={"slow": {"seconds": 0.3}})
        moment = moments.choice(tuple(kills))
        if moment == "starting":
            time.sleep(moments.uniform(0, 1))
        else:
            wait_for(lambda run=run: "training " in run.err, run)
            time.sleep(moments.uniform(0, 0.7))
            wait_for(part.exists if moment == "writing" else lambda: True, run)
        run.signal(signal.SIGKILL)
        assert run.wait() == -signal.SIGKILL, run.err
        kills[moment] += 1
    assert min(kills.values()) >= 3, kills
    run = fold.train("--c", "--workers", 0)
    assert run.wait() == 0, run.err
    assert_same_bits(weights_and_moments(fold), reference)


@pytest.mark.slow
@pytest.mark.parametrize(("signum", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_saves_a_checkpoint_and_costs_nothing(fold, another, signum, code):
    run = fold.train(*SHORT)
    wait_for(lambda: "epoch 1/2" in run.err, run)
    asked = time.monotonic()
    run.signal(signum)
    assert run.wait() == code, run.err
    assert time.monotonic() - asked < 10
    assert f"umamba-seg: stopped by {signal.Signals(signum).name}; continue with --c" in run.err
    state = read_checkpoint(fold.folder / "checkpoint_latest.safetensors")[1]
    assert state["epoch"] == 1
    run = fold.train("--c", "--workers", 0)
    assert run.wait() == 0, run.err
    assert "epoch 1/2" not in run.err
    assert_same_bits(weights_and_moments(fold), another(*SHORT))


@pytest.mark.slow
def test_a_signal_after_the_last_iteration_is_heard(fold):
    run = fold.train(*SHORT, prepare={"signal_at_the_end": {}})
    assert run.wait() == 143, run.err
    assert weights_and_moments(fold)


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(fold, another):
    run = fold.train(*SHORT, *SAVING_ALWAYS)
    previous = fold.folder / "checkpoint_previous.safetensors"
    wait_for(lambda: previous.exists() and read_checkpoint(previous)[1]["iterations"] > 1, run)
    run.signal(signal.SIGKILL)
    run.wait()
    latest = fold.folder / "checkpoint_latest.safetensors"
    with latest.open("r+b") as file:
        file.truncate(latest.stat().st_size // 2)
    with pytest.raises(UserError):
        read_checkpoint(latest)
    run = fold.train("--c", "--workers", 0)
    assert run.wait() == 0, run.err
    assert f"{latest}: is damaged" in run.err
    assert "the one before it, checkpoint_previous.safetensors, is used" in run.err
    assert latest.with_suffix(".damaged").exists()
    assert_same_bits(weights_and_moments(fold), another(*SHORT))


@pytest.mark.slow
def test_an_extension_has_a_schedule_of_its_own(fold):
    run = fold.train(*SHORT)
    assert run.wait() == 0, run.err
    run = fold.train("--c", "--epochs", 5)
    assert run.wait() == 2
    assert "this training is finished; train on with `umamba-seg extend --epochs N`" in run.err
    run = fold.train("--epochs", 3, "--workers", 0, verb="extend")
    assert run.wait() == 0, run.err
    state = read_checkpoint(fold.folder / "checkpoint_final.safetensors")[1]
    assert (state["epoch"], state["iterations"], state["options"]["epochs"]) == (5, 30, 5)
    *_, gentle, full, falling = state["logging"]["lrs"]
    assert gentle < falling < full
    assert full == pytest.approx(state["options"]["initial_lr"])
