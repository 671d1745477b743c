"""What training takes from nnU-Net: network, split, augmentation and pseudo Dice."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetBaseDataset
from nnunetv2.training.loss.dice import get_tp_fp_fn_tn
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from umamba_seg.datasets.labels import Labels
from umamba_seg.log import logger
from umamba_seg.plan.losses import make_loss
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.precision import Precision
from umamba_seg.plan.step import make_optimizer
from umamba_seg.train.data import Loader, Samples
from umamba_seg.train.distributed import Group
from umamba_seg.train.mirroring import inference_axes, with_swaps
from umamba_seg.train.validation import validate

_TRAINING, _VALIDATION = 0, 1  # streams of samples


def plain(value: Any) -> Any:
    """Numpy scalars and arrays, tuples and lists as plain Python values (what JSON takes)."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


class _Schedule:
    """What nnU-Net's trainer takes for a scheduler: sets the learning rate of the moment."""

    def __init__(self, trainer: BaseTrainer):
        self._trainer = trainer

    def step(self, _epoch: int | None = None) -> None:
        rate = self._trainer.learning_rate()
        for group in self._trainer.optimizer.param_groups:
            group["lr"] = rate


class BaseTrainer(nnUNetTrainer):
    """nnU-Net's trainer with batches, loss, optimizer and precision of ours.

    nnU-Net's own distribution over GPUs stays off (``is_ddp`` is False): see :class:`Group`.

    Attributes:
        options: How the fold is trained.
        group: The processes that share each batch.
        output_strides: Input voxels per voxel of each output.
        mirroring: Of the plan; None in plans of others.
        workers: Processes that augment.
        drawn, validated: Batches of training and of validation that were used so far.
    """

    # nnU-Net begins with None for some of these; they are set by the time they are used.
    network: nn.Module
    optimizer: torch.optim.Optimizer
    lr_scheduler: _Schedule
    loss: nn.Module
    output_folder: str
    dataset_class: type[nnUNetBaseDataset]
    preprocessed_dataset_folder: str
    preprocessed_dataset_folder_base: str
    options: TrainingOptions
    group: Group
    output_strides: list[list[int]]
    mirroring: dict | None
    workers: int
    drawn: int
    validated: int

    def learning_rate(self) -> float:
        """Of the moment."""
        raise NotImplementedError

    def precision_now(self) -> Precision:
        """In which the network runs at this moment."""
        raise NotImplementedError

    def configure_optimizers(self) -> tuple[torch.optim.Optimizer, Any]:
        return make_optimizer(self.options, self.network.parameters()), _Schedule(self)

    def _build_loss(self) -> nn.Module:
        return make_loss(
            self.options,
            outputs=len(self.output_strides),
            batch_dice=self.configuration_manager.batch_dice,
            regions=self.label_manager.has_regions,
            ignore_label=self.label_manager.ignore_label,
            distributed=self.group.size > 1,
        )

    def _do_i_compile(self) -> bool:
        """Only when asked for: compiling takes minutes."""
        return "nnUNet_compile" in os.environ and super()._do_i_compile()

    def _get_deep_supervision_scales(self) -> list[list[float]] | None:
        """Of the network's outputs, whose number nnU-Net would derive from the strides of a U-Net."""
        if not self.enable_deep_supervision:
            return None
        return [[1 / step for step in strides] for strides in self.output_strides]

    def set_deep_supervision_enabled(self, enabled: bool) -> None:
        """Nothing for a network with one output: it need not have nnU-Net's switch."""
        if self.enable_deep_supervision:
            self.plain_network.decoder.deep_supervision = enabled  # type: ignore[union-attr]

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self):  # nnU-Net's spelling
        """nnU-Net's, with the axes that the plan mirrors."""
        rotation, dummy_2d, initial_patch_size, axes = (
            super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        )
        if self.mirroring is not None:
            axes = tuple(self.mirroring["axes"])
            self.inference_allowed_mirroring_axes = inference_axes(self.mirroring)
        return rotation, dummy_2d, initial_patch_size, axes

    def plot_network_architecture(self) -> None:
        """Nothing: nnU-Net's plot needs a library that it does not install."""

    def print_to_log_file(self, *args, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """To the log file; to the console only as a debug message."""
        if self.group.leads:
            super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)
            logger.debug(" ".join(map(str, args)).strip())

    def get_dataloaders(self) -> tuple[Loader, Loader]:
        """Batches from where training stands on."""
        scales = self._get_deep_supervision_scales()
        rotation, dummy_2d, initial_patch_size, axes = self.configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        common = {
            "is_cascaded": self.is_cascaded,
            "foreground_labels": self.label_manager.foreground_labels,
            "regions": self.label_manager.foreground_regions if self.label_manager.has_regions else None,
            "ignore_label": self.label_manager.ignore_label,
        }
        patch_size = self.configuration_manager.patch_size
        augmentation = self.get_training_transforms(
            patch_size, rotation, scales, axes, dummy_2d,  # type: ignore[arg-type]
            use_mask_for_norm=self.configuration_manager.use_mask_for_norm, **common,
        )  # fmt: skip
        if self.mirroring is not None and self.mirroring["swap"] is not None:
            augmentation = with_swaps(augmentation, self.mirroring["swap"])  # type: ignore[arg-type]
        training, validation = self.get_tr_and_val_datasets()
        items = self.group.share(self.configuration_manager.batch_size)

        def loader(dataset, cropped_size, transforms, stream: int, start: int, workers: int) -> Loader:
            samples = Samples(
                dataset,
                self.label_manager,
                patch_size=cropped_size,
                final_patch_size=patch_size,
                transforms=transforms,
                batch_size=self.configuration_manager.batch_size,
                items=items,
                oversample_foreground=self.oversample_foreground_percent,
                seed=self.options.seed,
                stream=stream,
            )
            return Loader(samples, start, workers, pin=self.device.type == "cuda")

        unaltered = self.get_validation_transforms(scales, **common)
        return (
            loader(training, initial_patch_size, augmentation, _TRAINING, self.drawn, self.workers),
            loader(validation, patch_size, unaltered, _VALIDATION, self.validated, min(1, self.workers)),
        )

    @property
    def plain_network(self) -> nn.Module:
        """The network without the wrappers of torch.compile and of a distributed training."""
        network = getattr(self.network, "module", self.network) if self.group.size > 1 else self.network
        return getattr(network, "_orig_mod", network)

    # -------------------------------------------------------------------------------------------------------- scores

    def on_device(self, batch: dict) -> tuple[Tensor, Any]:
        target = batch["target"]
        parts = target if isinstance(target, list) else [target]
        data, *moved = (part.to(self.device, non_blocking=True) for part in (batch["data"], *parts))
        return data, moved if isinstance(target, list) else moved[0]

    def validation_step(self, batch: dict) -> dict:
        """Loss, and voxels per foreground class or region that are right, too many and missed.

        As nnU-Net's, in the precision of the training.
        """
        data, target = self.on_device(batch)
        with self.precision_now().autocast(self.device):
            output = self.plain_network(data)
            loss = self.loss(output, target)
        if self.enable_deep_supervision:
            output, target = output[0], target[0]
        regions, ignored = self.label_manager.has_regions, None
        if self.label_manager.has_ignore_label:
            if regions:  # the last channel of the target
                target, ignored = target[:, :-1], target[:, -1:].bool()
            else:
                ignored = target == self.label_manager.ignore_label
                target = target.masked_fill(ignored, 0)
        if regions:
            predicted = (output.sigmoid() > 0.5).long()
        else:
            predicted = torch.zeros_like(output, dtype=torch.float16).scatter_(1, output.argmax(1, keepdim=True), 1)
        axes = [0, *range(2, output.ndim)]
        mask = None if ignored is None else (~ignored).float()
        tp, fp, fn, _ = get_tp_fp_fn_tn(predicted, target, axes=axes, mask=mask)
        foreground = slice(0 if regions else 1, None)
        found = {"tp_hard": tp, "fp_hard": fp, "fn_hard": fn}
        return {"loss": float(loss)} | {key: value.cpu().numpy()[foreground] for key, value in found.items()}

    def foreground_names(self) -> list[str]:
        """In the order of nnU-Net's pseudo Dice: regions as dataset.json lists them, labels by value."""
        labels = Labels.from_json(self.dataset_json, Path("dataset.json"))
        if labels.has_regions:
            return list(labels.foreground)
        return sorted(labels.foreground, key=lambda name: labels.foreground[name])

    def perform_actual_validation(self, save_probabilities: bool = False) -> None:
        """The held-out cases by our predictor instead of nnU-Net's; see :func:`~umamba_seg.train.validation.validate`.

        The scores go where nnU-Net's go: into the log file and to its other loggers.
        """
        summary = validate(self, save_probabilities=save_probabilities)
        if summary is None:
            return
        for key, metrics in summary["mean"].items():
            self.logger.log_summary(f"final_val/class_{key}_dice", metrics["Dice"])
        self.logger.log_summary("final_val/foreground_dice", summary["foreground_mean"]["Dice"])
        self.print_to_log_file("Mean Validation Dice: ", summary["foreground_mean"]["Dice"])

    # ---------------------------------------------------------------------------------------------------- prediction

    def prediction(self) -> dict:
        """What nnU-Net's predictor asks of a checkpoint beside the weights.

        ``trainer_name`` names nnU-Net's own trainer: it looks the class up among its own, and ours adds nothing to
        prediction (the network is found through the plans).
        """
        return {
            "init_args": {"configuration": self.configuration_name, "fold": self.fold},
            "trainer_name": nnUNetTrainer.__name__,
            "inference_allowed_mirroring_axes": plain(self.inference_allowed_mirroring_axes),
        }
