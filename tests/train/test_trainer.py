"""Pieces of the trainer that need no data; the whole of it is in test_pipeline.py."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.train import TRAINER_NAME
from umamba_seg.train.trainer import ProgressPolyLR, UMambaSegTrainer, _plain


def test_learning_rate_follows_the_budget():
    progress = [0.0]
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    schedule = ProgressPolyLR(optimizer, 2.0, lambda: progress[0])
    rates = []
    for progress[0] in (0.0, 0.5, 1.0):
        schedule.step(current_step=17)  # nnU-Net passes the epoch; the budget decides
        rates.append(optimizer.param_groups[0]["lr"])
    assert rates == pytest.approx([2.0, 2.0 * 0.5**0.9, 0.0])


def test_checkpoint_values_are_plain():
    value = {"a": [np.float64(1.5), np.arange(2)], "b": (1, "x", None)}
    assert _plain(value) == {"a": [1.5, [0, 1]], "b": [1, "x", None]}
    assert type(_plain(np.float32(1))) is float


@pytest.fixture
def trainer():
    trainer = UMambaSegTrainer.__new__(UMambaSegTrainer)
    trainer.output_folder, trainer.current_epoch, trainer.iterations, trainer.initial_lr = "fold_0", 3, 151, 0.01
    trainer.grad_scaler, trainer._bad_losses = None, 0
    return trainer


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_divergence_ends_training_by_name(trainer, loss):
    trainer._refuse_divergence(0.5)
    with pytest.raises(UserError, match=rf"the loss became {loss} in epoch 3, iteration 151"):
        trainer._refuse_divergence(loss)


def test_gradient_scaler_may_skip_a_few_steps(trainer):
    trainer.grad_scaler = object()
    for loss in [math.inf] * 10 + [0.5] + [math.inf] * 10:
        trainer._refuse_divergence(loss)
    with pytest.raises(UserError, match="the loss became inf"):
        trainer._refuse_divergence(math.inf)


def test_names_follow_nnunets_order(trainer):
    trainer.dataset_json = {"labels": {"background": 0, "tumour": 2, "liver": 1}}
    assert trainer._foreground_names() == ["liver", "tumour"]
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 1}, "regions_class_order": [1, 2]}
    trainer.dataset_json = regions
    assert trainer._foreground_names() == ["whole", "core"]


def test_result_folders_are_named_after_the_trainer():
    assert UMambaSegTrainer.__name__ == TRAINER_NAME


def test_interrupt_keeps_what_is_learnt(trainer, monkeypatch):
    saved, logged = [], {"train_losses": [0.3, 0.2, 0.1], "lrs": [3.0, 2.0, 1.0, 0.5]}
    trainer.logger = SimpleNamespace(get_checkpoint=lambda: logged)
    monkeypatch.setattr(trainer, "save_checkpoint", lambda name: saved.append((name, trainer.current_epoch)))
    with pytest.raises(KeyboardInterrupt), trainer._saving_on_interrupt():
        raise KeyboardInterrupt
    assert saved == [("fold_0/checkpoint_latest.pth", 2)]  # a checkpoint counts one more: epoch 3 begins again
    assert [len(values) for values in logged.values()] == [3, 3]


def test_batch_norms_validate_with_the_statistics_of_the_weights_they_have(trainer):
    trainer.device, trainer.network = torch.device("cpu"), torch.nn.BatchNorm3d(1).eval()
    images = torch.randn(10, 2, 1, 8, 8, 8) * 3 + 5
    trainer.dataloader_train = iter([{"data": batch} for batch in images])
    trainer._settle_batch_norms()
    assert trainer.network.running_mean.item() == pytest.approx(images.mean().item(), rel=1e-3)
    assert trainer.network.running_var.item() == pytest.approx(images.var().item(), rel=1e-2)
    assert not trainer.network.training


def test_networks_without_batch_norm_cost_no_batches(trainer):
    trainer.device, trainer.network = torch.device("cpu"), torch.nn.InstanceNorm3d(1)
    trainer.dataloader_train = iter([])
    trainer._settle_batch_norms()


@pytest.mark.parametrize(
    ("strides", "scales"), [([[1, 1], [1, 2], [4, 8]], [[1, 1], [1, 0.5], [0.25, 0.125]]), ([[1, 1]], None)]
)
def test_deep_supervision_has_the_resolutions_of_the_network_s_outputs(trainer, strides, scales):
    trainer.output_strides, trainer.enable_deep_supervision = strides, len(strides) > 1
    assert trainer._get_deep_supervision_scales() == scales


def test_a_network_with_one_output_needs_no_switch(trainer):
    trainer.network, trainer.enable_deep_supervision = torch.nn.Identity(), False
    trainer.set_deep_supervision_enabled(True)  # nnU-Net does so after every validation
