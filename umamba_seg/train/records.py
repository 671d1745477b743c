"""The records of a training that other programs read: log.jsonl, and TensorBoard's event files."""

from __future__ import annotations

import json
import math
import os
import platform
import time
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

# protobuf makes these classes while it is imported, where no type checker sees them.
from tensorboardX.proto.event_pb2 import Event, SessionLog  # type: ignore[attr-defined]
from tensorboardX.proto.summary_pb2 import Summary  # type: ignore[attr-defined]
from tensorboardX.record_writer import RecordWriter

from umamba_seg.errors import UserError
from umamba_seg.files import move_into_place

_LOG = "log.jsonl"


class Records:
    """Writes the records of a training. What a call was given is on the disk when it returns.

    Args:
        folder: Of the fold.
        start_epoch: The epoch that training begins with. What earlier runs have recorded of it and of later ones is
            dropped: from the log at once, by TensorBoard while it reads. Their other events stay.

    Raises:
        UserError: There is a log that cannot be read.
        OSError: The disk is full. Every method raises it then.
    """

    def __init__(self, folder: Path, start_epoch: int):
        _forget_epochs(folder / _LOG, start_epoch)
        with ExitStack() as opened:
            self._log = opened.enter_context((folder / _LOG).open("a", encoding="utf-8"))
            # TensorBoard reads the files in the order of their names. Not by tensorboardX's SummaryWriter: it writes
            # in a thread, which ends without a word when the disk is full.
            self._board = RecordWriter(str(folder / f"events.out.tfevents.{time.time_ns()}.{platform.node()}"))
            opened.callback(self._board.close)
            self._show(Event(file_version="brain.Event:2"), start_epoch)
            self._show(Event(session_log=SessionLog(status=SessionLog.START)), start_epoch)
            self._opened = opened.pop_all()

    def epoch(self, number: int, values: dict[str, float]) -> None:
        """Record an epoch, in both.

        Args:
            number: Of the epoch, from 0.
            values: By name; TensorBoard groups ``loss/train`` and ``loss/val``.
        """
        self.event("epoch", epoch=number, **values)
        scalars = [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]
        self._show(Event(summary=Summary(value=scalars)), number)

    def event(self, kind: str, /, **values) -> None:
        """Add a line to the log. JSON has neither NaN nor infinity: they stand there as null.

        Args:
            kind: ``start``, ``epoch``, ``warning``, ``recovery`` or ``end``.
            values: Plain values.
        """
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._log.write(_line({"event": kind, "time": now, **values}))
        self._log.flush()
        os.fsync(self._log.fileno())

    def close(self) -> None:
        """Close the files."""
        self._opened.close()

    def _show(self, event: Event, epoch: int) -> None:
        event.wall_time, event.step = time.time(), epoch
        self._board.write(event.SerializeToString())
        self._board.flush()


def read_epochs(folder: Path) -> list[dict[str, Any]]:
    """What the log of a fold holds about its epochs, in order; empty without a log.

    Raises:
        UserError: The log cannot be read.
    """
    path = folder / _LOG
    return [line for line in _read(path) if line["event"] == "epoch"] if path.is_file() else []


def _forget_epochs(path: Path, first: int) -> None:
    """Take the epoch ``first`` and later ones out of a log."""
    if path.is_file():
        kept = [line for line in _read(path) if line["event"] != "epoch" or line["epoch"] < first]
        part = path.with_name(f".{path.name}.part")
        part.write_text("".join(map(_line, kept)), encoding="utf-8")
        move_into_place(part, path)


def _read(path: Path) -> list[dict[str, Any]]:
    """The lines of a log but a last one that is torn: its writer was killed."""
    *whole, _torn = path.read_bytes().split(b"\n")
    lines = []
    for number, line in enumerate(whole, start=1):
        try:
            lines.append(json.loads(line))
        except ValueError:  # no JSON, or no text at all
            raise UserError(path, f"line {number} is not JSON", "delete it; training does not need it") from None
    return lines


def _line(values: dict[str, Any]) -> str:
    return json.dumps(_finite(values), ensure_ascii=False, allow_nan=False) + "\n"


def _finite(value: Any) -> Any:
    """``value`` with None in place of the numbers that JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
