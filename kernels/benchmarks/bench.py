"""Time the kernels on shapes of real networks: every backend that can run here, side by side.

    python kernels/benchmarks/bench.py --device cpu                # about five minutes on two cores
    python kernels/benchmarks/bench.py --device cuda
    python kernels/benchmarks/bench.py --device cuda --peer mamba_ssm_scan.py mamba_ssm-2.3.2.post1
    python kernels/benchmarks/tune.py                              # one pass against segments, needs a GPU
    python kernels/benchmarks/plot.py kernels/benchmarks/results/cpu.csv

Backends take turns in one process, so that drifts of the machine meet all alike. Times are medians on a GPU and the
least on a CPU, where other programs can only add to them; what takes longer than 4 s (0.2 s on a GPU) runs once. GPU
functions below a millisecond are bound by Python, so that they are timed as a replayed CUDA graph as well ("graph ms").
Inputs stay where they are between calls, so small ones come from the cache for all backends. Peak memory is what a call
holds at once in torch's allocator, its results included.

``--peer SCRIPT FOLDER`` measures another implementation of the scan: a Python file with ``build(folder)``, whose result
is the first argument of ``scan(built, u, delta, A, B, C, D, z, delta_bias, *, delta_softplus)``, and the folder of its
source. It gets its tensors in the layout it likes best (tokens last) and the tokens in scan order, at no cost; in a
block it is surrounded by torch's convolution and matrix products, and flips and rearranges for the scan orders.

On a CPU the speed on two threads over that on one is measured for long sequences, next to that of torch.exp over as
many bytes. Rows go to results/<name>.csv beside this file.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cases
import measure
import torch
import torch.nn.functional as F
from cases import Block, Case
from tabulate import tabulate
from torch import Tensor

from umamba_kernels import available_backends, causal_conv1d, mamba_inner, selective_scan

RESULTS = Path(__file__).parent / "results"
PASSES = ("forward", "forward + backward")
REFERENCE_TOKENS = {"scan": 32768, "conv": 32768, "block": 512}  # the definition is not asked for more
MIB = 2**20
COLUMNS = (
    *("op", "case", "shape", "batch", "d", "L", "N", "groups", "dtype", "order", "backend", "pass", "threads"),
    *("ms", "graph ms", "floor ms", "peak MiB", "inputs MiB", "problem"),
    *("device", "torch", "triton", "python", "commit", "date"),
)
Row = dict[str, Any]


@dataclass
class Run:
    """A case on a backend.

    Args:
        forward: Computes the result, which is shaped like the first leaf.
        leaves: What wants a gradient.
    """

    forward: Callable[[], Tensor]
    leaves: list[Tensor]

    def passes(self) -> dict[str, Callable[[], object]]:
        """The functions to time."""
        weights = torch.randn_like(self.leaves[0])

        def infer() -> None:
            with torch.no_grad():
                self.forward()

        def train() -> None:
            torch.autograd.grad(self.forward(), self.leaves, weights)

        return dict(zip(PASSES, (infer, train), strict=True))

    @property
    def bytes(self) -> int:
        return sum(x.nbytes for x in self.leaves)


def prepare(case: Case, backend: str, dtype: torch.dtype, device: torch.device, peer: SimpleNamespace | None) -> Run:
    """Inputs on the device, and the function."""
    torch.manual_seed(0)
    foreign = peer is not None and backend == peer.name
    if case.op == "block":
        block = cases.block_inputs(case, dtype, device)
        run = (lambda: surrounded(block, peer.scan)) if foreign else (lambda: fused(block, backend))
        return Run(run, block.leaves())
    if case.op == "conv":
        tensors = cases.conv_inputs(case, dtype, device)
        options = {"activation": "silu", "order": case.orders[0], "backend": backend}
        return Run(lambda: causal_conv1d(**tensors, **options), list(tensors.values()))
    tensors = cases.scan_inputs(case, dtype, device, channels_last=not foreign)
    options = {"delta_softplus": True}
    if not foreign:
        options |= {"order": case.orders[0], "backend": backend}
    scan = peer.scan if foreign else selective_scan
    return Run(lambda: scan(**tensors, **options), [x for x in tensors.values() if x is not None])


def fused(block: Block, backend: str) -> Tensor:
    """A Mamba block by this package: no transposed copy anywhere."""
    x, z = F.linear(block.tokens, block.in_proj).transpose(1, 2).chunk(2, 1)
    y = mamba_inner(x, block.directions, z, backend=backend)
    return F.linear(y.transpose(1, 2), block.out_proj)


def surrounded(block: Block, scan: Callable[..., Tensor]) -> Tensor:
    """The same block around a scan that knows no orders and wants its tokens last."""
    batch, length, _ = block.tokens.shape

    def tokens_last(weight: Tensor, x: Tensor) -> Tensor:
        return (weight @ x.reshape(batch * length, -1).t()).unflatten(1, (batch, length)).transpose(0, 1)

    x, z = tokens_last(block.in_proj, block.tokens).chunk(2, 1)
    total = torch.zeros((), dtype=x.dtype, device=x.device)
    for way in block.directions:
        ordered = way.order.gather(x)
        u = F.conv1d(ordered, way.conv_weight.unsqueeze(1), way.conv_bias, padding=cases.WIDTH - 1, groups=x.shape[1])
        u = F.silu(u[..., :length])
        n, rank = way.A.shape[1], way.dt_proj.shape[1]
        dt, B, C = F.linear(u.transpose(1, 2), way.x_proj).split([rank, n, n], -1)
        B, C = (y.transpose(1, 2).contiguous() for y in (B, C))
        delta = tokens_last(way.dt_proj, dt)
        y = scan(u, delta, way.A, B, C, way.D, way.order.gather(z), way.dt_bias, delta_softplus=True)
        total = total + way.order.scatter(y)
    return F.linear(total.transpose(1, 2), block.out_proj)


def load_peer(script: str, folder: str, device: torch.device) -> SimpleNamespace:
    """Build a peer and compare its scan with ours.

    Raises:
        SystemExit: They differ.
    """
    spec = importlib.util.spec_from_file_location("peer", script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    built = module.build(folder)
    peer = SimpleNamespace(name=Path(folder).name, scan=lambda *args, **options: module.scan(built, *args, **options))
    small = Case("check", "scan", 2, 64, 300)
    tensors = cases.scan_inputs(small, torch.float32, device, channels_last=False)
    got, wanted = (scan(**tensors, delta_softplus=True) for scan in (peer.scan, selective_scan))
    error = ((got - wanted).norm() / wanted.norm()).item()
    if not error < 1e-3:
        raise SystemExit(f"{peer.name} differs from {selective_scan.__name__} by {error:.1e} (relative RMS)")
    return peer


def backends(case: Case, device: torch.device, peer: SimpleNamespace | None) -> list[str]:
    """Those to measure, best first."""
    names = [name for name, status in available_backends(device.type).items() if status.available]
    if device.type == "cuda" or case.length > REFERENCE_TOKENS[case.op]:
        names.remove("reference")
    return names + ([peer.name] if peer is not None and case.op != "conv" else [])


def described(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    """What all rows of a case share."""
    return {
        "op": case.op,
        "case": case.name,
        "shape": case.shape,
        "batch": case.batch,
        "d": case.d,
        "L": case.length,
        "N": case.n,
        "groups": case.groups,
        "dtype": str(dtype).removeprefix("torch."),
        "order": case.order,
        "threads": torch.get_num_threads() if device.type == "cpu" else "",
        **measure.environment(device),
    }


def bench(
    case: Case, dtype: torch.dtype, device: torch.device, peer: SimpleNamespace | None, seconds: float
) -> list[Row]:
    """A row for every backend and pass."""
    if device.type == "cuda":
        torch.cuda.empty_cache()
    common = described(case, dtype, device)
    problems, rows, functions = [], {name: {} for name in PASSES}, {name: {} for name in PASSES}
    for backend in backends(case, device, peer):
        try:
            run = prepare(case, backend, dtype, device, peer)
            ready = run.passes()
            # The definition needs no warm-up, and a profile of it has an entry for every token.
            peaks = {name: backend != "reference" and measure.peak_bytes(ready[name], device) for name in PASSES}
        except Exception as error:  # noqa: BLE001 (the others go on; it is in the row, on the screen and in the exit code)
            problems.append(common | {"backend": backend, "problem": f"{type(error).__name__}: {error}"[:300]})
            continue
        for name in PASSES:
            floor = measure.floor_ms(case, dtype, name != "forward", common["device"])
            functions[name][backend] = ready[name]
            rows[name][backend] = common | {
                "backend": backend,
                "pass": name,
                "floor ms": floor and round(floor, 4),
                "peak MiB": round(peaks[name] / MIB, 2) if peaks[name] else None,
                "inputs MiB": round(run.bytes / MIB, 2),
            }
    for name in PASSES:
        times = {"ms": measure.interleave(functions[name], device, seconds)}
        times["graph ms"] = measure.graph_times(functions[name], times["ms"], device, seconds)
        for column, values in times.items():
            for backend, ms in values.items():
                rows[name][backend][column] = round(ms, 4)
    return [row for name in PASSES for row in rows[name].values()] + problems


def scaling(case: Case, device: torch.device, seconds: float) -> list[Row]:
    """Rows of the native backend and of torch.exp over as many bytes as it reads and writes, on one thread and two."""
    run = prepare(case, "cpu", torch.float32, device, None)
    common, threads = described(case, torch.float32, device), torch.get_num_threads()
    rows = []
    for name, function in run.passes().items():
        moved = run.bytes + run.leaves[0].nbytes if name == "forward" else 3 * run.bytes + 2 * run.leaves[0].nbytes
        source, target = torch.randn(2, moved // 8)  # float32; half of the bytes are read, half written
        functions = {"cpu": function, "torch.exp": lambda x=source, y=target: torch.exp(x, out=y)}
        on_threads = {(what, n): _on(n, call) for n in (1, 2) for what, call in functions.items()}
        for call in on_threads.values():
            call()
        times = measure.interleave(on_threads, device, seconds)
        torch.set_num_threads(threads)
        for (what, n), ms in times.items():
            columns = {"op": f"{case.op} scaling", "backend": what, "pass": name, "threads": n, "ms": round(ms, 4)}
            rows.append(common | columns)
    return rows


def _on(threads: int, function: Callable[[], object]) -> Callable[[], None]:
    def call() -> None:
        torch.set_num_threads(threads)
        function()

    return call


def summary(rows: list[Row]) -> str:
    """The rows of one case as a table: a line for each pass; "× name" is how much longer that backend takes."""
    lines = []
    for name in PASSES:
        those = [row for row in rows if row.get("pass") == name]
        if not those:
            continue
        best, *others = those
        line = {"case": f"{best['op']} {best['case']}", "shape": best["shape"], "dtype": best["dtype"], "pass": name}
        line |= {f"{row['backend']} ms": row["ms"] for row in those}
        line |= {f"× {row['backend']}": round(row["ms"] / best["ms"], 2) for row in others}
        timed = [row for row in others if "graph ms" in row and "graph ms" in best]
        line |= {f"graph × {row['backend']}": round(row["graph ms"] / best["graph ms"], 2) for row in timed}
        if best["floor ms"]:
            line["of floor"] = f"{best['floor ms'] / best.get('graph ms', best['ms']):.0%}"
        if best["peak MiB"]:
            line["peak / inputs"] = round(best["peak MiB"] / best["inputs MiB"], 2)
        lines.append(line)
    problems = [f"{row['op']} {row['case']}, {row['backend']}: {row['problem']}" for row in rows if "problem" in row]
    return "\n".join([tabulate(lines, headers="keys"), *problems])


def scaling_summary(rows: list[Row]) -> str:
    """How much faster two threads are than one."""
    lines = []
    for name in PASSES:
        ms = {(row["backend"], row["threads"]): row["ms"] for row in rows if row["pass"] == name}
        gain = {what: ms[what, 1] / ms[what, 2] for what in ("cpu", "torch.exp")}
        line = {"1 → 2 threads": f"{rows[0]['op']} {rows[0]['case']}", "shape": rows[0]["shape"], "pass": name, **gain}
        lines.append(line | {"ratio": gain["cpu"] / gain["torch.exp"]})
    return tabulate(lines, headers="keys", floatfmt=".2f")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--case", default="", help="only cases with this in their op, name and shape")
    parser.add_argument(
        "--dtype", action="append", help="float32, bfloat16, float16; by default 1 on a CPU, 2 on a GPU"
    )
    parser.add_argument("--seconds", type=float, help="for each case and pass (2 on a CPU, 0.3 on a GPU)")
    parser.add_argument("--peer", nargs=2, metavar=("SCRIPT", "FOLDER"), help="another implementation of the scan")
    parser.add_argument("--name", help="of the CSV file (cpu, or the GPU's name)")
    options = parser.parse_args()
    device = torch.device(options.device)
    on_cpu = device.type == "cpu"
    seconds = options.seconds or (2 if on_cpu else 0.3)
    dtypes = options.dtype or (["float32"] if on_cpu else ["float32", "bfloat16"])
    name = options.name or ("cpu" if on_cpu else measure.environment(device)["device"].replace(" ", "_"))
    known = cases.CPU if on_cpu else cases.GPU
    chosen = [case for case in known if options.case in f"{case.op} {case.name} {case.shape}"]
    peer = load_peer(*options.peer, device) if options.peer else None

    RESULTS.mkdir(exist_ok=True)
    failed = False
    with (RESULTS / f"{name}.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()

        def keep(rows: list[Row], text: str) -> None:
            writer.writerows(rows)
            file.flush()
            print(text, end="\n\n", flush=True)

        for case in chosen:
            for dtype in dtypes:
                rows = bench(case, getattr(torch, dtype), device, peer, seconds)
                failed |= any("problem" in row for row in rows)
                keep(rows, summary(rows))
        for case in chosen if on_cpu and available_backends()["cpu"].available else []:
            if case.op != "block" and case.length >= 4096:
                rows = scaling(case, device, seconds)
                keep(rows, scaling_summary(rows))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
