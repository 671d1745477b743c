"""What the networks of a table cost, by their plans or, where there are none yet, on the patch that the table gives."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch

from umamba_seg.cost import count, fitted, machine_of, planned_setting, seconds_of
from umamba_seg.log import logger
from umamba_seg.networks import find
from umamba_seg.plan.plans import read_plans
from umamba_seg.plan.step import Setting
from umamba_seg.plan.topology import topology_for
from umamba_seg.reproduce.outcome import Costs
from umamba_seg.reproduce.runs import Job, budget_of, dims_of
from umamba_seg.reproduce.table import PaperTable, Row
from umamba_seg.text import many, times


def costs_of(table: PaperTable, jobs: Sequence[Job], device: torch.device) -> dict[tuple[int, str], Costs]:
    """The costs of every row that names a network, on every data set whose dimensions it has.

    Args:
        table: As it is run.
        jobs: Of the table.
        device: Where seconds are measured: only of plans that are made for such a device.
    """
    planned = {(job.row, job.key): job for job in jobs if (job.preprocessed / f"{job.plans}.json").is_file()}
    found = {}
    for number, row in enumerate(table.rows):
        for key, dataset in table.datasets.items():
            if row.network is None or dims_of(dataset) not in find(row.network).dims:
                continue
            job = planned.get((number, key))
            setting, words = _assumed(table, row, key) if job is None else _planned(job)
            budget = budget_of(table.training_of(row))
            found[number, key] = _costs(row.network, setting, budget.device_type, device, words)
    return found


def _planned(job: Job) -> tuple[Setting, str]:
    plans = read_plans(job.preprocessed, job.plans)
    setting = planned_setting(job.preprocessed, plans, job.dataset.configuration)
    return setting, f"patch {times(setting.topology.patch_size)}, batch {setting.batch_size}, as planned"


def _assumed(table: PaperTable, row: Row, key: str) -> tuple[Setting, str]:
    given, budget, spec = table.datasets[key].costs, budget_of(table.training_of(row)), find(str(row.network))
    dims = len(given.patch_size)
    open_topology = topology_for(given.patch_size, given.spacing, budget.base_features, budget.max_features[dims])
    topology = fitted(spec, open_topology)
    setting = Setting(topology, given.input_channels, given.num_classes, given.batch_size)
    return setting, f"patch {times(topology.patch_size)}, batch {given.batch_size}: {given.source}"


@functools.cache
def _costs(network: str, setting: Setting, planned_for: str, device: torch.device, words: str) -> Costs:
    """Counted as on the device that the budget is for, and timed if that is the one at hand."""
    spec = find(network)
    logger.info("%s: counting its costs (%s)", network, words)
    counts = count(spec, setting, torch.device(planned_for))
    seconds = seconds_of(spec, setting, counts, device) if device.type == planned_for else None
    machine = "" if seconds is None else _machine(device)
    return Costs(counts.parameters, counts.multiply_adds, counts.training_bytes, seconds, machine, words)


def _machine(device: torch.device) -> str:
    found = machine_of(device)
    return f"{found['name']}, {many(found['threads'], 'thread')}; torch {found['torch']}"
