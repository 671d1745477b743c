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
def only_one(file: Path, work: str) -> Iterator[bool]:
    """Do some work that no other process does at the same time.

    It is a POSIX record lock: it ends with its process, however that ends, processes forked from it do not hold it, and
    network drives know it. The file stays, with the name of the process that had it last. Where there are no such locks
    (Windows, some drives), processes are not kept apart, which is logged.

    Args:
        file: What is locked, in a folder that is there.
        work: What is done, for the message, such as "training this fold".

    Yields:
        Whether processes are kept apart.

    Raises:
        UserError: Another process is at it, which the message names; or the file is another user's.
    """
    with _opened(file) as holder:
        locked = _lock(holder, file, work)
        holder.truncate(0)
        holder.write(f"process {os.getpid()} on {socket.gethostname()}")
        holder.flush()
        yield locked


def _opened(file: Path) -> TextIO:
    try:
        return file.open("a+", encoding="utf-8")
    except PermissionError:
        remedy = "ask them to let the group write it, or remove it when nothing is at work there"
        raise UserError(file, "the lock that keeps processes apart is another user's", remedy) from None


def _lock(holder: TextIO, file: Path, work: str) -> bool:
    if os.name != "posix":
        logger.warning("%s: this system has no file locks; nothing else must be %s", file, work)
        return False
    try:
        fcntl.lockf(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder.seek(0)
        who = holder.read() or "another process"
        raise UserError(file.parent, f"{who} is {work}", "wait for its end, or stop it") from None
    except OSError as error:
        logger.warning("%s: this drive has no file locks (%s); nothing else must be %s", file, error.strerror, work)
        return False
    return True
