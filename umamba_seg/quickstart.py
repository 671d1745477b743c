"""The whole job on a synthetic data set, as the commands that a user would type."""

from __future__ import annotations

import shlex
import shutil
import time
from argparse import Namespace
from pathlib import Path

from umamba_seg import cli
from umamba_seg.config import read_quickstart
from umamba_seg.datasets.raw import find_cases
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, read_json
from umamba_seg.log import logger
from umamba_seg.paths import resolve

_MARKER = ".umamba-seg-quickstart"  # says that the folder is ours to empty


def _run(*words: object) -> dict:
    """Run one command of the command line in this process, and show it."""
    argv = [str(word) for word in words]
    logger.info("\n$ umamba-seg %s", shlex.join(argv))
    arguments = cli.build_parser().parse_args(argv)
    return arguments.run(arguments)


def _empty(folder: Path) -> None:
    """Make ``folder``, or empty it when an earlier quickstart made it."""
    if folder.is_dir() and any(folder.iterdir()):
        if not (folder / _MARKER).is_file():
            raise UserError(folder, "is not empty and no quickstart made it", "name another folder with -o")
        shutil.rmtree(folder)
    (make_folder(folder) / _MARKER).touch()


def run(args: Namespace) -> dict:
    """Make the data, then plan, train, predict, evaluate and report, all below ``args.o``.

    Returns:
        ``foreground_dice`` of the unseen cases, ``report`` and ``seconds``.
    """
    started = time.monotonic()
    folder = Path(args.o)
    config = read_quickstart(Path(args.config) if args.config else None)
    _empty(folder)
    folders = resolve(folder)
    logger.info("a synthetic data set of %d + %d cases", config.dataset.train_cases, config.dataset.test_cases)

    from umamba_seg.datasets.synthetic import make_dataset

    data = config.dataset
    raw = make_dataset(
        folders.raw,
        data.id,
        data.name,
        train_cases=data.train_cases,
        test_cases=data.test_cases,
        shape=data.shape,
        spacing=data.spacing,
        seed=data.seed,
    )
    where, plan = ("-d", data.id, "--root", folder), config.plan
    model = (*where, "-c", plan.configuration)
    _run("plan_and_preprocess", *model, "--network", plan.network, "--budget", plan.budget)
    trained = _run("train", *model, "-f", 0, "--max-minutes", config.training.max_minutes)
    predictions = folder / "predictions"
    _run("predict", *model, "-i", raw / "imagesTs", "-o", predictions)
    evaluated = _run("evaluate", raw / "labelsTs", predictions, *(["--json"] if args.json else []))

    from umamba_seg.report import report_on_model

    report = report_on_model(
        Path(trained["model_folder"]),
        trained["fold"],
        title="Quickstart: a synthetic abdomen",
        summary=read_json(Path(evaluated["summary"])),
        images=find_cases(raw / "imagesTs", ".nii.gz"),
        references=raw / "labelsTs",
        predictions=predictions,
        cases={"training and validation": data.train_cases, "test": data.test_cases},
        output=folder / "report.html",
    )
    dice, seconds = evaluated["foreground_mean"]["Dice"], time.monotonic() - started
    logger.info("\nmean foreground Dice on %d unseen cases: %.3f", data.test_cases, dice)
    logger.info("report: %s  (%.0f s in all)", report, seconds)
    return {"foreground_dice": dice, "report": str(report), "seconds": seconds}
