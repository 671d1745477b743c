"""The learning rate over a training."""

from __future__ import annotations

import math

from umamba_seg.plan.options import TrainingOptions


def learning_rate(options: TrainingOptions, progress: float, warmup: float = 0.0) -> float:
    """The learning rate at a moment of a training.

    It rises in proportion to ``progress`` up to ``options.initial_lr``, then falls to 0 as ``options.schedule`` says:
    "poly" with (1 - t) to the power of ``options.poly_exponent``, where t goes from 0 to 1 after the warm-up (nnU-Net),
    "cosine" with half a period (Loshchilov and Hutter: SGDR, arXiv:1608.03983, without restarts). "constant" stays.

    Args:
        options: Of the training.
        progress: Share of the training that is done, 0 to 1.
        warmup: Share of the training in which the rate rises, 0 to 1.

    Raises:
        ValueError: A share is out of its range.
    """
    if not (0 <= progress <= 1 and 0 <= warmup <= 1):
        raise ValueError(f"progress is {progress} and warmup {warmup}: each must be in [0, 1]")
    if warmup and progress <= warmup:
        return options.initial_lr * progress / warmup
    return options.initial_lr * _share_left(options, (progress - warmup) / (1 - warmup))


def _share_left(options: TrainingOptions, done: float) -> float:
    if options.schedule == "poly":
        return (1 - done) ** options.poly_exponent
    if options.schedule == "cosine":
        return (1 + math.cos(math.pi * done)) / 2
    return 1.0
