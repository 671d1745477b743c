"""Training options: they live in the plans under ``umamba_seg.training`` and may be overridden on the command line."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from umamba_seg.errors import UserError

OptimizerName = Literal["SGD", "AdamW"]


class TrainingOptions(BaseModel):
    """How a fold is trained. The defaults are nnU-Net's.

    Training ends with ``epochs`` or with ``max_minutes`` of wall time (without the final validation), whichever comes
    first; None sets no such end. The learning rate falls with the share of that end which is reached.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimizer: OptimizerName = "SGD"
    initial_lr: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=3e-5, ge=0)
    epochs: int | None = Field(default=1000, ge=1)
    iterations_per_epoch: int = Field(default=250, ge=1)
    val_iterations_per_epoch: int = Field(default=50, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)

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

    @model_validator(mode="after")
    def _ends(self) -> TrainingOptions:
        if self.epochs is None and self.max_minutes is None:
            raise ValueError("epochs and max_minutes are both None: training would never end")
        return self

    def overridden(self, **values: Any) -> TrainingOptions:
        """The options with those of ``values`` that are not None in place.

        A time alone replaces the epochs; iterations for validation keep their proportion to those for training.
        """
        given = {name: value for name, value in values.items() if value is not None}
        if "max_minutes" in given and "epochs" not in given:
            given["epochs"] = None
        if "iterations_per_epoch" in given:
            share = given["iterations_per_epoch"] / self.iterations_per_epoch
            given["val_iterations_per_epoch"] = max(1, round(share * self.val_iterations_per_epoch))
        return self.read(self.model_dump() | given, "training options")
