"""Training options: they live in the plans under ``umamba_seg.training`` and may be overridden on the command line."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from umamba_seg.errors import UserError

PrecisionName = Literal["auto", "bfloat16", "float16", "float32"]
_Decay = Annotated[float, Field(ge=0, lt=1)]


class TrainingOptions(BaseModel, extra="forbid", frozen=True):
    """How a fold is trained. The defaults are nnU-Net's.

    Training ends with ``epochs``, with ``max_minutes`` of wall time (without the final validation) or by
    ``early_stop``, whichever comes first; None sets no such end. The learning rate falls with the share of epochs or
    time that is reached.

    Attributes:
        recipe: Name or file of the recipe that was asked for; empty for the options of the budget.
        optimizer: "SGD" uses ``momentum`` and ``nesterov``, "Adam" and "AdamW" use ``betas`` and ``eps``.
        momentum, nesterov: Of SGD.
        betas, eps: Of Adam and AdamW, as torch calls them.
        initial_lr: Learning rate at the start, or after the warm-up.
        weight_decay: "AdamW" takes it off the weights, the others add it to the gradient.
        schedule: How the learning rate falls, see :func:`umamba_seg.train.schedules.learning_rate`.
        warmup_epochs: In which the learning rate rises from 0.
        poly_exponent: Of the schedule "poly".
        loss: "dice_ce" is nnU-Net's, "ce" the cross entropy alone; see :func:`umamba_seg.plan.losses.make_loss`.
        oversample_foreground: Share of the samples of a batch whose patch is drawn around foreground.
        gradient_clip: Norm of all gradients together that is not exceeded.
        epochs: Number of epochs.
        iterations_per_epoch, val_iterations_per_epoch: Batches of training and of validation.
        max_minutes: Wall time.
        early_stop: Epochs without a better validation after which training ends.
        seed: Of samples, augmentation and weights.
        deterministic: Whether only ops are used that give the same bits each time.
        precision: Of the forward pass, see :func:`umamba_seg.plan.precision.choose_precision`.
        checkpoint_minutes: Wall time between two checkpoints.
    """

    recipe: str = ""
    optimizer: Literal["SGD", "Adam", "AdamW"] = "SGD"
    momentum: _Decay = 0.99
    nesterov: bool = True
    betas: tuple[_Decay, _Decay] = (0.9, 0.999)
    eps: float = Field(default=1e-8, gt=0)
    initial_lr: float = Field(default=1e-2, gt=0)
    weight_decay: float = Field(default=3e-5, ge=0)
    schedule: Literal["poly", "cosine", "constant"] = "poly"
    warmup_epochs: int = Field(default=0, ge=0)
    poly_exponent: float = Field(default=0.9, gt=0)
    loss: Literal["dice_ce", "ce"] = "dice_ce"
    oversample_foreground: float = Field(default=0.33, ge=0, le=1)
    gradient_clip: float = Field(default=12, gt=0)
    epochs: int | None = Field(default=1000, ge=1)
    iterations_per_epoch: int = Field(default=250, ge=1)
    val_iterations_per_epoch: int = Field(default=50, ge=1)
    max_minutes: float | None = Field(default=None, gt=0)
    early_stop: int | None = Field(default=None, ge=1)
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    precision: PrecisionName = "auto"
    checkpoint_minutes: float = Field(default=10, gt=0)

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

    @model_validator(mode="after")
    def _warms_up_within_its_epochs(self) -> TrainingOptions:
        if self.warmup_epochs and (self.epochs is None or self.warmup_epochs >= self.epochs):
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}, and epochs {self.epochs}: give more epochs")
        return self

    @model_validator(mode="after")
    def _has_momentum_for_nesterov(self) -> TrainingOptions:
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov is true and momentum 0: let nesterov be false, or give a momentum")
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
