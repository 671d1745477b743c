"""Keeping processes apart that would write the same files."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from umamba_seg.errors import UserError
from umamba_seg.log import logger

if os.name == "posix":
    import fcntl


@contextlib.contextmanager
def only_one(file: Path, work: str) -> Iterator[None]:
    """Do some work that no other process does at the same time.

    It is a POSIX record lock: it ends with its process, however that ends, processes forked from it do not hold it, and
    network drives know it. The file stays, with the name of the process that had it last. Where there are no such locks
    (Windows, some drives), processes are not kept apart, which is logged.

    Args:
        file: What is locked, in a folder that is there.
        work: What is done, for the message, such as "training this fold".

    Raises:
        UserError: Another process is at it; the message names it.
    """
    with file.open("a+", encoding="utf-8") as holder:
        _lock(holder, file, work)
        holder.truncate(0)
        holder.write(f"process {os.getpid()} on {socket.gethostname()}")
        holder.flush()
        yield


def _lock(holder: TextIO, file: Path, work: str) -> None:
    if os.name != "posix":
        logger.warning("%s: this system has no file locks; nothing else must be %s", file, work)
        return
    try:
        fcntl.lockf(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder.seek(0)
        who = holder.read() or "another process"
        raise UserError(file.parent, f"{who} is {work}", "wait for its end, or stop it") from None
    except OSError as error:
        logger.warning("%s: this drive has no file locks (%s); nothing else must be %s", file, error.strerror, work)
