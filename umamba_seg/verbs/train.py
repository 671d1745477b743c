"""Train a fold, or train it further."""

from __future__ import annotations

import argparse
from argparse import Namespace
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from umamba_seg import paths, settings
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, read_json
from umamba_seg.locks import only_one
from umamba_seg.log import logger
from umamba_seg.text import shorten
from umamba_seg.verbs.arguments import (
    CONFIGURATIONS,
    add_common,
    add_dataset,
    add_device,
    add_processes,
    description_of,
    device_of,
    not_negative,
    positive,
    positive_number,
)

if TYPE_CHECKING:
    from typing import Any


def train(args: Namespace) -> dict | None:
    overrides = {
        "epochs": args.epochs,
        "iterations_per_epoch": args.iterations_per_epoch,
        "max_minutes": args.max_minutes,
        "early_stop": args.early_stop,
        "seed": args.seed,
        "deterministic": args.deterministic,
        "precision": args.precision,
        "checkpoint_minutes": args.checkpoint_minutes,
    }
    if args.pretrained and (args.resume or args.only_validation):
        what = "does not go with --c or --val: a checkpoint has its own weights"
        raise UserError("--pretrained", what, "leave out one")
    return _train_fold(
        args,
        goes_on=args.resume or args.only_validation,
        overrides={name: value for name, value in overrides.items() if value is not None},
        pretrained=Path(args.pretrained) if args.pretrained else None,
        only_validation=args.only_validation,
    )


def extend(args: Namespace) -> dict | None:
    return _train_fold(args, goes_on=True, overrides={}, extra_epochs=args.epochs)


def _train_fold(args: Namespace, *, goes_on: bool, **how: Any) -> dict | None:
    from umamba_seg.datasets.raw import read_description
    from umamba_seg.plan.plans import PLANS_TABLE, read_model_plans, read_plans, require_configuration
    from umamba_seg.preprocess import require_preprocessed
    from umamba_seg.train import model_folder
    from umamba_seg.train.cascade import require_previous_stage

    folders = paths.resolve(args.root).export()
    name = folders.dataset_name(args.d)
    preprocessed = folders.preprocessed / name
    plans = read_plans(preprocessed, args.p)
    require_configuration(plans, args.c)
    fold, cases = _fold(args.f, preprocessed)
    require_preprocessed(preprocessed, plans, args.c, cases)
    require_previous_stage(folders.results, preprocessed, plans, args.c, cases)
    _warn_of_next_stage(preprocessed, plans, args.c, cases)
    model = model_folder(folders.results, plans, args.c)
    fold_folder = model / f"fold_{fold}"
    _start(fold_folder, goes_on=goes_on)  # refuse before anything is made
    description = read_description(preprocessed / "dataset.json")
    device = device_of(args.device)
    settings.configure_nnunet(settings.workers(args.np))
    from umamba_seg.train.run import train_fold

    with _only_training(fold_folder):
        checkpoints = _start(fold_folder, goes_on=goes_on)  # those that a process which has just ended has left
        if checkpoints:
            plans = read_model_plans(model)
            require_configuration(plans, args.c)
        elif not how.get("pretrained") and (origin := plans[PLANS_TABLE].get("pretrained")):
            logger.warning("begins with random weights; for those of %s give --pretrained", origin["model"])
        result = train_fold(
            plans,
            args.c,
            fold,
            description,
            device,
            checkpoints=checkpoints,
            workers=args.workers,
            save_probabilities=args.save_probabilities,
            **how,
        )
    if result is not None:
        result["report"] = _report_on_fold(result, folders.raw / name, preprocessed)
    return result


def _only_training(fold_folder: Path) -> AbstractContextManager:
    """Keeps other trainings out of a fold; of the processes of a distributed one, the first does."""
    from umamba_seg.train.distributed import Group

    if not Group.of_environment().leads:
        return nullcontext()
    return only_one(make_folder(fold_folder) / ".training.lock", "training this fold")


def _warn_of_next_stage(preprocessed: Path, plans: dict, configuration: str, cases: list[str]) -> None:
    """Of a cascade whose second stage could not be trained on what this training leaves for it."""
    from umamba_seg.preprocess import unprepared

    stages = plans["configurations"][configuration].get("next_stage") or []
    for stage in [stages] if isinstance(stages, str) else stages:
        if missing := unprepared(preprocessed, plans, stage, cases):
            logger.warning(
                "%s: its data of %s are not preprocessed, so that the final validation leaves no segmentations of them "
                "for it; run `umamba-seg plan_and_preprocess` with -c %s before",
                stage, shorten(missing), stage,
            )  # fmt: skip


