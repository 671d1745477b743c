"""Raw data sets and checkpoints from elsewhere."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path

from umamba_seg import paths
from umamba_seg.datasets.releases import RELEASES
from umamba_seg.datasets.releases.release import Release
from umamba_seg.datasets.releases.release import convert as convert_release
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import add_common, add_groups, add_root


def convert(args: Namespace) -> dict:
    if args.source == "checkpoint":
        return _convert_checkpoint(args)
    raw = paths.resolve(args.root).raw
    if args.source == "msd":
        from umamba_seg.datasets import msd

        folder = msd.convert(Path(args.i), raw, args.d, args.name)
    elif args.source in RELEASES:
        folder = _convert_release(args, RELEASES[args.source], raw)
    else:
        from umamba_seg.datasets import folder as pictures

        tests = args.test_images and Path(args.test_images)
        folder = pictures.convert(
            Path(args.i),
            Path(args.l),
            raw,
            args.d,
            args.name,
            test_images=tests,
            group_pattern=args.group_pattern,
            instances=args.instances,
        )
    logger.info("written: %s", folder)
    return {"dataset": folder.name, "folder": str(folder)}


def _convert_release(args: Namespace, release: Release, raw: Path) -> Path:
    options = {option.name: getattr(args, option.name) for option in release.options}
    return convert_release(release, Path(args.i), raw, args.d, args.name, options)


def _convert_checkpoint(args: Namespace) -> dict:
    from umamba_seg.convert_checkpoint import convert_checkpoint
    from umamba_seg.networks import find

    network = None if args.network is None else find(args.network)
    result = convert_checkpoint(Path(args.official), Path(args.model), network)
    logger.info("%s, %s: written: %s", result["network"], result["configuration"], result["checkpoint"])
    return result


def add_convert(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "convert", help="turn a data set into nnU-Net's raw form, or an official checkpoint into a model"
    )
    sources = parser.add_subparsers(dest="source", required=True, metavar="SOURCE")

    msd = sources.add_parser("msd", help="a folder of the Medical Segmentation Decathlon", allow_abbrev=False)
    msd.add_argument("-i", metavar="FOLDER", required=True, help="e.g. Task04_Hippocampus")
    msd.add_argument("-d", metavar="ID", type=int, help="data set number (default: the task's)")
    msd.add_argument("--name", help="data set name (default: the task's)")

    folder = sources.add_parser("folder", help="2-D images and masks: PNG, TIFF, BMP, JPEG", allow_abbrev=False)
    folder.add_argument("-i", metavar="IMAGES", required=True, help="folder of images")
    folder.add_argument("-l", metavar="LABELS", required=True, help="folder of masks with the images' names")
    folder.add_argument("-d", metavar="ID", type=int, required=True, help="data set number")
    folder.add_argument("--name", required=True, help="data set name")
    folder.add_argument(
        "--instances",
        action="store_true",
        help="the masks number cells, which become interior and boundary; `umamba-seg instances` turns them back",
    )
    folder.add_argument("--test-images", metavar="FOLDER", help="images without masks, for prediction")
    add_groups(folder, default="; it is kept in dataset.json")
    for source in (msd, folder, *(_add_release(sources, release) for release in RELEASES.values())):
        add_root(source)
        add_common(source)

    checkpoint = sources.add_parser(
        "checkpoint", help="a checkpoint of nnU-Net, U-Mamba or LightM-UNet, for prediction", allow_abbrev=False
    )
    checkpoint.add_argument(
        "official",
        metavar="OFFICIAL.pth",
        help="in its result folder, e.g. nnUNetTrainerUMambaBot__nnUNetPlans__2d/fold_0/checkpoint_final.pth",
    )
    checkpoint.add_argument("model", metavar="MODEL_FOLDER", help="where the model is written; folds add up in it")
    checkpoint.add_argument(
        "--network", metavar="NAME", help="the network that was trained (default: what the trainer's name says)"
    )
    add_common(checkpoint)
    parser.set_defaults(run=convert)


def _add_release(sources: argparse._SubParsersAction, release: Release) -> argparse.ArgumentParser:
    parser = sources.add_parser(
        release.name,
        help=release.title,
        description=f"{release.title} -> nnU-Net's raw form.",
        epilog=f"Where the layout of its files is described: {release.layout}."
        + ("" if release.verified else " It was not compared with a copy of the release."),
        allow_abbrev=False,
    )
    parser.add_argument("-i", metavar="FOLDER", required=True, help=release.folder)
    default = f"default: {release.dataset_id}" + (", or what the options make it" if release.options else "")
    parser.add_argument("-d", metavar="ID", type=int, help=f"data set number ({default})")
    parser.add_argument("--name", help=f"data set name (default: {release.dataset_name})")
    for option in release.options:
        parser.add_argument(
            f"--{option.name}",
            choices=option.choices,
            default=option.choices[0],
            help=f"{option.help} (default: {option.choices[0]})",
        )
    return parser
