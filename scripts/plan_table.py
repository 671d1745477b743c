"""Plan every segmentation network for seven data sets and six sizes of a GPU's memory, and check the plans.

    python scripts/plan_table.py ../shared/data docs/plans.csv                # takes long, and no GPU
    python scripts/plan_table.py ../shared/data one.csv --data-set "isotropic CT" --network segmamba --vram-gb 8

The first argument holds the folders hippocampus (Decathlon), openms_mni, msd_spleen2_crop and sunnybrook_2d (nnU-Net
raw). The other data sets are a fingerprint of equal cases and have no images.

A row is a configuration of a plan, or a plan that was refused with the sentence that its user reads. "plan CPU s" is
what the whole plan took. Traces are kept within the process, so that a plan costs less after one for another budget.

Every estimate is a training step that was traced, so that the network builds and runs. Checked beside: the estimate is
within the limit, the strides divide the patch, and no fewer voxels fit into more memory. What fails is listed at the
end, with exit code 1.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from umamba_seg.datasets import msd
from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, read_json, write_json
from umamba_seg.fingerprint import extract_fingerprint
from umamba_seg.networks import NetworkSpec, all_networks
from umamba_seg.paths import Folders, resolve
from umamba_seg.plan.budgets import vram_budget
from umamba_seg.plan.planner import plan_dataset
from umamba_seg.plan.plans import topology_of

REAL = ("hippocampus", "openms_mni", "msd_spleen2_crop", "sunnybrook_2d")
SYNTHETIC = {  # shape (z, y, x), spacing in mm, channels
    "isotropic CT": ((512, 512, 512), (0.8, 0.8, 0.8), ("CT",)),
    "anisotropic cardiac": ((10, 256, 216), (10.0, 1.56, 1.56), ("MR",)),
    "4-modality brain": ((138, 170, 138), (1.0, 1.0, 1.0), ("T1", "T1Gd", "T2", "FLAIR")),
}
DATA_SETS = (*REAL, *SYNTHETIC)
CASES = 100  # of a synthetic data set
NETWORKS = {spec.name: spec for spec in all_networks() if spec.task == "segmentation"}
GIB = 2**30
COLUMNS = (
    *("data set", "network", "vram GiB", "configuration", "patch", "batch", "batch by memory", "batch by data"),
    *("stages", "features", "estimated GiB", "limit GiB", "plan CPU s", "refused"),
)
Row = dict[str, Any]


def prepare(data_set: str, data: Path, folders: Folders) -> str:
    """Put a data set and its fingerprint where the planner finds them; returns its name there."""
    number, name = DATA_SETS.index(data_set) + 1, data_set.title().replace(" ", "").replace("-", "")
    dataset = f"Dataset{number:03d}_{name}"
    make_folder(folders.preprocessed / dataset)
    if data_set in SYNTHETIC:
        # nnU-Net chooses a reader by the first image.
        make_dataset(
            folders.raw, number, name, train_cases=1, test_cases=0, shape=(36, 32, 14), spacing=(1, 1, 1), seed=0
        )
        describe_synthetic(data_set, folders.raw / dataset, folders.preprocessed / dataset)
        return dataset
    source = (data / data_set).resolve(strict=True)
    if data_set == "hippocampus":
        msd.convert(source, folders.raw, number, name)
    else:
        make_folder(folders.raw)
        (folders.raw / dataset).symlink_to(source)
    extract_fingerprint(dataset, processes=1)
    return dataset


def describe_synthetic(data_set: str, raw: Path, preprocessed: Path) -> None:
    """Write ``dataset.json`` and the fingerprint of 100 equal cases."""
    shape, spacing, channels = SYNTHETIC[data_set]
    names = {str(channel): name for channel, name in enumerate(channels)}
    description = read_json(raw / "dataset.json") | {"numTraining": CASES, "channel_names": names}
    write_json(raw / "dataset.json", description)
    fingerprint = {
        "spacings": [spacing] * CASES,
        "shapes_after_crop": [shape] * CASES,
        "foreground_intensity_properties_per_channel": {channel: {} for channel in names},
        "median_relative_size_after_cropping": 1.0,
    }
    write_json(preprocessed / "dataset_fingerprint.json", fingerprint)


def plan(dataset: str, network: NetworkSpec, gigabytes: float) -> tuple[dict[str, dict], float, str]:
    """The planned configurations by name (none where the plan is refused), CPU seconds, and the refusal."""
    configurations, refusal = {}, ""
    start = time.process_time()
    try:
        plans = plan_dataset(dataset, network, vram_budget(gigabytes), f"{network.name}_{gigabytes:g}gb")
        found = plans["configurations"].items()
        configurations = {name: content for name, content in found if "inherits_from" not in content}
    except UserError as error:
        refusal = str(error)
    return configurations, time.process_time() - start, refusal


def columns(configuration: dict) -> Row:
    """What the table shows of a configuration."""
    planning, features = configuration["planning"], configuration["topology"]["features"]
    return {
        "patch": "x".join(map(str, configuration["patch_size"])),
        "batch": configuration["batch_size"],
        "batch by memory": f"{planning['batch_by_memory']:.2f}",
        "batch by data": f"{planning['batch_by_data']:.2f}",
        "stages": len(features),
        "features": "-".join(map(str, features)),
        "estimated GiB": f"{planning['estimated_bytes'] / GIB:.3f}",
        "limit GiB": f"{planning['limit_bytes'] / GIB:.3f}",
    }


def fitting_voxels(configuration: dict) -> float:
    """Voxels of the batch for which there is memory."""
    return configuration["planning"]["batch_by_memory"] * math.prod(configuration["patch_size"])


def problems(configuration: dict, smaller: dict | None) -> Iterator[str]:
    """What is wrong with a configuration, beside the same for a smaller budget if there is one."""
    planning, topology = configuration["planning"], topology_of(configuration)
    if planning["estimated_bytes"] > planning["limit_bytes"]:
        yield "the estimate is over the limit"
    if any(extent % step for extent, step in zip(topology.patch_size, topology.total_stride, strict=True)):
        yield "the strides do not divide the patch"
    if smaller is not None and fitting_voxels(configuration) < fitting_voxels(smaller):
        yield f"{fitting_voxels(configuration):.4g} voxels fit, {fitting_voxels(smaller):.4g} into less memory"


def rows(dataset: str, network: NetworkSpec, budgets: Sequence[float]) -> Iterator[tuple[Row, list]]:
    """Every row of a network on a data set, with what is wrong with it.

    Args:
        dataset: Its name in nnU-Net's folders.
        network: The network.
        budgets: GiB of memory, ascending.
    """
    smaller: dict[str, dict] = {}
    for gigabytes in budgets:
        configurations, seconds, refusal = plan(dataset, network, gigabytes)
        of_plan = {"network": network.name, "vram GiB": f"{gigabytes:g}", "plan CPU s": f"{seconds:.1f}"}
        if refusal:
            yield of_plan | {"refused": refusal}, ["refused, and planned for less memory"] if smaller else []
        for name, configuration in configurations.items():
            row = of_plan | {"configuration": name} | columns(configuration)
            yield row, list(problems(configuration, smaller.get(name)))
        smaller = configurations


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="folder of the real data sets")
    parser.add_argument("out", type=Path, help="the table (CSV)")
    parser.add_argument("--data-set", nargs="+", choices=DATA_SETS, default=DATA_SETS)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--vram-gb", nargs="+", type=float, default=(4, 8, 12, 24, 48, 80))
    args = parser.parse_args()
    wrong = []
    with tempfile.TemporaryDirectory() as root, args.out.open("w", newline="") as file:
        folders = resolve(root).export()
        table = csv.DictWriter(file, COLUMNS)
        table.writeheader()
        for data_set in args.data_set:
            dataset = prepare(data_set, args.data, folders)
            for network in args.network:
                for row, found in rows(dataset, NETWORKS[network], sorted(args.vram_gb)):
                    table.writerow({"data set": data_set} | row)
                    file.flush()
                    what = " ".join((data_set, network, row["vram GiB"], row.get("configuration", "")))
                    wrong += [f"{what}: {problem}" for problem in found]
    if wrong:
        sys.exit("\n".join(wrong))


if __name__ == "__main__":
    main()
