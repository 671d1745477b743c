"""Pieces of the trainer that need no data; the whole of it is in test_resume.py and test_faults.py."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from umamba_seg.errors import Stopped
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.precision import FLOAT32
from umamba_seg.train import TRAINER_NAME
from umamba_seg.train.base import plain
from umamba_seg.train.clock import Clock
from umamba_seg.train.distributed import Group
from umamba_seg.train.sentinel import Recovery
from umamba_seg.train.trainer import UMambaSegTrainer


@pytest.fixture
def trainer():
    trainer = UMambaSegTrainer.__new__(UMambaSegTrainer)
    trainer.device, trainer.group, trainer.recovery = torch.device("cpu"), Group(), Recovery()
    trainer.precision, trainer.iterations, trainer.step, trainer.current_epoch = FLOAT32, 0, 0, 0
    trainer.options, trainer.num_epochs, trainer.schedule_start = TrainingOptions(epochs=100), 100, 0
    trainer.num_iterations_per_epoch, trainer._closing, trainer.clock = 10, 0.0, Clock(math.inf)
    trainer._stop = SimpleNamespace(signum=0)
    trainer.scores = []
    trainer.logger = SimpleNamespace(get_value=lambda name, step: trainer.scores)
    return trainer


def rate_at(trainer, epoch: int, step: int = 0) -> float:
    trainer.current_epoch, trainer.step = epoch, step
    trainer._agree()
    return trainer.learning_rate()


def test_learning_rate_follows_the_epochs_as_nnunet_s(trainer):
    assert [rate_at(trainer, epoch) for epoch in (0, 50)] == pytest.approx([0.01, 0.01 * 0.5**0.9])
    assert rate_at(trainer, 50, step=5) == rate_at(trainer, 50)


def test_learning_rate_follows_the_time(trainer):
    trainer.clock = Clock(60.0, spent=30.0)
    assert rate_at(trainer, 0) == pytest.approx(0.01 * 0.5**0.9)


def test_learning_rate_rises_within_the_first_epochs(trainer):
    trainer.options = TrainingOptions(epochs=100, warmup_epochs=2)
    assert rate_at(trainer, 0, step=5) == pytest.approx(0.01 * 0.25)
    assert rate_at(trainer, 1, step=5) == pytest.approx(0.01 * 0.75)
    assert rate_at(trainer, 2) == pytest.approx(0.01)


def test_an_extension_begins_its_schedule_anew_and_gently(trainer):
    trainer.num_epochs, trainer.current_epoch = 150, 100
    trainer.begin_extension()
    assert rate_at(trainer, 100, step=5) == pytest.approx(0.005)
    assert rate_at(trainer, 101) == pytest.approx(0.01)
    assert rate_at(trainer, 149) < 0.001


def test_what_the_recovery_takes_off_the_learning_rate_stays_off(trainer):
    trainer.recovery = Recovery(rewinds=2)
    assert rate_at(trainer, 0) == pytest.approx(0.0025)


def test_training_ends_by_epochs_time_or_patience(trainer):
    assert trainer._end_of_training() is None
    trainer.current_epoch = 100
    assert trainer._end_of_training() == "100 epochs"
    trainer.current_epoch, trainer.options = 4, TrainingOptions(early_stop=2, max_minutes=1)
    trainer.scores = [0.5, 0.7, 0.6]
    assert trainer._end_of_training() is None
    trainer.scores.append(0.7)
    assert trainer._end_of_training() == "the pseudo Dice has not risen for 2 epochs"
    trainer.clock = Clock(60.0, spent=60.0)
    assert trainer._end_of_training() == "1 minutes"


def test_early_stop_of_an_extension_looks_at_the_extension(trainer):
    trainer.options = TrainingOptions(early_stop=2)
    trainer.scores, trainer.schedule_start = [0.9, 0.8, 0.8, 0.5, 0.6], 3
    assert trainer._end_of_training() is None


def test_checkpoint_values_are_plain():
    value = {"a": [np.float64(1.5), np.arange(2)], "b": (1, "x", None)}
    assert plain(value) == {"a": [1.5, [0, 1]], "b": [1, "x", None]}
    assert type(plain(np.float32(1))) is float


def test_names_follow_nnunets_order(trainer):
    trainer.dataset_json = {"labels": {"background": 0, "tumour": 2, "liver": 1}}
    assert trainer.foreground_names() == ["liver", "tumour"]
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [1, 2]}
    trainer.dataset_json = regions
    assert trainer.foreground_names() == ["whole", "core"]


def test_result_folders_are_named_after_the_trainer():
    assert UMambaSegTrainer.__name__ == TRAINER_NAME


def test_a_signal_ends_training_before_the_next_iteration(trainer):
    trainer.network, trainer.times = torch.nn.Identity(), SimpleNamespace(take=lambda samples: {})
    trainer.step, trainer._stop.signum = 3, 15
    with pytest.raises(Stopped):
        trainer._train_epoch(None)


def test_batch_norms_validate_with_the_statistics_of_the_weights_they_have(trainer, monkeypatch):
    trainer.network = torch.nn.BatchNorm3d(1).eval()
    images = torch.randn(10, 2, 1, 8, 8, 8) * 3 + 5
    trainer.dataloader_train = iter([{"data": batch} for batch in images])
    monkeypatch.setattr(trainer, "_next", next)
    assert trainer._settle_batch_norms() == 10
    assert trainer.network.running_mean.item() == pytest.approx(images.mean().item(), rel=1e-3)
    assert trainer.network.running_var.item() == pytest.approx(images.var().item(), rel=1e-2)
    assert not trainer.network.training


def test_networks_without_batch_norm_cost_no_batches(trainer):
    trainer.network = torch.nn.InstanceNorm3d(1)
    trainer.dataloader_train = iter([])
    assert trainer._settle_batch_norms() == 0


@pytest.mark.parametrize(
    ("strides", "scales"), [([[1, 1], [1, 2], [4, 8]], [[1, 1], [1, 0.5], [0.25, 0.125]]), ([[1, 1]], None)]
)
def test_deep_supervision_has_the_resolutions_of_the_network_s_outputs(trainer, strides, scales):
    trainer.output_strides, trainer.enable_deep_supervision = strides, len(strides) > 1
    assert trainer._get_deep_supervision_scales() == scales


def test_a_network_with_one_output_needs_no_switch(trainer):
    trainer.network, trainer.enable_deep_supervision = torch.nn.Identity(), False
    trainer.set_deep_supervision_enabled(True)  # nnU-Net does so after every validation


# ---------------------------------------------------------------------------------------------------- nnU-Net's scores


@pytest.fixture
def scored(trainer, monkeypatch):
    """Validation steps of our trainer and of nnU-Net's on the same logits: ``scored(labels, logits, target)``."""
    from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

    def step(manager, logits, target) -> tuple[dict, dict]:
        trainer.label_manager, trainer.enable_deep_supervision = manager, False
        trainer.network, trainer.loss = lambda data: logits.clone(), lambda output, target: output.mean()
        batch = {"data": torch.zeros(1), "target": target}
        return trainer.validation_step(dict(batch)), nnUNetTrainer.validation_step(
            trainer, batch | {"target": target.clone()}
        )

    return step


@pytest.mark.parametrize("ignored", [False, True])
@pytest.mark.parametrize("regions", [False, True])
def test_pseudo_dice_counts_what_nnunet_counts(scored, regions, ignored):
    torch.manual_seed(0)
    manager = SimpleNamespace(has_regions=regions, has_ignore_label=ignored, ignore_label=3 if ignored else None)
    logits = torch.randn(2, 3, 8, 8)
    if regions:
        target = torch.rand(2, 4 if ignored else 3, 8, 8) > 0.6
    else:
        target = torch.randint(0, 4 if ignored else 3, (2, 1, 8, 8))
    ours, nnunets = scored(manager, logits, target)
    for key, value in nnunets.items():
        np.testing.assert_allclose(ours[key], value, err_msg=key)
