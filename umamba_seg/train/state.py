"""What a checkpoint holds of a training beside its tensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from umamba_seg.errors import UserError
from umamba_seg.train.sentinel import Recovery


class State(BaseModel):
    """Plain values from which a training goes on as if it had not been interrupted.

    Attributes:
        options: Training options in effect.
        prediction: What prediction needs, as nnU-Net calls it.
        optimizer: Options of its groups of weights.
        grad_scaler: Its scale; empty without one.
        recovery: What was done about numbers that are not finite.
        logging: nnU-Net's log, a list per quantity.
        best_ema: Best smoothed pseudo Dice.
        epoch: Epochs that are done.
        step: Iterations of the epoch that are done.
        iterations: Iterations in all.
        drawn, validated: Batches of training and of validation that were used.
        losses: Of the iterations of this epoch.
        schedule_start: Epoch in which the schedule began.
        epoch_seconds: Since the epoch began; 0 between epochs.
        seconds_spent: Of training in all.
        closing_seconds: That an epoch takes after its last training iteration.
        threads: Of torch; sums depend on it in their last bits.
    """

    model_config = ConfigDict(extra="forbid")

    options: dict[str, Any]
    prediction: dict[str, Any]
    optimizer: list[dict[str, Any]]
    grad_scaler: dict[str, Any]
    recovery: Recovery
    logging: dict[str, list]
    best_ema: float | None
    epoch: int
    step: int
    iterations: int
    drawn: int
    validated: int
    losses: list[float]
    schedule_start: int
    epoch_seconds: float
    seconds_spent: float
    closing_seconds: float
    threads: int

    @classmethod
    def read(cls, values: Any, path: Path) -> State:
        """The state that :func:`umamba_seg.train.checkpoints.read_checkpoint` gave for ``path``.

        Raises:
            UserError: It is not the state of a training.
        """
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            fields = sorted({str(item["loc"][0]) for item in error.errors() if item["loc"]})
            what = f"does not hold the state of a training of this version ({', '.join(fields) or 'it is no table'})"
            raise UserError(path, what, "train the fold again, or use the version that wrote it") from None
