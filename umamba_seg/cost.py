"""What networks cost: weights, arithmetic, memory and time, beside the twin without the scan and a baseline.

All but the time is counted on tensors without data, which takes seconds for a network of any size. Networks answer with
deep supervision, as in training.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import psutil
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import umamba_kernels  # noqa: F401  (defines the ops that are counted)
from umamba_seg.datasets.labels import Labels
from umamba_seg.files import read_json
from umamba_seg.log import logger, table
from umamba_seg.networks import NetworkSpec, Topology, all_networks, find
from umamba_seg.networks.catalog import BASELINE
from umamba_seg.plan.memory import on_fake_cpu, training_memory
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import input_channels, topology_of
from umamba_seg.plan.step import Setting, build_network, device_name, measure
from umamba_seg.plan.topology import topology_for
from umamba_seg.text import times

_PUBLISHED_WIDTH = 32  # nnU-Net's channels of the first stage, which go with the published widths of other networks
_STANDARD_PATCH = {2: (512, 512), 3: (128, 128, 128)}


@dataclass(frozen=True)
class Counts:
    """What can be counted of a network.

    Attributes:
        parameters: Numbers that are trained, each counted once.
        multiply_adds: Of convolutions and matrix products in the forward pass of one sample.
        scan_flops: Of the selective scans in that pass, 9 N + 2 per token and channel with N states.
        scans: Token sequences that are scanned in that pass.
        training_bytes: Peak of a training step, see :mod:`umamba_seg.plan.memory`.
    """

    parameters: int
    multiply_adds: int
    scan_flops: int
    scans: int
    training_bytes: int


def count(spec: NetworkSpec, setting: Setting, device: torch.device) -> Counts:
    """Count what a network costs, without running it.

    Args:
        spec: The network.
        setting: What it is trained on.
        device: Where it would be trained: layout, precision and scan backend follow from it.

    Raises:
        UserError: The network does not run in the setting.
    """
    architecture = spec.architecture(spec.planned(setting.topology))
    memory = training_memory(architecture, setting, device.type, TrainingOptions())
    with torch.device("meta"):
        network = build_network(architecture, setting, device)
    scans: list[int] = []
    with FakeTensorMode(), FlopCounterMode(display=False, custom_mapping=_formulas(scans)) as flops:
        on_fake_cpu(network)(torch.empty(setting.batch_size, setting.input_channels, *setting.topology.patch_size))
    return Counts(
        parameters=sum(weight.numel() for weight in network.parameters()),
        multiply_adds=flops.get_total_flops() // 2 // setting.batch_size,
        scan_flops=sum(scans) // setting.batch_size,
        scans=len(scans) // setting.batch_size,
        training_bytes=memory.peak,
    )


def _formulas(scans: list[int]) -> dict:
    """The FLOPs of our ops by the shapes of their arguments, without the scans: those go to ``scans``, one by one.

    A batch is as many scans as it has sequences: nnMamba scans an image and its mirror image as one batch.
    """

    def convolution(x, weight, *_, **__) -> int:
        return 2 * math.prod(x) * weight[1]

    def scan(u, delta, A, *_, **__) -> int:
        batch, channels, tokens = u
        scans.extend([channels * tokens * (9 * A[1] + 2)] * batch)
        return 0

    def inner_block(x, z, A, x_proj, dt_proj, dt_bias, D, conv_weight, *_, **__) -> int:
        for states in A:
            scan(x, None, states)
        batch, _channels, tokens = x
        return 2 * batch * tokens * sum(math.prod(weight) for weight in (*x_proj, *dt_proj, *conv_weight))

    ops = torch.ops.umamba_kernels
    return {ops.causal_conv1d: convolution, ops.selective_scan: scan, ops.mamba_inner: inner_block}


# --------------------------------------------------------------------------------------------------------------- cards


def card(spec: NetworkSpec, setting: Setting, device: torch.device) -> dict:
    """The costs of a network, of its twin without the scan if it has one, and of nnU-Net's ResEnc baseline.

    A network of fixed depth keeps its own levels, at the width that the topology's first stage stands for. Where they
    ask for another patch, all are measured on that.

    Returns:
        JSON-able: ``network``, ``setting``, ``machine``, ``networks`` (costs by name) and ``remark``.

    Raises:
        UserError: A network does not have the patch's dimensions or does not run on it.
    """
    patch = fitted(spec, setting.topology).patch_size
    if patch != setting.topology.patch_size:
        logger.info("patch: %s, as the levels of %s divide it", times(patch), spec.name)
    # The strides of nnU-Net and of the levels are powers of two, so that it suits both.
    topology = replace(setting.topology, patch_size=patch)
    columns = {column.name: column for column in (spec, *_compared_with(spec))}
    settings = {name: replace(setting, topology=fitted(column, topology)) for name, column in columns.items()}
    counts = {name: count(column, settings[name], device) for name, column in columns.items()}
    return {
        "network": spec.name,
        "setting": {
            "patch_size": list(patch),
            "batch_size": setting.batch_size,
            "input_channels": setting.input_channels,
            "num_classes": setting.num_classes,
        },
        "machine": machine_of(device),
        "networks": {
            name: {
                "features": list(settings[name].topology.features),
                **asdict(counts[name]),
                "seconds": seconds_of(column, settings[name], counts[name], device),
            }
            for name, column in columns.items()
        },
        "remark": spec.remark,
    }


def _compared_with(spec: NetworkSpec) -> list[NetworkSpec]:
    return [find(name) for name in (spec.twin, BASELINE) if name is not None]


def planned_setting(preprocessed: Path, plans: dict, configuration: str) -> Setting:
    """What a configuration of plans trains a network on.

    Args:
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name``.
        plans: Of the data set.
        configuration: Of the plans.
    """
    planned, path = plans["configurations"][configuration], preprocessed / "dataset.json"
    description = read_json(path)
    return Setting(
        topology_of(planned),
        input_channels(planned, description),
        Labels.from_json(description, path).num_classes,
        planned["batch_size"],
    )


def seconds_of(spec: NetworkSpec, setting: Setting, counts: Counts, device: torch.device) -> float | None:
    """Of a training step, measured; None where it would not find the memory that it needs."""
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
    if counts.training_bytes > free:
        return None
    logger.info("%s: measuring its training steps", spec.name)
    architecture = spec.architecture(spec.planned(setting.topology))
    return measure(architecture, setting, TrainingOptions(), device).seconds


def fitted(spec: NetworkSpec, topology: Topology) -> Topology:
    """The topology, or for a network of fixed depth that has other levels, theirs."""
    if spec.levels is None:
        return topology
    planned = spec.levels.topology(topology.patch_size, topology.features[0] / spec.levels.features[0])
    if planned == topology:  # it was planned for these levels
        return topology
    return spec.levels.topology(topology.patch_size, topology.features[0] / _PUBLISHED_WIDTH)


def machine_of(device: torch.device) -> dict:
    """Where something was measured, as JSON: ``device``, ``name``, ``threads``, ``torch``."""
    threads, version = torch.get_num_threads(), torch.__version__
    return {"device": device.type, "name": device_name(device), "threads": threads, "torch": version}


_ROWS: tuple[tuple[str, str, Callable], ...] = (
    ("parameters", "parameters", lambda value: f"{value:,}"),
    ("multiply_adds", "multiply-adds", lambda value: f"{value / 1e9:.4g} G"),
    ("scan_flops", "scan", lambda value: f"{value / 1e9:.3g} GFLOPs"),
    ("scans", "scans", str),
    ("training_bytes", "memory", lambda value: f"{value / 2**30:.3g} GiB"),
    ("seconds", "seconds/iteration", lambda value: f"{value:.3g} s"),
)


def as_text(facts: dict) -> str:
    """A card as a table for a terminal. Costs of the other networks stand beside their share of the first's."""
    networks, setting, machine = facts["networks"], facts["setting"], facts["machine"]
    rows = [
        ("features", *("-".join(map(str, found["features"])) for found in networks.values())),
        *(_row(label, [found[key] for found in networks.values()], show) for key, label, show in _ROWS),
    ]
    parts = [
        table(rows, ["", *networks]),
        f"patch {times(setting['patch_size'])}, batch {setting['batch_size']}, {setting['input_channels']} -> "
        f"{setting['num_classes']} channels, deep supervision on; ratios are to {facts['network']}\n"
        "multiply-adds: convolutions and matrix products, forward pass of one sample\n"
        "scan: in the same pass, 9 N + 2 FLOPs per token and channel with N states\n"
        "memory: peak of a training step (SGD), traced without running it\n"
        "seconds: the same step on random data, measured here: "
        f"{machine['device']} ({machine['name']}), threads: {machine['threads']}, torch {machine['torch']}",
    ]
    if any(found["seconds"] is None for found in networks.values()):
        parts.append("not measured: a step needs more memory than is free; give a smaller patch or batch")
    if facts["remark"]:
        parts.append(f"published: {facts['remark']}")
    return "\n\n".join(parts)


