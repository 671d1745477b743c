"""Checkpoints: tensors as safetensors, everything else as JSON, in one file that nothing is executed from.

A training writes ``checkpoint_{latest,best,final}.safetensors``; see :func:`write_checkpoint`. Beside the best and the
final one lies the same network as nnU-Net keeps it, ``checkpoint_*.pth``, so that its own commands can predict with it.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import re
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from umamba_seg.errors import UserError
from umamba_seg.files import move_into_place
from umamba_seg.text import gib

FORMAT = "umamba_seg.checkpoint.1"
_NETWORK = "network."  # prefix of its tensors
_NEEDED = ("network_weights", "init_args", "trainer_name", "inference_allowed_mirroring_axes")
_SPARE_BYTES = 2**20  # for the header and the file system
_REMEDY_SPACE = "free some space on this disk; the checkpoint that was there is kept, continue with --c"
_REMEDY_DAMAGED = "copy it again, or train the fold again"

# nnU-Net logs numpy's numbers. The function that makes them has moved, and pickles name it after where it was.
_SCALAR: Any = np.float64(0).__reduce__()[0]
_NUMPY_NUMBERS: tuple[Any, ...] = (
    (_SCALAR, "numpy.core.multiarray.scalar"),
    (_SCALAR, "numpy._core.multiarray.scalar"),
    (np.dtype, "numpy.dtype"),
    *(type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8", "?")),
)


# --------------------------------------------------------------------------------------------------------------- ours


def write_checkpoint(path: Path, tensors: dict[str, Tensor], state: dict, *, previous: Path | None = None) -> None:
    """Write a checkpoint so that at every moment a whole one is on the disk.

    It is written under another name, flushed to the disk and only then renamed.

    Args:
        path: Where, ending in ``.safetensors``.
        tensors: By name, on any device.
        state: Plain JSON values; floats keep all their digits.
        previous: Under which name the checkpoint is kept that was at ``path``; without it, it is replaced.

    Raises:
        UserError: The disk is full or refuses. What was at ``path`` is still there, or at ``previous``.
    """
    tensors = _storable(tensors)
    text = json.dumps(state)
    metadata = {"format": FORMAT, "state": text, "crc32": _checksum(text, tensors)}
    with _writing(path, sum(tensor.nbytes for tensor in tensors.values())) as part:
        save_file(tensors, part, metadata)
        part.chmod(0o666 & ~_umask())  # safetensors keeps its files to their owner; others may want to predict
        if previous is not None and path.exists():
            path.replace(previous)


def read_checkpoint(path: Path) -> tuple[dict[str, Tensor], dict]:
    """Tensors, on the CPU, and state of a checkpoint of ours.

    Raises:
        UserError: Missing, damaged, or not a checkpoint.
    """
    if not path.is_file():
        raise UserError(path, "no such checkpoint", "train the fold first")
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (it is no dict)
    except (safetensors.SafetensorError, OSError) as error:
        raise UserError(path, f"is damaged ({_first_line(error)})", _REMEDY_DAMAGED) from None
    if metadata.get("format") != FORMAT or not {"state", "crc32"} <= metadata.keys():
        raise UserError(path, "is no checkpoint of this version of umamba-seg", "use one that it wrote")
    if metadata["crc32"] != _checksum(metadata["state"], tensors):
        raise UserError(path, "is damaged (its content does not have the checksum that it had)", _REMEDY_DAMAGED)
    try:
        return tensors, json.loads(metadata["state"])
    except (ValueError, RecursionError):
        raise UserError(path, "is damaged (its state is not JSON)", _REMEDY_DAMAGED) from None


def _storable(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """On the CPU, contiguous, and none a part of another: what safetensors takes."""
    stored, taken = {}, set()
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        storage = tensor.untyped_storage()
        if storage.nbytes() != tensor.nbytes or storage.data_ptr() in taken:
            tensor = tensor.clone()
        taken.add(tensor.untyped_storage().data_ptr())
        stored[name] = tensor
    return stored


def _checksum(text: str, tensors: dict[str, Tensor]) -> str:
    value = zlib.crc32(text.encode())
    for name in sorted(tensors):
        value = zlib.crc32(name.encode(), value)
        value = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, value)
    return f"{value:08x}"


def _umask() -> int:
    umask = os.umask(0)
    os.umask(umask)
    return umask


@contextlib.contextmanager
def _writing(path: Path, size: int) -> Iterator[Path]:
    """A name to write to, which becomes ``path`` at the end. A full disk is found before anything is written."""
    free = shutil.disk_usage(path.parent).free
    if free < size + _SPARE_BYTES:
        raise UserError(path, f"cannot be written: it takes {gib(size)}, and {gib(free)} are free", _REMEDY_SPACE)
    part = path.with_name(f".{path.name}.part")
    try:
        yield part
        move_into_place(part, path)
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        part.unlink(missing_ok=True)
        free = shutil.disk_usage(path.parent).free
        raise UserError(
            path, f"cannot be written ({_first_line(error)}); {gib(free)} are free", _REMEDY_SPACE
        ) from error


def network_tensors(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """A network's ``state_dict`` under the names that it has in a checkpoint."""
    return {f"{_NETWORK}{name}": tensor for name, tensor in weights.items()}


