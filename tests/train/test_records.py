"""The log in JSON lines and TensorBoard's event files."""

import errno
import json
import math
import struct
import time
from pathlib import Path

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from umamba_seg.errors import UserError
from umamba_seg.train.records import Records, read_epochs

EPOCH = {"loss/train": 0.5, "pseudo_dice/left ventricle": math.nan, "lr": 0.01}


def log_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text(encoding="utf-8").splitlines()]


def events_in(path: Path) -> list[Event]:
    """A record is its length (8 bytes), a checksum (4), the event, and another checksum (4)."""
    content, events = path.read_bytes(), []
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        events.append(Event.FromString(content[12 : 12 + length]))
        content = content[16 + length :]
    return events


def boards(folder: Path) -> list[Path]:
    return sorted(folder.glob("events.out.tfevents.*"))


def train(folder: Path, start: int, stop: int) -> None:
    records = Records(folder, start)
    records.event("start", epoch=start)
    for number in range(start, stop):
        records.epoch(number, EPOCH)
    records.close()


def test_an_epoch_stands_in_the_log_with_null_for_nan(tmp_path):
    train(tmp_path, 0, 1)
    start, epoch = log_of(tmp_path)
    assert start["event"] == "start"
    assert epoch.pop("time").endswith("+00:00")
    assert epoch == EPOCH | {"event": "epoch", "epoch": 0, "pseudo_dice/left ventricle": None}


def test_tensorboard_reads_the_same_numbers(tmp_path):
    train(tmp_path, 0, 2)
    version, start, *epochs = events_in(*boards(tmp_path))
    assert version.file_version == "brain.Event:2"
    assert (start.session_log.status, start.step) == (SessionLog.START, 0)
    assert [event.step for event in epochs] == [0, 1]
    assert abs(epochs[0].wall_time - time.time()) < 3600
    scalars = {value.tag: value.simple_value for value in epochs[1].summary.value}
    assert math.isnan(scalars.pop("pseudo_dice/left ventricle"))
    assert scalars == pytest.approx({"loss/train": 0.5, "lr": 0.01})


def test_what_was_written_is_there_before_the_files_are_closed(tmp_path):
    records = Records(tmp_path, 0)
    records.epoch(0, EPOCH)
    assert [line["event"] for line in log_of(tmp_path)] == ["epoch"]
    assert len(events_in(*boards(tmp_path))) == 3
    records.close()


def test_a_training_that_goes_on_drops_the_epochs_that_it_does_again(tmp_path):
    train(tmp_path, 0, 4)
    with (tmp_path / "log.jsonl").open("ab") as log:
        log.write('{"event": "warning", "text": "Größe'.encode()[:-3])  # killed within a letter
    train(tmp_path, 2, 3)
    assert [(line["event"], line["epoch"]) for line in log_of(tmp_path)] == [
        *(("start", 0), ("epoch", 0), ("epoch", 1)),
        *(("start", 2), ("epoch", 2)),
    ]
    assert [epoch["epoch"] for epoch in read_epochs(tmp_path)] == [0, 1, 2]
    assert not list(tmp_path.glob(".*"))
    _, start, epoch = events_in(boards(tmp_path)[1])
    assert (start.session_log.status, start.step, epoch.step) == (SessionLog.START, 2, 2)


def test_other_events_of_the_dropped_epochs_stay(tmp_path):
    records = Records(tmp_path, 0)
    records.epoch(0, EPOCH)
    records.event("recovery", module="stem", rates=(0.1, math.inf))
    records.close()
    Records(tmp_path, 0).close()
    (recovery,) = log_of(tmp_path)
    assert (recovery["event"], recovery["module"], recovery["rates"]) == ("recovery", "stem", [0.1, None])


def test_there_are_no_epochs_without_a_log(tmp_path):
    assert read_epochs(tmp_path) == []


def test_a_log_that_somebody_broke_is_named_with_its_line(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"event": "start"}\nhello\n{"event": "end"}\n')
    with pytest.raises(UserError, match=r"log\.jsonl: line 2 is not JSON; delete it; training does not need it"):
        Records(tmp_path, 0)


def full_disk() -> Path:
    """A file that takes nothing, as on a full disk."""
    path = Path("/dev/full")
    if not path.exists():
        pytest.skip("this system has no /dev/full")
    return path


def test_a_full_disk_raises_where_the_log_is_written(tmp_path):
    (tmp_path / "log.jsonl").symlink_to(full_disk())  # no regular file: there is nothing to read first
    records = Records(tmp_path, 0)
    with pytest.raises(OSError) as found:  # noqa: PT011  (its number is what counts)
        records.event("start")
    assert found.value.errno == errno.ENOSPC
    with pytest.raises(OSError, match="No space left"):  # the line is still to be written
        records.close()


def test_a_full_disk_raises_where_the_event_file_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(time, "time_ns", lambda: 1)
    train(tmp_path, 0, 1)
    (board,) = boards(tmp_path)
    board.unlink()
    board.symlink_to(full_disk())
    with pytest.raises(OSError, match="No space left"):
        Records(tmp_path, 1)
