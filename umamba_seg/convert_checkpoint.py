"""A checkpoint in an official nnU-Net-style result folder -> a model folder of ours, which ``predict`` reads.

Official folders are those of nnU-Net 2 and of what is built on it (U-Mamba, LightM-UNet), with plans before and after
nnU-Net 2.4. What is wrong with the folder is answered before torch is loaded.
"""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import umamba_seg
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, read_json, write_json
from umamba_seg.networks import NetworkSpec, Topology, build_from, find, load_official
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import PLANS_TABLE, topology_of, topology_table
from umamba_seg.plan.safety import inherited, require_architecture, require_entries
from umamba_seg.train import trained_files

_NETWORK_OF_TRAINER = {
    "nnUNetTrainerUMambaBot": "umamba_bot",
    "nnUNetTrainerUMambaEnc": "umamba_enc",
    "nnUNetTrainerUMambaEncNoAMP": "umamba_enc",
    "nnUNetTrainerLightMUNet": "lightmunet",
}
_STOCK_TRAINER = "nnUNetTrainer"  # trains the network that the plans name
_NETWORK_OF_CLASS = {"PlainConvUNet": "plain_conv_unet", "ResidualEncoderUNet": "residual_encoder_unet"}


def convert_checkpoint(official: Path, model: Path, network: NetworkSpec | None = None) -> dict:
    """Write the model folder, or add a fold to one that was converted from the same plans.

    Args:
        official: ``Trainer__plans__configuration/fold_x/checkpoint_final.pth``, with plans.json and dataset.json two
            folders above.
        model: Where plans.json, dataset.json, dataset_fingerprint.json (where there is one) and
            ``fold_x/checkpoint_final.pth`` are written. Nothing is, unless all of it can be.
        network: What was trained; None for what follows from the trainer's name.

    Returns:
        ``model_folder``, ``network``, ``configuration``, ``fold`` and ``checkpoint``.

    Raises:
        UserError: A file is missing, damaged or not nnU-Net's; the checkpoint asks for more than tensors, plain values
            and numpy's numbers; its trainer is unknown; its weights do not fit the plans; or ``model`` holds this fold
            or another model.
    """
    folder = _result_folder(official)
    plans, dataset_json = read_json(folder / "plans.json"), read_json(folder / "dataset.json")
    require_entries(plans, folder / "plans.json")
    channels, classes = _channels_and_classes(dataset_json, folder / "dataset.json")

    checkpoint = _read_checkpoint(official)
    arguments = checkpoint.get("init_args", {})
    fold = _fold(arguments.get("fold", official.parent.name.removeprefix("fold_")), official)
    target = model / f"fold_{fold}" / "checkpoint_final.pth"
    if there := trained_files(target.parent):
        raise UserError(there[0], "is there already", "name another model folder, or move this fold away")

    name = arguments.get("configuration", folder.name.rpartition("__")[2])
    where = f"{folder / 'plans.json'}, configuration {name}"
    configuration = _resolved(plans["configurations"], name, where)
    spec = network or find(_network_name(checkpoint.get("trainer_name"), configuration, official))
    configuration |= _described(configuration, spec, where)
    ours = {
        "network_weights": _our_weights(checkpoint, configuration["architecture"], channels, classes, official),
        "init_args": {"configuration": name, "fold": fold},
        "trainer_name": _STOCK_TRAINER,
        "inference_allowed_mirroring_axes": checkpoint.get("inference_allowed_mirroring_axes"),
    }
    files = {"plans.json": _our_plans(plans, name, configuration, spec), "dataset.json": dataset_json}
    if (folder / "dataset_fingerprint.json").is_file():
        files["dataset_fingerprint.json"] = read_json(folder / "dataset_fingerprint.json")
    _write(model, files, target, ours)
    return {
        "model_folder": str(model),
        "network": spec.name,
        "configuration": name,
        "fold": fold,
        "checkpoint": str(target),
    }


# ------------------------------------------------------------------------------------------------- the official folder


def _result_folder(official: Path) -> Path:
    if not official.is_file():
        raise UserError(official, "no such file", "name the checkpoint of an official result folder")
    folder = official.absolute().parent.parent
    for name in ("plans.json", "dataset.json"):
        if not (folder / name).is_file():
            remedy = f"leave the checkpoint in its result folder, FOLDER/fold_0/{official.name} with FOLDER/{name}"
            raise UserError(folder / name, "no such file", remedy)
    return folder


def _channels_and_classes(dataset_json: dict, path: Path) -> tuple[int, int]:
    channels = dataset_json.get("channel_names")
    if not isinstance(channels, dict) or not channels:
        remedy = 'name the input channels, for example "channel_names": {"0": "CT"}'
        raise UserError(path, 'has no "channel_names"', remedy)
    return len(channels), Labels.from_json(dataset_json, path).num_classes


def _read_checkpoint(path: Path) -> dict:
    from umamba_seg.train.checkpoints import unpickle

    remedy = (
        "if you trust it, load it with torch.load(..., weights_only=False) and save what it holds under "
        "network_weights, init_args, trainer_name and inference_allowed_mirroring_axes alone"
    )
    checkpoint = unpickle(path, remedy=remedy)
    tables = ("network_weights", "init_args")
    if not isinstance(checkpoint, dict) or not all(isinstance(checkpoint.get(key, {}), dict) for key in tables):
        raise UserError(path, "is no checkpoint of nnU-Net", "name the checkpoint of an official result folder")
    if not checkpoint.get("network_weights"):
        raise UserError(path, "holds no network_weights", "name the checkpoint of an official result folder")
    return checkpoint


