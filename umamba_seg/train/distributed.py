"""Training in several processes, one per device, as ``torchrun`` starts them.

Process ``rank`` of ``size`` takes its share of the same global batch that one process would draw, and gradients are
averaged: the weights go the way that they would go on one device.
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from umamba_seg.errors import UserError


@dataclass(frozen=True)
class Group:
    """The processes of a training; a single one by default.

    Attributes:
        rank: Number of this process, from 0. Process 0 writes all files.
        size: How many there are.
        local_rank: Number on this machine, which is that of its GPU.
        local_size: How many there are on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls) -> Group:
        """As the variables say that ``torchrun`` sets."""
        names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
        if "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(*(int(os.environ.get(name, default)) for name, default in zip(names, "0101", strict=True)))

    @property
    def leads(self) -> bool:
        """Whether this process writes the files."""
        return self.rank == 0

    def device(self, wanted: torch.device) -> torch.device:
        """The device of this process: on GPUs the one of its number.

        Raises:
            UserError: There are fewer GPUs.
        """
        if wanted.type != "cuda":
            return wanted
        if self.local_rank >= (there := torch.cuda.device_count()):
            remedy = f"start one for each: torchrun --nproc-per-node {there}"
            raise UserError(f"{self.local_size} processes", f"there are {there} GPUs on this machine", remedy)
        return torch.device("cuda", self.local_rank)

    def join(self, device: torch.device) -> None:
        """Meet the others, over nccl on GPUs and gloo elsewhere."""
        if self.size > 1:
            if device.type == "cuda":
                torch.cuda.set_device(device)
            dist.init_process_group("nccl" if device.type == "cuda" else "gloo")

    def leave(self) -> None:
        """The reverse of :meth:`join`."""
        if self.size > 1:
            dist.destroy_process_group()

    def share(self, batch_size: int) -> range:
        """Which samples of the global batch are this process's.

        Raises:
            UserError: They cannot be shared evenly.
        """
        if batch_size % self.size:
            fits = ", ".join(str(size) for size in range(1, batch_size + 1) if batch_size % size == 0)
            raise UserError(
                f"{self.size} processes",
                f"cannot share a batch of {batch_size} evenly",
                f"start {fits} (torchrun --nproc-per-node), or plan another batch",
            )
        each = batch_size // self.size
        return range(self.rank * each, (self.rank + 1) * each)

    def wrap(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with gradients averaged over the processes, and batch norms over all samples on GPUs.

        All weights must get a gradient in every step.
        """
        if self.size == 1:
            return network
        if device.type == "cuda":  # on CPUs torch has no such batch norm
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # For kernels of one voxel, channels-last and channels-first are the same layout under two names.
        warnings.filterwarnings("ignore", "Grad strides do not match bucket view strides")
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    def largest(self, device: torch.device, *values: float) -> list[float]:
        """The largest of each value over the processes."""
        return self._reduced(device, values, dist.ReduceOp.MAX)

    def mean(self, device: torch.device, *values: float) -> list[float]:
        """The mean of each value over the processes."""
        return [value / self.size for value in self._reduced(device, values, dist.ReduceOp.SUM)]

    def sum(self, device: torch.device, *values: float) -> list[float]:
        """The sum of each value over the processes."""
        return self._reduced(device, values, dist.ReduceOp.SUM)

    def gather(self, value: Any) -> list[Any]:
        """What each process has, in all of them."""
        values = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(values, value)
        return values

    def _reduced(self, device: torch.device, values: tuple[float, ...], how: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return list(values)
        tensor = torch.tensor(values, dtype=torch.float64, device=device)
        dist.all_reduce(tensor, how)
        return tensor.tolist()

    def wait(self) -> None:
        """Until all processes are here."""
        if self.size > 1:
            dist.barrier()
