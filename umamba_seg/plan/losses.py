"""The losses of the training options, made of nnU-Net's classes."""

from __future__ import annotations

from nnunetv2.training.loss.compound_losses import DC_and_BCE_loss, DC_and_CE_loss
from nnunetv2.training.loss.deep_supervision import DeepSupervisionWrapper
from nnunetv2.training.loss.dice import MemoryEfficientSoftDiceLoss
from torch import nn

from umamba_seg.plan.options import TrainingOptions


def make_loss(
    options: TrainingOptions,
    *,
    outputs: int,
    batch_dice: bool,
    regions: bool,
    ignore_label: int | None,
    distributed: bool = False,
) -> nn.Module:
    """The loss of logits and targets: (batch, classes, ...) and (batch, 1, ...), or for regions (batch, regions, ...).

    Of several outputs, a list of each, finest first: an output weighs half as much as the finer one, the last nothing.

    Args:
        options: ``loss`` counts. "ce" is the cross entropy alone, of regions the binary one.
        outputs: Of the network; a single one is no list, as in nnU-Net.
        batch_dice: Whether the Dice is that of the whole batch, or the mean over its samples.
        regions: Whether the classes may overlap. Their targets end in a channel of voxels to ignore, if there are any.
        ignore_label: The label without which the loss is taken.
        distributed: Whether the batch of the Dice lies on all processes of torch's process group.
    """
    dice = {"batch_dice": batch_dice, "smooth": 1e-5, "do_bg": regions, "ddp": distributed}
    weight_dice = 1 if options.loss == "dice_ce" else 0
    if regions:
        ignores = ignore_label is not None
        loss = DC_and_BCE_loss({}, dice, 1, weight_dice, ignores, MemoryEfficientSoftDiceLoss)
    else:
        loss = DC_and_CE_loss(dice, {}, 1, weight_dice, ignore_label, MemoryEfficientSoftDiceLoss)  # type: ignore[arg-type]
    if outputs == 1:
        return loss
    weights = [2.0**-level for level in range(outputs - 1)]
    return DeepSupervisionWrapper(loss, [*(weight / sum(weights) for weight in weights), 0.0])
