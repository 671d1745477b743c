"""Reading checkpoints without executing anything in them."""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from umamba_seg.errors import UserError

_NEEDED = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """A checkpoint of ours: tensors and plain values.

    Raises:
        UserError: Missing, damaged, not a checkpoint, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(path, "no such checkpoint", "train the fold first")
    checkpoint = unpickle(path, device, remedy="use a checkpoint that umamba-seg wrote")
    missing = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        what = f"is no checkpoint of umamba-seg: it lacks {', '.join(missing)}"
        raise UserError(path, what, "use one that umamba-seg wrote, or train the fold again")
    return checkpoint


def unpickle(
    path: Path,
    device: torch.device | str = "cpu",
    *,
    allowed: Sequence[Callable | tuple[Callable, str]] = (),
    remedy: str,
) -> Any:
    """What a file of ``torch.save`` holds, with nothing executed but torch's own functions and those allowed.

    Args:
        path: The file; it must exist.
        device: Where its tensors go.
        allowed: Functions and classes that the file may name besides, as ``torch.serialization.safe_globals`` takes
            them: alone, or with the name under which pickles know them.
        remedy: What to do about a file that asks for more.

    Raises:
        UserError: Damaged, not such a file, or one that asks for more.
    """
    if not zipfile.is_zipfile(path):  # what torch writes; its reader answers a damaged one with errors of many kinds
        what = "is empty" if path.stat().st_size == 0 else "is damaged, or no checkpoint at all"
        raise UserError(path, what, "copy it again, or train the fold again")
    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # torch names what the file asks for in its message only
        named = f" ({wanted[1]})" if wanted else ""
        what = f"holds more than tensors and plain values{named}, and loading that could execute anything"
        raise UserError(path, what, remedy) from None
    except RuntimeError as error:
        raise UserError(path, f"is damaged ({_first_line(error)})", "copy it again, or train the fold again") from None


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint, under another name first, so that ``path`` is never half written."""
    part = path.with_suffix(".part")
    torch.save(checkpoint, part)
    part.replace(path)


def load_weights(network: nn.Module, checkpoint: dict, path: Path) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        UserError: They do not fit: the plans have changed since the training.
    """
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        found = "; ".join(line.strip() for line in str(error).splitlines()[1:4])
        remedy = "restore the plans.json that the fold was trained with, or train the fold again"
        raise UserError(path, f"does not fit the network of the plans ({found})", remedy) from None


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
