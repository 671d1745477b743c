"""The machine code of the Triton kernels, compiled for GPUs that need not be here: no spills, bounds on the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

import pytest

SCRIPT = Path(__file__).parents[2] / "kernels" / "benchmarks" / "static_budget.py"
TARGETS = ["sm_80", "sm_90", "gfx942"]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("triton") is None, reason="the package triton is missing"),
]


class Budget(NamedTuple):
    """Bounds for sm_90: registers of a thread, bytes of shared memory, and of a warp per token, the sum over the main
    loops, instructions and exponentials."""

    registers: int
    shared: int
    instructions: float
    exponentials: float


# A warp advances 32 channels by a token in the scan, 64 in the convolution. The scan's bounds without softplus and gate
# are the project's; the others are what the kernels need with a few per cent to spare.
BUDGETS = {
    "scan forward, no softplus, no gate": Budget(128, 0, 115, 16),
    "scan forward": Budget(128, 0, 135, 18),
    "scan forward of segments": Budget(128, 0, 135, 18),
    "scan forward, sliced and reverse": Budget(144, 0, 175, 18),
    "scan forward, bfloat16": Budget(128, 0, 145, 18),
    "scan forward, 64 states": Budget(168, 512, 180, 18),
    "scan forward, float64": Budget(255, 512, 700, 0),
    "scan summary": Budget(128, 0, 100, 17),
    "scan summary of adjoints": Budget(128, 0, 115, 18),
    "scan carry": Budget(64, 0, 25, 1),
    "scan backward, no softplus, no gate": Budget(255, 0, 520, 40),
    "scan backward": Budget(255, 0, 580, 43),
    "scan backward of segments": Budget(255, 0, 580, 43),
    "scan backward, sliced and reverse": Budget(255, 0, 640, 43),
    "scan backward, bfloat16": Budget(255, 0, 590, 43),
    "scan backward, shares of several blocks": Budget(255, 0, 580, 43),
    "scan backward, 64 states": Budget(255, 1024, 560, 21),
    "scan backward, float64": Budget(255, 2048, 950, 0),
    "convolution forward, float32": Budget(72, 0, 50, 2),
    "convolution backward, float32": Budget(88, 0, 95, 2),
    "convolution forward, bfloat16": Budget(72, 0, 55, 2),
    "convolution backward, bfloat16": Budget(88, 0, 100, 2),
    "convolution forward, float64": Budget(104, 0, 220, 0),
    "convolution backward, float64": Budget(168, 0, 260, 0),
}


@pytest.fixture(scope="module")
def compiled() -> dict[tuple[str, str], dict]:
    """What the script counts, by kernel and target; in a process of its own, where nothing is interpreted."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, str(SCRIPT), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {(row["kernel"], row["target"]): row for row in json.loads(done.stdout)}


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("kernel", BUDGETS)
def test_compiles_without_local_memory(compiled, kernel, target):
    assert compiled[kernel, target]["local"] == 0


@pytest.mark.parametrize("kernel", BUDGETS)
def test_within_budget(compiled, kernel):
    row = compiled[kernel, "sm_90"]
    got = Budget(row["registers"], row["shared"], row["per token"], row["exp"])
    assert all(value <= bound for value, bound in zip(got, BUDGETS[kernel], strict=True)), got


def test_forward_scan_exchanges_nothing_between_lanes(compiled):
    row = compiled["scan forward, no softplus, no gate", "sm_90"]
    assert (row["shuffle"], row["shared access"], row["barrier"]) == (0, 0, 0)


def test_every_kernel_has_a_budget(compiled):
    assert {kernel for kernel, _ in compiled} == set(BUDGETS)
