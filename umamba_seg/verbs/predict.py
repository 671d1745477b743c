"""Segment images."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from umamba_seg import paths
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import (
    CONFIGURATIONS,
    add_common,
    add_dataset,
    add_device,
    device_of,
    not_negative,
    positive,
    positive_number,
    share,
)

if TYPE_CHECKING:
    from umamba_seg.predict.folder import Engine


def predict(args: Namespace) -> dict:
    from umamba_seg.predict.folder import predict_folder, require_part
    from umamba_seg.train import trained_folds

    model = Path(args.m) if args.m else _model(args)
    how: dict[str, Any] = {
        "folds": trained_folds(model, args.f, args.chk),
        "checkpoint_name": args.chk,
        "mirroring": not args.disable_tta,
        "swap_labels": args.swap_labels,
        "step_size": args.step_size,
        "ram_gb": args.ram_gb,
    }
    require_part(args.part_id, args.num_parts)
    _require_sense(args, model)  # before torch is loaded

    from umamba_seg.predict.predictor import Predictor

    device = "cpu" if args.cluster else device_of(args.device)  # workers of a cluster have devices of their own
    outcome = predict_folder(
        Predictor.load(model, device=device, **how),
        Path(args.i),
        Path(args.o),
        checkpoint_name=args.chk,
        precision=args.save_probabilities,
        uncertainty=args.uncertainty,
        previous=Path(args.prev_stage_predictions) if args.prev_stage_predictions else None,
        resume=args.resume,
        part=args.part_id,
        parts=args.num_parts,
        engine=_engine(args, how),
    )
    before = f", {len(outcome.skipped)} were there" if args.resume else ""
    logger.info("%d segmentations written to %s%s", len(outcome.segmentations), args.o, before)
    return outcome.as_json()


def _engine(args: Namespace, how: dict[str, Any]) -> Engine:
    """What works off the cases: this process, or a cluster."""
    if args.cluster is None:
        from umamba_seg.predict.folder import pipeline

        return pipeline
    from umamba_seg.predict.cluster import Cluster

    return Cluster(args.cluster, args.workers, how | {"device": args.device})


def _require_sense(args: Namespace, model: Path) -> None:
    """Refuse what is missing, malicious or contradicts itself."""
    from umamba_seg.datasets.raw import read_description
    from umamba_seg.plan.plans import read_model_plans
    from umamba_seg.predict.cases import list_cases

    read_model_plans(model)
    list_cases(Path(args.i), read_description(model / "dataset.json")["file_ending"])
    if args.prev_stage_predictions and not Path(args.prev_stage_predictions).is_dir():
        raise UserError(args.prev_stage_predictions, "no such folder", "name that of the stage before's segmentations")
    if args.cluster is None:
        if args.workers is not None:
            raise UserError(f"--workers {args.workers}", "there is no cluster", "give --cluster too, or leave it out")
        return
    from umamba_seg.scheduler import require_cluster

    require_cluster(args.cluster, args.workers)


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


def _pair(text: str) -> tuple[str, str]:
    left, _, right = text.partition(":")
    if not left or not right:
        raise argparse.ArgumentTypeError(f"{text!r} is not LEFT:RIGHT, such as kidney_left:kidney_right")
    return left, right


def add_predict(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("predict", help="segment a folder of images", allow_abbrev=False)
    parser.add_argument(
        "-i", metavar="FOLDER", required=True, help="images CASE_0000.ending, or folders of DICOM series"
    )
    parser.add_argument("-o", metavar="FOLDER", required=True, help="where segmentations are written")
    parser.add_argument("-m", metavar="FOLDER", help="a model folder; or name the model by -d and -c")
    add_dataset(parser, required=False)
    parser.add_argument("-c", choices=CONFIGURATIONS, help="configuration")
    parser.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")
    parser.add_argument("-f", metavar="FOLD", nargs="+", help="folds to average (default: all that are trained)")
    parser.add_argument(
        "-chk", metavar="NAME", default="checkpoint_final.pth", help="checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "-prev_stage_predictions", metavar="FOLDER", help="of a cascade: segmentations of the images by the first stage"
    )
    parser.add_argument("--resume", action="store_true", help="skip what an earlier run of the same model finished")
    _add_quality(parser)
    _add_extras(parser)
    _add_machines(parser)
    add_common(parser)
    parser.set_defaults(run=predict)


def _add_quality(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-step_size", type=share, metavar="SHARE", default=0.5, help="of the window, in patches (default: 0.5)"
    )
    parser.add_argument(
        "--disable_tta", action="store_true", help="do not average over mirrored images (8 times faster)"
    )
    parser.add_argument(
        "--swap-labels",
        type=_pair,
        nargs="+",
        metavar="LEFT:RIGHT",
        help="labels that change places when left and right are mirrored (default: as the plans say)",
    )


def _add_extras(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--save-probabilities",
        "--save_probabilities",
        nargs="?",
        const="float16",
        choices=("float16", "uint8"),
        help="save probabilities too, by default as float16",
    )
    parser.add_argument(
        "--uncertainty", action="store_true", help="write maps of entropy, and of the folds' disagreement"
    )


def _add_machines(parser: argparse.ArgumentParser) -> None:
    add_device(parser)
    parser.add_argument(
        "--ram-gb", type=positive_number, metavar="GB", help="memory that a case may take (default: what is free)"
    )
    parser.add_argument("-num_parts", type=positive, metavar="N", default=1, help="shares to split the cases into")
    parser.add_argument("-part_id", type=not_negative, metavar="K", default=0, help="share to segment here, from 0")
    parser.add_argument(
        "--cluster",
        metavar="WHERE",
        help="let dask's workers segment: local, slurm, slurm:CONFIG or a scheduler's address (tcp://...)",
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="of --cluster local, or jobs of --cluster slurm")