def _fold(fold: Any, path: Path) -> int | str:
    """It becomes part of a path, so that nothing but nnU-Net's own names of folds is let through."""
    if fold != "all" and not str(fold).isdecimal():
        raise UserError(path, f"its fold is {fold!r}", "put it into a folder named fold_0, fold_1, ... or fold_all")
    return fold if fold == "all" else int(fold)


def _resolved(configurations: dict[str, dict], name: Any, where: str) -> dict:
    """A configuration with what it inherits, and without the names of others."""
    if not isinstance(name, str) or name not in configurations:
        what = f"there is no {name!r} among {', '.join(configurations)}"
        raise UserError(where, what, "use the plans.json that the checkpoint was trained with")
    resolved = inherited(configurations, name, where)
    if resolved.get("previous_stage"):
        what = f"is the second stage of a cascade, which sees the predictions of {resolved['previous_stage']}"
        raise UserError(where, what, "convert a model that sees images alone")
    return {key: value for key, value in resolved.items() if key not in ("inherits_from", "next_stage")}


# --------------------------------------------------------------------------------------------------------- the network


def _network_name(trainer: Any, configuration: dict, path: Path) -> str:
    if trainer == _STOCK_TRAINER:
        architecture = configuration.get("architecture", {})
        class_name = architecture.get("network_class_name", configuration.get("UNet_class_name", "")).split(".")[-1]
        if class_name in _NETWORK_OF_CLASS:
            return _NETWORK_OF_CLASS[class_name]
        what, known = f"its plans name the network {class_name!r}", _NETWORK_OF_CLASS
    else:
        if trainer in list(_NETWORK_OF_TRAINER):
            return _NETWORK_OF_TRAINER[trainer]
        what, known = f"was written by the trainer {trainer!r}", (*_NETWORK_OF_TRAINER, _STOCK_TRAINER)
    raise UserError(path, f"{what}; known are {', '.join(known)}", "say with --network what was trained")


def _topology(configuration: dict, spec: NetworkSpec, where: str) -> Topology:
    """For the plans' patch, their stages, which nnU-Net 2.4 began to write otherwise, or those of a fixed depth."""
    try:
        patch_size = configuration["patch_size"]
        if spec.levels is not None:
            levels = spec.levels.topology(patch_size)
            strides, kernel_sizes, features = levels.strides, levels.kernel_sizes, levels.features
        elif "architecture" in configuration:
            arguments = configuration["architecture"]["arch_kwargs"]
            strides, kernel_sizes = arguments["strides"], arguments["kernel_sizes"]
            features = arguments["features_per_stage"]
        else:
            strides, kernel_sizes = configuration["pool_op_kernel_sizes"], configuration["conv_kernel_sizes"]
            first, most = configuration["UNet_base_num_features"], configuration["unet_max_num_features"]
            features = [min(first * 2**stage, most) for stage in range(len(strides))]
    except KeyError as error:
        raise UserError(where, f"has no {error}", "use the plans.json that the checkpoint was trained with") from None
    stages = {"strides": strides, "kernel_sizes": kernel_sizes, "features": features}
    return topology_of({"patch_size": patch_size, "topology": stages})


def _described(configuration: dict, spec: NetworkSpec, where: str) -> dict:
    """What our plans say of the network. Where the official ones describe the very class, their description stays."""
    from umamba_seg.plan.architecture import output_strides

    topology, architecture = _topology(configuration, spec, where), configuration.get("architecture", {})
    if architecture.get("network_class_name") != spec.network:
        architecture = spec.architecture(spec.published(topology))
    require_architecture(architecture, where)
    return {
        "topology": topology_table(topology),
        "architecture": architecture,
        "output_strides": output_strides(architecture, topology.patch_size),
    }


def _our_weights(checkpoint: dict, architecture: dict, channels: int, classes: int, path: Path) -> dict:
    """The weights under our names, in float32."""
    network = build_from(architecture, input_channels=channels, num_classes=classes, deep_supervision=False)
    try:
        load_official(network, checkpoint["network_weights"])
    except UserError as error:
        what = f"does not fit {architecture['network_class_name']} as the plans describe it: {error.what}"
        raise UserError(path, what, "say with --network what was trained, and leave its plans.json as it was") from None
    return network.state_dict()


# ---------------------------------------------------------------------------------------------------- the model folder


def _our_plans(plans: dict, name: str, configuration: dict, spec: NetworkSpec) -> dict:
    table = {
        "network": spec.name,
        "budget": "official",
        "training": TrainingOptions().model_dump(),
        "versions": {"umamba_seg": umamba_seg.__version__, "nnunetv2": version("nnunetv2")},
    }
    return plans | {"configurations": {name: configuration}, PLANS_TABLE: table}


def _write(model: Path, files: dict[str, dict], target: Path, checkpoint: dict) -> None:
    """The checkpoint last: without it there is no fold yet, and the conversion can be run again."""
    from umamba_seg.train.checkpoints import save_pth

    there = [name for name in files if (model / name).is_file()]
    for name in there:
        if _comparable(read_json(model / name)) != _comparable(files[name]):
            raise UserError(model / name, "belongs to another model", "name another model folder")
    make_folder(target.parent)
    for name in files.keys() - there:
        write_json(model / name, files[name])
    save_pth(target, checkpoint)


def _comparable(content: dict) -> str:
    """As text, in which NaN equals itself; folds may have been converted by different versions."""
    table = {key: value for key, value in content.get(PLANS_TABLE, {}).items() if key != "versions"}
    return json.dumps(content | {PLANS_TABLE: table}, sort_keys=True)
