"""The losses are nnU-Net's."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from umamba_seg.plan.losses import make_loss
from umamba_seg.plan.options import TrainingOptions

CE = TrainingOptions(loss="ce")
LABELS = {"regions": False, "ignore_label": None}


def theirs(outputs: int, *, batch_dice: bool, regions: bool, ignore_label: int | None):
    return nnUNetTrainer._build_loss(
        SimpleNamespace(
            label_manager=SimpleNamespace(has_regions=regions, ignore_label=ignore_label),
            configuration_manager=SimpleNamespace(batch_dice=batch_dice),
            is_ddp=False,
            enable_deep_supervision=outputs > 1,
            _do_i_compile=lambda: False,
            _get_deep_supervision_scales=lambda: [[0.5**level] * 2 for level in range(outputs)],
        )
    )


def sample(outputs: int, *, regions: bool, ignore_label: int | None):
    """Logits of three classes and their targets, lists of several outputs, with voxels to ignore if they are asked."""
    generator = torch.Generator().manual_seed(0)
    sides = [32 // 2**level for level in range(outputs)]
    logits = [torch.randn(2, 3, side, side, generator=generator) for side in sides]
    if regions:
        channels = 3 if ignore_label is None else 4
        targets = [torch.rand(2, channels, side, side, generator=generator) < 0.3 for side in sides]
    else:
        labels = 3 if ignore_label is None else 4
        targets = [torch.randint(labels, (2, 1, side, side), generator=generator) for side in sides]
    return (logits[0], targets[0]) if outputs == 1 else (logits, targets)


@pytest.mark.parametrize("outputs", [1, 2, 5])
@pytest.mark.parametrize("batch_dice", [False, True])
@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("ignore_label", [None, 3])
def test_dice_and_cross_entropy_are_nnunets(outputs, batch_dice, regions, ignore_label):
    labels = {"regions": regions, "ignore_label": ignore_label}
    logits, targets = sample(outputs, **labels)
    ours = make_loss(TrainingOptions(), outputs=outputs, batch_dice=batch_dice, **labels)
    expected = theirs(outputs, batch_dice=batch_dice, **labels)(logits, targets)
    torch.testing.assert_close(ours(logits, targets), expected)


def test_cross_entropy_alone():
    logits, target = sample(1, **LABELS)
    loss = make_loss(CE, outputs=1, batch_dice=True, **LABELS)
    torch.testing.assert_close(loss(logits, target), F.cross_entropy(logits, target[:, 0]))


def test_cross_entropy_alone_leaves_out_the_label_to_ignore():
    labels = {"regions": False, "ignore_label": 3}
    logits, target = sample(1, **labels)
    expected = F.cross_entropy(logits, target[:, 0], ignore_index=3)
    torch.testing.assert_close(make_loss(CE, outputs=1, batch_dice=True, **labels)(logits, target), expected)


def test_cross_entropy_alone_of_regions_is_binary():
    labels = {"regions": True, "ignore_label": None}
    logits, target = sample(1, **labels)
    expected = F.binary_cross_entropy_with_logits(logits, target.float())
    torch.testing.assert_close(make_loss(CE, outputs=1, batch_dice=True, **labels)(logits, target), expected)


def test_an_output_weighs_half_as_much_as_the_finer_one_and_the_last_nothing():
    logits, targets = sample(4, **LABELS)
    single = make_loss(CE, outputs=1, batch_dice=True, **LABELS)
    parts = [single(*pair) for pair in zip(logits, targets, strict=True)]
    found = make_loss(CE, outputs=4, batch_dice=True, **LABELS)(logits, targets)
    torch.testing.assert_close(found, (4 * parts[0] + 2 * parts[1] + parts[2]) / 7)


@pytest.mark.parametrize("regions", [False, True])
@pytest.mark.parametrize("distributed", [False, True])
def test_a_distributed_dice_is_taken_over_all_processes(regions, distributed):
    loss = make_loss(
        TrainingOptions(), outputs=1, batch_dice=True, regions=regions, ignore_label=None, distributed=distributed
    )
    assert loss.dc.ddp == distributed
