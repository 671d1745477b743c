"""The final validation of a fold: its held-out cases, segmented as ``umamba-seg predict`` does, and scored.

What it leaves has nnU-Net's names: ``validation/CASE.ending``, with probabilities ``CASE.npz`` and ``CASE.pkl``,
``summary.json``, and in a cascade the segmentations that the next stages learn from. The cases are read as they were
preprocessed for the training.
"""

from __future__ import annotations

import contextlib
import pickle
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from nnunetv2.training.dataloading.nnunet_dataset import comp_blosc2_params, nnUNetDatasetBlosc2
from torch import nn

from umamba_seg.errors import UserError
from umamba_seg.evaluate import evaluate_case
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.evaluate.protocols import choose_protocol
from umamba_seg.evaluate.summary import write_summary
from umamba_seg.files import draft_of, make_folder
from umamba_seg.log import step_bar
from umamba_seg.plan.probe import is_out_of_memory
from umamba_seg.predict.label_files import read_labels, require_same_shape
from umamba_seg.predict.predictor import Predictor
from umamba_seg.predict.results import Prediction
from umamba_seg.predict.writing import write_prediction
from umamba_seg.preprocess import unprepared
from umamba_seg.train.cascade import NEXT_STAGE, makers, publish
from umamba_seg.train.data import Cases

if TYPE_CHECKING:
    from umamba_seg.train.base import BaseTrainer

_COUNTS = replace(choose_protocol(), metrics=())  # of voxels: nnU-Net's scores follow from them
_MEET = 20  # cases after which processes wait for each other: nccl takes one that is minutes behind for dead


def validate(trainer: BaseTrainer, *, save_probabilities: bool) -> dict | None:
    """Segment and score the cases that a fold holds out. The processes of a group share them.

    Network and deep supervision are afterwards as they were.

    Args:
        trainer: Of the fold; its network is taken as it is.
        save_probabilities: Leave them beside each segmentation.

    Returns:
        nnU-Net's summary as written; None in all processes but the first.

    Raises:
        UserError: A case cannot be read, segmented or scored; it is named.
    """
    group, fold = trainer.group, Path(trainer.output_folder)
    preprocessed = Path(trainer.preprocessed_dataset_folder_base)
    references, ending = preprocessed / "gt_segmentations", trainer.dataset_json["file_ending"]
    cases = sorted(trainer.do_split()[1])
    with _in_evaluation(trainer) as network, _own_folder(fold / f".validation_{group.rank}.part") as scratch:
        share = _Share(trainer, network, references, scratch, save_probabilities=save_probabilities)
        scores = share.run(cases)
    found = {score.case: score for own in group.gather(scores) for score in own}
    if not group.leads:
        return None
    in_order = [found[case] for case in sorted(cases, key=lambda case: f"{case}{ending}")]
    validation = fold / "validation"
    summary = write_summary(in_order, references, validation, trainer.dataset_json, validation / "summary.json")
    publish(fold, [case for case, folds in makers(preprocessed, cases).items() if str(trainer.fold) in folds])
    return summary


@contextlib.contextmanager
def _in_evaluation(trainer: BaseTrainer) -> Iterator[nn.Module]:
    """The plain network, which gives its finest output alone and no longer learns."""
    network = trainer.plain_network
    training = network.training
    trainer.set_deep_supervision_enabled(False)
    try:
        yield network.eval()
    finally:
        network.train(training)
        trainer.set_deep_supervision_enabled(True)


@contextlib.contextmanager
def _own_folder(path: Path) -> Iterator[Path]:
    """An empty folder for files that are not whole, also after a validation that was killed."""
    shutil.rmtree(path, ignore_errors=True)
    try:
        yield make_folder(path)
    finally:
        shutil.rmtree(path, ignore_errors=True)


