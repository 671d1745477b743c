"""A trained model that segments images in memory: loaded once, used for many cases, without processes of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.label_handling.label_handling import convert_labelmap_to_one_hot, determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from torch import Tensor, nn

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import read_description
from umamba_seg.errors import UserError
from umamba_seg.layout import use_fast_layout
from umamba_seg.log import logger, quiet
from umamba_seg.networks.own import require_class
from umamba_seg.plan.memory import forward_memory
from umamba_seg.plan.plans import read_model_plans, require_network, topology_of
from umamba_seg.plan.precision import FLOAT32, Precision, choose_precision
from umamba_seg.plan.step import Setting
from umamba_seg.predict.cases import PreparedCase, from_array, read_case, read_previous
from umamba_seg.predict.memory import Demand, Memory
from umamba_seg.predict.mirroring import Flip, NamePair, exchange_of, flips, named_pairs
from umamba_seg.predict.preprocessing import PredictionConfiguration
from umamba_seg.predict.resampling import Resampler, nearest_axis
from umamba_seg.predict.results import Canvas, Prediction
from umamba_seg.predict.window import Tiling, sweep
from umamba_seg.train import FINAL_PTH, trained_folds
from umamba_seg.train.checkpoints import load_checkpoint, load_weights

_LEFT_RIGHT = 2  # of the axes z, y, x of an image


class Predictor:
    """A model of one or several folds, whose logits are averaged.

    Attributes:
        model_folder: Where it was loaded from.
        folds: Those that are averaged.
        configuration_name: E.g. ``3d_fullres``.
        plans, plans_manager, dataset_json: Of the model; the second is nnU-Net's view of the first.
        input_channels: Of the network: those of the image, and the labels of the stage before.
        labels: What the segmentations hold.
        file_ending: Of images and segmentations.
        previous_stage: The configuration whose segmentations it needs beside the images, or None.
        model_hash: SHA-256 of the plans and the folds' checkpoints.
        networks: One per fold, on ``device``.
        flips: How each tile is looked at.
        step_size, device, ram_gb: As given.
    """

    model_folder: Path
    folds: list[str]
    configuration_name: str
    plans: dict
    plans_manager: PlansManager
    dataset_json: dict
    labels: Labels
    file_ending: str
    previous_stage: str | None
    input_channels: int
    model_hash: str
    networks: list[nn.Module]
    flips: list[Flip]
    step_size: float
    device: torch.device
    ram_gb: float | None
    _precision: Precision
    _memory: Memory
    _configuration: PredictionConfiguration

    @classmethod
    def load(
        cls,
        model_folder: Path,
        folds: Sequence[str] | None = None,
        device: torch.device | str | None = None,
        *,
        checkpoint_name: str = FINAL_PTH,
        mirroring: bool = True,
        swap_labels: Sequence[NamePair] | None = None,
        step_size: float = 0.5,
        ram_gb: float | None = None,
    ) -> Predictor:
        """Load a model.

        Args:
            model_folder: ``Trainer__plans__configuration`` with plans.json, dataset.json and ``fold_*``.
            folds: E.g. ``["0", "1"]`` or ``["all"]``; by default all that are trained, or else "all".
            device: Where the networks run; by default a CUDA GPU where there is one, else the CPU.
            checkpoint_name: File in each fold's folder.
            mirroring: Average over mirrored tiles, along the axes that training mirrored. Labels of a left and a right
                side change places when the plans say so.
            swap_labels: Names of such labels, two by two, for a model whose plans do not say it.
            step_size: Largest step of the sliding window as a share of the patch.
            ram_gb: What the process may take of the memory, in GB (10^9 bytes); by default what is free.

        Raises:
            UserError: A file is missing, damaged, refused by :func:`require_safe`, or does not fit the plans.
        """
        plans = read_model_plans(model_folder)
        dataset_json = read_description(model_folder / "dataset.json")
        place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if place.type == "cuda":
            torch.backends.cudnn.benchmark = True  # all tiles are of one size
        names = trained_folds(model_folder, folds, checkpoint_name)
        files = [model_folder / f"fold_{fold}" / checkpoint_name for fold in names]
        checkpoints = [load_checkpoint(path) for path in files]
        configuration = checkpoints[0]["init_args"]["configuration"]
        if configuration not in plans["configurations"]:
            what = f"is of the configuration {configuration!r}, which {model_folder / 'plans.json'} does not hold"
            raise UserError(files[0], what, "restore the plans.json that the fold was trained with")
        predictor = cls(model_folder, plans, dataset_json, configuration, place, step_size, ram_gb)
        predictor.folds, predictor.model_hash = names, _hash([model_folder / "plans.json", *files])
        axes = checkpoints[0]["inference_allowed_mirroring_axes"]
        predictor._hold(predictor._build(checkpoints, files), axes, swap_labels, mirroring=mirroring)
        return predictor

    @classmethod
    def of_network(
        cls,
        network: nn.Module,
        mirroring_axes: Sequence[int] | None,
        model_folder: Path,
        plans: dict,
        dataset_json: dict,
        configuration: str,
        device: torch.device,
    ) -> Predictor:
        """A model of one fold whose network is in memory: :meth:`load` without files.

        ``folds`` and ``model_hash`` are not there.

        Args:
            network: In evaluation mode on ``device``, with one output.
            mirroring_axes: As a checkpoint names them, for plans that do not.
            model_folder: Where plans.json and dataset.json of the model lie, for messages.
            plans, dataset_json: Of the model.
            configuration: Of the plans.
            device: Where the network runs.

        Raises:
            UserError: The plans or the labels cannot be used.
        """
        predictor = cls(model_folder, plans, dataset_json, configuration, device)
        predictor._hold([network], mirroring_axes)
        return predictor

    def __init__(
        self,
        model_folder: Path,
        plans: dict,
        dataset_json: dict,
        configuration: str,
        device: torch.device,
        step_size: float = 0.5,
        ram_gb: float | None = None,
    ):
        """What follows from the plans; see :meth:`load` and :meth:`of_network`."""
        self.model_folder, self.plans, self.dataset_json = model_folder, plans, dataset_json
        self.configuration_name, self.step_size, self.device, self.ram_gb = configuration, step_size, device, ram_gb
        self.labels = Labels.from_json(dataset_json, model_folder / "dataset.json")
        self.file_ending = dataset_json["file_ending"]
        self.plans_manager = PlansManager(plans)
        resolved = self.plans_manager.get_configuration(configuration).configuration
        staged = resolved.get("previous_stage") is not None
        self._configuration = PredictionConfiguration(resolved, keeps_labels=staged)
        require_network(resolved, f"{model_folder / 'plans.json'}")
        self.previous_stage = self._configuration.previous_stage_name
        self.input_channels = determine_num_input_channels(self.plans_manager, self._configuration, dataset_json)
        self._precision = choose_precision("auto", device)

    def _hold(
        self,
        networks: list[nn.Module],
        axes: Sequence[int] | None,
        swap_labels: Sequence[NamePair] | None = None,
        *,
        mirroring: bool = True,
    ) -> None:
        """Be ready to run these networks."""
        self.networks = networks
        self._memory = Memory(self.ram_gb, self.device, self._forward_bytes)
        self.flips = self._choose_flips(axes, swap_labels) if mirroring else [Flip()]

    def _build(self, checkpoints: list[dict], files: list[Path]) -> list[nn.Module]:
        """A network per fold."""
        configuration, networks = self._configuration, []
        require_class(configuration.network_arch_class_name, configuration.network_arch_init_kwargs)
        for checkpoint, path in zip(checkpoints, files, strict=True):
            with quiet():
                network = nnUNetTrainer.build_network_architecture(
                    self.plans_manager,
                    configuration,
                    self.input_channels,
                    self.labels.num_classes,
                    enable_deep_supervision=False,
                )
            load_weights(network, checkpoint, path)
            networks.append(use_fast_layout(network, self.device).to(self.device).eval())
        return networks

    def _choose_flips(self, axes: Sequence[int] | None, swap_labels: Sequence[NamePair] | None) -> list[Flip]:
        """By the plan, or by the checkpoint where plans of others say nothing; what changes places is printed."""
        plan = self._configuration.configuration.get("mirroring") or {"axes": axes or (), "swap": None}
        allowed, swap = set(plan["axes"]), plan["swap"]
        if swap_labels:
            pairs = named_pairs(self.labels, swap_labels)
            dims = len(self._configuration.patch_size)
            axis = list(self.plans_manager.transpose_forward).index(_LEFT_RIGHT) - (3 - dims)
            if axis < 0:
                what = "the slices of this model lie across the left-right axis"
                raise UserError("--swap-labels", what, "leave it out")
            swap = {"axis": axis, "pairs": pairs}
        if swap is None:
            return flips(allowed, None, None)
        images = len(self.dataset_json["channel_names"])
        exchange = exchange_of(self.labels, swap["pairs"], images, staged=self.previous_stage is not None)
        if exchange is None:
            logger.info("mirroring: left and right stay, as a region of the model has no other side")
            return flips(allowed - {swap["axis"]}, None, None)
        names = {value: name for name, value in self.labels.foreground.items()}
        listed = ", ".join(f"{names.get(one, one)} and {names.get(other, other)}" for one, other in swap["pairs"])
        logger.info("mirroring: when left and right are mirrored, these labels change places: %s", listed)
        return flips(allowed | {swap["axis"]}, swap["axis"], exchange)

    # ---------------------------------------------------------------------------------------------------------- cases

    def prepare(
        self,
        images: Sequence[Path] | np.ndarray,
        *,
        name: str = "image",
        spacing: Sequence[float] | None = None,
        previous: Path | np.ndarray | None = None,
    ) -> PreparedCase:
        """Read, check, crop, resample and normalise a case. It may run in another thread than :meth:`segment`.

        Args:
            images: Files in channel order (a DICOM series is a folder), or an array (channels, z, y, x), with the axes
                as nnU-Net's reader of the training images orders them; (channels, y, x) for a picture.
            name: Of the case, for messages.
            spacing: Of an array: size of a voxel in mm, (z, y, x) or (y, x).
            previous: Segmentation of the stage before, for the second stage of a cascade: a file, or (z, y, x).

        Raises:
            UserError: The images or the segmentation of the stage before are missing, cannot be read, or do not fit.
        """
        if (previous is None) != (self.previous_stage is None):
            raise _wrong_stage(name, self.previous_stage)
        reader = self.plans_manager.image_reader_writer_class
        if isinstance(images, np.ndarray):
            files = ()
            data, properties = from_array(name, images, spacing, len(self.dataset_json["channel_names"]))
        else:
            files = tuple(images)
            data, properties = read_case(name, files, self.dataset_json, reader)
        if not data.any():
            raise UserError(name, "every voxel is 0", "check that the image was exported correctly")
        stage = None
        if previous is not None:
            values = {0, *self.labels.values} - {self.labels.ignore}
            stage = read_previous(name, previous, data.shape[1:], sorted(values), reader)
        preprocessor = self._configuration.preprocessor_class(verbose=False)
        common = (self.plans_manager, self._configuration, self.dataset_json)
        try:
            data, stage, properties = preprocessor.run_case_npy(data, stage, properties, *common)
        except UserError as error:
            raise UserError(name, error.what, error.remedy) from None
        return self.prepared(name, data, properties, None if previous is None else stage[0], files)

    def prepared(
        self,
        name: str,
        data: np.ndarray,
        properties: dict,
        previous: np.ndarray | None = None,
        files: tuple[Path, ...] = (),
    ) -> PreparedCase:
        """A case that has gone through nnU-Net's preprocessing.

        Args:
            name: Of the case.
            data: float32 (channels, z, y, x).
            properties: nnU-Net's.
            previous: Labels (z, y, x) by the stage before, on the same grid, for the second stage of a cascade.
            files: Its images, if it came from files.
        """
        if previous is not None:
            foreground = self.plans_manager.get_label_manager(self.dataset_json).foreground_labels
            data = np.vstack((data, convert_labelmap_to_one_hot(previous, foreground, data.dtype)))
        return PreparedCase(name, files, data, properties)

    def segment(
        self,
        case: PreparedCase,
        *,
        probabilities: bool = False,
        uncertainty: bool = False,
        scratch: Path | None = None,
    ) -> Prediction:
        """Segment a prepared case.

        Args:
            case: Of :meth:`prepare`.
            probabilities: Also give the probability of every class (or region).
            uncertainty: Also give the entropy, and the disagreement of the folds if there are several.
            scratch: Folder in which probabilities are kept on the disk instead of in memory.

        Raises:
            UserError: It needs more memory than there is, or the network's output is not finite.
        """
        return self._segment(case, (), probabilities, uncertainty, scratch)[0]

    def segment_for_stages(
        self,
        case: PreparedCase,
        shapes: Sequence[Sequence[int]],
        *,
        probabilities: bool = False,
        scratch: Path | None = None,
    ) -> tuple[Prediction, list[np.ndarray]]:
        """:meth:`segment`, and from the same logits the labels that the next stages of a cascade are to see.

        Args:
            case, probabilities, scratch: As of :meth:`segment`.
            shapes: (z, y, x) of the case in each of those stages, as preprocessed.

        Returns:
            The prediction, and for each shape uint8 or uint16 labels on that grid.

        Raises:
            UserError: As :meth:`segment`.
        """
        return self._segment(case, shapes, probabilities, False, scratch)

    @torch.inference_mode()
    def _segment(
        self,
        case: PreparedCase,
        shapes: Sequence[Sequence[int]],
        probabilities: bool,
        uncertainty: bool,
        scratch: Path | None,
    ) -> tuple[Prediction, list[np.ndarray]]:
        tiling = Tiling(case.data.shape[1:], self._configuration.patch_size, self.step_size)
        members = len(self.networks) if uncertainty else 1
        demand = Demand(
            case,
            tiling,
            members,
            self.labels.num_classes,
            self.tiles_at_once,
            all_classes=probabilities or uncertainty,
            probabilities=probabilities and scratch is None,
        )
        device = self._memory.place(demand)
        canvas = Canvas(
            self.labels,
            case.properties,
            tiling.order,
            self.plans_manager.transpose_backward,
            probabilities=probabilities,
            entropy=uncertainty,
            disagreement=members > 1,
            scratch=scratch,
        )
        spacing = [case.properties["spacing"][axis] for axis in self.plans_manager.transpose_forward]
        extents = case.properties["shape_after_cropping_and_before_resampling"]
        outputs = [(self._resampler(tiling, extents, spacing, demand), canvas)]
        for shape in shapes:  # nnU-Net takes the spacing of this stage for that of the next ones
            grid = self._resampler(tiling, shape, self._own_spacing(spacing), demand)
            outputs.append((grid, _plain_canvas(self.labels, shape, tiling.order)))
        runner = _Runner(self, case.name, members)
        sizes = {"members": members, "classes": self.labels.num_classes, "tiles_at_once": self.tiles_at_once}
        for first, planes in sweep(case.data, tiling, runner, **sizes, device=device):
            for resampler, drawn in outputs:
                for rows, group in resampler.feed(first, planes):
                    drawn.write(rows, group)
        runner.report()
        stages = [drawn.finish(case.name, (), {}).segmentation for _, drawn in outputs[1:]]
        return canvas.finish(case.name, case.files, case.properties), stages

    def predict(
        self,
        images: Sequence[Path] | np.ndarray,
        *,
        name: str = "image",
        spacing: Sequence[float] | None = None,
        previous: Path | np.ndarray | None = None,
        probabilities: bool = False,
        uncertainty: bool = False,
    ) -> Prediction:
        """:meth:`prepare`, then :meth:`segment`."""
        case = self.prepare(images, name=name, spacing=spacing, previous=previous)
        return self.segment(case, probabilities=probabilities, uncertainty=uncertainty)

    @property
    def tiles_at_once(self) -> int:
        """Of a batch: on a GPU as many as training takes, which needs more memory; on a CPU a pair is the fastest."""
        return 2 if self.device.type == "cpu" else max(2, self._configuration.batch_size)

    def _forward_bytes(self) -> int:
        configuration = self._configuration.configuration
        topology = topology_of(configuration)
        setting = Setting(topology, self.input_channels, self.labels.num_classes, self.tiles_at_once)
        return forward_memory(configuration["architecture"], setting)

    def _resampler(self, tiling: Tiling, shape: Sequence[int], spacing: Sequence[float], demand: Demand) -> Resampler:
        """From the grid of the network to another, which is described in the frame of the plans."""
        wanted = [int(extent) for extent in shape]
        nearest = None
        if wanted != list(tiling.shape):
            nearest = nearest_axis(self._configuration.configuration, self._own_spacing(spacing), spacing)
        return Resampler(
            [tiling.shape[axis] for axis in tiling.order],
            [wanted[axis] for axis in tiling.order],
            None if nearest is None else tiling.order.index(nearest),
            demand.planes_at_once,
        )

    def _own_spacing(self, spacing: Sequence[float]) -> list[float]:
        """Of the network's grid; a 2-D plan keeps the distance of the slices."""
        own = list(self._configuration.spacing)
        return [*spacing[: 3 - len(own)], *own]


