"""Segment images."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg import paths, settings
from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import CONFIGURATIONS, add_common, add_dataset, add_device, device_of, share


def predict(args: Namespace) -> dict:
    from umamba_seg.datasets.raw import list_images, read_description
    from umamba_seg.plan.plans import read_model_plans

    model = Path(args.m) if args.m else _model(args)
    folds = _trained_folds(model, args.f, args.chk)
    # What is missing or malicious is answered before torch is loaded.
    read_model_plans(model)
    list_images(Path(args.i), read_description(model / "dataset.json")["file_ending"])

    settings.configure_nnunet(settings.cores())  # nnU-Net's predictor takes it for the number of torch's threads
    from umamba_seg.predict.predictor import Predictor

    predictor = Predictor.load(
        model, folds, args.chk, device_of(args.device), mirroring=not args.disable_tta, step_size=args.step_size
    )
    written = predictor.predict_folder(Path(args.i), Path(args.o), save_probabilities=args.save_probabilities)
    logger.info("%d segmentations written to %s", len(written), args.o)
    return {"segmentations": [str(path) for path in written], "failed": {}}


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


def _trained_folds(model: Path, folds: list[str] | None, checkpoint: str) -> list[str]:
    """The folds asked for, or every numbered fold that is trained, or fold all when there is no other."""
    names = (path.parent.name.removeprefix("fold_") for path in model.glob(f"fold_*/{checkpoint}"))
    there = sorted(name for name in names if name.isdigit() or name == "all")
    if not model.is_dir():
        raise UserError(model, "no such folder", "name the folder of a model that `umamba-seg train` wrote")
    if not there:
        raise UserError(model, f"no fold_*/{checkpoint} is there", "train a fold first, or name another with -chk")
    wanted = folds or [fold for fold in there if fold != "all"] or there
    missing = [fold for fold in wanted if fold not in there]
    if missing:
        raise UserError(
            f"-f {' '.join(missing)}", f"no {checkpoint} of this fold in {model}", f"choose among {', '.join(there)}"
        )
    return wanted


def add_predict(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("predict", help="segment a folder of images", allow_abbrev=False)
    parser.add_argument("-i", metavar="FOLDER", required=True, help="images, CASE_0000.ending and so on")
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
        "-step_size", type=share, metavar="SHARE", default=0.5, help="of the window, in patches (default: 0.5)"
    )
    parser.add_argument(
        "--disable_tta", action="store_true", help="do not average over mirrored images (8 times faster)"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="save probabilities too, as nnU-Net does")
    add_device(parser)
    add_common(parser)
    parser.set_defaults(run=predict)
