"""Numbers that are not finite: who is to blame for a bad training step, and what is done about it.

A training step is bad when its loss or the norm of its gradients is not finite. It is never applied: weights and
optimizer stay those of the last good step, and :class:`Buffers` brings the running statistics back. Then
:func:`find_blame` runs the batch once more and looks at everything, and :class:`Recovery` decides by the first row
that fits:

============================================================  =======================================================
what is not finite                                            what is done
============================================================  =======================================================
the input                                                     give up at once: the case is at fault
nothing, when the batch is run once more: the first time at   the batch once more; give up at the 11th in a training
an iteration
gradients alone, in float16, while the gradient scale is at   leave the batch out; the scaler halves its scale
least 1 and fewer than 10 batches in a row were left out
anything but weights, in float16 or bfloat16                  the batch once more in float32, and the 499 iterations
                                                              after it; the third time, float32 to the end
anything in float32, or weights                               back to the last checkpoint, and half the learning rate
                                                              for the rest of the training; give up at the fourth
============================================================  =======================================================

Higher precision comes before a lower rate, as in float32 the same step is right and nothing learnt is lost. After a
rewind the float32 of the row above still holds beyond the iteration that failed.

In a distributed training every process must call :func:`find_blame`, which runs the whole step whatever it finds (loss
and batch norms may wait for the other processes), and all must decide on the :func:`worst` blame of all. Decisions
depend on that blame's kind and on the precision, the gradient scale and the iteration, which are the same everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field, replace
from enum import IntEnum, StrEnum
from functools import partial
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.text import shorten

FLOAT32_ITERATIONS = 500  # for which training stays in float32; then half precision gets another chance
_FLOAT32_TURNS = 3  # the last of them is to the end
_SKIPS = 10  # in a row; halving ten times takes a scale of 65536 to 64
_SMALLEST_SCALE = 1.0  # below it the scaler makes gradients smaller than they are: scaling is not what is missing
_REWINDS = 3
_TRANSIENTS = 10


class Kind(IntEnum):
    """Where the first value stands that is not finite. The greater, the worse."""

    GRADIENT = 1
    LOSS = 2
    ACTIVATION = 3
    WEIGHTS = 4
    INPUT = 5


@dataclass(frozen=True)
class Blame:
    """The first values of a training step that are not finite.

    Attributes:
        kind: Where they stand.
        place: What they are: ``input``, ``output``, ``gradient of the weight``, ...
        module: Dotted name and class of the module that the place belongs to, if it is one of a module.
        cases: Keys of the batch; for an input, of the samples that are not finite.
        precision: Of the step: ``float16``, ``bfloat16`` or ``float32``.
        bad: How many values are not finite.
        total: Of how many.
        largest: Largest finite magnitude met until there; of gradients without the scaler's factor.
        channels: For an input, (case, channel, values that are not finite).
    """

    kind: Kind
    place: str
    module: str | None
    cases: tuple[str, ...]
    precision: str
    bad: int
    total: int
    largest: float
    channels: tuple[tuple[str, int, int], ...] = ()

    def __str__(self) -> str:
        owner = "" if self.module is None else f" of {self.module}"
        faults = shorten([f"{bad} in channel {channel} of {case}" for case, channel, bad in self.channels])
        return (
            f"the {self.place}{owner} is the first that is not finite: {self.bad} of {self.total} values, "
            f"in {self.precision}, the largest finite magnitude until there {self.largest:.3g}; "
            f"cases {shorten(self.cases)}" + (f" ({faults})" if faults else "")
        )

    def as_json(self) -> dict:
        """Plain values; the kind by its name."""
        return asdict(self) | {"kind": self.kind.name.lower()}


def worst(blames: Iterable[Blame | None]) -> Blame | None:
    """What processes agree on that have run parts of one batch."""
    return max((blame for blame in blames if blame is not None), key=lambda blame: blame.kind, default=None)


class Buffers:
    """A copy of a network's buffers. A forward pass changes them before anything is known to be wrong.

    Args:
        network: On its device; its buffers must stay the same tensors, as those of batch norms do.
    """

    def __init__(self, network: nn.Module):
        self._buffers = list(network.buffers())
        self._kept = [buffer.clone() for buffer in self._buffers]

    def keep(self) -> None:
        """Remember what the buffers hold now."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            kept.copy_(buffer)

    def restore(self) -> None:
        """Give them back what was kept last."""
        for kept, buffer in zip(self._kept, self._buffers, strict=True):
            buffer.copy_(kept)


# ---------------------------------------------------------------------------------------------------------- the blame