def _plain_canvas(labels: Labels, shape: Sequence[int], order: Sequence[int]) -> Canvas:
    """For the labels of a whole grid, whose axes stay those of the plans."""
    box = [(0, int(extent)) for extent in shape]
    whole = {"shape_before_cropping": shape, "bbox_used_for_cropping": box}
    kept = {"probabilities": False, "entropy": False, "disagreement": False, "scratch": None}
    return Canvas(labels, whole, order, (0, 1, 2), **kept)


class _Runner:
    """Runs tiles, in all their reflections, through the networks of a predictor.

    Args:
        predictor: Its networks run.
        name: Of the case, for messages.
        members: 1 to average the folds, or their number to keep them apart.
    """

    def __init__(self, predictor: Predictor, name: str, members: int):
        self._predictor, self._name, self._members = predictor, name, members
        self._overflows = 0

    def __call__(self, tiles: Tensor) -> Tensor:
        """(tiles, channels, ...) -> (tiles, members, classes, ...)."""
        predictor = self._predictor
        views = [(number, flip) for number in range(len(tiles)) for flip in predictor.flips]
        sums: Tensor | None = None
        tiles = tiles.to(predictor.device)
        for n in range(0, len(views), predictor.tiles_at_once):
            some = views[n : n + predictor.tiles_at_once]
            batch = torch.stack([flip.apply(tiles[number]) for number, flip in some])
            for fold, network in enumerate(predictor.networks):
                logits = self._logits(network, batch)
                if sums is None:
                    sums = logits.new_zeros(len(tiles), self._members, *logits.shape[1:])
                for (number, flip), one in zip(some, logits, strict=True):
                    sums[number, fold % self._members].add_(flip.undo(one))
        assert sums is not None, "there is a tile"
        return sums.div_(len(predictor.flips) * len(predictor.networks) / self._members)

    def _logits(self, network: nn.Module, batch: Tensor) -> Tensor:
        """float32, finite. What overflows in half precision is computed again in float32, and counted."""
        precision = self._predictor._precision
        logits = self._run(network, batch, precision)
        if logits.isfinite().all():
            return logits
        if precision != FLOAT32:
            self._overflows += len(batch)
            logits = self._run(network, batch, FLOAT32)
        if not logits.isfinite().all():
            what = "the network's output is NaN or infinite in float32"
            raise UserError(self._name, what, "look at the image's intensities, and at the training's log")
        return logits

    def _run(self, network: nn.Module, batch: Tensor, precision: Precision) -> Tensor:
        # torch convolves a single small volume on a CPU four times slower than two (U-Mamba_Bot, 40x56x40, two cores:
        # 0.33 s against 0.08 s): another 3-D convolution is taken.
        alone = len(batch) == 1 and batch.device.type == "cpu" and batch.ndim == 5
        with precision.autocast(batch.device):
            logits = network(batch.expand(2, *batch.shape[1:]) if alone else batch)
        return logits[: len(batch)].float()

    def report(self) -> None:
        """Say how many tiles overflowed."""
        if self._overflows:
            what = "%s: %d tiles overflowed in %s and were computed in float32"
            logger.warning(what, self._name, self._overflows, self._predictor._precision.name)


def _wrong_stage(name: str, previous_stage: str | None) -> UserError:
    if previous_stage is None:
        return UserError(name, "the model takes no segmentation of a stage before it", "leave it out")
    what = f"the model is the second stage of a cascade and needs this case's segmentation by {previous_stage}"
    return UserError(name, what, f"predict with {previous_stage} first, then name that folder")


def _hash(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()
