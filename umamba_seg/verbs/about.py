"""What is installed, and a first try."""

from __future__ import annotations

import argparse
from argparse import Namespace

from umamba_seg.verbs.arguments import add_common


def quickstart(args: Namespace) -> dict:
    from umamba_seg.quickstart import run

    return run(args)


def info(args: Namespace) -> dict:
    from umamba_seg.info import as_text, collect

    facts = collect()
    if not args.json:
        print(as_text(facts))
    return facts


def add_info(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "info", help="versions, devices, and which scan backend runs here and why", allow_abbrev=False
    )
    add_common(parser)
    parser.set_defaults(run=info)


def add_quickstart(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("quickstart", help="the whole job on a synthetic data set", allow_abbrev=False)
    parser.add_argument("-o", metavar="FOLDER", default="quickstart", help="where it works (default: ./quickstart)")
    parser.add_argument("--config", metavar="FILE", help="settings (default: the packaged quickstart.toml)")
    add_common(parser)
    parser.set_defaults(run=quickstart)
