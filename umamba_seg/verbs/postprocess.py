"""Postprocess segmentations."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg import settings
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import add_common, add_processes


def postprocess(args: Namespace) -> dict:
    folder, file = Path(args.i), Path(args.pp) if args.pp else _of_model(Path(args.m))
    if not folder.is_dir():
        raise UserError(folder, "no such folder", "name a folder of segmentations")
    workers = settings.workers(args.np)
    settings.configure_nnunet(workers)
    from umamba_seg.select.postprocessing import Postprocessing, apply_to_folder

    postprocessing = Postprocessing.read(file)
    for step in postprocessing.steps:
        logger.info("the largest component is kept of: %s", ", ".join(step))
    written = apply_to_folder(postprocessing, folder, Path(args.o), workers)
    logger.info("%d segmentations written to %s", len(written), args.o)
    steps = [list(step) for step in postprocessing.steps]
    return {"segmentations": [str(path) for path in written], "failed": {}, "keep_largest_component": steps}


def _of_model(model: Path) -> Path:
    """What cross-validation left in a model folder."""
    pattern = "crossval_results_folds_*/postprocessing.json"
    found = sorted(model.glob(pattern))
    if not found:
        raise UserError(model, f"no {pattern} is there", "determine it with `umamba-seg find_best`")
    if len(found) > 1:
        raise UserError(model, f"holds several: {', '.join(map(str, found))}", "choose one with -pp")
    return found[0]


def add_postprocess(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "postprocess", help="keep the largest components, as find_best has determined", allow_abbrev=False
    )
    parser.add_argument("-i", metavar="FOLDER", required=True, help="segmentations of `predict` or `ensemble`")
    parser.add_argument("-o", metavar="FOLDER", required=True, help="where the postprocessed ones are written")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("-pp", metavar="FILE", help="postprocessing.json of a model or an ensemble")
    source.add_argument("-m", metavar="FOLDER", help="a model folder that holds one")
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=postprocess)
