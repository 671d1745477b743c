"""Keeping only the largest component where cross-validation says that it helps: nnU-Net's rule, in a readable file.

The rule: if the largest component of all foreground raises the mean Dice (over cases, then over classes) and lowers
that of no class, everything else becomes background. Then class by class, if there are several: the same, if it raises
the mean Dice of this class. Regions overlap, so each is judged on what those before it have left, in the order of
dataset.json; what happens to the other regions does not count then.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
from nnunetv2.evaluation.evaluate_predictions import compute_tp_fp_fn_tn, region_or_label_to_mask
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import read_description
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, read_json, write_json
from umamba_seg.log import progress, quiet, table
from umamba_seg.predict.label_files import LabelFiles, read_labels, require_all, require_same_shape
from umamba_seg.predict.writing import class_names
from umamba_seg.text import shorten

FILE, POSTPROCESSED = "postprocessing.json", "postprocessed"
_STEPS = "keep_largest_component"
T = TypeVar("T")
Class = int | tuple[int, ...]
"""A label, or the labels of a region, as nnU-Net counts them."""
Step = tuple[str, ...]
"""Names of classes: of all voxels that belong to one of them, the largest component is kept."""


@dataclass(frozen=True)
class Decision:
    """Whether a step is taken, and the mean Dice of its classes before and after it."""

    step: Step
    before: dict[str, float]
    after: dict[str, float]

    @property
    def taken(self) -> bool:
        """NaN, the mean of a class that no case holds, helps nothing and is no harm."""
        before, after = list(self.before.values()), list(self.after.values())
        return bool(np.mean(after) > np.mean(before)) and not any(b > a for b, a in zip(before, after, strict=True))


@dataclass(frozen=True)
class Postprocessing:
    """Steps that are applied one after the other.

    Attributes:
        steps: In this order.
        labels: Of the data set.
    """

    steps: tuple[Step, ...]
    labels: Labels

    @classmethod
    def read(cls, path: Path) -> Postprocessing:
        """Read a postprocessing.json; nothing but names and labels in it is used.

        Raises:
            UserError: It is missing, or names classes that its own labels do not have.
        """
        content = read_json(path)
        labels, steps = Labels.from_json(content, path), content.get(_STEPS)
        if not isinstance(steps, list) or not all(isinstance(step, list) and step for step in steps):
            what = f'"{_STEPS}" is {steps!r}, no list of lists of class names'
            raise UserError(path, what, f'write for example "{_STEPS}": [["liver"]], or [] for nothing')
        named = [name for step in steps for name in step]
        if unknown := [repr(name) for name in named if name not in list(labels.foreground)]:
            what = f'"{_STEPS}" names {shorten(unknown)}, which its "labels" do not have'
            raise UserError(path, what, f"name some of {shorten(list(labels.foreground))}")
        return cls(tuple(map(tuple, steps)), labels)

    def apply(self, segmentation: np.ndarray) -> np.ndarray:
        """A copy (z, y, x) in which what the steps remove is background."""
        result = segmentation.copy()
        for step in self.steps:
            result = keep_largest(result, [self.labels.foreground[name] for name in step])
        return result


def keep_largest(segmentation: np.ndarray, classes: Sequence[Class]) -> np.ndarray:
    """Make background what belongs to one of the classes but not to the largest component of them all.

    Voxels that touch at a corner are connected; of components of equal size all are kept. It is nnU-Net's function,
    called for the box around the classes: what it needs is many times the memory of the labels.

    Returns:
        A copy (z, y, x).
    """
    values = [value for one in classes for value in (one if isinstance(one, tuple) else (one,))]
    result = segmentation.copy()
    box = bounding_box(np.isin(segmentation, values))
    if result[box].size:
        result[box] = remove_all_but_largest_component_from_segmentation(segmentation[box], tuple(values))
    return result


def bounding_box(mask: np.ndarray) -> tuple[slice, ...]:
    """The smallest box (z, y, x) around what is true; an empty one if nothing is."""
    spans = []
    for axis in range(mask.ndim):
        others = tuple(other for other in range(mask.ndim) if other != axis)
        hit = np.flatnonzero(mask.any(axis=others))
        spans.append(slice(int(hit[0]), int(hit[-1]) + 1) if len(hit) else slice(0, 0))
    return tuple(spans)


def each_case(
    function: Callable[[str], T], cases: Sequence[str], workers: int, description: str
) -> tuple[dict[str, T], dict[str, str]]:
    """Call a function for every case, some at a time, in threads: what is slow in it, C does without Python's lock.

    Returns:
        case -> result, in the order of the cases; and case -> message, for each that raised a :class:`UserError`.
    """
    results: dict[str, T] = {}
    failures: dict[str, str] = {}
    pool = ThreadPoolExecutor(workers)
    try:
        futures = {case: pool.submit(function, case) for case in cases}
        for case, future in progress(futures.items(), description):
            try:
                results[case] = future.result()
            except UserError as error:
                failures[case] = str(error)
    finally:
        pool.shutdown(cancel_futures=True)
    return results, failures


# ------------------------------------------------------------------------------------------------------- determining it


def determine(references: Path, predictions: Path, dataset_json: dict, workers: int) -> list[Decision]:
    """Judge every step on segmentations and their references. See the module for the rule.

    Args:
        references: Folder of ``CASE.ending``.
        predictions: Folder of the same names, for all or some of the cases.
        dataset_json: Of the data set.
        workers: Cases at a time.

    Returns:
        In the order in which steps are applied.

    Raises:
        UserError: Segmentations cannot be read, or have another shape than their references.
    """
    labels, ending = Labels.from_json(dataset_json, predictions / "dataset.json"), dataset_json["file_ending"]
    classes = [name for name in class_names(labels) if name != "background"]  # in nnU-Net's order
    cases = sorted(path.name.removesuffix(ending) for path in predictions.glob(f"[!.]*{ending}"))
    rounds: list[list[Step]] = [[tuple(classes)]]
    if len(classes) > 1 and labels.has_regions:
        rounds += [[(name,)] for name in classes]
    elif len(classes) > 1:  # labels do not overlap: what one step removes is nothing to another
        rounds += [[(name,) for name in classes]]

    def judge(steps: list[Step], so_far: Postprocessing) -> list[Decision]:
        def compare(case: str) -> list[np.ndarray]:
            pair = read_pair(references / f"{case}{ending}", predictions / f"{case}{ending}")
            return _compare(*pair, so_far, steps, labels)

        found, failures = each_case(compare, cases, workers, f"largest component of {shorten(steps[0])}")
        if failures:
            raise UserError(predictions, f"{len(failures)} cases cannot be read", "; ".join(failures.values()))
        return [_decide(step, scores) for step, *scores in zip(steps, *found.values(), strict=True)]

    decisions: list[Decision] = []
    for steps in rounds:
        taken = tuple(decision.step for decision in decisions if decision.taken)
        decisions += judge(steps, Postprocessing(taken, labels))
    return decisions


def read_pair(reference: Path, prediction: Path) -> tuple[np.ndarray, np.ndarray]:
    """Two segmentations of one shape.

    Raises:
        UserError: One cannot be read, or the shapes differ.
    """
    wanted, found = read_labels(reference), read_labels(prediction)
    require_same_shape(found.shape, prediction, wanted.shape, reference)
    return wanted, found


def _compare(
    reference: np.ndarray,
    prediction: np.ndarray,
    so_far: Postprocessing,
    steps: Sequence[Step],
    labels: Labels,
) -> list[np.ndarray]:
    """For each step the Dice (classes of the step, before and after) of a case."""
    box = bounding_box((reference != 0) | (prediction != 0))
    reference, before = reference[box], so_far.apply(prediction[box])
    found = []
    for step in steps:
        classes = [labels.foreground[name] for name in step]
        images = before, keep_largest(before, classes)
        found.append(np.array([[_dice(reference, image, one, labels.ignore) for image in images] for one in classes]))
    return found


def _dice(reference: np.ndarray, prediction: np.ndarray, one: Class, ignored: int | None) -> float:
    """By nnU-Net's counts; NaN if the class is in neither."""
    masks = region_or_label_to_mask(reference, one), region_or_label_to_mask(prediction, one)
    unknown = None if ignored is None else reference == ignored
    tp, fp, fn, _ = compute_tp_fp_fn_tn(*masks, unknown)  # type: ignore[arg-type]  (None for none, against its hint)
    return float(2 * tp / (2 * tp + fp + fn)) if tp + fp + fn else float("nan")


