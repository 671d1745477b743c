"""The models of a data set, and what their folds predicted for the cases that they held out."""

from __future__ import annotations

import contextlib
import filecmp
import os
import shutil
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_seg.datasets.splits import load_splits
from umamba_seg.errors import UserError
from umamba_seg.locks import only_one
from umamba_seg.log import logger
from umamba_seg.plan.plans import read_model_plans
from umamba_seg.plan.safety import inherited
from umamba_seg.select.postprocessing import FILE, POSTPROCESSED
from umamba_seg.text import shorten
from umamba_seg.train import TRAINER_NAME

SUMMARY = "summary.json"
_ADDED_LATER = {SUMMARY, FILE, POSTPROCESSED}  # beside segmentations
_DRAFTS = ("*/.crossval_results_folds_*.*", "*/.ensemble___*.*", f"*/*/.{POSTPROCESSED}.*")  # see whole_folder


@dataclass(frozen=True)
class Model:
    """A model folder of a data set.

    Attributes:
        folder: ``nnUNet_results/DATASET/UMambaSegTrainer__PLANS__CONFIGURATION``.
        plans: Name of its plans.
        configuration: Name of its configuration.
    """

    folder: Path
    plans: str
    configuration: str

    @property
    def name(self) -> str:
        return self.folder.name

    def planned(self) -> dict[str, Any]:
        """The configuration as its plans.json has it.

        Raises:
            UserError: The plans do not have it, or would be refused when predicting.
        """
        plans = read_model_plans(self.folder)
        return inherited(plans["configurations"], self.configuration, f"{self.folder / 'plans.json'}")


@dataclass(frozen=True)
class Candidate:
    """A model, or an ensemble of two.

    Attributes:
        name: nnU-Net's identifier.
        members: One or two models.
        folder: Its segmentations of the held-out cases, with summary.json.
        summary: The content of that.
    """

    name: str
    members: tuple[Model, ...]
    folder: Path
    summary: dict[str, Any]

    @property
    def dice(self) -> float:
        """nnU-Net's score: the mean over foreground classes of their means over cases."""
        return self.summary["foreground_mean"]["Dice"]

    @property
    def title(self) -> str:
        return " + ".join(f"{model.plans} {model.configuration}" for model in self.members)


def find_models(
    results: Path, configurations: Sequence[str] | None, plans: Sequence[str] | None
) -> tuple[list[Model], dict[str, str]]:
    """The models of a data set, sorted by name, and the folders that are none by their name -> why.

    Args:
        results: ``nnUNet_results/DATASET``.
        configurations: Which; None for all.
        plans: Which; None for all.

    Raises:
        UserError: None is there, or none of a configuration or of plans asked for.
    """
    there = [path for path in sorted(results.glob(f"{TRAINER_NAME}__*__*")) if (path / "plans.json").is_file()]
    names = {path: path.name.split("__") for path in there}
    parts = {path: (name[1], name[2]) for path, name in names.items() if len(name) == 3}
    why = f"not named {TRAINER_NAME}__PLANS__CONFIGURATION"
    left_out = {path.name: why for path in there if path not in parts}
    for option, asked, place in (("-p", plans, 0), ("-c", configurations, 1)):
        known = {found[place] for found in parts.values()}
        if unknown := sorted(set(asked or ()) - known):
            what = f"no model of these was trained in {results}"
            raise UserError(f"{option} {' '.join(unknown)}", what, f"choose among {', '.join(sorted(known)) or 'none'}")
    if not parts:
        others = f"; {shorten(list(left_out))}: {why}" if left_out else ""
        raise UserError(results, f"holds no model{others}", "train one with `umamba-seg train`")
    models = [
        Model(path, of_plans, configuration)
        for path, (of_plans, configuration) in parts.items()
        if of_plans in (plans or [of_plans]) and configuration in (configurations or [configuration])
    ]
    return models, left_out


def held_out_cases(splits_file: Path, folds: Sequence[int]) -> set[str]:
    """The cases that these folds are validated on.

    Raises:
        UserError: There are no splits, or no such fold.
    """
    splits = load_splits(splits_file)
    if unknown := [str(fold) for fold in folds if fold >= len(splits)]:
        what = f"not in {splits_file}, which holds {len(splits)} folds"
        raise UserError(f"-f {' '.join(unknown)}", what, f"give folds from 0 to {len(splits) - 1}")
    return {case for fold in folds for case in splits[fold]["val"]}


def validation_files(model: Model, folds: Sequence[int], cases: Collection[str], ending: str) -> dict[str, Path]:
    """case -> ``fold_*/validation/CASE.ending``, sorted.

    Args:
        model: Whose folds.
        folds: Their numbers.
        cases: What they must have been validated on, together.
        ending: Of the files.

    Raises:
        UserError: A fold or a case is missing, or there are others or the same in two folds.
    """
    found: dict[str, Path] = {}
    for fold in folds:
        folder = model.folder / f"fold_{fold}" / "validation"
        if not folder.is_dir():
            raise UserError(folder, "no such folder", f"train fold {fold} to its end")
        for path in sorted(folder.glob(f"[!.]*{ending}")):
            case = path.name.removesuffix(ending)
            if case in found:
                raise UserError(path, f"{found[case]} is of the same case", "train the folds with the same splits")
            found[case] = path
    if missing := sorted(set(cases) - set(found)):
        which = shorten(missing) if found else "any case"
        what = f"its validation left no {ending} of {which}"
        again = "umamba-seg train ... --val" + (" --npz" if ending == ".npz" else "")
        raise UserError(model.folder, what, f"validate again: `{again}`")
    if others := sorted(set(found) - set(cases)):
        what = f"was validated on {shorten(others)}, which splits_final.json does not hold out in these folds"
        raise UserError(model.folder, what, "train it with these splits")
    return dict(sorted(found.items()))


@contextlib.contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """Yield an empty hidden folder that takes the place of ``target`` when the block ends well.

    A target that holds the same files already stays, with what was determined for them.
    """
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        yield draft
        if _holds_the_same(target, draft):
            return
        if target.exists():
            shutil.rmtree(target)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _holds_the_same(target: Path, draft: Path) -> bool:
    if not target.is_dir():
        return False
    old, new = ({path.name for path in folder.iterdir()} - _ADDED_LATER for folder in (target, draft))
    return old == new and all(filecmp.cmp(target / name, draft / name, shallow=False) for name in new)


@contextlib.contextmanager
def only_run(results: Path) -> Iterator[None]:
    """Keep other runs out of a data set's results, and remove what those that were killed have left.

    Args:
        results: ``nnUNet_results/DATASET``.

    Raises:
        UserError: Another run is at work there; the message names its process.
    """
    with only_one(results / ".find_best.lock", "comparing these models") as alone:
        for draft in (path for pattern in _DRAFTS for path in results.glob(pattern) if alone):
            logger.info("removed what a run that was killed has left: %s", draft)
            shutil.rmtree(draft)
        yield
