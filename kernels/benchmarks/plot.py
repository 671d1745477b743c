"""Draw the time of the scan over the number of tokens from a CSV of bench.py.

    python kernels/benchmarks/plot.py kernels/benchmarks/results/cpu.csv          # writes cpu.png beside it

One panel for each pass and dtype, one line for each backend; dashed is the floor (GPUs only).
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def read(path: Path) -> list[dict[str, str]]:
    """The timed rows of the cases that differ in length only."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    sweep = next((row for row in rows if row["op"] == "scan" and row["case"] == "Sweep"), None)
    if sweep is None:
        raise SystemExit(f"{path} has no rows of the scan's sweep over lengths")
    same = ("op", "batch", "d", "N", "groups", "order")
    return [row for row in rows if row["ms"] and all(row[key] == sweep[key] for key in same)]


def draw(rows: list[dict[str, str]], path: Path) -> None:
    panels = sorted({(row["dtype"], row["pass"]) for row in rows}, reverse=True)
    figure, axes = plt.subplots(1, len(panels), figsize=(5 * len(panels), 4), sharey=True, squeeze=False)
    for ax, (dtype, name) in zip(axes[0], panels, strict=True):
        shown = [row for row in rows if (row["dtype"], row["pass"]) == (dtype, name)]
        for backend in dict.fromkeys(row["backend"] for row in shown):
            line(ax, [row for row in shown if row["backend"] == backend], "ms", marker="o", label=backend)
        line(ax, [row for row in shown if row["floor ms"]], "floor ms", color="black", linestyle="--", label="floor")
        ax.set(xscale="log", yscale="log", xlabel="tokens", title=f"{name}, {dtype}")
        ax.grid(alpha=0.3)
    axes[0][0].set_ylabel("ms")
    axes[0][0].legend()
    first = rows[0]
    figure.suptitle(f"selective scan, batch {first['batch']}, d = {first['d']}, N = {first['N']}: {first['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=120)


def line(ax: plt.Axes, rows: list[dict[str, str]], column: str, **style) -> None:
    """A column over the length."""
    points = sorted({(int(row["L"]), float(row[column])) for row in rows})
    if points:
        ax.plot(*zip(*points, strict=True), **style)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("csv", type=Path, help="written by bench.py")
    path = parser.parse_args().csv
    draw(read(path), path.with_suffix(".png"))
    print(path.with_suffix(".png"))


if __name__ == "__main__":
    main()