def mean_known(scores: Sequence[float] | np.ndarray) -> float:
    """The mean of what is no NaN, summed as nnU-Net does; NaN if there is nothing else."""
    return float("nan") if np.isnan(scores).all() else float(np.nanmean(scores))


def _decide(step: Step, scores: Sequence[np.ndarray]) -> Decision:
    """From the Dice (classes, before and after) of each case."""
    before, after = (
        {name: mean_known([case[row, column] for case in scores]) for row, name in enumerate(step)} for column in (0, 1)
    )
    return Decision(step, before, after)


def write_decisions(decisions: Sequence[Decision], dataset_json: dict, path: Path) -> Postprocessing:
    """Write the steps that are taken, with the reasons, as a postprocessing.json, and return them.

    A mean Dice that does not exist is null there: JSON has no NaN.
    """

    def known(scores: dict[str, float]) -> dict[str, float | None]:
        return {name: None if np.isnan(dice) else dice for name, dice in scores.items()}

    taken = [list(decision.step) for decision in decisions if decision.taken]
    content = {key: dataset_json[key] for key in ("labels", "regions_class_order") if key in dataset_json}
    reasons = [
        {
            "classes": list(one.step),
            "taken": one.taken,
            "dice_before": known(one.before),
            "dice_after": known(one.after),
        }
        for one in decisions
    ]
    write_json(path, content | {_STEPS: taken, "decisions": reasons})
    return Postprocessing.read(path)


