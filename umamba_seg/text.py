"""Pieces of messages."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def shorten(names: Sequence[str], shown: int = 10) -> str:
    """The first ``shown`` names, and how many more there are."""
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def many(number: int, word: str) -> str:
    """Such as 1 case, 2 cases."""
    return f"{number} {word}{'s' * (number != 1)}"


def gib(size: float) -> str:
    """Bytes -> ``1.50 GiB``, for messages."""
    return f"{size / 2**30:.2f} GiB"


def times(values: Iterable[float]) -> str:
    """``(4, 5, 7)`` -> ``4×5×7``, for messages."""
    return "×".join(f"{value:g}" for value in values)
