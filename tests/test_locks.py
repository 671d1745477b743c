"""Processes that would write the same files are kept apart."""

import errno
import logging
import os
from pathlib import Path

import pytest

from umamba_seg import locks
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.locks import only_one
from umamba_seg.plan.plans import read_plans
from umamba_seg.preprocess import preprocess, stamp_of


def test_two_processes_do_not_hold_the_same_lock(tmp_path, held_by_another_process):
    lock = tmp_path / ".lock"
    with held_by_another_process(lock) as process:
        message = f"{tmp_path}: process {process} on .* is training this fold; wait for its end, or stop it"
        with pytest.raises(UserError, match=message), only_one(lock, "training this fold"):
            pass
    with only_one(lock, "training this fold") as alone:
        assert alone
        assert lock.read_text().startswith(f"process {os.getpid()} on ")


def test_a_lock_ends_with_an_error(tmp_path, held_by_another_process):
    lock = tmp_path / ".lock"
    with pytest.raises(ZeroDivisionError), only_one(lock, "training"):
        raise ZeroDivisionError
    with held_by_another_process(lock):
        pass


def test_a_drive_without_locks_is_said_and_worked_on(tmp_path, monkeypatch, caplog):
    def none(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "lockf", none)
    with (
        caplog.at_level(logging.WARNING, logger="umamba_seg"),
        only_one(tmp_path / ".lock", "training this fold") as alone,
    ):
        assert not alone
    assert "no file locks (No locks available); nothing else must be training this fold" in caplog.text


def test_a_lock_of_another_user_is_named(tmp_path, monkeypatch):
    def denied(*_, **__) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "open", denied)
    message = r"\.lock: the lock that keeps processes apart is another user's; ask them"
    with pytest.raises(UserError, match=message), only_one(tmp_path / ".lock", "training"):
        pass


def test_a_fold_is_trained_by_one_process(trained, umamba_seg, held_by_another_process):
    fold = trained.model / "fold_0"
    lock = fold / ".training.lock"

    def content() -> dict:
        return {path: path.stat().st_mtime_ns for path in fold.iterdir() if path != lock}

    before = content()
    words = ("-d", 901, "--root", trained.root, "-c", "3d_fullres", "-f", 0, "-device", "cpu")
    with held_by_another_process(lock) as process:
        refused = umamba_seg("extend", *words, "--epochs", 1)
    assert refused.code == 2
    assert f"process {process} on" in refused.err
    assert "is training this fold; wait for its end, or stop it" in refused.err
    assert content() == before


def test_a_data_set_is_preprocessed_by_one_process(trained, held_by_another_process):
    preprocessed = trained.root / "nnUNet_preprocessed" / trained.raw.name
    plans = read_plans(preprocessed, None)
    lock = preprocessed / f".{stamp_of(preprocessed, plans, '3d_fullres').stem}.lock"
    with held_by_another_process(lock), pytest.raises(UserError, match="is preprocessing this data set"):
        preprocess(load_raw_dataset(trained.raw), plans, ["3d_fullres"], preprocessed, processes=1)