def find_blame(
    network: nn.Module,
    loss_function: Callable[[Any, Any], Tensor],
    data: Tensor,
    target: Any,
    keys: Iterable[object],
    autocast: Callable[[], AbstractContextManager],
    scale: float = 1.0,
) -> Blame | None:
    """Run a bad training step once more and find its first value that is not finite.

    It is looked for in the input, in weights and buffers, in what modules take and give (in the order of execution),
    in the loss, and in the gradients (in the order of the backward pass). Nothing is applied, and the network is left
    as it was, with gradients None. The whole costs about as much memory as the step itself.

    Args:
        network: Without the wrapper of distributed training; that of torch.compile is passed by.
        loss_function: Of the network's output and the target.
        data: (batch, channels, ...), on the device.
        target: As the loss wants it.
        keys: The case of each sample.
        autocast: Makes the context of the forward pass.
        scale: Factor of the gradient scaler in the bad step.

    Returns:
        None if everything is finite this time. Seed torch as for the step: dropout then repeats, and what is finite
        this time was transient.
    """
    network = getattr(network, "_orig_mod", network)
    search = _Search(tuple(map(str, keys)), _precision(autocast, data.device), scale)
    search.look_at_input(data)
    search.look_at_weights(network)
    with _undone(network, data.device), search.watching(network):
        with autocast():
            loss = loss_function(network(data), target)
        search.look(Kind.LOSS, "loss", None, loss)
        search.largest = 0.0  # of activations; gradients are of another size
        (loss.float() * scale).backward()
        search.look_at_norm(network)
    return search.blame


def _precision(autocast: Callable[[], AbstractContextManager], device: torch.device) -> str:
    with autocast():
        dtype = torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
    return str(dtype).removeprefix("torch.")


@contextmanager
def _undone(network: nn.Module, device: torch.device) -> Iterator[None]:
    """Buffers and random numbers are given back afterwards; gradients are None before and afterwards."""
    buffers = Buffers(network)
    network.zero_grad(set_to_none=True)
    try:
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            yield
    finally:
        buffers.restore()
        network.zero_grad(set_to_none=True)


class _Search:
    """Keeps the first value that is not finite, of all that it is shown."""

    def __init__(self, cases: tuple[str, ...], precision: str, scale: float):
        self.blame: Blame | None = None
        self.largest = 0.0
        self._cases, self._precision, self._scale = cases, precision, scale
        self._blamed: tuple[int, Tensor] | None = None  # identity of an activation, and its gradient
        self._handles: list = []

    def look(self, kind: Kind, place: str, module: str | None, values: Tensor, scale: float = 1.0) -> None:
        """Blame these values, which carry a factor ``scale``, unless they are finite or others have been blamed."""
        values = values.detach()
        if self.blame is not None or not values.is_floating_point() or values.numel() == 0:
            return
        largest = _magnitude(values) / scale
        if math.isfinite(largest):
            self.largest = max(self.largest, largest)
            return
        finite = values.isfinite()
        self.blame = Blame(
            kind,
            place,
            module,
            cases=tuple(dict.fromkeys(self._cases)),  # samples are drawn with replacement
            precision=self._precision,
            bad=int((~finite).sum()),
            total=values.numel(),
            largest=max(self.largest, _magnitude(values.where(finite, 0)) / scale),
        )

    def look_at_input(self, data: Tensor) -> None:
        """Blame the samples and channels that are not finite."""
        self.look(Kind.INPUT, "input", None, data)
        if self.blame is not None:
            bad = (~data.isfinite()).reshape(*data.shape[:2], -1).sum(2)
            channels = tuple((self._cases[i], channel, int(bad[i, channel])) for i, channel in bad.nonzero().tolist())
            cases = tuple(dict.fromkeys(case for case, _, _ in channels))
            self.blame = replace(self.blame, cases=cases, channels=channels)

    def look_at_weights(self, network: nn.Module) -> None:
        """Parameters and buffers, but for running statistics in training mode, where norms do not read them."""
        for name, module in network.named_modules():
            unread = module.training and getattr(module, "track_running_stats", False)
            buffers = () if unread else module.named_buffers(recurse=False)
            for key, values in (*module.named_parameters(recurse=False), *buffers):
                self.look(Kind.WEIGHTS, key, _words(name, module), values)

    @contextmanager
    def watching(self, network: nn.Module) -> Iterator[None]:
        """Look at what modules take and give, and at all gradients, while the network runs forward and backward."""
        try:
            for name, module in network.named_modules():
                words = _words(name, module)
                self._handles += [
                    module.register_forward_pre_hook(partial(self._before, words), with_kwargs=True),
                    module.register_forward_hook(partial(self._after, words)),
                ]
                for key, weight in module.named_parameters(recurse=False):
                    self._watch_gradient(f"gradient of the {key}", words, weight)
            yield
        finally:
            for handle in self._handles:
                handle.remove()

    def _before(self, words: str, _module: nn.Module, args: tuple, kwargs: dict) -> None:
        self._look_at_activations("input", words, (args, kwargs))

    def _after(self, words: str, _module: nn.Module, _args: tuple, output: Any) -> None:
        self._look_at_activations("output", words, output)

    def _look_at_activations(self, place: str, words: str, values: Any) -> None:
        for tensor in _tensors(values):
            self.look(Kind.ACTIVATION, place, words, tensor)
            self._watch_gradient(f"gradient of the {place}", words, tensor)

    def _watch_gradient(self, place: str, words: str, tensor: Tensor) -> None:
        """By a hook of the tensor: those of modules break activations that work in place."""
        if tensor.requires_grad:
            self._handles.append(tensor.register_hook(partial(self._look_at_gradient, place, words, id(tensor))))

    def _look_at_gradient(self, place: str, words: str, tensor: int, gradient: Tensor) -> None:
        """The hooks of one tensor run in the order in which modules met it: its user, met last, made the gradient."""
        if self.blame is None:
            self.look(Kind.GRADIENT, place, words, gradient, self._scale)
            self._blamed = (tensor, gradient) if self.blame is not None else None
        elif self._blamed is not None and tensor == self._blamed[0] and gradient is self._blamed[1]:
            self.blame = replace(self.blame, place=place, module=words)

    def look_at_norm(self, network: nn.Module) -> None:
        """Of all gradients: it may overflow where no gradient does."""
        gradients = [weight.grad for weight in network.parameters() if weight.grad is not None]
        for gradient in gradients:
            gradient.div_(self._scale)
        self.look(Kind.GRADIENT, "norm of all gradients", None, nn.utils.get_total_norm(gradients))


