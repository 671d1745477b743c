"""What each verb of the command line does: functions from the parsed arguments to what ``--json`` prints.

Input is checked before torch is loaded, so that a mistake is answered within seconds.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from umamba_seg import paths, settings
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import read_json, write_json
from umamba_seg.log import logger
from umamba_seg.text import gib

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    import torch

    from umamba_seg.networks import NetworkSpec
    from umamba_seg.plan.budgets import Budget
    from umamba_seg.plan.recipes import Recipe
    from umamba_seg.plan.step import Setting


def convert(args: Namespace) -> dict:
    if args.source == "checkpoint":
        return _convert_checkpoint(args)
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


def _convert_checkpoint(args: Namespace) -> dict:
    from umamba_seg.convert_checkpoint import convert_checkpoint
    from umamba_seg.networks import find

    network = None if args.network is None else find(args.network)
    result = convert_checkpoint(Path(args.official), Path(args.model), network)
    logger.info("%s, %s: written: %s", result["network"], result["configuration"], result["checkpoint"])
    return result


def check(args: Namespace) -> dict:
    from umamba_seg.datasets.check import check_dataset
    from umamba_seg.datasets.splits import existing_splits

    folders = paths.resolve(args.root)
    name = folders.dataset_name(args.d)
    problems: list[UserError] = []
    dataset = load_raw_dataset(folders.raw / name, problems.append)
    report = check_dataset(
        dataset,
        group_pattern=args.group_pattern,
        splits=existing_splits(dataset.folder, folders.preprocessed / name),
        problems=problems,
        processes=settings.workers(args.np),
    )
    if not args.json:
        print(report.as_text())
    if report.errors:
        error = UserError(dataset.folder, f"errors: {len(report.errors)}", "mend what is listed, then check again")
        error.result = report.as_json()
        raise error
    return report.as_json()


def plan_and_preprocess(args: Namespace) -> dict:
    from umamba_seg.datasets.splits import existing_splits, settle_splits
    from umamba_seg.networks import find
    from umamba_seg.plan.plans import require_configuration, require_plans_name
    from umamba_seg.plan.recipes import read_recipe

    _require_nothing_beside_pretrained(args)
    network = find(args.network or "umamba_bot")
    network.require_segmentation()
    recipe = None if args.recipe is None else read_recipe(args.recipe)
    if args.p is not None:
        require_plans_name(args.p)
    budget = _explicit_budget(args)
    folders = paths.resolve(args.root).export()
    name = folders.dataset_name(args.d)
    preprocessed = folders.preprocessed / name
    dataset = load_raw_dataset(folders.raw / name)
    processes = settings.workers(args.np)
    splits = settle_splits(
        existing_splits(dataset.folder, preprocessed),
        [case.identifier for case in dataset.cases],
        default_pattern=dataset.group_pattern,
        group_pattern=args.group_pattern,
        val_groups=args.val_groups,
    )
    if not args.no_check:
        from umamba_seg.datasets.check import check_dataset

        report = check_dataset(dataset, group_pattern=args.group_pattern, splits=splits, processes=processes)
        for finding in report.warnings:
            logger.warning("warning: %s: %s; %s", finding.where, finding.what, finding.remedy)
        report.raise_if_errors()

    settings.configure_nnunet(processes)
    make_plans = _planning(args, network, budget, preprocessed, recipe)

    from umamba_seg.fingerprint import extract_fingerprint
    from umamba_seg.preprocess import preprocess

    extract_fingerprint(name, processes)
    plans = make_plans()
    planned = plans["configurations"]
    if splits:
        write_json(preprocessed / "splits_final.json", splits)
    configurations = args.c or [key for key in planned if "inherits_from" not in planned[key]]
    for configuration in configurations:
        require_configuration(plans, configuration)
        _log_plan(configuration, planned[configuration])
    preprocess(dataset, plans, configurations, preprocessed, processes)
    return {"plans": str(preprocessed / f"{plans['plans_name']}.json"), "configurations": configurations}


def _require_nothing_beside_pretrained(args: Namespace) -> None:
    """Budgets exclude it already, in the parser."""
    given = [option for option, value in (("--network", args.network), ("--probe", args.probe)) if value]
    if args.pretrained and given:
        raise UserError(given[0], "does not go with --pretrained: network and patch are the model's", "leave it out")


def _planning(
    args: Namespace, network: NetworkSpec, budget: Budget | None, preprocessed: Path, recipe: Recipe | None
) -> Callable[[], dict]:
    """What plans a data set once its fingerprint is taken. What cannot be planned is refused before."""
    from umamba_seg.plan.plans import require_plans_name

    ending = [recipe.stem] if recipe else []
    if args.pretrained:
        from umamba_seg.plan.adopt import adopt_plans
        from umamba_seg.train.pretrained import Source

        source = Source.read(Path(args.pretrained))
        plans_name = args.p or "_".join([source.plans["plans_name"], "finetuned", *ending])
        require_plans_name(plans_name)
        return lambda: adopt_plans(source, preprocessed, plans_name, recipe)

    from umamba_seg.plan.planner import plan_dataset

    budget = budget or _automatic_budget()
    device = _probed_device(budget) if args.probe else None
    plans_name = args.p or "_".join([network.name, budget.name, *ending])
    require_plans_name(plans_name)
    return lambda: plan_dataset(preprocessed.name, network, budget, plans_name, device, recipe)


def _explicit_budget(args: Namespace) -> Budget | None:
    from umamba_seg.plan import budgets

    if args.vram_gb:
        return budgets.vram_budget(args.vram_gb)
    if args.gpu_memory_target:
        return budgets.gpu_budget(args.gpu_memory_target)
    return budgets.cpu_budget() if args.budget == "cpu" else None


def _automatic_budget() -> Budget:
    import torch

    from umamba_seg.plan import budgets

    budget = budgets.gpu_budget(8) if torch.cuda.is_available() else budgets.cpu_budget()
    logger.info("budget %s: %s", budget.name, budget.meaning)
    return budget


def _probed_device(budget: Budget) -> torch.device:
    import torch

    if budget.device_type == "cuda" and not torch.cuda.is_available():
        raise UserError("--probe", "there is no CUDA GPU here to try a plan for GPUs on", "leave it out")
    return torch.device(budget.device_type)


def _log_plan(name: str, configuration: dict) -> None:
    planning = configuration.get("planning")  # a configuration that was added by hand has none
    logger.info(
        "%s: patch %s, batch %d, spacing %s mm, features %s%s",
        name,
        "x".join(map(str, configuration["patch_size"])),
        configuration["batch_size"],
        "x".join(f"{step:.3g}" for step in configuration["spacing"]),
        configuration["topology"]["features"],
        f", {gib(planning['estimated_bytes'])} estimated" if planning else "",
    )


def plan(args: Namespace) -> dict:
    from umamba_seg.plan.plans import read_plans, require_planning
    from umamba_seg.plan.show import as_text

    folders = paths.resolve(args.root)
    plans = read_plans(folders.preprocessed / folders.dataset_name(args.d), args.p)
    require_planning(plans)
    if not args.json:
        print(as_text(plans))
    return plans


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

    folders = paths.resolve(args.root).export()
    name = folders.dataset_name(args.d)
    preprocessed = folders.preprocessed / name
    plans = read_plans(preprocessed, args.p)
    require_configuration(plans, args.c)
    fold, cases = _fold(args.f, preprocessed)
    require_preprocessed(preprocessed, plans, args.c, cases)
    model = model_folder(folders.results, plans, args.c)
    checkpoints = _start(model / f"fold_{fold}", goes_on=goes_on)
    if checkpoints:
        plans = read_model_plans(model)
        require_configuration(plans, args.c)
    elif not how.get("pretrained") and (origin := plans[PLANS_TABLE].get("pretrained")):
        logger.warning("begins with random weights; for those of %s give --pretrained", origin["model"])
    description = read_description(preprocessed / "dataset.json")

    device = _device(args.device)
    settings.configure_nnunet(settings.workers(args.np))
    from umamba_seg.train.run import train_fold

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
        ending = _description(preprocessed / "dataset.json")["file_ending"]
        references = preprocessed / "gt_segmentations"
        return text, [path.name.removesuffix(ending) for path in sorted(references.glob(f"[!.]*{ending}"))]
    file = preprocessed / "splits_final.json"
    splits = load_splits(file) if file.is_file() else []
    if not text.isdigit() or int(text) >= len(splits):
        known = f"give 0 to {len(splits) - 1}, or all" if splits else "give all"
        raise UserError(f"-f {text}", f"not a fold of {file}, which holds {len(splits)}", known)
    split = splits[int(text)]
    return int(text), [*split["train"], *split["val"]]


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
    from umamba_seg.datasets.raw import list_images, read_description
    from umamba_seg.plan.plans import read_model_plans

    model = Path(args.m) if args.m else _model(args)
    folds = _trained_folds(model, args.f, args.chk)
    # What is missing or malicious is answered before torch is loaded.
    read_model_plans(model)
    list_images(Path(args.i), read_description(model / "dataset.json")["file_ending"])

    settings.configure_nnunet(settings.cores())  # nnU-Net's predictor takes it for the number of torch's threads
    from umamba_seg.predict import Predictor

    predictor = Predictor.load(
        model, folds, args.chk, _device(args.device), mirroring=not args.disable_tta, step_size=args.step_size
    )
    written = predictor.predict_folder(Path(args.i), Path(args.o), save_probabilities=args.save_probabilities)
    logger.info("%d segmentations written to %s", len(written), args.o)
    return {"segmentations": [str(path) for path in written], "failed": {}}


def _description(path: Path) -> dict:
    """A dataset.json, which at least names the ending of its images."""
    from umamba_seg.datasets.raw import require_file_ending

    content = read_json(path)
    require_file_ending(content, path)
    return content


def _model(args: Namespace) -> Path:
    """The folder that ``train`` wrote for ``-d``, ``-c`` and ``-p``."""
    from umamba_seg.plan.plans import read_plans, require_configuration
    from umamba_seg.train import model_folder

    if args.d is None or args.c is None:
        raise UserError("predict", "no model was named", "give -m MODEL_FOLDER, or -d DATASET and -c CONFIGURATION")
    folders = paths.resolve(args.root)
    plans = read_plans(folders.preprocessed / folders.dataset_name(args.d), args.p)
    require_configuration(plans, args.c)
    return model_folder(folders.results, plans, args.c)


def _trained_folds(model: Path, folds: list[str] | None, checkpoint: str) -> list[str]:
    """The folds asked for, or every numbered fold that is trained, or fold all when there is no other."""
    names = (path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    there = sorted(name for name in names if name.isdigit() or name == "all")
    if not model.is_dir():
        raise UserError(model, "no such folder", "name the folder of a model that `umamba-seg train` wrote")
    if not there:
        raise UserError(model, f"no fold_*/{checkpoint} is there", "train a fold first, or name another with -chk")
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
    for folder in (Path(args.gt_folder), predictions):
        if not folder.is_dir():
            raise UserError(folder, "no such folder", "name a folder of segmentations")
    file = Path(args.djfile) if args.djfile else predictions / "dataset.json"
    dataset_json = _description(file)
    labels = Labels.from_json(dataset_json, file)
    output = Path(args.o) if args.o else predictions / "summary.json"
    if output.suffix != ".json" or not output.parent.is_dir():
        raise UserError(f"-o {output}", "not a .json file in a folder that is there", "name one")
    processes = settings.workers(args.np)
    settings.configure_nnunet(processes)
    summary = evaluate_folder(
        Path(args.gt_folder), predictions, dataset_json, output, processes, allow_missing=args.chill
    )
    if not args.json:
        print(summary_table(summary, labels))
    return {"summary": str(output), "foreground_mean": summary["foreground_mean"], "mean": summary["mean"]}


def networks(args: Namespace) -> list[dict]:
    from umamba_seg.cost import overview, overview_as_text

    found = overview()
    if not args.json:
        print(overview_as_text(found))
    return found


def cost(args: Namespace) -> dict:
    from umamba_seg.networks import find

    network = find(args.network)
    _require_one_setting(args)
    setting = _patch_setting(args, network) if args.d is None else _planned_setting(args)
    from umamba_seg.cost import as_text, card

    facts = card(network, setting, _device(args.device))
    if not args.json:
        print(as_text(facts))
    return facts


def _require_one_setting(args: Namespace) -> None:
    """Either a planned data set or a patch, and nothing that belongs to the other."""
    of_plans = {"-d": args.d, "-c": args.c, "-p": args.p, "--root": args.root}
    of_patch = {
        "--patch": args.patch,
        "--channels": args.channels,
        "--classes": args.classes,
        "--batch": args.batch,
        "--features": args.features,
    }
    plans, patch = ([name for name, value in group.items() if value is not None] for group in (of_plans, of_patch))
    if plans and patch:
        raise UserError("cost", f"{plans[0]} and {patch[0]} exclude each other", "give -d and -c, or --patch")
    if not {"-d", "-c"} <= set(plans) and "--patch" not in patch:
        raise UserError(
            "cost", "not told on what", "give -d DATASET and -c CONFIGURATION, or --patch VOXELS VOXELS VOXELS"
        )


def _patch_setting(args: Namespace, network: NetworkSpec) -> Setting:
    from umamba_seg.plan.topology import topology_for
    from umamba_seg.text import times

    network.require_dims(len(args.patch))
    topology = topology_for(args.patch, base_features=args.features or 32)
    if topology.patch_size != tuple(args.patch):
        logger.info("patch: rounded up to %s, as nnU-Net does", times(topology.patch_size))
    from umamba_seg.plan.step import Setting

    return Setting(topology, args.channels or 1, args.classes or 2, args.batch or 2)


def _planned_setting(args: Namespace) -> Setting:
    from umamba_seg.datasets.labels import Labels
    from umamba_seg.plan.plans import read_plans, require_configuration, require_network, topology_of

    folders = paths.resolve(args.root)
    preprocessed = folders.preprocessed / folders.dataset_name(args.d)
    plans = read_plans(preprocessed, args.p)
    require_configuration(plans, args.c)
    configuration = plans["configurations"][args.c]
    require_network(configuration, f"-c {args.c}")
    description = read_json(preprocessed / "dataset.json")
    labels = Labels.from_json(description, preprocessed / "dataset.json")
    from umamba_seg.plan.step import Setting

    return Setting(
        topology_of(configuration),
        input_channels=len(description["channel_names"]),
        num_classes=labels.num_classes,
        batch_size=configuration["batch_size"],
    )


def info(args: Namespace) -> dict:
    from umamba_seg.info import as_text, collect

    facts = collect()
    if not args.json:
        print(as_text(facts))
    return facts
