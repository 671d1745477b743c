"""Folders and JSON files."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from umamba_seg.errors import UserError


def parse_json(path: Path) -> Any:
    """Read any JSON file.

    Raises:
        UserError: It is missing, a folder, not JSON, or nested too deep.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(path, "no such file", "check the path") from None
    except (IsADirectoryError, NotADirectoryError, PermissionError) as error:
        raise UserError(path, f"cannot be opened ({error.strerror})", "check the path and its permissions") from None
    except UnicodeDecodeError:
        raise UserError(path, "not JSON: it is not UTF-8 text", "save it as UTF-8 text") from None
    except json.JSONDecodeError as error:
        what = f"not JSON: {error.msg} in line {error.lineno}, column {error.colno}"
        raise UserError(path, what, "mend the file there") from None
    except RecursionError:
        raise UserError(path, "is nested too deep", "use the file as it was written") from None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object (``{...}``).

    Raises:
        UserError: It is missing, a folder, not JSON, or JSON of another kind.
    """
    content = parse_json(path)
    if not isinstance(content, dict):
        raise UserError(path, f"holds a JSON {type(content).__name__}, not an object", "write one object: { ... }")
    return content


def write_json(path: Path, content: object) -> None:
    """Write ``content`` as indented JSON, under another name first, so that ``path`` is never half written."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")  # the folds of a model write the same files at once
    try:
        part.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)  # of a disk that is full


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text, line ends as they are, under another name first, so that ``path`` is never half written."""
    with draft_of(path) as part:
        part.write_text(text, encoding="utf-8", newline="")


@contextlib.contextmanager
def draft_of(path: Path) -> Iterator[Path]:
    """Yield another name to write a file under; it gets its own when the block ends well, and is removed otherwise."""
    part = path.with_name(f".{path.name}.{uuid.uuid4().hex}.part")
    try:
        yield part
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def move_into_place(part: Path, path: Path) -> None:
    """Rename a written file once it is on the disk, so that not even a power failure leaves half of it at ``path``."""
    with part.open("r+b") as file:
        os.fsync(file.fileno())
    part.replace(path)
    if os.name == "posix":  # elsewhere a folder cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def is_file_name(name: str) -> bool:
    """Whether what is written under this name stays in its folder."""
    return name not in ("", ".", "..") and not set(name) & set("/\\\0")


def make_folder(path: Path) -> Path:
    """Make a folder and those above it, if they are missing.

    Raises:
        UserError: It cannot be made.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(path, f"this folder cannot be made ({error.strerror})", "name another") from None
    return path
