"""The command line: what each verb takes. What it does stands in :mod:`umamba_seg.commands`."""

from __future__ import annotations

import argparse
import math

import umamba_seg

_CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres")


def _add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("everywhere")
    group.add_argument("--json", action="store_true", help="print the result as JSON on stdout (messages go to stderr)")
    group.add_argument("--verbose", action="store_true", help="show what nnU-Net prints as well")


def _add_root(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results "
        "(default: the environment variables of these names)",
    )


def _add_dataset(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    parser.add_argument(
        "-d", metavar="DATASET", required=required, help="number or name, e.g. 4 or Dataset004_Hippocampus"
    )
    _add_root(parser)


def _add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-np", type=_positive, metavar="N", help="worker processes (default: what cores and memory allow)"
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-device",
        choices=("cpu", "cuda", "mps"),
        help="where the network runs (default: cuda where there is one, else cpu)",
    )


def _add_groups(parser: argparse.ArgumentParser, default: str = " (default: group_pattern in dataset.json)") -> None:
    parser.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="names the patient in a case's name, by the first group or the whole match, e.g. '^([^_]+)'; "
        f"a patient's cases stay on one side of every split{default}",
    )


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def _not_negative(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def _share(text: str) -> float:
    value = _positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1")
    return value


def _convert(verbs: argparse._SubParsersAction) -> None:
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
    folder.add_argument("--test-images", metavar="FOLDER", help="images without masks, for prediction")
    _add_groups(folder, default="; it is kept in dataset.json")
    for source in (msd, folder):
        _add_root(source)
        _add_common(source)

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
    _add_common(checkpoint)


def _check(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("check", help="say what is wrong with a raw data set", allow_abbrev=False)
    _add_dataset(parser)
    _add_groups(parser)
    _add_processes(parser)
    _add_common(parser)


def _plan_and_preprocess(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "plan_and_preprocess", help="check, measure, plan and preprocess a raw data set", allow_abbrev=False
    )
    _add_dataset(parser)
    parser.add_argument(
        "--network",
        metavar="NAME",
        help="as `umamba-seg networks` lists them, or your own as package.module:NAME (default: umamba_bot)",
    )
    budget = parser.add_mutually_exclusive_group()
    budget.add_argument(
        "--pretrained",
        metavar="MODEL_FOLDER",
        help="plan as for this model, so that training can begin with its weights: network, patch, spacing, training "
        "options stay",
    )
    budget.add_argument(
        "--vram-gb", type=_positive_number, metavar="GB", help="memory of the GPU; the plan stays within"
    )
    budget.add_argument(
        "-gpu_memory_target",
        type=_positive_number,
        metavar="GB",
        help="nnU-Net's target: as much memory as its own U-Net takes where it plans for so many GB (default with a "
        "GPU: 8)",
    )
    budget.add_argument(
        "--budget", choices=("cpu",), help="cpu: about one second per iteration on two cores (default without a GPU)"
    )
    parser.add_argument(
        "--recipe",
        metavar="NAME",
        help="train as a paper does: lightmunet, nnmamba, nnunet, segmamba, umamba, or a TOML file; what it gives, the "
        "epochs included, replaces the budget's (default: the budget's alone)",
    )
    parser.add_argument(
        "--probe",
        action="store_true",
        help="run training steps of each plan here: on a GPU plan smaller or larger where its memory differs from the "
        "estimate, on a CPU only measure time and memory",
    )
    parser.add_argument(
        "-c", choices=_CONFIGURATIONS, nargs="+", help="configurations to preprocess (default: all that are planned)"
    )
    parser.add_argument(
        "-p",
        metavar="PLANS",
        help="name of the plans (default: NETWORK_BUDGET, or NETWORK_BUDGET_RECIPE; with --pretrained "
        "MODELS_PLANS_finetuned)",
    )
    _add_groups(parser)
    parser.add_argument(
        "--val-groups", metavar="GROUP", nargs="+", help="hold out these groups as the one validation fold"
    )
    parser.add_argument("--no-check", action="store_true", help="do not check the data first")
    _add_processes(parser)
    _add_common(parser)


def _plan(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("plan", help="explain a plan", allow_abbrev=False)
    show = parser.add_subparsers(dest="action", required=True, metavar="show").add_parser(
        "show", help="print why each number was chosen, the estimated memory, and what was tried", allow_abbrev=False
    )
    _add_dataset(show)
    show.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")
    _add_common(show)


def _add_fold(parser: argparse.ArgumentParser) -> None:
    _add_dataset(parser)
    parser.add_argument("-c", choices=_CONFIGURATIONS, required=True, help="configuration")
    parser.add_argument("-f", metavar="FOLD", required=True, help="number of the fold, or all")
    parser.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")


def _add_training_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workers",
        type=_not_negative,
        metavar="N",
        help="processes that augment batches; 0 does it between the iterations (default: what cores and memory allow)",
    )
    parser.add_argument(
        "--npz", dest="save_probabilities", action="store_true", help="save the validation's probabilities"
    )
    _add_device(parser)
    _add_processes(parser)
    _add_common(parser)


def _train(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("train", help="train one fold and validate it", allow_abbrev=False)
    _add_fold(parser)
    parser.add_argument("--epochs", type=_positive, metavar="N", help="default: the plans'")
    parser.add_argument("--iterations-per-epoch", type=_positive, metavar="N", help="default: the plans'")
    parser.add_argument(
        "--max-minutes",
        type=_positive_number,
        metavar="M",
        help="wall time of training without the final validation, instead of the plans' epochs; the learning rate "
        "falls with it",
    )
    parser.add_argument(
        "--early-stop",
        type=_positive,
        metavar="N",
        help="end when the smoothed pseudo Dice has not risen for N epochs (default: never)",
    )
    parser.add_argument("--seed", type=_not_negative, metavar="N", help="of weights and batches (default: 0)")
    parser.add_argument(
        "--deterministic",
        action="store_true",
        default=None,
        help="take algorithms that always give the same bits; on a GPU slower, and torch warns of those that it lacks",
    )
    parser.add_argument(
        "--precision",
        choices=("auto", "bfloat16", "float16", "float32"),
        help="of the network (default: auto, bfloat16 on GPUs that have it, float16 on others, float32 on a CPU)",
    )
    parser.add_argument(
        "--checkpoint-minutes",
        type=_positive_number,
        metavar="M",
        help="a checkpoint is saved so often, besides the best and the final one (default: 10)",
    )
    parser.add_argument(
        "--pretrained",
        metavar="MODEL_FOLDER",
        help="begin with the weights of this model (of fold all, else 0, else its only one), or of this checkpoint in "
        "it; the plans must be made with --pretrained too",
    )
    parser.add_argument(
        "--c", dest="resume", action="store_true", help="continue from the last checkpoint, with its options"
    )
    parser.add_argument("--val", dest="only_validation", action="store_true", help="only run the final validation")
    _add_training_processes(parser)


def _extend(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "extend", help="train a finished fold further, with a schedule of its own", allow_abbrev=False
    )
    _add_fold(parser)
    parser.add_argument("--epochs", type=_positive, metavar="N", required=True, help="how many more")
    _add_training_processes(parser)


def _predict(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("predict", help="segment a folder of images", allow_abbrev=False)
    parser.add_argument("-i", metavar="FOLDER", required=True, help="images, CASE_0000.ending and so on")
    parser.add_argument("-o", metavar="FOLDER", required=True, help="where segmentations are written")
    parser.add_argument("-m", metavar="FOLDER", help="a model folder; or name the model by -d and -c")
    _add_dataset(parser, required=False)
    parser.add_argument("-c", choices=_CONFIGURATIONS, help="configuration")
    parser.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")
    parser.add_argument("-f", metavar="FOLD", nargs="+", help="folds to average (default: all that are trained)")
    parser.add_argument(
        "-chk", metavar="NAME", default="checkpoint_final.pth", help="checkpoint (default: %(default)s)"
    )
    parser.add_argument(
        "-step_size", type=_share, metavar="SHARE", default=0.5, help="of the window, in patches (default: 0.5)"
    )
    parser.add_argument(
        "--disable_tta", action="store_true", help="do not average over mirrored images (8 times faster)"
    )
    parser.add_argument("--save_probabilities", action="store_true", help="save probabilities too, as nnU-Net does")
    _add_device(parser)
    _add_common(parser)


def _evaluate(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("evaluate", help="compare segmentations with references", allow_abbrev=False)
    parser.add_argument("gt_folder", help="reference segmentations")
    parser.add_argument("pred_folder", help="predicted segmentations of the same names")
    parser.add_argument("-djfile", metavar="FILE", help="dataset.json (default: the one in pred_folder)")
    parser.add_argument("-o", metavar="FILE", help="summary to write (default: pred_folder/summary.json)")
    parser.add_argument("--chill", action="store_true", help="evaluate what is there when predictions are missing")
    _add_processes(parser)
    _add_common(parser)


def _quickstart(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("quickstart", help="the whole job on a synthetic data set", allow_abbrev=False)
    parser.add_argument("-o", metavar="FOLDER", default="quickstart", help="where it works (default: ./quickstart)")
    parser.add_argument("--config", metavar="FILE", help="settings (default: the packaged quickstart.toml)")
    _add_common(parser)


def _networks(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser("networks", help="list the networks: dimensions, parameters, paper", allow_abbrev=False)
    _add_common(parser)


def _cost(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "cost",
        help="what a network costs to train, beside its twin without the scan and nnU-Net's ResEnc baseline",
        allow_abbrev=False,
    )
    parser.add_argument("network", metavar="NAME", help="as `umamba-seg networks` lists them")
    of_plans = parser.add_argument_group("for a data set that is planned")
    _add_dataset(of_plans, required=False)
    of_plans.add_argument("-c", choices=_CONFIGURATIONS, help="configuration")
    of_plans.add_argument("-p", metavar="PLANS", help="name of the plans (default: the only ones of this data set)")
    of_patch = parser.add_argument_group("or for a patch alone, with the depth that nnU-Net would plan")
    of_patch.add_argument("--patch", type=_positive, nargs="+", metavar="VOXELS", help="extent, e.g. 128 128 128")
    of_patch.add_argument("--channels", type=_positive, metavar="N", help="of the input (default: 1)")
    of_patch.add_argument("--classes", type=_positive, metavar="N", help="background included (default: 2)")
    of_patch.add_argument("--batch", type=_positive, metavar="N", help="samples of a training step (default: 2)")
    of_patch.add_argument("--features", type=_positive, metavar="N", help="channels of the first stage (default: 32)")
    _add_device(parser)
    _add_common(parser)


def _info(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "info", help="versions, devices, and which scan backend runs here and why", allow_abbrev=False
    )
    _add_common(parser)


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``umamba-seg``. Building it loads neither torch nor nnunetv2."""
    parser = argparse.ArgumentParser(
        prog="umamba-seg",
        description="Self-configuring medical image segmentation with Mamba networks.",
        epilog="umamba-seg VERB --help tells more. A first try: umamba-seg quickstart",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"umamba-seg {umamba_seg.__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for add in (
        _convert,
        _check,
        _plan_and_preprocess,
        _plan,
        _train,
        _extend,
        _predict,
        _evaluate,
        _quickstart,
        _networks,
        _cost,
        _info,
    ):
        add(verbs)
    return parser