def decisions_table(decisions: Sequence[Decision]) -> str:
    """What was tried, and what came of it."""
    rows = [
        [
            one.step[0] if len(one.step) == 1 else "all foreground",
            *(float(np.mean(list(scores.values()))) for scores in (one.before, one.after)),
            "yes" if one.taken else "no",
        ]
        for one in decisions
    ]
    return table(rows, ["largest component of", "Dice before", "after", "taken"])


# --------------------------------------------------------------------------------------------------------- applying it


def apply_to_folder(postprocessing: Postprocessing, predictions: Path, output: Path, workers: int) -> list[Path]:
    """Postprocess a folder of segmentations.

    Args:
        postprocessing: What to do.
        predictions: Folder with ``CASE.ending`` and the dataset.json that ``predict`` and ``ensemble`` write.
        output: Another folder, made if missing; dataset.json is put beside the segmentations.
        workers: Cases at a time.

    Returns:
        The segmentations written, of the same geometry.

    Raises:
        UserError: The labels are not those of the postprocessing, there is nothing to do, or no case can be read.
        CasesFailed: Some cases cannot be read; the others are written.
    """
    file = predictions / "dataset.json"
    dataset_json = read_description(file)
    require_labels(postprocessing, Labels.from_json(dataset_json, file), file)
    if output.resolve() == predictions.resolve():
        raise UserError(output, "is the folder of the segmentations themselves", "write into another")
    ending = dataset_json["file_ending"]
    cases = sorted(path.name for path in predictions.glob(f"[!.]*{ending}"))
    if not cases:
        raise UserError(predictions, f"holds no segmentations ending in {ending}", "name the folder of predictions")
    label_files = LabelFiles(dataset_json)
    write_json(make_folder(output) / "dataset.json", dataset_json)

    def process(name: str) -> Path:
        segmentation, properties = label_files.read(predictions / name)
        label_files.write(postprocessing.apply(segmentation), output / name, properties)
        return output / name

    with quiet():
        written, failures = each_case(process, cases, workers, "postprocessing")
    failures = {name.removesuffix(ending): message for name, message in failures.items()}
    require_all(output, list(written.values()), failures)
    return list(written.values())


def require_labels(postprocessing: Postprocessing, found: Labels, where: Path) -> None:
    """Refuse to postprocess segmentations of other labels.

    Raises:
        UserError: Names those that differ.
    """
    wanted = postprocessing.labels.foreground
    other = [name for name in {**wanted, **found.foreground} if wanted.get(name) != found.foreground.get(name)]
    if other:
        what = f"its labels are not those of the postprocessing: {shorten(other)}"
        raise UserError(where, what, "take the postprocessing that was determined for this model")
