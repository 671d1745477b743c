"""Choose the best model or ensemble by cross-validation."""

from __future__ import annotations

import argparse
from argparse import Namespace

from umamba_seg import paths, settings
from umamba_seg.verbs.arguments import add_common, add_dataset, add_processes, not_negative


def find_best(args: Namespace) -> dict:
    folders = paths.resolve(args.root)
    name = folders.dataset_name(args.d)
    workers = settings.workers(args.np)
    settings.configure_nnunet(workers)
    from umamba_seg.select.find_best import find_best as search

    return search(
        folders.results / name,
        folders.preprocessed / name,
        configurations=args.c,
        plans=args.p,
        folds=args.f,
        ensembles=not args.disable_ensembling,
        workers=workers,
    )


def _fold(text: str) -> int:
    if text == "all":
        raise argparse.ArgumentTypeError("fold all has seen every case and holds none out; give numbers of folds")
    return not_negative(text)


def add_find_best(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "find_best",
        help="choose the best model or ensemble of a data set by cross-validation, and its postprocessing",
        allow_abbrev=False,
    )
    add_dataset(parser)
    parser.add_argument(
        "-c", metavar="CONFIGURATION", nargs="+", help="which to compare (default: all that are trained)"
    )
    parser.add_argument("-p", metavar="PLANS", nargs="+", help="which to compare (default: all that are trained)")
    parser.add_argument(
        "-f", type=_fold, metavar="FOLD", nargs="+", help="folds that every model must have (default: 0 to 4)"
    )
    parser.add_argument("--disable_ensembling", action="store_true", help="compare single models only")
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=find_best)
