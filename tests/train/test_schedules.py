"""The learning rate over a training."""

import pytest
import torch
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from torch import nn

from umamba_seg.plan.options import TrainingOptions
from umamba_seg.train.schedules import learning_rate

POLY = TrainingOptions(initial_lr=0.2)
COSINE = TrainingOptions(initial_lr=0.2, schedule="cosine")
CONSTANT = TrainingOptions(initial_lr=0.2, schedule="constant")


def test_poly_is_nnunets():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = PolyLRScheduler(optimizer, 0.2, max_steps=40)
    for epoch in range(40):
        scheduler.step(epoch)
        assert learning_rate(POLY, epoch / 40) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-12)


def test_cosine_is_torchs():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.2)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=40)
    for epoch in range(40):
        assert learning_rate(COSINE, epoch / 40) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
        optimizer.step()
        scheduler.step()


@pytest.mark.parametrize(("options", "last"), [(POLY, 0), (COSINE, 0), (CONSTANT, 0.2)])
def test_ends(options, last):
    assert learning_rate(options, 0) == 0.2
    assert learning_rate(options, 1) == pytest.approx(last)


def test_the_exponent_is_that_of_the_options():
    assert learning_rate(TrainingOptions(initial_lr=0.2, poly_exponent=2), 0.75) == pytest.approx(0.2 / 16)


@pytest.mark.parametrize("options", [POLY, COSINE, CONSTANT])
def test_the_rate_rises_to_its_start_and_then_runs_through_the_whole_schedule(options):
    assert learning_rate(options, 0, warmup=0.2) == 0
    assert learning_rate(options, 0.05, warmup=0.2) == pytest.approx(0.05)
    assert learning_rate(options, 0.2, warmup=0.2) == pytest.approx(0.2)
    assert learning_rate(options, 0.6, warmup=0.2) == pytest.approx(learning_rate(options, 0.5))
    assert learning_rate(options, 1, warmup=0.2) == learning_rate(options, 1)


def test_a_training_may_be_all_warm_up():
    assert [learning_rate(POLY, progress, warmup=1) for progress in (0, 0.5, 1)] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize(("progress", "warmup"), [(-0.1, 0), (1.1, 0), (float("nan"), 0), (0.5, -0.1), (0.5, 1.1)])
def test_shares_out_of_range_are_our_mistake(progress, warmup):
    with pytest.raises(ValueError, match=r"each must be in \[0, 1\]"):
        learning_rate(POLY, progress, warmup)
