"""Segmentations of interior and boundary -> masks that number cells, and how many cells they find."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import add_common


def instances(args: Namespace) -> dict:
    from umamba_seg.datasets.instances import separate_folder

    written = separate_folder(Path(args.pred_folder), Path(args.o), rule=args.protocol)
    logger.info("%d instance masks written to %s", len(written), args.o)
    return {"instances": [str(path) for path in written], "failed": {}}


def evaluate_masks(args: Namespace) -> dict:
    """What ``evaluate --instances`` does."""
    from umamba_seg.evaluate.instances import evaluate_instances, instances_table
    from umamba_seg.evaluate.protocols import DEFAULT_PROTOCOL
    from umamba_seg.evaluate.results import NAME, as_json

    if given := [name for name in ("djfile", "metrics") if getattr(args, name) is not None]:
        raise UserError("evaluate --instances", f"takes no {', '.join(given)}", "leave it out")
    output = Path(args.o) if args.o else Path(args.pred_folder) / NAME
    if output.suffix != ".json" or not output.parent.is_dir():
        raise UserError(f"-o {output}", "not a .json file in a folder that is there", "name one")
    results = evaluate_instances(
        Path(args.gt_folder),
        Path(args.pred_folder),
        protocol="default" if args.protocol == DEFAULT_PROTOCOL else args.protocol,
        output=output,
        allow_missing=args.chill,
    )
    if not args.json:
        print(instances_table(results))
    return {
        "metrics": str(output),
        "table": str(output.with_suffix(".csv")),
        "protocol": results["protocol"]["name"],
        "overall": as_json(results["overall"]),
        "pooled": as_json(results["pooled"]),
    }


def add_instances(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "instances", help="turn segmentations of interior and boundary into masks that number cells", allow_abbrev=False
    )
    parser.add_argument("pred_folder", metavar="PRED_FOLDER", help="what `umamba-seg predict` wrote")
    parser.add_argument("-o", metavar="FOLDER", required=True, help="where 16-bit masks are written")
    parser.add_argument(
        "--protocol",
        choices=("default", "umamba_cells"),
        default="default",
        help="umamba_cells: cells without their boundary, as U-Mamba's evaluation counts them "
        "(default: grown back over the boundary)",
    )
    add_common(parser)
    parser.set_defaults(run=instances)
