"""Arguments that several verbs take, and what stands for them."""

from __future__ import annotations

import argparse
import math
from pathlib import Path
from typing import TYPE_CHECKING

from umamba_seg.errors import UserError
from umamba_seg.files import read_json
from umamba_seg.log import logger

if TYPE_CHECKING:
    import torch

CONFIGURATIONS = ("2d", "3d_fullres", "3d_lowres", "3d_cascade_fullres")


def add_common(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("everywhere")
    group.add_argument("--json", action="store_true", help="print the result as JSON on stdout (messages go to stderr)")
    group.add_argument("--verbose", action="store_true", help="show what nnU-Net prints as well")


def add_root(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--root",
        metavar="DIR",
        help="folder that holds nnUNet_raw, nnUNet_preprocessed and nnUNet_results "
        "(default: the environment variables of these names)",
    )


def add_dataset(parser: argparse._ActionsContainer, *, required: bool = True) -> None:
    parser.add_argument(
        "-d", metavar="DATASET", required=required, help="number or name, e.g. 4 or Dataset004_Hippocampus"
    )
    add_root(parser)


def add_processes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-np", type=positive, metavar="N", help="worker processes (default: what cores and memory allow)"
    )


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-device",
        choices=("cpu", "cuda", "mps"),
        help="where the network runs (default: cuda where there is one, else cpu)",
    )


def add_groups(parser: argparse.ArgumentParser, default: str = " (default: group_pattern in dataset.json)") -> None:
    parser.add_argument(
        "--group-pattern",
        metavar="REGEX",
        help="names the patient in a case's name, by the first group or the whole match, e.g. '^([^_]+)'; "
        f"a patient's cases stay on one side of every split{default}",
    )


def positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)


def not_negative(text: str) -> int:
    if not text.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive_number(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return value


def share(text: str) -> float:
    value = positive_number(text)
    if value > 1:
        raise argparse.ArgumentTypeError(f"{text!r} is more than 1")
    return value


def device_of(name: str | None) -> torch.device:
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if name is None:
        name = "cuda" if available["cuda"] else "cpu"
        logger.info("device: %s", name)
    if not available[name]:
        there = ", ".join(device for device, found in available.items() if found)
        raise UserError(f"-device {name}", "not available to this torch on this machine", f"choose one of {there}")
    return torch.device(name)


def description_of(path: Path) -> dict:
    """A dataset.json, which at least names the ending of its images."""
    from umamba_seg.datasets.raw import require_file_ending

    content = read_json(path)
    require_file_ending(content, path)
    return content
