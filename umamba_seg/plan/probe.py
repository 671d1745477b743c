"""Trying plans on a real device: what a step takes there, and a smaller or larger plan where the estimate is off."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import topology_of
from umamba_seg.plan.step import Measurement, Setting, measure
from umamba_seg.text import gib

TOLERANCE = 0.1  # share of the estimate by which the measured peak may differ
_ROUNDS = 6
_MORE = 1.5  # by which the estimate is raised when memory ran out, so that no peak is known


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch says that memory ran out; its allocator on CPUs has no class of error for it."""
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def measure_plan(
    configuration: dict, input_channels: int, num_classes: int, options: TrainingOptions, device: torch.device
) -> Measurement | None:
    """What training steps of a planned configuration take on ``device``; None if its memory ran out."""
    setting = Setting(topology_of(configuration), input_channels, num_classes, configuration["batch_size"])
    try:
        return measure(configuration["architecture"], setting, options, device)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None


def settle(plan: Callable[[float], dict], measured: Callable[[dict], Measurement | None], where: str) -> dict:
    """The plan whose measured peak is within ``TOLERANCE`` of its estimate.

    The estimate is corrected by what was measured, and bisected where that leads beyond a plan that is known to be too
    large or too small.

    Args:
        plan: A configuration by the factor on its estimates.
        measured: What a configuration takes; None if memory ran out.
        where: What to call it in messages.

    Returns:
        The configuration, with ``planning.measured``; the last that was not too large if no round ends within.

    Raises:
        UserError: Memory runs out for every plan that was tried.
    """
    factor, too_low, too_high = 1.0, 0.0, math.inf
    fitting = None
    for _ in range(_ROUNDS):
        configuration = plan(factor)
        found = measured(configuration)
        share = _MORE if found is None else found.bytes / configuration["planning"]["estimated_bytes"]
        logger.info("%s: %s", where, _outcome(configuration, found))
        if found is not None:
            configuration = _noting(found, configuration)
            if abs(share - 1) <= TOLERANCE:
                return configuration
        if share > 1:
            too_low = factor
        else:
            too_high, fitting = factor, configuration
        corrected = factor * share
        factor = corrected if too_low < corrected < too_high else (too_low + too_high) / 2
    if fitting is None:
        raise UserError(where, "memory runs out for every plan that was tried", "give less with --vram-gb")
    return fitting


def timed(configuration: dict, measured: Callable[[dict], Measurement | None], where: str) -> dict:
    """The configuration, with ``planning.measured``.

    Args:
        configuration, measured, where: See :func:`settle`.

    Raises:
        UserError: Memory runs out.
    """
    found = measured(configuration)
    logger.info("%s: %s", where, _outcome(configuration, found))
    if found is None:
        raise UserError(where, "memory runs out", "plan for a smaller budget, or close what else runs")
    return _noting(found, configuration)


def _noting(found: Measurement, configuration: dict) -> dict:
    noted = {"device": found.device, "bytes": found.bytes, "seconds": found.seconds}
    return configuration | {"planning": configuration["planning"] | {"measured": noted}}


def _outcome(configuration: dict, found: Measurement | None) -> str:
    patch = "x".join(map(str, configuration["patch_size"]))
    text = f"probed patch {patch}, batch {configuration['batch_size']}: "
    estimate = gib(configuration["planning"]["estimated_bytes"])
    if found is None:
        return f"{text}memory ran out, {estimate} estimated"
    return f"{text}{found.seconds:.2f} s a step, {gib(found.bytes)} measured, {estimate} estimated"
