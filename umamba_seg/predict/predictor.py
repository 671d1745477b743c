"""Step 5: model folder + images -> segmentations, by nnU-Net's sliding window.

One process, case after case: a case that cannot be read is reported at the end and does not stop the others.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path

import torch
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import ConfigurationManager, PlansManager
from torch import nn

from umamba_seg.datasets.check import check_case_images
from umamba_seg.datasets.raw import channel_problem, list_images, read_description
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.files import make_folder, write_json
from umamba_seg.layout import use_fast_layout
from umamba_seg.log import logger, progress, quiet
from umamba_seg.networks.own import require_class
from umamba_seg.plan.plans import read_model_plans, require_network
from umamba_seg.text import shorten
from umamba_seg.train.checkpoints import load_checkpoint, load_weights


class Predictor(nnUNetPredictor):
    """nnU-Net's predictor, loaded from one of our model folders."""

    # nnU-Net begins with None for these; `load` sets them.
    plans_manager: PlansManager
    configuration_manager: ConfigurationManager
    dataset_json: dict
    network: nn.Module

    @classmethod
    def load(
        cls,
        model_folder: Path,
        folds: list[str],
        checkpoint_name: str,
        device: torch.device,
        *,
        mirroring: bool = True,
        step_size: float = 0.5,
    ) -> Predictor:
        """A predictor that averages the logits of several folds.

        Args:
            model_folder: ``Trainer__plans__configuration`` with plans.json, dataset.json and ``fold_*``.
            folds: E.g. ``["0", "1"]`` or ``["all"]``.
            checkpoint_name: File in each fold's folder.
            device: Where the network runs.
            mirroring: Average over mirrored inputs along the axes that training mirrored.
            step_size: Step of the sliding window as a share of the patch.

        Raises:
            UserError: A file is missing, damaged, refused by :func:`require_safe`, or does not fit the plans.
        """
        plans_manager = PlansManager(read_model_plans(model_folder))
        dataset_json = read_description(model_folder / "dataset.json")
        files = [model_folder / f"fold_{fold}" / checkpoint_name for fold in folds]
        checkpoints = [load_checkpoint(path) for path in files]
        first = checkpoints[0]
        name = first["init_args"]["configuration"]
        if name not in plans_manager.available_configurations:
            what = f"is of the configuration {name!r}, which {model_folder / 'plans.json'} does not hold"
            raise UserError(files[0], what, "restore the plans.json that the fold was trained with")
        configuration = plans_manager.get_configuration(name)
        require_network(configuration.configuration, f"{model_folder / 'plans.json'}")
        require_class(configuration.network_arch_class_name, configuration.network_arch_init_kwargs)
        with quiet():
            predictor = cls(tile_step_size=step_size, use_mirroring=mirroring, device=device, allow_tqdm=False)
            network = nnUNetTrainer.build_network_architecture(
                plans_manager,
                configuration,
                determine_num_input_channels(plans_manager, configuration, dataset_json),
                plans_manager.get_label_manager(dataset_json).num_segmentation_heads,
                enable_deep_supervision=False,
            )
            for checkpoint, path in zip(checkpoints, files, strict=True):
                load_weights(network, checkpoint, path)
            predictor.manual_initialization(
                use_fast_layout(network, device),
                plans_manager,
                configuration,
                [checkpoint["network_weights"] for checkpoint in checkpoints],
                dataset_json,
                first["trainer_name"],
                first["inference_allowed_mirroring_axes"],
            )
        return predictor

    @torch.inference_mode()
    def _internal_maybe_mirror_and_predict(self, x: torch.Tensor) -> torch.Tensor:
        """nnU-Net's mean over mirrored tiles, two at a time on a CPU.

        For a batch of one and a small tile torch takes another 3-D convolution there, three times slower (U-Mamba_Bot
        on two cores, a tile of 14x96x96: 0.31 s alone, 0.10 s in a pair).
        """
        axes = self.allowed_mirroring_axes if self.use_mirroring else None
        if x.device.type != "cpu" or not axes:
            return super()._internal_maybe_mirror_and_predict(x)
        flips = [tuple(axis + 2 for axis in some) for n in range(len(axes) + 1) for some in combinations(axes, n)]
        total = torch.zeros(())
        for pair in zip(flips[::2], flips[1::2], strict=True):
            logits = self.network(torch.cat([torch.flip(x, dims) for dims in pair]))
            total = total + sum(torch.flip(part[None], dims) for part, dims in zip(logits, pair, strict=True))
        return total / len(flips)

    def predict_case(self, files: Sequence[Path], target: Path, *, save_probabilities: bool = False) -> None:
        """Segment one case into ``target``, a path without ending. Nothing half written ever has that name.

        Args:
            files: Its images, one per channel.
            target: Where to write, without the ending.
            save_probabilities: Also write nnU-Net's ``.npz`` (and ``.pkl``) of probabilities.
        """
        plans, configuration, ending = self.plans_manager, self.configuration_manager, self.dataset_json["file_ending"]
        preprocessor = configuration.preprocessor_class(verbose=False)
        names = [str(path) for path in files]
        data, _, properties = preprocessor.run_case(names, None, plans, configuration, self.dataset_json)
        logits = self.predict_logits_from_preprocessed_data(torch.from_numpy(data))
        part, threads = target.with_name(f".{target.name}.part"), torch.get_num_threads()
        parts = {suffix: Path(f"{part}{suffix}") for suffix in (ending, ".npz", ".pkl")}
        case = (logits, properties, configuration, plans, self.dataset_json)
        try:
            export_prediction_from_logits(*case, str(part), save_probabilities, threads)
            for suffix, written in parts.items():
                if written.exists():
                    os.replace(written, f"{target}{suffix}")
        finally:
            for written in parts.values():
                written.unlink(missing_ok=True)

    def predict_folder(self, images: Path, output: Path, *, save_probabilities: bool = False) -> list[Path]:
        """Segment every case of a folder of images ``CASE_0000.ending``.

        Args:
            images: Folder of images, one file per channel. Images of other names are left alone, with a warning.
            output: Folder for the segmentations, made if missing. Each has shape and geometry of its image. The data
                set's dataset.json is put beside them, for their evaluation.
            save_probabilities: See :meth:`predict_case`.

        Returns:
            The segmentations written.

        Raises:
            UserError: There are no cases, or none of them can be read.
            CasesFailed: Some cases cannot be read; the others are written.
        """
        ending, channels = self.dataset_json["file_ending"], len(self.dataset_json["channel_names"])
        cases, strangers = list_images(images, ending)
        if strangers:
            logger.warning("left alone, as they are not named CASE_0000%s: %s", ending, shorten(strangers))
        written, failures = [], {}
        for case, files in progress(cases.items(), "predicting"):
            try:
                _check_case(case, files, images, channels, ending)
            except UserError as error:
                failures[case] = str(error)
                continue
            if not written:
                write_json(make_folder(output) / "dataset.json", self.dataset_json)
            with quiet():
                self.predict_case(tuple(files.values()), output / case, save_probabilities=save_probabilities)
            written.append(output / f"{case}{ending}")
        if failures and written:
            raise CasesFailed(failures, [str(path) for path in written])
        if failures:
            raise UserError(images, "none of the cases can be read", "\n  ".join(["mend them:", *failures.values()]))
        return written


def _check_case(case: str, files: dict[int, Path], images: Path, channels: int, ending: str) -> None:
    problem = channel_problem(case, list(files), channels, ending)
    if problem:
        raise UserError(images, problem, "add the missing files or remove the case")
    check_case_images(case, tuple(files.values()), channels)
