"""Compare segmentations with references."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.verbs.arguments import add_common, add_processes
from umamba_seg.verbs.instances import evaluate_masks


def evaluate(args: Namespace) -> dict:
    references, predictions = Path(args.gt_folder), Path(args.pred_folder)
    for place in (references, predictions):
        if not place.is_dir():
            raise UserError(place, "no such folder", "name a folder of segmentations")
    if args.instances:
        return evaluate_masks(args)
    if args.protocol == "umamba_cells":
        raise UserError("--protocol umamba_cells", "counts cells, not classes", "add --instances")

    from umamba_seg.evaluate import results, tables

    found = results.evaluate_segmentations(
        references,
        predictions,
        args.metrics,
        args.protocol,
        description=Path(args.djfile) if args.djfile else None,
        output=Path(args.o) if args.o else None,
        processes=args.np,
        allow_missing=args.chill,
    )
    if not args.json:
        print(tables.results_table(found.results))
    return {
        "summary": str(found.summary_file),
        "metrics": str(found.metrics_file),
        "table": str(found.table_file),
        "protocol": args.protocol,
        "foreground_mean": found.summary["foreground_mean"],
        "mean": found.summary["mean"],
        "overall": results.as_json(found.results["overall"]),
    }


def add_evaluate(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("evaluate", help="compare segmentations with references", allow_abbrev=False)
    parser.add_argument("gt_folder", help="reference segmentations")
    parser.add_argument("pred_folder", help="predicted segmentations of the same names")
    parser.add_argument("-djfile", metavar="FILE", help="dataset.json (default: the one in pred_folder)")
    parser.add_argument(
        "-o",
        metavar="FILE",
        help="summary to write (default: pred_folder/summary.json); metrics.json and metrics.csv are put beside it",
    )
    parser.add_argument("--chill", action="store_true", help="evaluate what is there when predictions are missing")
    parser.add_argument(
        "--metrics",
        metavar="NAMES",
        help="separated by commas: dice, iou, precision, sensitivity, specificity, accuracy, nsd@Xmm (tolerance X), "
        "hd95, hd, assd, asd, volume, lesion (default: dice,iou,nsd@1mm,hd95,assd,volume)",
    )
    parser.add_argument(
        "--protocol",
        metavar="NAME",
        default="nnunet",
        help="measure as a paper's own script does: umamba_abdomen, umamba_endoscopy, segmamba_brats, nnmamba, "
        "vmunet_isic, vmunet_synapse, msvmunet_synapse, tamingmambas_synapse, mambaunet, uumamba_acdc "
        "(default: nnunet)",
    )
    parser.add_argument(
        "--instances",
        action="store_true",
        help="the masks number cells: F1 of cells instead; -o names its metrics.json, --protocol umamba_cells scores "
        "as U-Mamba's script does",
    )
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=evaluate)
