"""Time, memory and the floor of a function, and what a row must say of the machine."""

from __future__ import annotations

import contextlib
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from cases import Case

SLOW = {"cpu": 4000, "cuda": 200}  # ms; what takes longer runs once
ROUNDS = range(3, 30)  # at least and at most
SHORT = 1.0  # ms; GPU functions below it are bound by Python, so that a replayed graph of them is timed as well

# Bytes and exponentials per second, from the data sheets: 16 exponentials per clock and multiprocessor at boost.
RATES = {
    "H200": (4.8e12, 3.7e12),
    "H100": (3.35e12, 3.7e12),
    "A100": (2.04e12, 2.4e12),
}


def once(function: Callable[[], object], device: torch.device, repeats: int = 1) -> float:
    """Milliseconds per call."""
    if device.type == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        for _ in range(repeats):
            function()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / repeats
    begin = time.perf_counter()
    for _ in range(repeats):
        function()
    return (time.perf_counter() - begin) * 1000 / repeats


def interleave(functions: dict[Any, Callable[[], object]], device: torch.device, seconds: float) -> dict[Any, float]:
    """Milliseconds of each function, all called in turn so that drifts of the machine meet all alike.

    The least of the samples on a CPU, where other programs can only add to it, and the median on a GPU.

    Args:
        functions: By name, each of which has been called before.
        device: Where they run.
        seconds: When to stop.
    """
    samples = {name: [once(function, device)] for name, function in functions.items()}
    fast = [name for name, (ms,) in samples.items() if ms < SLOW[device.type]]
    repeats = {name: max(1, min(100, int(5 / max(samples[name][0], 1e-3)))) for name in fast}  # 5 ms a sample or more
    for name in fast:
        samples[name].clear()
    begin = time.perf_counter()
    for done in range(ROUNDS.stop if fast else 0):
        if done >= ROUNDS.start and time.perf_counter() - begin > seconds:
            break
        for name in fast:
            samples[name].append(once(functions[name], device, repeats[name]))
    typical = statistics.median if device.type == "cuda" else min
    return {name: typical(times) for name, times in samples.items()}


def graphed(function: Callable[[], object]) -> Callable[[], object] | None:
    """The function's GPU work as a CUDA graph to replay, without Python's share of the time; None if torch refuses."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            function()
    except RuntimeError:  # a function that waits for the GPU, say
        return None
    return graph.replay


def graph_times(
    functions: dict[Any, Callable[[], object]], times: dict[Any, float], device: torch.device, seconds: float
) -> dict[Any, float]:
    """Milliseconds of the graphs of those functions whose ``times`` are bound by Python; none on a CPU."""
    if device.type != "cuda":
        return {}
    graphs = {name: graphed(function) for name, function in functions.items() if times[name] < SHORT}
    return interleave({name: graph for name, graph in graphs.items() if graph is not None}, device, seconds)


def peak_bytes(function: Callable[[], object], device: torch.device) -> int:
    """Most memory that a call holds at once in torch's allocator, results included."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    cpu = [torch.profiler.ProfilerActivity.CPU]
    with _silence(), torch.profiler.profile(activities=cpu, profile_memory=True) as profile:
        function()
    with tempfile.TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        profile.export_chrome_trace(str(trace))
        events = json.loads(trace.read_text())["traceEvents"]
    held = peak = 0
    for event in sorted((e for e in events if e.get("name") == "[memory]"), key=lambda e: e["ts"]):
        held += event["args"]["Bytes"]
        peak = max(peak, held)
    return peak


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Without what C++ code, such as torch's profiler, writes to the terminal."""
    terminal = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)


def floor_ms(case: Case, dtype: torch.dtype, training: bool, device_name: str) -> float | None:
    """What the machine's memory and exponentials allow at best; None for blocks and unknown GPUs.

    The larger of bytes over bandwidth and exponentials over their rate. Each input is read and each output written
    once a pass. The scan evaluates the decays once forward and again in the gradient, as it does not keep them.
    """
    rates = next((rates for name, rates in RATES.items() if name in device_name), None)
    if rates is None or case.op == "block":
        return None
    cells = case.batch * case.d * case.length
    if case.op == "scan":
        shared = 2 * case.batch * case.groups * case.n * case.length  # B, C
        read, written = cells * (3 if case.gated else 2) + shared, cells
        exponentials = cells * case.n
    else:
        read, written, exponentials = cells, cells, cells
    elements = read + written
    if training:  # the gradient reads all inputs and that of the result, and writes one for each input
        elements += 2 * read + cells
        exponentials *= 2
    return 1000 * max(elements * dtype.itemsize / rates[0], exponentials / rates[1])


def environment(device: torch.device) -> dict[str, str]:
    """Device, versions and commit."""
    try:
        import triton

        triton_version = triton.__version__
    except ImportError:
        triton_version = ""
    git = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty"]
    described = subprocess.run(git, capture_output=True, text=True, check=False)
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "torch": torch.__version__,
        "triton": triton_version,
        "python": platform.python_version(),
        "commit": described.stdout.strip(),
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    """The CPU's name and instruction set, as torch sees it."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0] if names else platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"
