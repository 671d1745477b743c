"""Where tests find real data. It is not part of the project: without it those tests are skipped."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("hippocampus")`` is the folder of that data set, in $UMAMBA_TEST_DATA or ../shared/data."""
    root = Path(os.environ.get("UMAMBA_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"{name} is not in {root}")
        return root / name

    return find
