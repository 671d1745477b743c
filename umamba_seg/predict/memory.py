"""How much memory a case needs, and whether it is there: said before the machine swaps or a process is killed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from math import prod
from typing import TYPE_CHECKING

import psutil
import torch

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.predict.window import Tiling
from umamba_seg.text import times

if TYPE_CHECKING:
    from umamba_seg.predict.cases import PreparedCase

_GB = 10**9
_BLOCK = 64 * 2**20  # bytes of resampled logits that are worked on at a time, about
_FLOAT, _HALF = 4, 2
_COPIES = 4  # of a block: planes that are blended, interpolated, compared
_SHARE_OF_GPU = 0.5  # of what is free there; the network needs the rest


class Memory:
    """What the process may take.

    Args:
        ram_gb: In GB (10^9 bytes), or None for what is free.
        device: Where the networks run.
        network: Bytes of a forward pass on a CPU.
    """

    def __init__(self, ram_gb: float | None, device: torch.device, network: Callable[[], int]):
        self._limit, self._device = ram_gb, device
        self._network = functools.cache(network)

    def planes_at_once(self, plane: int, kept: int) -> int:
        """Planes of the image that are worked on together; the labels do not depend on it.

        Args:
            plane: Voxels of one.
            kept: Classes, times members, whose logits are there at once.
        """
        return max(1, _BLOCK // (_FLOAT * plane * kept))

    def place(
        self,
        case: PreparedCase,
        tiling: Tiling,
        members: int,
        classes: int,
        *,
        probabilities: bool,
        uncertainty: bool,
    ) -> torch.device:
        """Where the buffer of logits lies: with the network if there is room.

        Args:
            case: To be segmented.
            tiling: Of it.
            members: 1, or the folds that are kept apart.
            classes: Channels of the logits.
            probabilities: Whether they are kept in memory.
            uncertainty: Whether its maps are.

        Raises:
            UserError: The case needs more memory than there is.
        """
        window = _FLOAT * (members * classes + 1) * prod(tiling.window)
        on_gpu = self._device.type == "cuda" and window < _SHARE_OF_GPU * torch.cuda.mem_get_info(self._device)[0]
        voxels = prod(int(extent) for extent in case.properties["shape_before_cropping"])
        needed = {
            "the padded image": 0 if tiling.padded == tiling.shape else _FLOAT * len(case.data) * prod(tiling.padded),
            "segmentation": 2 * voxels * (1 if classes < 255 else 2),
            "probabilities": _HALF * classes * voxels if probabilities else 0,
            "uncertainty": 2 * _HALF * voxels if uncertainty else 0,
            "resampling": _COPIES * _BLOCK,
            "logits of the tiles": 0 if on_gpu else window,
            # Traced in a second or two, so for a stated limit only.
            "the network": 0 if self._limit is None or self._device.type == "cuda" else self._network(),
        }
        self._require(case.name, needed, f"{classes} classes on planes of {times(tiling.window[1:])}")
        if self._device.type == "cuda" and not on_gpu:
            logger.info("%s: logits are collected in main memory, as the GPU has not the room", case.name)
        return self._device if on_gpu else torch.device("cpu")

    def _require(self, name: str, needed: dict[str, int], what_for: str) -> None:
        used = psutil.Process().memory_info().rss
        allowed = used + psutil.virtual_memory().available if self._limit is None else self._limit * _GB
        total = used + sum(needed.values())
        if total <= allowed:
            return
        listed = ", ".join(f"{part} {size / _GB:.2f}" for part, size in needed.items() if size)
        source = "are free" if self._limit is None else "are allowed"
        what = f"needs {total / _GB:.1f} GB of memory for {what_for}, and {allowed / _GB:.1f} {source}"
        remedy = "take a machine with more memory" if self._limit is None else "allow more with --ram-gb"
        raise UserError(name, f"{what} (in use {used / _GB:.2f}, {listed})", remedy)
