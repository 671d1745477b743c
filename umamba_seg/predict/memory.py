"""How much memory a case needs, and whether it is there: said before the machine swaps or a process is killed."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Demand:
    """What the segmentation of a case asks for.

    Args:
        case: To be segmented.
        tiling: Of it.
        members: 1, or the folds that are kept apart.
        classes: Channels of the logits.
        tiles: That the networks are given at once.
        all_classes: Whether the logits of all classes of a plane are wanted at once, not one after the other.
        probabilities: Whether they are kept in memory.
    """

    case: PreparedCase
    tiling: Tiling
    members: int
    classes: int
    tiles: int
    all_classes: bool
    probabilities: bool

    @property
    def planes_at_once(self) -> int:
        """Planes of the image that are worked on together; the labels do not depend on it."""
        return max(1, _BLOCK // self._plane_bytes)

    @property
    def window(self) -> int:
        """Bytes of the window's logits and weights."""
        return _FLOAT * (self.members * self.classes + 1) * prod(self.tiling.window)

    @property
    def _plane_bytes(self) -> int:
        extents = self.case.properties["shape_after_cropping_and_before_resampling"]
        kept = self.members * self.classes if self.all_classes else 1
        return _FLOAT * kept * prod(int(extents[axis]) for axis in self.tiling.order[1:])

    def host_bytes(self) -> dict[str, int]:
        """What lies in main memory beside the case and the window, in bytes."""
        voxels = prod(int(extent) for extent in self.case.properties["shape_before_cropping"])
        padded = self.tiling.padded != self.tiling.shape
        return {
            "the padded image": _FLOAT * len(self.case.data) * prod(self.tiling.padded) if padded else 0,
            "segmentation": 2 * voxels * (1 if self.classes < 255 else 2),
            "probabilities": _HALF * self.classes * voxels if self.probabilities else 0,
            "uncertainty": 2 * _HALF * voxels if self.all_classes else 0,
            "tiles": 2 * _FLOAT * self.tiles * self.members * self.classes * prod(self.tiling.patch),
            "resampling": _COPIES * max(_BLOCK, self._plane_bytes),
        }


class Memory:
    """What the process may take; made when the networks are loaded and nothing else is.

    Args:
        ram_gb: In GB (10^9 bytes), or None for what is free.
        device: Where the networks run.
        network: Bytes of a forward pass on a CPU.
    """

    def __init__(self, ram_gb: float | None, device: torch.device, network: Callable[[], int]):
        self._limit, self._device = ram_gb, device
        self._network = functools.cache(network)
        self._loaded = psutil.Process().memory_info().rss

    def place(self, demand: Demand) -> torch.device:
        """Where the window lies: with the network if there is room.

        Raises:
            UserError: The case needs more memory than there is.
        """
        on_gpu = self._device.type == "cuda" and demand.window < _SHARE_OF_GPU * _free_on(self._device)
        needed = demand.host_bytes() | {"logits of the window": 0 if on_gpu else demand.window}
        if self._limit is None:
            self._require(demand, needed, psutil.virtual_memory().available, "are free", "close other programs")
        else:
            needed |= {"the image": demand.case.data.nbytes, "what is loaded": self._loaded}
            needed["the network"] = 0 if self._device.type == "cuda" else self._network()
            self._require(demand, needed, self._limit * _GB, "are allowed", "allow more with --ram-gb")
        if self._device.type == "cuda" and not on_gpu:
            logger.info("%s: logits are collected in main memory, as the GPU has not the room", demand.case.name)
        return self._device if on_gpu else torch.device("cpu")

    def _require(self, demand: Demand, needed: dict[str, int], allowed: float, source: str, remedy: str) -> None:
        total = sum(needed.values())
        if total <= allowed:
            return
        listed = ", ".join(f"{part} {size / _GB:.2f}" for part, size in needed.items() if size)
        what_for = f"{demand.classes} classes on planes of {times(demand.tiling.window[1:])}"
        what = f"needs {total / _GB:.1f} GB of memory for {what_for}, and {allowed / _GB:.1f} {source} ({listed})"
        raise UserError(demand.case.name, what, f"{remedy}, or take a machine with more memory")


def _free_on(device: torch.device) -> int:
    """Bytes of a GPU that are free, or that torch keeps for its next tensors."""
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + kept
