"""Which model of a data set, or which ensemble of two, is best in cross-validation, and what to run with it."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import read_description
from umamba_seg.datasets.splits import load_splits
from umamba_seg.errors import UserError
from umamba_seg.evaluate import class_metrics, evaluate_folder
from umamba_seg.evaluate.statistics import Estimate, bootstrap_mean
from umamba_seg.log import logger, table
from umamba_seg.predict.ensemble import average_cases, require_same_labels
from umamba_seg.select.crossval import (
    SUMMARY,
    Candidate,
    Model,
    find_models,
    held_out_cases,
    only_run,
    validation_files,
    whole_folder,
)
from umamba_seg.select.instructions import inference_commands, write_information, write_instructions
from umamba_seg.select.postprocessing import (
    FILE,
    POSTPROCESSED,
    Decision,
    apply_to_folder,
    decisions_table,
    determine,
    mean_known,
    write_decisions,
)
from umamba_seg.text import shorten

_DEFAULT_FOLDS = 5


def find_best(
    results: Path,
    preprocessed: Path,
    *,
    configurations: Sequence[str] | None = None,
    plans: Sequence[str] | None = None,
    folds: Sequence[int] | None = None,
    ensembles: bool = True,
    workers: int = 1,
) -> dict[str, Any]:
    """Compare models on the cases that their folds held out, and determine the postprocessing of the best one.

    Written are, under nnU-Net's names, ``MODEL/crossval_results_folds_*`` for each model, ``ensembles/*``, and in
    ``results`` the instructions and the information that is returned.

    Args:
        results: ``nnUNet_results/DATASET``.
        preprocessed: ``nnUNet_preprocessed/DATASET``, with the splits and the references.
        configurations: Which to compare; None for all that are trained.
        plans: Which to compare; None for all that are trained.
        folds: Of every model; None for the first five, or as many as there are.
        ensembles: Whether to compare pairs too, where there are probabilities.
        workers: Cases at a time.

    Raises:
        UserError: No model has all folds, a class has no score in any case, files are damaged, or another run is at
            work there.
    """
    splits = preprocessed / "splits_final.json"
    folds = sorted(set(folds)) if folds else list(range(min(_DEFAULT_FOLDS, len(load_splits(splits)))))
    models, left_out = find_models(results, configurations, plans)
    search = _Search(results, preprocessed, folds, held_out_cases(splits, folds), workers)
    search.skipped |= left_out
    with only_run(results):
        search.add_models(models)
        if ensembles:
            search.add_pairs()
        return _outcome(search, ensembles)


def _outcome(search: _Search, ensembles: bool) -> dict[str, Any]:
    """Judge the candidates, and write what to run."""
    results, folds = search.results, search.folds
    for name, reason in search.skipped.items():
        logger.warning("left out: %s: %s", name, reason)
    best = search.best()
    rows = search.compared_with(best)
    logger.info("%s", _table(rows, len(search.cases)))
    decisions, after = _postprocess(best, search)
    logger.info("%s", decisions_table(decisions))
    commands = inference_commands(best, folds, postprocessed=any(decision.taken for decision in decisions))
    logger.info("\n%s", write_instructions(results, best, after, commands))
    return write_information(
        results,
        best,
        after,
        search.candidates,
        folds=list(folds),
        ensembling_allowed=ensembles,
        comparison=rows,
        left_out=search.skipped,
        commands=commands,
    )


class _Search:
    """What is compared.

    Attributes:
        candidates: Models, then ensembles.
        skipped: What cannot be compared -> why.
    """

    def __init__(self, results: Path, preprocessed: Path, folds: Sequence[int], cases: set[str], workers: int):
        self.results, self.folds, self.cases, self.workers = results, folds, cases, workers
        self.references = preprocessed / "gt_segmentations"
        self.description = preprocessed / "dataset.json"
        self.dataset_json = read_description(self.description)
        self.candidates: list[Candidate] = []
        self.skipped: dict[str, str] = {}

    def add_models(self, models: Sequence[Model]) -> None:
        """Those that were validated on all cases.

        Raises:
            UserError: None was.
        """
        for model in models:
            try:
                self.candidates.append(self._of_model(model))
            except UserError as error:
                self.skipped[model.name] = str(error)
        if not self.candidates:
            reasons = "\n  ".join(["", *self.skipped.values()])
            what = f"no model was validated on all cases of the folds {shorten(list(map(str, self.folds)))}"
            raise UserError(self.results, what, f"train these folds, or choose others with -f:{reasons}")

    def _of_model(self, model: Model) -> Candidate:
        model.planned()  # what could not predict is no choice
        require_same_labels([self.description, model.folder / "dataset.json"])
        files = validation_files(model, self.folds, self.cases, self.dataset_json["file_ending"])
        target = model.folder / f"crossval_results_folds_{self._suffix}"
        with whole_folder(target) as draft:
            for path in files.values():
                shutil.copyfile(path, draft / path.name)
            _describe(draft, model)
        return Candidate(model.name, (model,), target, self.score(target))

    def add_pairs(self) -> None:
        """The ensembles of two models whose validation left probabilities."""
        saved: dict[Model, dict[str, Path]] = {}
        for candidate in self.candidates:
            (model,) = candidate.members
            try:
                saved[model] = validation_files(model, self.folds, self.cases, ".npz")
            except UserError as error:
                self.skipped[f"ensembles with {model.name}"] = str(error)
        for pair in itertools.combinations(saved, 2):
            name = "___".join(["ensemble", *(model.name for model in pair), self._suffix])
            try:
                self.candidates.append(self._of_pair(name, pair, [saved[model] for model in pair]))
            except UserError as error:
                self.skipped[name] = str(error)

    def _of_pair(self, name: str, pair: tuple[Model, ...], files: Sequence[dict[str, Path]]) -> Candidate:
        target = self.results / "ensembles" / name
        with whole_folder(target) as draft:
            together = {case: [found[case] for found in files] for case in files[0]}
            _, failures = average_cases(together, self.dataset_json, draft)
            if failures:
                raise UserError(name, f"{len(failures)} cases cannot be averaged", "; ".join(failures.values()))
            _describe(draft, pair[0])
        return Candidate(name, pair, target, self.score(target))

    def score(self, folder: Path) -> dict[str, Any]:
        """Write the summary.json of segmentations beside them, and return it."""
        summary = folder / SUMMARY
        return evaluate_folder(self.references, folder, self.dataset_json, summary, self.workers, allow_missing=True)

    @property
    def _suffix(self) -> str:
        return "_".join(map(str, self.folds))

    def best(self) -> Candidate:
        """The first of the highest mean Dice: a model rather than an ensemble.

        Raises:
            UserError: A mean Dice does not exist, as there is a class without any score.
        """
        labels = Labels.from_json(self.dataset_json, self.description)
        for candidate in self.candidates:
            scores = class_metrics(candidate.summary["mean"], labels)
            if empty := [name for name, metrics in scores.items() if math.isnan(metrics["Dice"])]:
                what = f"no reference of these folds and no prediction holds {shorten(empty)}: there is no mean Dice"
                raise UserError(candidate.folder, what, "take more folds, or the class out of the data set")
        return max(self.candidates, key=lambda candidate: candidate.dice)

    def compared_with(self, best: Candidate) -> list[dict[str, Any]]:
        """Each candidate's Dice, and how far it is from the best one's, with the best first."""
        labels = Labels.from_json(self.dataset_json, self.description)
        ranked = sorted(self.candidates, key=lambda candidate: -candidate.dice)
        wanted = _scores(best, labels)
        rows = []
        for candidate in ranked:
            difference = bootstrap_mean(_mean_over_classes(_scores(candidate, labels) - wanted))
            rows.append(
                {
                    "name": candidate.name,
                    "title": candidate.title,
                    "dice": candidate.dice,
                    "difference": difference.value,
                    "interval": None if math.isnan(difference.low) else [difference.low, difference.high],
                    "remark": "best" if candidate is best else _remark(difference),
                }
            )
        return rows


def _describe(folder: Path, model: Model) -> None:
    """Put what nnU-Net asks for beside segmentations."""
    for name in ("plans.json", "dataset.json"):
        shutil.copyfile(model.folder / name, folder / name)


def _scores(candidate: Candidate, labels: Labels) -> np.ndarray:
    """Dice (cases, classes); the cases are sorted."""
    cases = [class_metrics(case["metrics"], labels) for case in candidate.summary["metric_per_case"]]
    return np.array([[case[name]["Dice"] for name in labels.foreground] for case in cases])


def _mean_over_classes(values: np.ndarray) -> np.ndarray:
    return np.array([mean_known(row) for row in values])


def _remark(difference: Estimate) -> str:
    """Whether a difference to the best is more than cases differ by chance."""
    if math.isnan(difference.low):
        return "too few cases to tell"
    return "" if difference.high < 0 else "within the noise"


def _table(rows: Sequence[dict[str, Any]], cases: int) -> str:
    shown = []
    for row in rows:
        interval = "{:.4f} to {:.4f}".format(*row["interval"]) if row["interval"] else "unknown"
        difference = ["", ""] if row["remark"] == "best" else [row["difference"], interval]
        shown.append([row["title"], row["dice"], *difference, row["remark"]])
    found = table(shown, ["model", "Dice", "difference to the best", "95 % interval", "remark"])
    return (
        f"{found}\n(Dice: mean over classes of the means over {cases} cases, as nnU-Net's. Difference: the mean over "
        "cases of that over the classes that both have a score of; its interval by bootstrap over cases.)"
    )


def _postprocess(best: Candidate, search: _Search) -> tuple[list[Decision], float]:
    """Determine the postprocessing, and the mean Dice after it."""
    decisions = determine(search.references, best.folder, search.dataset_json, search.workers)
    postprocessing = write_decisions(decisions, search.dataset_json, best.folder / FILE)
    target = best.folder / POSTPROCESSED
    if not postprocessing.steps:
        if target.exists():  # of other references
            shutil.rmtree(target)
        return decisions, best.dice
    with whole_folder(target) as draft:
        apply_to_folder(postprocessing, best.folder, draft, search.workers)
    return decisions, search.score(target)["foreground_mean"]["Dice"]
