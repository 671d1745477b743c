"""What each verb of the command line does: functions from the parsed arguments to what ``--json`` prints.

Input is checked before torch is loaded, so that a mistake is answered within seconds.
"""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from umamba_seg import paths, settings
from umamba_seg.datasets.raw import load_raw_dataset, read_json
from umamba_seg.datasets.writing import write_json
from umamba_seg.errors import UserError
from umamba_seg.log import logger

if TYPE_CHECKING:
    import torch


def convert(args: Namespace) -> dict:
    raw = paths.resolve(args.root).raw
    if args.source == "msd":
        from umamba_seg.datasets import msd

        folder = msd.convert(Path(args.i), raw, args.d, args.name)
    else:
        from umamba_seg.datasets import folder as pictures

        tests = args.test_images and Path(args.test_images)
        folder = pictures.convert(
            Path(args.i), Path(args.l), raw, args.d, args.name, test_images=tests, group_pattern=args.group_pattern
        )
    logger.info("written: %s", folder)
    return {"dataset": folder.name, "folder": str(folder)}


def check(args: Namespace) -> None:
    from umamba_seg.datasets.check import check_dataset

    folders = paths.resolve(args.root)
    name = folders.dataset_name(args.d)
    dataset = load_raw_dataset(folders.raw / name)
    report = check_dataset(
        dataset,
        group_pattern=args.group_pattern,
        splits=_existing_splits(folders, name),
        processes=settings.workers(args.np),
    )
    print(json.dumps(report.as_json(), indent=2) if args.json else report.as_text())
    if report.errors:
        raise UserError(
            dataset.folder, f"{len(report.errors)} errors were found", "mend what is listed and check again"
        )


def _existing_splits(folders: paths.Folders, dataset_name: str) -> list[dict] | None:
    """nnU-Net's splits_final.json: the preprocessed folder's is the one that training reads, the raw one its origin."""
    from umamba_seg.datasets.splits import load_splits

    for folder in (folders.preprocessed / dataset_name, folders.raw / dataset_name):
        if (folder / "splits_final.json").is_file():
            return load_splits(folder / "splits_final.json")
    return None


def plan_and_preprocess(args: Namespace) -> dict:
    from umamba_seg.networks import find
    from umamba_seg.plan import budgets

    network = find(args.network)
    folders = paths.resolve(args.root).export()
    name = folders.dataset_name(args.d)
    dataset = load_raw_dataset(folders.raw / name)
    processes = settings.workers(args.np)
    splits = _splits(args, folders, dataset)
    if not args.no_check:
        from umamba_seg.datasets.check import check_dataset

        report = check_dataset(dataset, group_pattern=args.group_pattern, splits=splits, processes=processes)
        for finding in report.warnings:
            logger.warning("warning: %s: %s; %s", finding.where, finding.what, finding.remedy)
        report.raise_if_errors()

    settings.configure_nnunet(processes)
    budget = budgets.cpu_budget() if _plans_for_cpu(args) else budgets.gpu_budget(args.gpu_memory_target or 8)
    preprocessed = folders.preprocessed / name
    preprocessed.mkdir(parents=True, exist_ok=True)
    write_json(preprocessed / "splits_final.json", splits)

    from umamba_seg.fingerprint import extract_fingerprint
    from umamba_seg.plan.planner import plan_dataset
    from umamba_seg.plan.plans import require_configuration
    from umamba_seg.preprocess import preprocess

    extract_fingerprint(name, processes)
    plans = plan_dataset(name, network, budget, args.p or f"{network.name}_{budget.name}")
    configurations = args.c or [
        key for key in plans["configurations"] if "inherits_from" not in plans["configurations"][key]
    ]
    for configuration in configurations:
        require_configuration(plans, configuration)
        _log_plan(configuration, plans["configurations"][configuration])
    preprocess(dataset, plans, configurations, preprocessed, processes)
    return {"plans": str(preprocessed / f"{plans['plans_name']}.json"), "configurations": configurations}


def _splits(args: Namespace, folders: paths.Folders, dataset) -> list[dict]:
    """The splits that are there, or new ones. Asking for groups is refused where others are there already."""
    from umamba_seg.datasets.splits import make_splits

    pattern = args.group_pattern or dataset.json.get("group_pattern")
    existing = _existing_splits(folders, dataset.folder.name)
    if existing is not None and not (args.group_pattern or args.val_groups):
        return existing
    splits = make_splits([case.identifier for case in dataset.cases], group_pattern=pattern, val_groups=args.val_groups)
    if existing not in (None, splits):
        raise UserError(
            f"splits_final.json of {dataset.folder.name}",
            "is there already and differs from the split that --group-pattern and --val-groups ask for",
            "leave these options out to honour the file, or move it away to make a new split",
        )
    return splits


def _plans_for_cpu(args: Namespace) -> bool:
    """``--budget cpu``; with neither budget given, whether this machine has no GPU."""
    if args.budget or args.gpu_memory_target:
        return args.budget == "cpu"
    import torch

    found = torch.cuda.is_available()
    logger.info("budget: %s", "8 GB of GPU memory, nnU-Net's target" if found else "cpu, as there is no CUDA GPU here")
    return not found


def _log_plan(name: str, configuration: dict) -> None:
    arguments = configuration["architecture"]["arch_kwargs"]
    logger.info(
        "%s: patch %s, batch %d, spacing %s mm, features %s",
        name,
        "x".join(map(str, configuration["patch_size"])),
        configuration["batch_size"],
        "x".join(f"{step:.3g}" for step in configuration["spacing"]),
        arguments["features"],
    )


