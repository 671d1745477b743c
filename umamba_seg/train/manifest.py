"""run.json of a fold: the options in effect, and every start of its training with what differed from the plan."""

from __future__ import annotations

import platform
import shlex
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch

import umamba_seg
from umamba_seg.files import read_json, write_json
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.step import device_name

_FILE = "run.json"


def record_start(
    fold_folder: Path,
    planned: TrainingOptions,
    options: TrainingOptions,
    *,
    device: torch.device,
    processes: int,
    workers: int,
    begins: str,
    origin: str | None,
    pretrained: dict | None = None,
) -> None:
    """Add a start to the manifest.

    Args:
        fold_folder: Of the fold.
        planned: The plan's options.
        options: Those in effect.
        device: Where the training runs.
        processes: How many share each batch.
        workers: Processes that augment, for each of them.
        begins: From what, for readers.
        origin: Of its data, from :func:`umamba_seg.preprocess.origin_of`.
        pretrained: Report on weights that were taken from another model.
    """
    path = fold_folder / _FILE
    starts = read_json(path)["starts"] if path.is_file() else []
    before, now = planned.model_dump(), options.model_dump()
    start = {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
        "begins": begins,
        "data": origin,
        "overrides": {name: {"planned": before[name], "run": now[name]} for name in now if now[name] != before[name]},
        "device": device_name(device),
        "processes": processes,
        "threads": torch.get_num_threads(),
        "workers": workers,
        "host": platform.node(),
        "versions": {
            "umamba_seg": umamba_seg.__version__,
            "nnunetv2": version("nnunetv2"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
    }
    if pretrained is not None:
        start["pretrained"] = pretrained
    write_json(path, {"training": now, "starts": [*starts, start]})
