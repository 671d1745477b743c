"""Reading checkpoints without executing anything in them."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

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
    if not zipfile.is_zipfile(path):  # what torch writes; its reader answers a damaged one with errors of many kinds
        what = "is empty" if path.stat().st_size == 0 else "is damaged, or no checkpoint at all"
        raise UserError(path, what, "copy it again, or train the fold again")
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError:
        what = "holds more than tensors and plain values, and loading that could execute anything"
        raise UserError(path, what, "use a checkpoint that umamba-seg wrote") from None
    except RuntimeError as error:
        raise UserError(path, f"is damaged ({_first_line(error)})", "copy it again, or train the fold again") from None
    missing = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        what = f"is no checkpoint of umamba-seg: it lacks {', '.join(missing)}"
        raise UserError(path, what, "use one that umamba-seg wrote, or train the fold again")
    return checkpoint


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
