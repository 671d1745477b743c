"""Where the time of an epoch goes: to the loader, to forward and backward, or to the step of the optimizer."""

from __future__ import annotations

import time

import torch


class _CpuPart:
    """Seconds within ``with``, summed."""

    def __init__(self) -> None:
        self._spent = 0.0

    def __enter__(self) -> None:
        self._entered = time.perf_counter()

    def __exit__(self, *_error) -> None:
        self._spent += time.perf_counter() - self._entered

    def take(self) -> float:
        """The sum, which then begins anew."""
        spent, self._spent = self._spent, 0.0
        return spent


class _CudaPart:
    """Seconds that pass for the GPU within ``with``, summed.

    Marks are put into its stream of work and read at the end, so that nothing waits for it in between.
    """

    def __init__(self, device: torch.device):
        self._device = device
        self._marks: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def __enter__(self) -> None:
        self._marks.append((torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)))
        self._marks[-1][0].record(torch.cuda.current_stream(self._device))

    def __exit__(self, *_error) -> None:
        self._marks[-1][1].record(torch.cuda.current_stream(self._device))

    def take(self) -> float:
        """The sum, which then begins anew. Waits until the GPU has passed the last mark."""
        marks, self._marks = self._marks, []
        if marks:
            marks[-1][1].synchronize()
        return sum(start.elapsed_time(end) for start, end in marks) / 1000


class StepTimes:
    """Adds up what the parts of training steps take: ``with times.loader: ...``.

    On a CUDA GPU these are the GPU's times: the loader's is what the GPU waited for it, so that data which is loaded
    while the GPU computes costs nothing. The parts exclude each other, there as on a CPU.

    Args:
        device: Where the steps run.

    Attributes:
        loader: Waiting for the next batch.
        compute: Forward and backward pass.
        step: Clipping and the optimizer.
    """

    def __init__(self, device: torch.device):
        parts = (_CudaPart(device) if device.type == "cuda" else _CpuPart() for _ in range(3))
        self.loader, self.compute, self.step = parts
        self._began = time.perf_counter()

    def take(self, samples: int) -> dict:
        """What ``samples`` took since the last call, or since this was made.

        Returns:
            ``seconds`` of ``loader``, ``forward_backward``, ``step``, ``other`` (what is left) and ``all``, and
            ``samples_per_second``.
        """
        parts = {"loader": self.loader.take(), "forward_backward": self.compute.take(), "step": self.step.take()}
        now = time.perf_counter()  # after the GPU has done its part
        whole, self._began = now - self._began, now
        seconds = parts | {"other": whole - sum(parts.values()), "all": whole}
        return {"seconds": seconds, "samples_per_second": samples / whole}
