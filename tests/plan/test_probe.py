"""Trying plans on a device, with devices that are made up: how far each differs from the estimate."""

from __future__ import annotations

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, find
from umamba_seg.plan import probe
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import topology_of, topology_table
from umamba_seg.plan.probe import TOLERANCE, is_out_of_memory, measure_plan, settle, timed
from umamba_seg.plan.step import Measurement, Setting

CPU = torch.device("cpu")
LIMIT = 1000  # bytes; a sample is estimated to take one


def plan(factor: float) -> dict:
    """As many samples as are estimated to fit."""
    batch = int(LIMIT / factor)
    return {"patch_size": [8, 8], "batch_size": batch, "planning": {"estimated_bytes": round(factor * batch)}}


class Device:
    """Takes ``bytes_of(batch size)``; its memory runs out where that is None. Keeps the batches that were tried."""

    def __init__(self, bytes_of):
        self.bytes_of = bytes_of
        self.tried: list[int] = []

    def __call__(self, configuration: dict) -> Measurement | None:
        self.tried.append(configuration["batch_size"])
        found = self.bytes_of(configuration["batch_size"])
        return None if found is None else Measurement(0.5, found, "made up")


def test_a_right_estimate_takes_one_round():
    device = Device(lambda batch: round(1.08 * batch))
    settled = settle(plan, device, "here")
    assert device.tried == [1000]
    assert settled["batch_size"] == 1000
    assert settled["planning"] == {
        "estimated_bytes": 1000,
        "measured": {"device": "made up", "bytes": 1080, "seconds": 0.5},
    }


@pytest.mark.parametrize(("share", "batch"), [(1.5, 666), (0.6, 1666), (4, 250), (0.1, 10_000)])
def test_a_wrong_estimate_is_corrected_by_what_was_measured(share, batch):
    device = Device(lambda batch: round(share * batch))
    settled = settle(plan, device, "here")
    assert device.tried == [1000, batch]
    assert settled["batch_size"] == batch
    planning = settled["planning"]
    assert planning["measured"]["bytes"] == pytest.approx(planning["estimated_bytes"], rel=TOLERANCE)
    assert planning["measured"]["bytes"] <= LIMIT


def test_memory_that_runs_out_leads_to_smaller_plans():
    device = Device(lambda batch: batch if batch < 500 else None)
    settled = settle(plan, device, "here")
    assert device.tried == [1000, 666, 444, *device.tried[3:]]
    assert 444 <= settled["batch_size"] < 500
    assert "measured" in settled["planning"]


def test_between_a_plan_too_large_and_one_too_small_it_is_bisected():
    """From 800 samples on another algorithm is chosen, which takes three times as much."""
    device = Device(lambda batch: batch // 2 if batch < 800 else 3 * batch // 2)
    settled = settle(plan, device, "here")
    factors = [1, 1.5, 1.25, 1.375, 1.3125, 1.28125]
    assert device.tried == [int(LIMIT / factor) for factor in factors]
    assert settled["batch_size"] == 780
    assert settled["planning"]["measured"]["bytes"] == 390


def test_the_last_plan_that_was_not_too_large_is_taken_where_no_round_ends_within():
    taken = iter([5000, 10, 5000, 10, 5000, 5000])
    device = Device(lambda _batch: next(taken))
    settled = settle(plan, device, "here")
    assert len(device.tried) == 6
    assert settled["batch_size"] == device.tried[3]
    assert settled["planning"]["measured"]["bytes"] == 10


def test_memory_that_always_runs_out_is_refused():
    device = Device(lambda _batch: None)
    with pytest.raises(UserError, match=r"here: memory runs out for every plan that was tried; give less .* --vram-gb"):
        settle(plan, device, "here")
    assert device.tried == sorted(device.tried, reverse=True)
    assert len(set(device.tried)) == 6


def test_a_plan_that_is_only_timed_stays_as_it_is():
    configuration = plan(1.0)
    noted = timed(configuration, Device(lambda batch: 7 * batch), "here")
    measured = {"device": "made up", "bytes": 7000, "seconds": 0.5}
    assert noted == configuration | {"planning": {"estimated_bytes": 1000, "measured": measured}}
    assert "measured" not in configuration["planning"]


def test_a_plan_that_is_only_timed_has_to_run():
    with pytest.raises(UserError, match="here: memory runs out; plan for a smaller budget"):
        timed(plan(1.0), Device(lambda _batch: None), "here")


def test_what_was_tried_is_said(monkeypatch):
    said = []  # by the logger itself: what caplog sees depends on whether the command line has run before
    monkeypatch.setattr(probe.logger, "info", lambda text, *values: said.append(text % values))
    settle(plan, Device(lambda batch: round(1.5 * batch) if batch < 700 else None), "here")
    assert said == [
        "here: probed patch 8x8, batch 1000: memory ran out, 0.00 GiB estimated",
        "here: probed patch 8x8, batch 666: 0.50 s a step, 0.00 GiB measured, 0.00 GiB estimated",
    ]


# ------------------------------------------------------------------------------------------------------- out of memory


def test_memory_that_runs_out_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as on_cpu:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(on_cpu.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."))
    with pytest.raises(RuntimeError) as shapes:
        torch.zeros(2) + torch.zeros(3)
    assert not is_out_of_memory(shapes.value)


def small_plan(*patch: int) -> dict:
    """A configuration of a U-Net with two stages."""
    dims, spec = len(patch), find("plain_conv_unet")
    topology = Topology(patch, ((1,) * dims, (2,) * dims), ((3,) * dims,) * 2, (4, 8))
    return {
        "patch_size": list(patch),
        "batch_size": 5,
        "topology": topology_table(topology),
        "architecture": spec.architecture(spec.planned(topology)),
    }


def test_a_plan_is_measured_as_it_stands(monkeypatch):
    found, configuration, options = (
        Measurement(0.5, 1, "made up"),
        small_plan(32, 16),
        TrainingOptions(optimizer="AdamW"),
    )

    def measure(architecture, setting, given, device):
        assert architecture == configuration["architecture"]
        assert setting == Setting(topology_of(configuration), input_channels=2, num_classes=3, batch_size=5)
        assert (given, device) == (options, CPU)
        return found

    monkeypatch.setattr(probe, "measure", measure)
    assert measure_plan(configuration, 2, 3, options, CPU) is found


def test_a_plan_that_memory_does_not_hold_has_no_measurement():
    assert measure_plan(small_plan(2**24, 2**24), 1, 2, TrainingOptions(), CPU) is None


def test_other_errors_of_a_plan_are_not_taken_for_a_lack_of_memory():
    configuration = small_plan(16, 16) | {key: small_plan(8, 8, 8)[key] for key in ("patch_size", "topology")}
    with pytest.raises(RuntimeError, match="but got input of size"):
        measure_plan(configuration, 1, 2, TrainingOptions(), CPU)