def _row(label: str, values: Sequence[float | None], show: Callable) -> list[str]:
    first, *others = values
    ratios = ["", *(f" ({value / first:.2f}×)" if first and value else "" for value in others)]
    cells = ["not measured" if value is None else show(value) for value in values]
    return [label, *(cell + ratio for cell, ratio in zip(cells, ratios, strict=True))]


# ------------------------------------------------------------------------------------------------------------ the list


def overview() -> list[dict]:
    """Every network of the catalog: ``name``, ``task``, ``dims``, ``parameters`` and ``paper``.

    The parameters are those for one input channel and two classes on a patch of 128×128×128 voxels (512×512 in 2-D),
    with nnU-Net's features, in networks of fixed depth with the published ones.
    """
    return [
        {
            "name": spec.name,
            "task": spec.task,
            "dims": list(spec.dims),
            "parameters": _standard_parameters(spec),
            "paper": spec.paper,
        }
        for spec in all_networks()
    ]


def _standard_parameters(spec: NetworkSpec) -> int:
    topology = fitted(spec, topology_for(_STANDARD_PATCH[max(spec.dims)]))
    with torch.device("meta"):
        setting = Setting(topology, input_channels=1, num_classes=2, batch_size=1)
        network = build_network(spec.architecture(spec.planned(topology)), setting, torch.device("cpu"))
    return sum(weight.numel() for weight in network.parameters())


def overview_as_text(networks: Sequence[dict]) -> str:
    """The list as a table for a terminal."""
    rows = [
        (
            entry["name"],
            entry["task"],
            " ".join(f"{dims}-D" for dims in entry["dims"]),
            f"{entry['parameters'] / 1e6:.2f} M",
            entry["paper"],
        )
        for entry in networks
    ]
    return (
        f"{table(rows, ['network', 'task', 'dims', 'parameters', 'paper'])}\n\n"
        "parameters: 1 -> 2 channels, 3-D patch of 128×128×128 voxels (2-D only: 512×512), nnU-Net's features; each "
        "counted once"
    )
