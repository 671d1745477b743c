"""Training options: they live in the plans under ``umamba_seg.training`` and may be overridden on the command line."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from umamba_seg.errors import UserError


class TrainingOptions(BaseModel):
    """How a fold is trained. The defaults are nnU-Net's.

    ``max_minutes`` bounds the wall time of training without the final validation; the learning rate then falls with
    the time used instead of the epochs done, whichever is further.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: Literal["SGD", "AdamW"] = "SGD"
    initial_lr: float = Field(1e-2, gt=0)
    weight_decay: float = Field(3e-5, ge=0)
    epochs: int = Field(1000, ge=1)
    iterations_per_epoch: int = Field(250, ge=1)
    val_iterations_per_epoch: int = Field(50, ge=1)
    max_minutes: float | None = Field(None, gt=0)

    @classmethod
    def read(cls, values: dict, where: str) -> TrainingOptions:
        """Validate options from ``where`` (a file or the command line).

        Raises:
            UserError: An unknown option or an impossible value.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError.of_validation(where, error) from None

    def overridden(self, **values: object) -> TrainingOptions:
        """The options with those of ``values`` that are not None in place."""
        given = {name: value for name, value in values.items() if value is not None}
        return self.read(self.model_dump() | given, "training options")
