"""Reading plans.json, the only contract between planning, preprocessing, training and prediction."""

from __future__ import annotations

import re
from pathlib import Path

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import parse_json, read_json
from umamba_seg.networks import Topology
from umamba_seg.plan.safety import require_safe
from umamba_seg.text import times

PLANS_TABLE = "umamba_seg"  # our table in the plans; nnU-Net carries unknown tables through untouched


_TAKEN = ("dataset", "dataset_fingerprint", "splits_final")  # what nnU-Net calls other files beside the plans


def require_plans_name(name: str) -> None:
    """Refuse a name that cannot be a file's or that nnU-Net splits result folders by.

    Raises:
        UserError: It is taken, or holds anything but letters, digits, ``-``, ``.`` and single ``_``.
    """
    if name in _TAKEN or "__" in name or not re.fullmatch(r"\w[\w.-]*", name):
        raise UserError(f"-p {name}", "cannot be the name of plans", "use letters, digits and single underscores")


def read_plans(preprocessed: Path, plans_name: str | None) -> dict:
    """The plans of a data set: those named, or the only ones of ours that are there.

    Args:
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name``.
        plans_name: ``-p``, or None.

    Raises:
        UserError: None, several, not of ours, or such as :func:`require_safe` refuses.
    """
    planning = "run `umamba-seg plan_and_preprocess` first"
    if plans_name is not None:
        path = preprocessed / f"{plans_name}.json"
        if not path.is_file():
            raise UserError(path, "no such plans", planning)
        plans = read_json(path)
        if PLANS_TABLE not in plans:
            raise UserError(path, "these plans were not made by umamba-seg", planning)
        require_safe(plans, path)
        return plans
    found = {path.stem: parse_json(path) for path in sorted(preprocessed.glob("*.json")) if path.stem not in _TAKEN}
    ours = {name: plans for name, plans in found.items() if isinstance(plans, dict) and PLANS_TABLE in plans}
    if not ours:
        raise UserError(preprocessed, "holds no plans of umamba-seg", planning)
    if len(ours) > 1:
        raise UserError(preprocessed, f"holds several plans: {', '.join(ours)}", "choose one with -p")
    [(name, plans)] = ours.items()
    require_safe(plans, preprocessed / f"{name}.json")
    return plans


def read_model_plans(model: Path) -> dict:
    """The plans in a model folder.

    Raises:
        UserError: They are missing, not of ours, or such as :func:`require_safe` refuses.
    """
    path = model / "plans.json"
    plans = read_json(path)
    if PLANS_TABLE not in plans:
        raise UserError(path, "these plans were not made by umamba-seg", "convert the model, or train one")
    require_safe(plans, path)
    return plans


def require_configuration(plans: dict, configuration: str) -> None:
    """Refuse a configuration that the plans do not hold.

    Raises:
        UserError: Names those that they hold.
    """
    there = [name for name, content in plans["configurations"].items() if "inherits_from" not in content]
    if configuration not in there:
        raise UserError(
            f"-c {configuration}",
            f"not a configuration of the plans {plans['plans_name']}",
            f"choose one of {', '.join(there)}",
        )


def input_channels(configuration: dict, dataset_json: dict) -> int:
    """Channels that the network of a configuration sees.

    Those of the images; in the second stage of a cascade also one for each foreground label of the first one's result.
    """
    images = len(dataset_json["channel_names"])
    if configuration.get("previous_stage") is None:
        return images
    labels = Labels.from_json(dataset_json, Path("dataset.json"))
    return images + len(set(labels.values) - {0, labels.ignore})


def topology_table(topology: Topology) -> dict:
    """What a configuration holds of a topology beside its patch size; see :func:`topology_of`."""
    return {
        "strides": [list(steps) for steps in topology.strides],
        "kernel_sizes": [list(size) for size in topology.kernel_sizes],
        "features": list(topology.features),
    }


def topology_of(configuration: dict) -> Topology:
    """The topology that a configuration was planned with."""
    table = configuration["topology"]

    def rows(key: str) -> tuple[tuple[int, ...], ...]:
        return tuple(tuple(int(value) for value in row) for row in table[key])

    return Topology(
        patch_size=tuple(int(extent) for extent in configuration["patch_size"]),
        strides=rows("strides"),
        kernel_sizes=rows("kernel_sizes"),
        features=tuple(int(width) for width in table["features"]),
    )


def require_planning(plans: dict) -> None:
    """Refuse plans that do not say how they came about.

    Raises:
        UserError: They were written by another version, or taken from an official checkpoint.
    """
    if not any("planning" in configuration for configuration in plans["configurations"].values()):
        raise UserError(
            f"plans {plans['plans_name']}", "do not say how they came about", "plan again with this version"
        )


def require_network(configuration: dict, where: str) -> None:
    """Refuse a configuration whose network does not fit it.

    Args:
        configuration: Of the plans.
        where: What to call it in the message.

    Raises:
        UserError: It was written by another version, or the patch size is not the one that the network is tied to.
    """
    if "output_strides" not in configuration:
        raise UserError(where, "was not planned by this version of umamba-seg", "plan and train again")
    tied = configuration["architecture"]["arch_kwargs"].get("patch_size")
    if tied is not None and list(tied) != list(configuration["patch_size"]):
        raise UserError(
            where,
            f"patch_size is {times(configuration['patch_size'])}, but the network can be built for {times(tied)} only: "
            "channels are tokens of its Mamba layers",
            "restore the patch size, or plan again",
        )
