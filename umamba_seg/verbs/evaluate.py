"""Compare segmentations with references."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg import settings
from umamba_seg.errors import UserError
from umamba_seg.verbs.arguments import add_common, add_processes, description_of


def evaluate(args: Namespace) -> dict:
    from umamba_seg.datasets.labels import Labels
    from umamba_seg.evaluate import evaluate_folder, summary_table

    predictions = Path(args.pred_folder)
    for folder in (Path(args.gt_folder), predictions):
        if not folder.is_dir():
            raise UserError(folder, "no such folder", "name a folder of segmentations")
    file = Path(args.djfile) if args.djfile else predictions / "dataset.json"
    dataset_json = description_of(file)
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


def add_evaluate(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("evaluate", help="compare segmentations with references", allow_abbrev=False)
    parser.add_argument("gt_folder", help="reference segmentations")
    parser.add_argument("pred_folder", help="predicted segmentations of the same names")
    parser.add_argument("-djfile", metavar="FILE", help="dataset.json (default: the one in pred_folder)")
    parser.add_argument("-o", metavar="FILE", help="summary to write (default: pred_folder/summary.json)")
    parser.add_argument("--chill", action="store_true", help="evaluate what is there when predictions are missing")
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=evaluate)