def _words(name: str, module: nn.Module) -> str:
    return f"{name or 'network'} ({type(module).__name__})"


def _magnitude(values: Tensor) -> float:
    """The largest; not finite if one value is not. Reduced on the device, without a mask as ``isfinite`` makes one."""
    return float(torch.linalg.vector_norm(values, math.inf))


def _tensors(values: Any) -> Iterator[Tensor]:
    """Those in nested tuples, lists and dictionaries."""
    if isinstance(values, Tensor):
        yield values
    elif isinstance(values, list | tuple | dict):
        for item in values.values() if isinstance(values, dict) else values:
            yield from _tensors(item)


# ------------------------------------------------------------------------------------------------------- the recovery


class Action(StrEnum):
    """What the trainer does after a bad step."""

    SKIP = "skip"  # go on with the next batch; the gradient scaler halves its scale
    RETRY = "retry"  # this batch again, in float32 if the recovery needs it now
    REWIND = "rewind"  # load the last checkpoint, but keep the recovery, and apply its factor to the learning rate
    GIVE_UP = "give up"  # raise the recovery's error


@dataclass(frozen=True)
class BadStep:
    """A training step that was not applied.

    Attributes:
        epoch: Its epoch.
        iteration: Counted from the beginning of the training.
        precision: ``float16``, ``bfloat16`` or ``float32``.
        learning_rate: With the recovery's factor.
        scale: Factor of the gradient scaler, if there is one.
        blame: What :func:`find_blame` found; None if the second run was clean.
    """

    epoch: int
    iteration: int
    precision: str
    learning_rate: float
    scale: float | None
    blame: Blame | None

    @property
    def found(self) -> str:
        """The blame in words."""
        if self.blame is None:
            return "loss or gradients were not finite, but were when the same batch was run once more"
        return str(self.blame)


