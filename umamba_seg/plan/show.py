"""A plan that explains itself: each number, why it was chosen, and what was tried."""

from __future__ import annotations

from umamba_seg.log import table
from umamba_seg.plan.plans import PLANS_TABLE, topology_of
from umamba_seg.plan.search import SMALLEST_BATCH
from umamba_seg.text import gib, shorten, times


def as_text(plans: dict) -> str:
    """The plans of :func:`umamba_seg.plan.planner.plan_dataset` for a terminal."""
    ours = plans[PLANS_TABLE]
    parts = [
        f"{ours['network']} for {plans['dataset_name']}, plans {plans['plans_name']}\n"
        f"budget {ours['budget']}: {ours['budget_meaning']}"
    ]
    for name, configuration in plans["configurations"].items():
        if "pretrained" in ours:
            parts.append(f"{name}\n{_adapted(configuration, ours['pretrained'])}")
        elif "planning" in configuration:
            parts.append(f"{name}\n{_explained(name, configuration)}")
    return "\n\n".join(parts)


def _explained(name: str, configuration: dict) -> str:
    topology, planning = configuration["topology"], configuration["planning"]
    as_in = f"that of {planning['as_in']}, as nnU-Net keeps it" if "as_in" in planning else None
    if "like" in planning:
        as_in = f"that of plans {planning['like']}"
    previous = configuration.get("previous_stage")
    rows = [
        *([("input", f"the image, and the result of {previous} label by label")] if previous else []),
        ("spacing", f"{times(configuration['spacing'])} mm: {_spacing_reason(name)}"),
        ("images", f"{times(configuration['median_image_size_in_voxels'])} voxels, the median at this spacing"),
        ("patch", f"{times(configuration['patch_size'])}: {as_in or _patch_reason(configuration)}"),
        ("batch", f"{configuration['batch_size']}: {as_in or _batch_reason(configuration)}"),
        ("strides", f"{' '.join(map(times, topology['strides']))}: {_depth_reason(planning)}"),
        ("kernels", " ".join(map(times, topology["kernel_sizes"]))),
        ("features", "-".join(map(str, topology["features"]))),
        *([("mirroring", _mirroring(configuration["mirroring"]))] if "mirroring" in configuration else []),
        (
            "memory",
            f"{gib(planning['estimated_bytes'])} estimated for a training step, "
            f"{gib(planning['limit_bytes'])} allowed{_measured(planning)}",
        ),
    ]
    if as_in:
        return table(rows, [])
    tried = [
        (times(trial["patch_size"]), gib(trial["bytes"]), _verdict(trial, planning)) for trial in planning["tried"]
    ]
    return f"{table(rows, [])}\n{table(tried, ['tried', 'two samples', ''])}"


def _adapted(configuration: dict, source: dict) -> str:
    planning, topology = configuration["planning"], configuration["topology"]
    allowed = f", {gib(planning['limit_bytes'])} allowed" if "limit_bytes" in planning else ""
    rows = [
        ("spacing", f"{times(configuration['spacing'])} mm"),
        ("patch", times(configuration["patch_size"])),
        ("batch", str(configuration["batch_size"])),
        ("strides", " ".join(map(times, topology["strides"]))),
        ("features", "-".join(map(str, topology["features"]))),
        ("images", f"{times(configuration['median_image_size_in_voxels'])} voxels, the median at this spacing"),
        *([("mirroring", _mirroring(configuration["mirroring"]))] if "mirroring" in configuration else []),
        ("memory", f"{gib(planning['estimated_bytes'])} estimated for a training step{allowed}"),
    ]
    origin = f"{source['dataset']}, {source['configuration']}, {source['model']}"
    return f"{table(rows, [])}\nAs in {origin}; images, mirroring and memory are this data set's."


def _spacing_reason(name: str) -> str:
    if name == "3d_lowres":
        return "as coarse as it takes for a patch to cover a quarter of the image"
    return "the median of the data set; along a far coarser axis the 10th percentile"


def _patch_reason(configuration: dict) -> str:
    patch, planning = configuration["patch_size"], configuration["planning"]
    too_much = [trial for trial in planning["tried"] if trial["bytes"] > planning["limit_bytes"]]
    if too_much:
        next_larger = min(too_much, key=lambda trial: trial["bytes"])
        size = times(next_larger["patch_size"])
        return f"the largest of which two samples fit; {size} takes {gib(next_larger['bytes'])}"
    images, steps = configuration["median_image_size_in_voxels"], topology_of(configuration).total_stride
    if all(extent >= whole - step / 2 for extent, whole, step in zip(patch, images, steps, strict=True)):
        return "the median image, as the strides divide it"
    return "the largest that is tried, 256³ voxels (2-D: 2048²) in the shape of a cube in mm"


def _batch_reason(configuration: dict) -> str:
    planning = configuration["planning"]
    by_memory, by_data = planning["batch_by_memory"], planning["batch_by_data"]
    least = f"; {SMALLEST_BATCH} at least" if by_data < SMALLEST_BATCH else ""
    return f"memory has room for {by_memory:.1f} samples, 5 % of the data set's voxels are {by_data:.1f} patches{least}"


def _depth_reason(planning: dict) -> str:
    if planning["fixed_depth"]:
        return "fixed by the network"
    return "an axis is halved while it has 8 voxels and its spacing is less than twice the finest"


def _mirroring(mirroring: dict) -> str:
    axes, swap = mirroring["axes"], mirroring["swap"]
    flipped = f"axes {' '.join(map(str, axes))}" if axes else "no axis"
    if swap is not None:
        pairs = [f"{one}↔{other}" for one, other in swap["pairs"]]
        flipped += f", axis {swap['axis']} with the labels {shorten(pairs)}"
    return f"{flipped}: {mirroring['reason']}"


def _measured(planning: dict) -> str:
    if "measured" not in planning:
        return ""
    found = planning["measured"]
    return f"; measured: {gib(found['bytes'])}, {found['seconds']:.2f} s a step on {found['device']}"


def _verdict(trial: dict, planning: dict) -> str:
    return "fits" if trial["bytes"] <= planning["limit_bytes"] else "too much"