def _start(folder: Path, *, goes_on: bool) -> list[Path]:
    """The checkpoints to go on from, if asked to; results that are there are never trained over."""
    from umamba_seg.train import resumable, trained_files

    found = resumable(folder)
    if goes_on and not found:
        raise UserError(folder, "no checkpoint to go on from", "start a training with `umamba-seg train`")
    if not goes_on and (there := trained_files(folder)):
        raise UserError(folder, f"{there[0].name} is there already", "continue with --c, or move the folder away")
    return found


def _report_on_fold(result: dict, raw: Path, preprocessed: Path) -> str | None:
    """The fold's report.html. The training is done by now: raw images that have since gone only cost the report."""
    from umamba_seg.report import report_on_model

    model = Path(result["model_folder"])
    fold = model / f"fold_{result['fold']}"
    try:
        images = {case.identifier: case.images for case in load_raw_dataset(raw).cases}
        report = report_on_model(
            model,
            result["fold"],
            title=f"{preprocessed.name}, fold {result['fold']}",
            summary=read_json(Path(result["summary"])),
            images=images,
            references=preprocessed / "gt_segmentations",
            predictions=fold / "validation",
            cases=result["cases"],
            output=fold / "report.html",
        )
    except UserError as error:
        logger.warning("no report was written: %s", error)
        return None
    logger.info("report: %s", report)
    return str(report)


def _fold(text: str, preprocessed: Path) -> tuple[int | str, list[str]]:
    """A fold of the split, or all, and its cases. nnU-Net would make a random split for a number beyond them."""
    from umamba_seg.datasets.splits import load_splits

    if text == "all":
        ending = description_of(preprocessed / "dataset.json")["file_ending"]
        references = preprocessed / "gt_segmentations"
        return text, [path.name.removesuffix(ending) for path in sorted(references.glob(f"[!.]*{ending}"))]
    file = preprocessed / "splits_final.json"
    splits = load_splits(file) if file.is_file() else []
    if not text.isdigit() or int(text) >= len(splits):
        known = f"give 0 to {len(splits) - 1}, or all" if splits else "give all"
        raise UserError(f"-f {text}", f"not a fold of {file}, which holds {len(splits)}", known)
    split = splits[int(text)]
    return int(text), [*split["train"], *split["val"]]


def _add_fold(parser: argparse.ArgumentParser) -> None:
    add_dataset(parser)
    parser.add_argument("-c", choices=CONFIGURATIONS, required=True, help="configuration")
    parser.add_argument("-f", metavar="FOLD", required=True, help="number of the fold, or all")
    parser.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")


def _add_training_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=not_negative,
        metavar="N",
        help="processes that augment batches; 0 does it between the iterations (default: what cores and memory allow)",
    )
    parser.add_argument(
        "--npz", dest="save_probabilities", action="store_true", help="save the validation's probabilities"
    )
    add_device(parser)
    add_processes(parser)
    add_common(parser)


def add_train(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("train", help="train one fold and validate it", allow_abbrev=False)
    _add_fold(parser)
    parser.add_argument("--epochs", type=positive, metavar="N", help="default: the plans'")
    parser.add_argument("--iterations-per-epoch", type=positive, metavar="N", help="default: the plans'")
    parser.add_argument(
        "--max-minutes",
        type=positive_number,
        metavar="M",
        help="wall time of training without the final validation, instead of the plans' epochs; the learning rate "
        "falls with it",
    )
    parser.add_argument(
        "--early-stop",
        type=positive,
        metavar="N",
        help="end when the smoothed pseudo Dice has not risen for N epochs (default: never)",
    )
    parser.add_argument("--seed", type=not_negative, metavar="N", help="of weights and batches (default: 0)")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="take algorithms that always give the same bits; on a GPU slower, and torch warns of those that it lacks",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="of the network (default: auto, bfloat16 on GPUs that have it, float16 on others, float32 on a CPU)",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=positive_number,
        metavar="M",
        help="a checkpoint is saved so often, besides the best and the final one (default: 10)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="MODEL_FOLDER",
        help="begin with the weights of this model (of fold all, else 0, else its only one), or of this checkpoint in "
        "it; the plans must be made with --pretrained too",
    )
    parser.add_argument(
        "--c", dest="resume", action="store_true", help="continue from the last checkpoint, with its options"
    )
    parser.add_argument("--val", dest="only_validation", action="store_true", help="only run the final validation")
    _add_training_processes(parser)
    parser.set_defaults(run=train)


def add_extend(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "extend", help="train a finished fold further, with a schedule of its own", allow_abbrev=False
    )
    _add_fold(parser)
    parser.add_argument("--epochs", type=positive, metavar="N", required=True, help="how many more")
    _add_training_processes(parser)
    parser.set_defaults(run=extend)