def weights_of(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The reverse of :func:`network_tensors`."""
    return {name.removeprefix(_NETWORK): value for name, value in tensors.items() if name.startswith(_NETWORK)}


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], list[dict]]:
    """What an optimizer remembers of each weight (momentum, step), and its options per group."""
    content = optimizer.state_dict()
    tensors = {
        f"optimizer.{index}.{name}": value
        for index, memory in content["state"].items()
        for name, value in memory.items()
        if value is not None
    }
    return tensors, content["param_groups"]


def load_optimizer(
    optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict], path: Path
) -> None:
    """The reverse of :func:`optimizer_tensors`. What is as large as its weight gets the weight's memory layout.

    Raises:
        UserError: What is in ``path`` is of another optimizer or network.
    """
    try:
        _load_optimizer(optimizer, tensors, groups)
    except (LookupError, ValueError) as error:
        what = f"its optimizer does not fit that of the plans ({_first_line(error)})"
        raise UserError(path, what, "restore the plans.json that the fold was trained with") from None


def _load_optimizer(optimizer: torch.optim.Optimizer, tensors: dict[str, Tensor], groups: list[dict]) -> None:
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    memory: dict[int, dict[str, Tensor]] = {}
    for name, value in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            weight = weights[int(index)]
            like = value.shape == weight.shape
            memory.setdefault(int(index), {})[key] = torch.empty_like(weight).copy_(value) if like else value
    optimizer.load_state_dict({"state": memory, "param_groups": groups})


# ------------------------------------------------------------------------------------------------- for prediction, .pth


def load_checkpoint(path: Path, device: torch.device | str = "cpu") -> dict:
    """What prediction needs of a checkpoint, ours or one in nnU-Net's form.

    Returns:
        ``network_weights``, ``init_args`` with the ``configuration``, ``trainer_name`` and
        ``inference_allowed_mirroring_axes``, as nnU-Net calls them.

    Raises:
        UserError: Missing, damaged, not a checkpoint, or one that holds more than tensors and plain values.
    """
    if not path.is_file():
        raise UserError(path, "no such checkpoint", "train the fold first")
    if path.suffix == ".safetensors":
        tensors, state = read_checkpoint(path)
        weights = {name: value.to(device) for name, value in weights_of(tensors).items()}
        checkpoint = {"network_weights": weights} | state.get("prediction", {})
    else:
        checkpoint = unpickle(path, device, remedy="use a checkpoint that umamba-seg wrote")
    missing = [key for key in _NEEDED if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        what = f"is no checkpoint of umamba-seg: it lacks {', '.join(missing)}"
        raise UserError(path, what, "use one that umamba-seg wrote, or train the fold again")
    if not _is_for_prediction(checkpoint):
        what = "is no checkpoint of umamba-seg: its weights, configuration or mirrored axes are something else"
        raise UserError(path, what, "use one that umamba-seg wrote, or train the fold again")
    return checkpoint


def _is_for_prediction(checkpoint: dict) -> bool:
    """Whether the values are of the kinds that prediction takes them for."""
    weights, arguments, _, axes = (checkpoint[key] for key in _NEEDED)
    return (
        isinstance(weights, dict)
        and all(isinstance(name, str) for name in weights)
        and isinstance(arguments, dict)
        and isinstance(arguments.get("configuration"), str)
        and (
            axes is None
            or (isinstance(axes, list | tuple) and all(type(axis) is int and 0 <= axis < 3 for axis in axes))
        )
    )


def unpickle(path: Path, device: torch.device | str = "cpu", *, remedy: str) -> Any:
    """What a file of ``torch.save`` holds: tensors, plain values and numpy's numbers. Nothing else is executed.

    Args:
        path: The file; it must exist.
        device: Where its tensors go.
        remedy: What to do about a file that asks for more.

    Raises:
        UserError: Damaged, not such a file, or one that asks for more.
    """
    if not zipfile.is_zipfile(path):  # what torch writes; its reader answers a damaged one with errors of many kinds
        what = "is empty" if path.stat().st_size == 0 else "is damaged, or no checkpoint at all"
        raise UserError(path, what, _REMEDY_DAMAGED)
    try:
        with torch.serialization.safe_globals(list(_NUMPY_NUMBERS)):
            return torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        wanted = re.search(r"GLOBAL (\S+)", str(error))  # torch names what the file asks for in its message only
        named = f" ({wanted[1]})" if wanted else ""
        what = f"holds more than tensors and plain values{named}, and loading that could execute anything"
        raise UserError(path, what, remedy) from None
    except RuntimeError as error:
        raise UserError(path, f"is damaged ({_first_line(error)})", _REMEDY_DAMAGED) from None


def save_pth(path: Path, checkpoint: dict) -> None:
    """Write a checkpoint in nnU-Net's form, so that ``path`` is never half written.

    Raises:
        UserError: The disk is full or refuses. What was at ``path`` is still there.
    """
    size = sum(weight.nbytes for weight in checkpoint["network_weights"].values())
    with _writing(path, size) as part, part.open("wb") as file:
        torch.save(checkpoint, file)


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
    return (str(error).splitlines() or [type(error).__name__])[0]