def train(args: Namespace) -> dict:
    from umamba_seg.datasets.splits import load_splits
    from umamba_seg.plan.plans import PLANS_TABLE, read_plans, require_configuration
    from umamba_seg.train.options import TrainingOptions

    folders = paths.resolve(args.root).export()
    name = folders.dataset_name(args.d)
    preprocessed = folders.preprocessed / name
    plans = read_plans(preprocessed, args.p)
    require_configuration(plans, args.c)
    fold = _fold(args.f, load_splits(preprocessed / "splits_final.json"))
    options = TrainingOptions.read(plans[PLANS_TABLE]["training"], preprocessed / f"{plans['plans_name']}.json")
    plans[PLANS_TABLE]["training"] = options.overridden(
        epochs=args.epochs, iterations_per_epoch=args.iterations_per_epoch, max_minutes=args.max_minutes
    ).model_dump()

    device = _device(args.device)
    settings.configure_nnunet(settings.workers(args.np))
    settings.configure_augmentation(on_cpu=device.type == "cpu")
    from umamba_seg.train.run import train_fold

    result = train_fold(
        plans,
        args.c,
        fold,
        read_json(preprocessed / "dataset.json"),
        device,
        resume=args.resume,
        only_validation=args.only_validation,
        save_probabilities=args.save_probabilities,
    )
    result["report"] = _report_on_fold(result, folders.raw / name / "imagesTr", preprocessed)
    return result


def _report_on_fold(result: dict, images: Path, preprocessed: Path) -> str | None:
    """The fold's report.html. The training is done by now: raw images that have since gone only cost the report."""
    from umamba_seg.report import report_on_model

    model = Path(result["model_folder"])
    fold = model / f"fold_{result['fold']}"
    try:
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


def _fold(text: str, splits: list[dict]) -> int | str:
    """A fold of the split, or all. nnU-Net would make a random split for a number beyond them."""
    if text == "all":
        return text
    if not text.isdigit() or int(text) >= len(splits):
        raise UserError(f"-f {text}", f"not a fold of splits_final.json, which holds {len(splits)}", "give 0 to "
                        f"{len(splits) - 1}, or all")  # fmt: skip
    return int(text)


def _device(name: str | None) -> torch.device:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = "cuda" if available["cuda"] else "cpu"
        logger.info("device: %s", name)
    if not available[name]:
        there = ", ".join(device for device, found in available.items() if found)
        raise UserError(f"-device {name}", "not available to this torch on this machine", f"choose one of {there}")
    return torch.device(name)


def predict(args: Namespace) -> dict:
    from umamba_seg.datasets.raw import find_cases

    model = Path(args.m) if args.m else _model_folder(args)
    folds = _trained_folds(model, args.f, args.chk)
    find_cases(Path(args.i), read_json(model / "dataset.json")["file_ending"])  # an empty folder is answered at once

    settings.configure_nnunet(settings.workers(None))
    from umamba_seg.predict import load_predictor, predict_folder

    predictor = load_predictor(
        model, folds, args.chk, _device(args.device), mirroring=not args.disable_tta, step_size=args.step_size
    )
    written = predict_folder(predictor, Path(args.i), Path(args.o), save_probabilities=args.save_probabilities)
    write_json(Path(args.o) / "dataset.json", predictor.dataset_json)
    logger.info("%d segmentations written to %s", len(written), args.o)
    return {"segmentations": [str(path) for path in written]}


def _model_folder(args: Namespace) -> Path:
    """The folder that ``train`` wrote for ``-d``, ``-c`` and ``-p``."""
    from umamba_seg.plan.plans import read_plans, require_configuration
    from umamba_seg.train import TRAINER_NAME

    if args.d is None or args.c is None:
        raise UserError("predict", "no model was named", "give -m MODEL_FOLDER, or -d DATASET and -c CONFIGURATION")
    folders = paths.resolve(args.root)
    name = folders.dataset_name(args.d)
    plans = read_plans(folders.preprocessed / name, args.p)
    require_configuration(plans, args.c)
    return folders.results / name / f"{TRAINER_NAME}__{plans['plans_name']}__{args.c}"


def _trained_folds(model: Path, folds: list[str] | None, checkpoint: str) -> list[str]:
    """The folds asked for, or every numbered fold that is trained, or fold all when there is no other."""
    there = sorted(path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    if not there:
        raise UserError(
            model, f"no fold_*/{checkpoint} is there", "train a fold first, or name another checkpoint with -chk"
        )
    wanted = folds or [fold for fold in there if fold != "all"] or there
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise UserError(
            f"-f {' '.join(missing)}", f"no {checkpoint} of this fold in {model}", f"choose among {', '.join(there)}"
        )
    return wanted


def evaluate(args: Namespace) -> dict:
    from umamba_seg.datasets.labels import Labels
    from umamba_seg.evaluate import evaluate_folder, summary_table

    predictions = Path(args.pred_folder)
    description = Path(args.djfile) if args.djfile else predictions / "dataset.json"
    dataset_json = read_json(description)
    labels = Labels.from_json(dataset_json, description)
    output = Path(args.o) if args.o else predictions / "summary.json"
    processes = settings.workers(args.np)
    settings.configure_nnunet(processes)
    summary = evaluate_folder(
        Path(args.gt_folder), predictions, dataset_json, output, processes, allow_missing=args.chill
    )
    if not args.json:
        print(summary_table(summary, labels))
    return {"summary": str(output), "foreground_mean": summary["foreground_mean"], "mean": summary["mean"]}


def quickstart(args: Namespace) -> dict:
    from umamba_seg.quickstart import run

    return run(Path(args.o), Path(args.config) if args.config else None, args.json)


def info(args: Namespace) -> dict:
    from umamba_seg.info import as_text, collect

    facts = collect()
    if not args.json:
        print(as_text(facts))
    return facts