class _Share:
    """What one process of a validation does.

    Args:
        trainer: Of the fold.
        network: Its own, in evaluation mode.
        references: Folder of the segmentations to compare with.
        scratch: Folder for files that are not whole.
        save_probabilities: Leave them beside each segmentation.
    """

    def __init__(
        self, trainer: BaseTrainer, network: nn.Module, references: Path, scratch: Path, *, save_probabilities: bool
    ):
        self._trainer, self._references, self._scratch = trainer, references, scratch
        self._save_probabilities = save_probabilities
        fold = Path(trainer.output_folder)
        self._output, self._next = make_folder(fold / "validation"), fold / NEXT_STAGE
        self._predictor = Predictor.of_network(
            network,
            trainer.inference_allowed_mirroring_axes,
            fold.parent,
            trainer.plans_manager.plans,
            trainer.dataset_json,
            trainer.configuration_name,
            trainer.device,
        )

    def run(self, cases: Sequence[str]) -> list[CaseScores]:
        """Take the share of this process through: a case is written and scored while the next one is segmented."""
        group = self._trainer.group
        own = cases[group.rank :: group.size]
        done: list[Future[CaseScores]] = []
        with step_bar("validating", len(own)) as bar, ThreadPoolExecutor(1, "write") as writer:
            for number, name in enumerate(own, 1):
                with _naming(name):
                    found = self._segment(name)
                if done:
                    done[-1].result()  # no more than two cases are in memory
                done.append(writer.submit(self._conclude, name, *found))
                bar.update()
                if number % _MEET == 0 and number <= len(cases) // group.size:  # what all processes have
                    group.wait()
            return [score.result() for score in done]

    def _segment(self, name: str) -> tuple[Prediction, dict[str, np.ndarray]]:
        """The case on the grid of its image, and for each next stage that has its image on that one's."""
        trainer, stages = self._trainer, self._stage_shapes(name)
        where, previous = trainer.preprocessed_dataset_folder, trainer.folder_with_segs_from_previous_stage
        dataset = trainer.dataset_class(where, [name], previous)  # type: ignore[arg-type]  (it may be None)
        data, _, stage, properties = Cases(dataset).load_case(name)
        case = self._predictor.prepared(name, data[:], properties, None if stage is None else stage[:])
        prediction, labels = self._predictor.segment_for_stages(
            case, list(stages.values()), probabilities=self._save_probabilities, scratch=self._scratch
        )
        return prediction, dict(zip(stages, labels, strict=True))

    def _stage_shapes(self, name: str) -> dict[str, tuple[int, ...]]:
        """The extent of the case in the next stages of a cascade, of those for which it is preprocessed."""
        manager = self._trainer.plans_manager
        preprocessed, shapes = Path(self._trainer.preprocessed_dataset_folder_base), {}
        for stage in self._trainer.configuration_manager.next_stage_names or ():
            if not unprepared(preprocessed, manager.plans, stage, [name]):
                folder = preprocessed / manager.get_configuration(stage).data_identifier
                shapes[stage] = Cases(nnUNetDatasetBlosc2(str(folder), [name])).load_case(name)[0].shape[1:]
        return shapes

    def _conclude(self, name: str, prediction: Prediction, stages: dict[str, np.ndarray]) -> CaseScores:
        """Write what was found, and compare what was written."""
        with _naming(name):
            if self._save_probabilities:
                with draft_of(self._output / f"{name}.pkl") as part:  # nnU-Net's ensembles want it
                    part.write_bytes(pickle.dumps(prediction.properties))
            precision = "float16" if self._save_probabilities else None
            plans, dataset_json = self._predictor.plans, self._predictor.dataset_json
            write_prediction(prediction, self._output, self._scratch, plans, dataset_json, precision=precision)
            for stage, labels in stages.items():
                self._leave(make_folder(self._next / stage) / name, labels)
            return self._score(name)

    def _leave(self, path: Path, labels: np.ndarray) -> None:
        """Write (z, y, x) for nnU-Net's loader, in blocks that suit patches."""
        patch_size, size = self._trainer.configuration_manager.patch_size, labels.dtype.itemsize
        blocks, chunks = comp_blosc2_params((1, *labels.shape), tuple(patch_size), bytes_per_pixel=size)
        nnUNetDatasetBlosc2.save_seg(labels, str(path), chunks_seg=chunks[1:], blocks_seg=blocks[1:])

    def _score(self, name: str) -> CaseScores:
        reference, written = (
            folder / f"{name}{self._predictor.file_ending}" for folder in (self._references, self._output)
        )
        wanted, found = read_labels(reference), read_labels(written)
        require_same_shape(found.shape, written, wanted.shape, reference)
        spacing = (1.0,) * wanted.ndim  # voxels are counted
        scores = evaluate_case(wanted, found, spacing, self._predictor.labels, protocol=_COUNTS)
        return CaseScores(name, scores, geometry="", unnamed=())


@contextlib.contextmanager
def _naming(case: str) -> Iterator[None]:
    """Name the case in what is said about it."""
    try:
        yield
    except UserError as error:
        if case in str(error.where):
            raise
        raise UserError(f"{case}, {error.where}", error.what, error.remedy) from None
    except (MemoryError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and not is_out_of_memory(error):
            raise
        remedy = "close what else uses memory or the device, and repeat the final validation with --val"
        raise UserError(case, "memory ran out when it was validated", remedy) from error
