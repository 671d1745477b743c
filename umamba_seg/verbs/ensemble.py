"""Average the probabilities of several models."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import add_common, add_device, device_of, positive_number

_OF_MODELS = ("--images", "-f", "-device", "--disable_tta", "--ram-gb", "--resume", "--keep")


def ensemble(args: Namespace) -> dict:
    given = [option for option in _OF_MODELS if getattr(args, option.lstrip("-").replace("-", "_"))]
    if args.i and given:
        raise UserError(" ".join(given), "belongs to -m, which predicts", "leave it out, or name models instead of -i")
    if args.m and not args.images:
        raise UserError("-m", "there are no images to predict", "name their folder with --images")
    for folder in map(Path, [*(args.i or args.m), *([args.images] if args.images else [])]):
        if not folder.is_dir():
            raise UserError(folder, "no such folder", "check the path")
    written = _of_folders(args) if args.i else _of_models(args)
    logger.info("%d segmentations written to %s", len(written), args.o)
    return {"segmentations": [str(path) for path in written], "failed": {}}


def _of_folders(args: Namespace) -> list[Path]:
    from umamba_seg.predict.ensemble import average_folders

    return average_folders(
        [Path(folder) for folder in args.i], Path(args.o), save_probabilities=args.save_probabilities
    )


def _of_models(args: Namespace) -> list[Path]:
    from umamba_seg.predict.ensemble import predict_and_average
    from umamba_seg.predict.predictor import Predictor
    from umamba_seg.train import FINAL_PTH, trained_folds

    models = [Path(model) for model in args.m]
    for model in models:
        trained_folds(model, args.f, FINAL_PTH)
    device = device_of(args.device)

    def load(model: Path) -> Predictor:
        return Predictor.load(model, args.f, device, mirroring=not args.disable_tta, ram_gb=args.ram_gb)

    return predict_and_average(
        models,
        Path(args.images),
        Path(args.o),
        load,
        save_probabilities=args.save_probabilities,
        resume=args.resume,
        keep=args.keep,
    )


def add_ensemble(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("ensemble", help="average the probabilities of several models", allow_abbrev=False)
    members = parser.add_mutually_exclusive_group(required=True)
    members.add_argument(
        "-i", metavar="FOLDER", nargs="+", help="what `predict --save-probabilities` wrote, by nnU-Net too"
    )
    members.add_argument("-m", metavar="FOLDER", nargs="+", help="model folders that predict --images first")
    parser.add_argument("-o", metavar="FOLDER", required=True, help="where segmentations are written")
    parser.add_argument(
        "--save-probabilities", "--save_npz", action="store_true", help="save the mean probabilities too, as float16"
    )
    predicting = parser.add_argument_group("with -m")
    predicting.add_argument("--images", metavar="FOLDER", help="images CASE_0000.ending, or folders of DICOM series")
    predicting.add_argument("-f", metavar="FOLD", nargs="+", help="folds of each (default: all that are trained)")
    predicting.add_argument("--disable_tta", action="store_true", help="do not average over mirrored images")
    predicting.add_argument("--ram-gb", type=positive_number, metavar="GB", help="memory that a case may take")
    predicting.add_argument("--resume", action="store_true", help="go on with what an earlier run has predicted")
    predicting.add_argument("--keep", action="store_true", help="keep the models' own predictions, in OUT/.members")
    add_device(parser)
    add_common(parser)
    parser.set_defaults(run=ensemble)
