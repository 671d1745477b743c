"""Compare segmentations with references."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg import settings
from umamba_seg.errors import UserError
from umamba_seg.verbs.arguments import add_common, add_processes, description_of
from umamba_seg.verbs.instances import evaluate_masks


def evaluate(args: Namespace) -> dict:
    from umamba_seg.datasets.labels import Labels
    from umamba_seg.evaluate import folder, protocols, results, summary, tables

    references, predictions = Path(args.gt_folder), Path(args.pred_folder)
    for place in (references, predictions):
        if not place.is_dir():
            raise UserError(place, "no such folder", "name a folder of segmentations")
    if args.instances:
        return evaluate_masks(args)
    file = Path(args.djfile) if args.djfile else predictions / "dataset.json"
    dataset_json = description_of(file)
    labels = Labels.from_json(dataset_json, file)
    output = Path(args.o) if args.o else predictions / "summary.json"
    if output.suffix != ".json" or not output.parent.is_dir():
        raise UserError(f"-o {output}", "not a .json file in a folder that is there", "name one")
    words = None if args.metrics is None else [word.strip() for word in args.metrics.split(",") if word.strip()]
    protocol = protocols.choose_protocol(args.protocol, words)
    cases = folder.score_folder(
        references, predictions, dataset_json, protocol, settings.workers(args.np), allow_missing=args.chill
    )
    summed = summary.write_summary(cases, references, predictions, dataset_json, output)
    found = results.build_results(
        cases,
        protocols.targets_of(protocol, labels),
        protocol,
        {"references": str(references), "predictions": str(predictions), "ignore_label": labels.ignore},
    )
    metrics = output.with_name(_beside(output.stem))
    sheet = results.write_results(found, metrics)
    if not args.json:
        print(tables.results_table(found))
    return {
        "summary": str(output),
        "metrics": str(metrics),
        "table": str(sheet),
        "protocol": protocol.name,
        "foreground_mean": summed["foreground_mean"],
        "mean": summed["mean"],
        "overall": results.as_json(found["overall"]),
    }


def _beside(summary: str) -> str:
    """metrics.json for summary.json; a summary of another name keeps it, so that several fit into a folder."""
    return f"{summary.replace('summary', 'metrics') if 'summary' in summary else f'{summary}_metrics'}.json"


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
