"""Measure into how many segments the Triton scan should cut a sequence, over a grid of shapes. Needs a GPU.

    python kernels/benchmarks/tune.py

One pass evaluates every decay once; segments side by side evaluate them twice, and pay where batch · d alone does not
fill the GPU. For each shape, forward and gradient, the printed table has the best number of tokens of a segment ("all"
is one pass) with its time, those of ``segment_tokens`` in triton_scan.py, and what its choice loses. Every measurement
goes to results/tune_<GPU>.csv.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import cases
import measure
import torch
from cases import Case
from tabulate import tabulate

from umamba_kernels import Order

BATCH = 2
CHANNELS = (32, 64, 96, 192, 384, 768, 1536, 3072, 6144)
LENGTHS = (256, 1024, 4096, 16384, 65536, 262144)
LARGEST = 2**27  # batch · d · L
SEGMENTS = (128, 256, 512, 1024, 2048, 4096, 16384)
SECONDS = 0.1  # for each measurement
DEVICE = torch.device("cuda")


def directions(case: Case, scan: Any) -> Iterator[tuple[str, Callable[[], object]]]:
    """Forward and gradient of the scan, straight from the module."""
    tensors = [x if x is None else x.detach() for x in cases.scan_inputs(case, torch.float32, DEVICE).values()]
    options = True, Order()
    yield "forward", lambda: scan.forward(*tensors, *options, True)
    out, last, states = scan.forward(*tensors, *options, True)
    yield "gradient", lambda: scan.backward(out, last, *tensors, states, *options)


def deciding(scan: Any, rule: Callable[..., int], function: Callable[[], object]) -> Callable[[], object]:
    """The function with another rule for the tokens of a segment."""

    def run() -> None:
        own, scan.segment_tokens = scan.segment_tokens, rule
        try:
            function()
        finally:
            scan.segment_tokens = own

    run()  # compiles
    return run


def compare(case: Case, scan: Any) -> Iterator[dict[str, Any]]:
    """A row for forward and gradient with the milliseconds of every cut that makes a difference."""
    own, decisions = scan.segment_tokens, []

    def watched(*args: Any, **options: Any) -> int:
        decisions.append(own(*args, **options))
        return decisions[-1]

    for name, function in directions(case, scan):
        deciding(scan, watched, function)
        chosen = decisions[-1]
        cuts = sorted({case.length, *(n for n in (*SEGMENTS, chosen) if n < case.length)})
        runs = {n: deciding(scan, lambda *_args, n=n, **_options: n, function) for n in cuts}
        times = measure.interleave(runs, DEVICE, SECONDS)
        times |= measure.graph_times(runs, times, DEVICE, SECONDS)
        yield {
            "pass": name,
            "batch · d": case.batch * case.d,
            "L": case.length,
            "rule": min(chosen, case.length),
            **{f"{n} ms": round(ms, 4) for n, ms in times.items()},
        }


def verdict(row: dict[str, Any]) -> dict[str, Any]:
    """The best cut of a row beside that of the rule."""
    times = {int(column.removesuffix(" ms")): ms for column, ms in row.items() if column.endswith(" ms")}
    best, rule = min(times, key=times.__getitem__), row["rule"]
    return {
        **{key: row[key] for key in ("pass", "batch · d", "L")},
        "best": "all" if best == row["L"] else best,
        "best ms": times[best],
        "rule": "all" if rule == row["L"] else rule,
        "rule ms": times[rule],
        "one pass ms": times[row["L"]],
        "rule loses": f"{times[rule] / times[best] - 1:.0%}",
    }


def main() -> None:
    from umamba_kernels.selective_scan import triton_scan

    rows = []
    for d, length in product(CHANNELS, LENGTHS):
        if BATCH * d * length <= LARGEST:
            rows += compare(Case("tune", "scan", BATCH, d, length), triton_scan)
    rows.sort(key=lambda row: row["pass"])
    where = measure.environment(DEVICE)
    print(where["device"], f"{triton_scan._multiprocessors(DEVICE)} multiprocessors", sep=", ")
    print(tabulate([verdict(row) for row in rows], headers="keys"))
    columns = dict.fromkeys(key for row in rows for key in row) | dict.fromkeys(where)
    path = Path(__file__).parent / "results" / f"tune_{where['device'].replace(' ', '_')}.csv"
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(row | where for row in rows)


if __name__ == "__main__":
    main()
