"""In which precision networks run on a device: chosen by the device, or asked for and then honoured or refused."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass

import torch

from umamba_seg.errors import UserError
from umamba_seg.plan.options import PrecisionName


@dataclass(frozen=True)
class Precision:
    """What autocast casts convolutions and matrix products to.

    Args:
        dtype: float32 for no autocast.
    """

    dtype: torch.dtype

    @property
    def name(self) -> str:
        """As the training options call it."""
        return str(self.dtype).removeprefix("torch.")

    @property
    def needs_scaler(self) -> bool:
        """Whether small gradients would be lost without a GradScaler: float16 has five bits of exponent."""
        return self.dtype == torch.float16

    def autocast(self, device: torch.device) -> AbstractContextManager:
        """Context of the forward pass and the loss; it may be entered many times."""
        return torch.autocast(device.type, self.dtype, enabled=self.dtype != torch.float32)


FLOAT32 = Precision(torch.float32)


def choose_precision(requested: PrecisionName, device: torch.device) -> Precision:
    """The precision that is asked for; for "auto" bfloat16 where a CUDA GPU has it, float16 on others, else float32.

    Args:
        requested: As in the training options.
        device: Where the network runs.

    Raises:
        UserError: The device does not have the precision that is asked for.
    """
    if requested == "auto":
        return Precision(_automatic(device))
    if reason := _refusal(requested, device):
        raise UserError(f"precision {requested}", reason, 'choose another, or "auto"')
    return Precision(getattr(torch, requested))


def _automatic(device: torch.device) -> torch.dtype:
    if device.type != "cuda":
        return torch.float32
    return torch.bfloat16 if _has_bfloat16() else torch.float16


def _refusal(requested: PrecisionName, device: torch.device) -> str | None:
    if requested == "float16" and device.type == "cpu":
        return "a CPU computes in float32 or bfloat16"
    if requested != "float32" and device.type == "mps":
        return "networks run in float32 on mps; half precision was never tried there"
    if requested == "bfloat16" and device.type == "cuda" and not _has_bfloat16():
        return f"{torch.cuda.get_device_name(device)} only emulates it, which is slower than float32"
    return None


def _has_bfloat16() -> bool:
    """Natively, on the current CUDA device."""
    return torch.cuda.is_bf16_supported(including_emulation=False)
