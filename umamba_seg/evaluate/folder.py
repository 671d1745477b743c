"""Two folders of segmentations -> the scores of every case, in light processes: none of them loads torch."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_seg.datasets.images import Image, read_image
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate.case import Case, ClassScores
from umamba_seg.evaluate.protocols import Protocol, targets_of
from umamba_seg.log import logger, progress
from umamba_seg.text import shorten, times

_SAME = 1e-3
"""Spacing, origin and direction are taken for equal when they differ by less: in mm, or in voxels, or of a cosine."""


@dataclass(frozen=True)
class CaseScores:
    """What was measured of a case.

    Attributes:
        case: Its name.
        classes: The scores of each class.
        geometry: How the prediction's header differs from the reference's; empty if it does not.
        unnamed: Values in one of the files that no label has.
        without_spacing: Whether it is a volume in TIFF, which knows no spacing: voxels count as 1 mm.
    """

    case: str
    classes: Mapping[str, ClassScores]
    geometry: str
    unnamed: tuple[int, ...]
    without_spacing: bool = False


@dataclass(frozen=True)
class _Job:
    case: str
    reference: Path
    prediction: Path
    labels: Labels
    protocol: Protocol


def score_folder(
    references: Path,
    predictions: Path,
    dataset_json: dict,
    protocol: Protocol,
    processes: int,
    *,
    allow_missing: bool = False,
) -> list[CaseScores]:
    """Measure every prediction in a folder.

    Args:
        references: Folder of reference segmentations ``CASE.ending``.
        predictions: Folder of predictions of the same names.
        dataset_json: Labels, regions and file ending.
        protocol: What is measured and how.
        processes: Worker processes.
        allow_missing: Measure the cases that were predicted; otherwise a missing one is an error.

    Returns:
        Cases in the order of their files' names. Headers that differ, values without a label and cases that are left
        out are warned of.

    Raises:
        UserError: Nothing to compare, predictions are missing, the protocol does not fit the classes, or cases cannot
            be compared (unreadable, another shape, no labels): all of these are named.
    """
    labels = Labels.from_json(dataset_json, predictions / "dataset.json")
    targets_of(protocol, labels)  # refuses before anything is read
    ending = dataset_json["file_ending"]
    names = _cases_of(references, predictions, ending, allow_missing)
    jobs = [
        _Job(name, references / f"{name}{ending}", predictions / f"{name}{ending}", labels, protocol) for name in names
    ]
    done = dict(progress(_run(jobs, processes), "evaluating", len(jobs)))
    _require_all_scored(done, predictions)
    cases = [scores for name in names if isinstance(scores := done[name], CaseScores)]
    _warn(cases)
    return cases


def _cases_of(references: Path, predictions: Path, ending: str, allow_missing: bool) -> list[str]:
    predicted, expected = case_names(predictions, ending), case_names(references, ending)
    unknown, missing = sorted(predicted - expected), sorted(expected - predicted)
    if unknown:
        raise UserError(references, f"holds no reference for {shorten(unknown)}", "name the folder that does")
    if missing and not allow_missing:
        raise UserError(predictions, f"predictions of {shorten(missing)} are missing", "predict them, or --chill")
    if missing:
        logger.warning("%d cases were not predicted and are left out: %s", len(missing), shorten(missing))
    return sorted(predicted, key=lambda name: f"{name}{ending}")


def case_names(folder: Path, ending: str) -> set[str]:
    """The cases whose segmentations are in a folder.

    Raises:
        UserError: There are none, or hidden files among them.
    """
    hidden = [path.name for path in folder.glob(f".*{ending}")]
    if hidden:
        raise UserError(folder, f"nnU-Net would take hidden files for cases: {shorten(hidden)}", "delete them")
    names = {path.name.removesuffix(ending) for path in folder.glob(f"[!.]*{ending}")}
    if not names:
        raise UserError(folder, f"holds no files ending in {ending}", "name the folder of segmentations")
    return names


def _run(jobs: list[_Job], processes: int) -> Iterator[tuple[str, CaseScores | UserError]]:
    """Results as they come. With one process the work is done in this one; others are spawned, since the parent may
    hold torch and its threads, which a fork does not survive. Ctrl-C is the parent's alone: it gives up what waits."""
    if min(processes, len(jobs)) == 1:
        yield from map(_score, jobs)
        return
    spawn, ignoring = multiprocessing.get_context("spawn"), (signal.SIGINT, signal.SIG_IGN)
    pool = ProcessPoolExecutor(min(processes, len(jobs)), spawn, signal.signal, ignoring)
    try:
        for future in as_completed([pool.submit(_score, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool:
        what = (
            f"one of {processes} worker processes was killed, most likely for want of memory, or the call stands in a "
        )
        what += "script without `if __name__ == '__main__':`"
        raise UserError("-np", what, "use fewer processes: -np 1") from None
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def _score(job: _Job) -> tuple[str, CaseScores | UserError]:
    try:
        return job.case, _compare(job)
    except UserError as error:
        return job.case, error


def _compare(job: _Job) -> CaseScores:
    reference, prediction = read_image(job.reference), read_image(job.prediction)
    for path, image in ((job.reference, reference), (job.prediction, prediction)):
        if len(image.array) != 1:
            raise UserError(path, f"has {len(image.array)} channels", "save labels with one number per voxel")
    try:
        case = Case(reference.array[0], prediction.array[0], reference.spacing[::-1], job.labels, job.protocol)
    except UserError as error:  # of the arrays, which know no files
        files = {"reference": job.reference, "prediction": job.prediction, "spacing": job.reference}
        raise UserError(files[error.where], error.what, error.remedy) from None
    tiff = job.reference.suffix.lower() in (".tif", ".tiff") and reference.array[0].squeeze().ndim == 3
    return CaseScores(job.case, case.scores(), _differences(reference, prediction), tuple(case.unnamed), tiff)


def _differences(reference: Image, prediction: Image) -> str:
    """How the headers of two files differ."""
    tolerances = {
        "spacing": [_SAME * size for size in reference.spacing],
        "origin": [max(_SAME, 0.01 * size) for size in reference.spacing],
        "direction": _SAME,
    }
    found = []
    for name, tolerance in tolerances.items():
        first, second = getattr(reference, name), getattr(prediction, name)
        if (np.abs(np.subtract(first, second)) > tolerance).any():
            found.append(f"{name} {_numbers(second)} instead of {_numbers(first)}")
    return ", ".join(found)


def _numbers(values: tuple[float, ...]) -> str:
    return times(values) if min(values) > 0 else f"({', '.join(f'{value + 0.0:g}' for value in values)})"


def _require_all_scored(done: Mapping[str, CaseScores | UserError], predictions: Path) -> None:
    errors = [found for _, found in sorted(done.items()) if isinstance(found, UserError)]
    if len(errors) == 1:
        raise errors[0]
    if errors:
        lines = "".join(f"\n  {error}" for error in errors)
        raise UserError(predictions, f"{len(errors)} of {len(done)} cases cannot be measured", f"mend these:{lines}")


def _warn(cases: list[CaseScores]) -> None:
    differing = [f"{scores.case} ({scores.geometry})" for scores in cases if scores.geometry]
    if differing:
        logger.warning(
            "headers of %d predictions differ from their references'; voxels are compared one by one all the same, "
            "with the references' spacing: %s",
            len(differing),
            shorten(differing, 3),
        )
    unnamed = [f"{scores.case} ({', '.join(map(str, scores.unnamed))})" for scores in cases if scores.unnamed]
    if unnamed:
        logger.warning("values that dataset.json does not name count as background: %s", shorten(unnamed, 3))
