"""Check, measure, plan and preprocess; explain a plan."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from umamba_seg import paths, settings
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import write_json
from umamba_seg.log import logger
from umamba_seg.text import gib
from umamba_seg.verbs.arguments import (
    CONFIGURATIONS,
    add_common,
    add_dataset,
    add_groups,
    add_processes,
    positive_number,
)

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

    from umamba_seg.networks import NetworkSpec
    from umamba_seg.plan.budgets import Budget
    from umamba_seg.plan.recipes import Recipe


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
    if args.like and args.probe:
        raise UserError("--probe", "plans smaller or larger, and --like does neither", "leave one out")
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
    options = (("--network", args.network), ("--probe", args.probe), ("--like", args.like))
    given = [option for option, value in options if value]
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

    budget, like = budget or _automatic_budget(), _plans_to_follow(args.like, preprocessed)
    device = _probed_device(budget) if args.probe else None
    plans_name = args.p or "_".join([network.name, budget.name, *ending])
    require_plans_name(plans_name)
    return lambda: plan_dataset(preprocessed.name, network, budget, plans_name, device, recipe, like)


def _plans_to_follow(name: str | None, preprocessed: Path) -> dict | None:
    from umamba_seg.plan.plans import read_plans, require_planning

    if name is None:
        return None
    plans = read_plans(preprocessed, name)
    require_planning(plans)
    return plans


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


def add_plan_and_preprocess(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "plan_and_preprocess", help="check, measure, plan and preprocess a raw data set", allow_abbrev=False
    )
    add_dataset(parser)
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="as `umamba-seg networks` lists them, or your own as package.module:NAME (default: umamba_bot)",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--pretrained",
        metavar="MODEL_FOLDER",
        help="plan as for this model, so that training can begin with its weights: network, patch, spacing, training "
        "options stay",
    )
    budget.add_argument(
        "--vram-gb", type=positive_number, metavar="GB", help="memory of the GPU; the plan stays within"
    )
    budget.add_argument(
        "-gpu_memory_target",
        type=positive_number,
        metavar="GB",
        help="nnU-Net's target: as much memory as its own U-Net takes where it plans for so many GB (default with a "
        "GPU: 8)",
    )
    budget.add_argument(
        "--budget", choices=("cpu",), help="cpu: about one second per iteration on two cores (default without a GPU)"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="train as a paper does: lightmunet, nnmamba, nnunet, segmamba, umamba, or a TOML file; what it gives, the "
        "epochs included, replaces the budget's (default: the budget's alone)",
    )
    parser.add_argument(
        "--like",
        metavar="PLANS",
        help="take patch, depth and batch of these plans, for a fair comparison of two networks; the budget says how "
        "the network is trained",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="run training steps of each plan here: on a GPU plan smaller or larger where its memory differs from the "
        "estimate, on a CPU only measure time and memory",
    )
    parser.add_argument(
        "-c", choices=CONFIGURATIONS, nargs="+", help="configurations to preprocess (default: all that are planned)"
    )
    parser.add_argument(
        "-p",
        metavar="PLANS",
        help="name of the plans (default: NETWORK_BUDGET, or NETWORK_BUDGET_RECIPE; with --pretrained "
        "MODELS_PLANS_finetuned)",
    )
    add_groups(parser)
    parser.add_argument(
        "--val-groups", metavar="GROUP", nargs="+", help="hold out these groups as the one validation fold"
    )
    parser.add_argument("--no-check", action="store_true", help="do not check the data first")
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=plan_and_preprocess)


def add_plan(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("plan", help="explain a plan", allow_abbrev=False)
    show = parser.add_subparsers(dest="action", required=True, metavar="show").add_parser(
        "show", help="print why each number was chosen, the estimated memory, and what was tried", allow_abbrev=False
    )
    add_dataset(show)
    show.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")
    add_common(show)
    parser.set_defaults(run=plan)
