"""Reading checkpoints without executing anything in them."""

from __future__ import annotations

import pickle
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
    try:
        checkpoint = torch.load(path, map_location=device, weights_only=True)
    except FileNotFoundError:
        raise UserError(path, "no such checkpoint", "train the fold first") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            path, f"cannot be read as a checkpoint of umamba-seg ({reason})", "train the fold again"
        ) from None
    missing = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise UserError(path, f"is no checkpoint of umamba-seg (it lacks {', '.join(missing)})", "train the fold again")
    return checkpoint


def load_weights(network: nn.Module, checkpoint: dict, path: Path) -> None:
    """Put a checkpoint's weights into a network.

    Raises:
        UserError: They do not fit: the plans have changed since the training.
    """
    try:
        network.load_state_dict(checkpoint["network_weights"])
    except RuntimeError as error:
        remedy = "restore the plans.json that the fold was trained with, or train the fold again"
        raise UserError(path, f"does not fit the network of the plans ({str(error).splitlines()[0]})", remedy) from None