@dataclass
class Recovery:
    """Decides about bad steps by the rule of this module. Its attributes are the state, which checkpoints keep.

    Attributes:
        skipped: Batches left out in all.
        skips_in_a_row: Of them, those without a good step between.
        last_skip: Iteration of the last.
        transients: Bad steps that were clean when run once more.
        float32_turns: How often training went over to float32.
        float32_until: First iteration that may be in half precision again.
        rewinds: How often training went back to a checkpoint.
        events: Every bad step but those left out: the step, what was found, and what was done.
    """

    skipped: int = 0
    skips_in_a_row: int = 0
    last_skip: int = -1
    transients: int = 0
    float32_turns: int = 0
    float32_until: int = 0
    rewinds: int = 0
    events: list[dict] = field(default_factory=list)

    @property
    def learning_rate_factor(self) -> float:
        """What the schedule's learning rate is multiplied with."""
        return 0.5**self.rewinds

    def needs_float32(self, iteration: int) -> bool:
        """Whether this iteration must not be in half precision."""
        return self.float32_turns >= _FLOAT32_TURNS or iteration < self.float32_until

    def decide(self, step: BadStep) -> Action:
        """What to do after a bad step. It is logged, and stands in ``events``."""
        action, done = self._apply_rule(step)
        at = f"epoch {step.epoch}, iteration {step.iteration}"
        if action is Action.SKIP:  # usual while the scaler looks for its scale: too many for a list
            logger.info("%s: %s: %s", at, step.found, done)
        else:
            logger.warning("%s: %s: %s", at, step.found, done)
            blame = None if step.blame is None else step.blame.as_json()
            self.events.append(vars(step) | {"blame": blame, "found": step.found, "action": action.value, "done": done})
        return action

    def error(self, where: str | PathLike, step: BadStep) -> UserError:
        """What to raise after giving up: the step, what was found, what was tried, and the remedy."""
        tried = [f"iteration {event['iteration']}: {event['done']}" for event in self.events[:-1]]
        if self.skipped:
            tried.insert(0, f"batches left out at halved gradient scales: {self.skipped}")
        what = (
            f"training gave up in epoch {step.epoch}, iteration {step.iteration}, at a learning rate of "
            f"{step.learning_rate:g}: {step.found}; tried before: {', '.join(tried) or 'nothing'}"
        )
        return UserError(where, what, _remedy(step))

    def report(self) -> dict:
        """All that happened, as plain values."""
        return {"learning_rate_factor": self.learning_rate_factor} | self.state_dict()

    def state_dict(self) -> dict:
        """The state as plain values."""
        return asdict(self)

    def load_state_dict(self, state: dict) -> None:
        """Go on from the state of a checkpoint; not after a rewind, which would be forgotten."""
        vars(self).update(vars(Recovery(**state)))

    def _apply_rule(self, step: BadStep) -> tuple[Action, str]:
        kind = None if step.blame is None else step.blame.kind
        if kind is Kind.INPUT:
            return Action.GIVE_UP, "no retry mends the input"
        if kind is None and not self._was_retried(step.iteration):
            return self._retry()
        if kind is Kind.GRADIENT and step.scale is not None and self._may_skip(step.iteration, step.scale):
            return Action.SKIP, f"left out; the gradient scale of {step.scale:g} is halved"
        if kind is not Kind.WEIGHTS and step.precision != "float32":
            return self._go_to_float32(step.iteration)
        return self._rewind()

    def _was_retried(self, iteration: int) -> bool:
        last = self.events[-1] if self.events else {}
        return last.get("iteration") == iteration and last["action"] == Action.RETRY

    def _retry(self) -> tuple[Action, str]:
        self.transients += 1
        if self.transients > _TRANSIENTS:
            return Action.GIVE_UP, f"this happened {self.transients} times"
        return Action.RETRY, "the same batch again"

    def _may_skip(self, iteration: int, scale: float) -> bool:
        in_a_row = self.skips_in_a_row if iteration in (self.last_skip, self.last_skip + 1) else 0
        if in_a_row >= _SKIPS or scale < _SMALLEST_SCALE:
            return False
        self.skipped, self.skips_in_a_row, self.last_skip = self.skipped + 1, in_a_row + 1, iteration
        return True

    def _go_to_float32(self, iteration: int) -> tuple[Action, str]:
        self.float32_turns += 1
        self.float32_until = iteration + FLOAT32_ITERATIONS
        last = self.float32_turns == _FLOAT32_TURNS
        end = "the end of the training" if last else f"iteration {self.float32_until}"
        return Action.RETRY, f"the same batch again in float32, and so on until {end}"

    def _rewind(self) -> tuple[Action, str]:
        if self.rewinds == _REWINDS:
            return Action.GIVE_UP, f"training went back to a checkpoint {self.rewinds} times already"
        self.rewinds += 1
        return (
            Action.REWIND,
            f"back to the last checkpoint, at {self.learning_rate_factor:g} times the planned learning rate",
        )


def _remedy(step: BadStep) -> str:
    if step.blame is None:
        return "check the device: its memory, its temperature, and the versions of its driver and of torch"
    if step.blame.kind is Kind.INPUT:
        return (
            "look at the raw images of these cases, mend or remove them, and run `umamba-seg plan_and_preprocess` again"
        )
    if step.blame.kind is Kind.WEIGHTS:
        return "the checkpoint may be damaged: train the fold again"
    return (
        "look at the images and labels of these cases, or lower umamba_seg.training.initial_lr in the plans, "
        "and train the fold again"
    )
