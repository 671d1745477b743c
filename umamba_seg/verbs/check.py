"""What is wrong with a raw data set."""

from __future__ import annotations

import argparse
from argparse import Namespace

from umamba_seg import paths, settings
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.verbs.arguments import add_common, add_dataset, add_groups, add_processes


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


def add_check(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("check", help="say what is wrong with a raw data set", allow_abbrev=False)
    add_dataset(parser)
    add_groups(parser)
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=check)
