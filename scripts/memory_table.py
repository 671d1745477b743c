"""Compare the traced memory of training steps with what the steps take.

    python scripts/memory_table.py docs/memory_cpu.csv                 # half an hour on two busy cores, 7 GiB
    python scripts/memory_table.py docs/memory_cuda.csv --device cuda

"allocated MiB" is the peak of torch's allocator: on a CPU by the profiler's record of every allocation, on a GPU by
torch's own statistics. "resident MiB" is by how much the memory of the process rose on a CPU; it holds the buffers of
libraries and the allocator's gaps as well. Ratios are of the trace to these. Every row is a process of its own.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from umamba_seg.networks import find
from umamba_seg.plan.memory import training_memory
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.step import Setting, TrainingStep, build_network, measure
from umamba_seg.plan.topology import topology_for

CASES = (  # network, patch, channels of nnU-Net's first stage, batch
    ("plain_conv_unet", (256, 256), 32, 8),
    ("plain_conv_unet", (32, 32, 32), 8, 2),
    ("plain_conv_unet", (96, 128, 96), 32, 2),
    ("residual_encoder_unet", (192, 160), 32, 12),
    ("residual_encoder_unet", (64, 64, 64), 32, 2),
    ("umamba_bot", (256, 256), 16, 4),
    ("umamba_bot", (40, 56, 40), 8, 9),
    ("umamba_bot", (96, 96, 64), 32, 2),
    ("umamba_enc", (192, 160), 32, 4),
    ("umamba_enc", (32, 64, 64), 16, 2),
    ("umamba_enc", (64, 96, 64), 32, 2),
    ("segmamba", (32, 48, 32), 8, 4),
    ("segmamba", (64, 96, 80), 32, 2),
    ("nnmamba", (128, 128, 128), 32, 2),
    ("nnmamba_ds", (64, 64, 64), 16, 3),
    ("lightmunet", (256, 256), 16, 2),
    ("lightmunet", (48, 64, 64), 32, 2),
)
COLUMNS = (
    *("network", "patch", "features", "batch", "traced MiB", "allocated MiB", "traced / allocated"),
    *("resident MiB", "traced / resident", "device", "torch"),
)
MIB = 2**20


def compare(case: tuple[str, tuple[int, ...], int, int], device_type: str) -> dict:
    """The row of a case."""
    name, patch, features, batch_size = case
    spec, device, options = find(name), torch.device(device_type), TrainingOptions()
    levels = spec.levels
    topology = topology_for(patch, base_features=features) if levels is None else levels.topology(patch, features / 32)
    architecture = spec.architecture(spec.planned(topology))
    setting = Setting(topology, input_channels=1, num_classes=3, batch_size=batch_size)
    measured = measure(architecture, setting, options, device, steps=1)
    traced = training_memory(architecture, setting, device_type, options).peak
    if device_type == "cuda":
        allocated, resident = measured.bytes, None
    else:
        allocated, resident = allocated_on_cpu(architecture, setting, options), measured.bytes
    row = {
        "network": name,
        "patch": "x".join(map(str, topology.patch_size)),
        "features": "-".join(map(str, topology.features)),
        "batch": batch_size,
        "traced MiB": f"{traced / MIB:.1f}",
        "allocated MiB": f"{allocated / MIB:.1f}",
        "traced / allocated": f"{traced / allocated:.3f}",
    }
    if resident is not None:
        row |= {"resident MiB": f"{resident / MIB:.1f}", "traced / resident": f"{traced / resident:.3f}"}
    return row | {"device": measured.device, "torch": torch.__version__}


def allocated_on_cpu(architecture: dict, setting: Setting, options: TrainingOptions) -> int:
    """Peak of what torch has allocated on the CPU while the network is built and trained for two steps, in bytes."""
    device = torch.device("cpu")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as records:
        step = TrainingStep(build_network(architecture, setting, device), setting, options, device)
        step.run()
        step.run()
    # The sums that the profiler prints are per op; the order in time is in the events beneath.
    events = (event for event in records.profiler.kineto_results.events() if event.name() == "[memory]")
    return max(itertools.accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="the table (CSV)")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    args = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(1, mp_context=spawn, max_tasks_per_child=1) as processes,
        args.out.open("w", newline="") as file,
    ):
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for row in processes.map(compare, CASES, itertools.repeat(args.device)):
            table.writerow(row)
            file.flush()


if __name__ == "__main__":
    main()
