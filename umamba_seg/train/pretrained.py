"""Fine-tuning: the weights of a trained model as the beginning of another training.

Both networks must be one: of the same class and arguments, which plans have that were adapted from the model's. Only
the channels of the input and the labels may differ. Which weights depend on them is not listed for any network: it is
asked of a network of more channels and classes, that is built without memory.

Input channels
    A channel takes the weights of the one that it stands for (:func:`umamba_seg.plan.adopt.match_channels`), or their
    mean over the source's channels if there is none. Where a convolution sums over m channels in the place of n, its
    weights are then scaled by n / m: normalised images of one patient are much alike, each contributes an nth of the
    response on average, and the next layer gets a response of the size that it knows. A filter for each channel by
    itself sums nothing, and is not scaled.

Classes
    What belongs to a class takes the weights of the source's class or region of the same name; that of the background
    is ``background``. All else keeps its initialisation. Weights between two classes need both.
"""

from __future__ import annotations

import pydoc
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import read_description
from umamba_seg.errors import UserError
from umamba_seg.networks import build_from
from umamba_seg.networks.own import require_class
from umamba_seg.plan.adopt import channel_names, match_channels, match_names
from umamba_seg.plan.plans import read_model_plans, require_configuration, require_network
from umamba_seg.text import shorten
from umamba_seg.train import BEST_PTH, FINAL_PTH
from umamba_seg.train.checkpoints import load_checkpoint

Shapes = dict[str, tuple[int, ...]]

# Primes, so that no layer changes as much for another reason.
_MORE_CHANNELS, _MORE_CLASSES = 1009, 2003
_REMEDY_PLANS = "plan the data set with `umamba-seg plan_and_preprocess --pretrained`, and name these plans with -p"


@dataclass(frozen=True)
class Source:
    """A trained model whose weights another training begins with.

    Attributes:
        model: Its folder.
        checkpoint: The file that the weights come from.
        plans, dataset_json: What the folder says of it.
        configuration: Name of the configuration that was trained.
        weights: The network's ``state_dict``.
    """

    model: Path
    checkpoint: Path
    plans: dict
    dataset_json: dict
    configuration: str
    weights: dict[str, Tensor]

    @classmethod
    def read(cls, path: Path) -> Source:
        """Read a model folder, converted ones included, or one checkpoint in it.

        Args:
            path: The folder, of which fold ``all`` is taken, else fold 0, else the only one; or ``fold_x/checkpoint``.

        Raises:
            UserError: It is no model folder of ours, holds no finished training or several to choose from, is the
                second stage of a cascade, or the checkpoint cannot be read or does not belong to the plans.
        """
        checkpoint = path if path.is_file() else _checkpoint(path)
        model = checkpoint.absolute().parent.parent
        plans, dataset_json = read_model_plans(model), read_description(model / "dataset.json")
        content = load_checkpoint(checkpoint)
        configuration = content["init_args"]["configuration"]
        require_configuration(plans, configuration)
        source = cls(model, checkpoint, plans, dataset_json, configuration, content["network_weights"])
        where = f"{model / 'plans.json'}, configuration {configuration}"
        if previous := source.planned.get("previous_stage"):
            what = f"is the second stage of a cascade, which sees the result of {previous} beside the images"
            raise UserError(where, what, "choose a model that sees images alone")
        require_network(source.planned, where)
        architecture = source.planned["architecture"]
        require_class(architecture["network_class_name"], architecture["arch_kwargs"])
        return source

    @property
    def planned(self) -> dict:
        """The configuration."""
        return self.plans["configurations"][self.configuration]

    @property
    def origin(self) -> dict[str, str]:
        """What plans and reports say of the source."""
        return {
            "model": str(self.model),
            "dataset": self.plans["dataset_name"],
            "configuration": self.configuration,
        }

    @property
    def channel_names(self) -> list[str]:
        """Of the input, in order."""
        return channel_names(self.dataset_json)

    @property
    def class_names(self) -> list[str]:
        """Of the logits, in order."""
        return class_names(Labels.from_json(self.dataset_json, self.model / "dataset.json"))

    def require_same_network(self, planned: dict, where: str) -> None:
        """Refuse a configuration of another network. Weights fit other strides as well, but not what they do.

        Args:
            planned: A configuration of the plans to train with.
            where: What to call it in the message.
        """
        own, other = self.planned["architecture"], planned["architecture"]
        arguments = own["arch_kwargs"].keys() | other["arch_kwargs"].keys()
        differing = [
            name for name in sorted(arguments) if own["arch_kwargs"].get(name) != other["arch_kwargs"].get(name)
        ]
        if own["network_class_name"] != other["network_class_name"]:
            differing = ["network_class_name"]
        if previous := planned.get("previous_stage"):
            what = f"sees the result of {previous} beside the images, and {self.model} does not"
            raise UserError(where, what, "train it without --pretrained")
        if differing:
            what = f"its network is not that of {self.model}: {shorten(differing)} differ"
            raise UserError(where, what, _REMEDY_PLANS)


def _checkpoint(model: Path) -> Path:
    """The final one of a fold, or the best of one whose training did not end."""
    if not model.is_dir():
        raise UserError(model, "no such folder", "name a model folder, or a checkpoint in it")
    found = {path.parent.name: path for name in (BEST_PTH, FINAL_PTH) for path in model.glob(f"fold_*/{name}")}
    if not found:
        raise UserError(model, f"no fold_*/{FINAL_PTH} or {BEST_PTH} is there", "name the folder of a trained model")
    choices = [fold for fold in ("fold_all", "fold_0") if fold in found][:1] or sorted(found)
    if len(choices) > 1:
        raise UserError(model, f"holds {', '.join(choices)}", f"name one, as {found[choices[0]]}")
    return found[choices[0]]


def class_names(labels: Labels) -> list[str]:
    """The logits of a data set by name: regions as dataset.json lists them, or background and the labels by value."""
    if labels.has_regions:
        return list(labels.foreground)
    return ["background", *sorted(labels.foreground, key=lambda name: labels.foreground[name])]


@dataclass(frozen=True)
class Report:
    """What a network was given of another.

    Attributes:
        source: The checkpoint.
        origin: See :attr:`Source.origin`.
        values, of: Numbers of the network that come from the source, and all that it has.
        channels: Input channel and the source's that it took the weights of; None for their mean.
        scale: What the weights that sum over the channels were multiplied by.
        first: The tensors that were adapted to the channels.
        classes: Class, and the source's that it took the weights of; None where it keeps its initialisation.
        heads: The tensors that were adapted to the classes.
        not_loaded: Tensors that the source's network, with its channels and classes, does not have.
        left_over: Channels, classes and tensors of the source that are not needed.
    """

    source: str
    origin: dict[str, str]
    values: int
    of: int
    channels: list[tuple[str, str | None]]
    scale: float
    first: list[str]
    classes: list[tuple[str, str | None]]
    heads: list[str]
    not_loaded: list[str]
    left_over: list[str]

    def as_json(self) -> dict:
        """For the manifest of a run."""
        return asdict(self)

    def as_text(self) -> str:
        """For the log."""
        scaled = f"; times {self.scale:g}" if self.scale != 1 else ""
        channels = [f"{name} from {origin or 'the mean of all'}" for name, origin in self.channels]
        classes = [f"{name} {f'from {origin}' if origin else 'new'}" for name, origin in self.classes]
        lines = [
            f"weights: {self.source} ({self.origin['dataset']}, {self.origin['configuration']})",
            f"  loaded: {self.values} of {self.of} values",
            f"  input: {', '.join(channels)}{scaled}{_in(self.first)}",
            f"  classes: {', '.join(classes)}{_in(self.heads)}",
        ]
        if self.left_over:
            lines.append(f"  not needed: {shorten(self.left_over)}")
        if self.not_loaded:
            lines.append(f"  not loaded, as the source's network for its input has none: {shorten(self.not_loaded)}")
        return "\n".join(lines)


def _in(names: Sequence[str]) -> str:
    return f" (in {shorten(names, shown=4)})" if names else ""


@dataclass(frozen=True)
class _Match:
    """Channels or classes of a network beside those of the source.

    Attributes:
        own, theirs: Their names, in order.
        places: For each of ``own`` the place in ``theirs`` that it takes the weights of, or None.
        more: How many more the network has that is asked which weights depend on them.
    """

    own: Sequence[str]
    theirs: Sequence[str]
    places: list[int | None]
    more: int

    @property
    def extents(self) -> tuple[int, int, int]:
        """Of an axis along which they lie: in the network, in the one with more, and in the source's."""
        return len(self.own), len(self.own) + self.more, len(self.theirs)

    @property
    def scale(self) -> float:
        """Keeps a sum over ``own`` as large as one over ``theirs``."""
        return len(self.theirs) / len(self.own)

    @property
    def is_identity(self) -> bool:
        return self.places == list(range(len(self.theirs)))

    @property
    def origins(self) -> list[tuple[str, str | None]]:
        """Each with the one that it takes the weights of."""
        found = [None if place is None else self.theirs[place] for place in self.places]
        return list(zip(self.own, found, strict=True))

    @property
    def left_over(self) -> list[str]:
        return [name for place, name in enumerate(self.theirs) if place not in self.places]


@dataclass(frozen=True)
class _Axes:
    """The axes of a tensor along which input channels and classes lie."""

    channels: tuple[int, ...] = ()
    classes: tuple[int, ...] = ()


def load_pretrained(network: nn.Module, source: Source, *, labels: Labels, channel_names: Sequence[str]) -> Report:
    """Put the weights of ``source`` into a network, in place; its device and memory layout stay.

    Args:
        network: As the trainer builds it, initialised; not wrapped for compiling or for several devices.
        source: The model.
        labels: What the network segments.
        channel_names: Its input, in order.

    Raises:
        UserError: It is another network than the source's, or its weights depend on channels or classes in a way that
            is not understood; the message names the first tensors.
    """
    own_classes = class_names(labels)
    places = match_channels(source.channel_names, channel_names), match_names(source.class_names, own_classes)
    channels = _Match(channel_names, source.channel_names, places[0], _MORE_CHANNELS)
    classes = _Match(own_classes, source.class_names, places[1], _MORE_CLASSES)
    axes = _axes(network, source, channels, classes)

    initial, weights, loaded = network.state_dict(), {}, {}
    for name, found in axes.items():
        value = source.weights[name]
        for axis in found.channels:
            value = _with_channels(value, axis, channels)
        weights[name], loaded[name] = _with_classes(value, found.classes, classes, initial[name].cpu())
    network.load_state_dict(initial | weights)

    # Networks of nnU-Net list some tensors under several names.
    names = list({tensor.data_ptr(): name for name, tensor in reversed(initial.items())}.values())[::-1]
    return Report(
        source=str(source.checkpoint),
        origin=source.origin,
        values=sum(loaded.get(name, 0) for name in names),
        of=sum(initial[name].numel() for name in names),
        channels=channels.origins,
        scale=channels.scale,
        first=[name for name in names if name in axes and axes[name].channels],
        classes=classes.origins,
        heads=[name for name in names if name in axes and axes[name].classes],
        not_loaded=[name for name in names if name not in axes],
        left_over=[*channels.left_over, *classes.left_over, *(name for name in source.weights if name not in axes)],
    )


# ------------------------------------------------------------------------------------ which weights depend on the data


def _axes(network: nn.Module, source: Source, channels: _Match, classes: _Match) -> dict[str, _Axes]:
    """The tensors that both networks have, with the axes along which channels and classes lie.

    Raises:
        UserError: The networks differ in more than these, or a tensor differs in a way that they do not explain.
    """
    architecture = source.planned["architecture"]["network_class_name"]
    if pydoc.locate(architecture) is not type(network):
        what = f"holds a {architecture.rpartition('.')[2]}, and the network is a {type(network).__name__}"
        raise UserError(source.checkpoint, what, _REMEDY_PLANS)
    own, more, theirs = (_shapes(source, *counts) for counts in zip(channels.extents, classes.extents, strict=True))
    _require_equal(source, theirs, _shapes_of(source.weights), "use the plans.json and dataset.json that it came with")
    _require_equal(source, own, _shapes_of(network.state_dict()), _REMEDY_PLANS)
    if channels.is_identity and classes.is_identity:
        return {name: _Axes() for name in own}
    found = {
        name: _explained(own[name], more.get(name, ()), theirs[name], channels, classes)
        for name in own
        if name in theirs
    }
    unexplained = [f"{name} {theirs[name]} for {own[name]}" for name, axes in found.items() if axes is None]
    if unexplained:
        what = f"its weights depend on channels and classes in a way that is not understood: {shorten(unexplained)}"
        raise UserError(source.checkpoint, what, "give the data set as many channels and the same labels")
    return {name: axes for name, axes in found.items() if axes is not None}


def _explained(
    own: tuple[int, ...], more: tuple[int, ...], theirs: tuple[int, ...], channels: _Match, classes: _Match
) -> _Axes | None:
    """Where channels and classes lie in a tensor, by its shapes; None if they differ in another way."""
    if not len(own) == len(more) == len(theirs):
        return None
    extents = list(zip(own, more, theirs, strict=True))
    axes = _Axes(
        tuple(axis for axis, found in enumerate(extents) if found == channels.extents),
        tuple(axis for axis, found in enumerate(extents) if found == classes.extents),
    )
    others = [found for axis, found in enumerate(extents) if axis not in (*axes.channels, *axes.classes)]
    return axes if all(len(set(found)) == 1 for found in others) else None


def _shapes(source: Source, input_channels: int, num_classes: int) -> Shapes:
    """Of the source's network with so many channels and classes."""
    with FakeTensorMode():
        network = build_from(
            source.planned["architecture"],
            input_channels=input_channels,
            num_classes=num_classes,
            deep_supervision=len(source.planned["output_strides"]) > 1,
        )
        return _shapes_of(network.state_dict())


def _shapes_of(tensors: dict[str, Tensor]) -> Shapes:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def _require_equal(source: Source, wanted: Shapes, found: Shapes, remedy: str) -> None:
    differing = [
        f"{name} {found.get(name, 'missing')} for {wanted.get(name, 'none')}"
        for name in wanted | found
        if wanted.get(name) != found.get(name)
    ]
    if differing:
        what = f"{len(differing)} tensors are not those of the network of its plans: {shorten(differing, shown=4)}"
        raise UserError(source.checkpoint, what, remedy)


# ------------------------------------------------------------------------------------------------------------- weights


def _with_channels(value: Tensor, axis: int, channels: _Match) -> Tensor:
    """The source's weights for the network's channels. Along axis 1 convolutions and linear layers sum."""
    mean = value.mean(axis, keepdim=True)
    parts = [mean if place is None else value.narrow(axis, place, 1) for place in channels.places]
    return torch.cat(parts, axis) * (channels.scale if axis == 1 else 1)


def _with_classes(value: Tensor, axes: tuple[int, ...], classes: _Match, initial: Tensor) -> tuple[Tensor, int]:
    """``initial`` with the source's weights in the place of those of known classes, and how many these are."""
    if not axes:
        return value, value.numel()
    known = [(own, theirs) for own, theirs in enumerate(classes.places) if theirs is not None]
    own, theirs = torch.tensor(known, dtype=torch.long).reshape(-1, 2).T
    for axis in axes:
        value = value.index_select(axis, theirs)
    places = [own if axis in axes else torch.arange(extent) for axis, extent in enumerate(initial.shape)]
    filled = initial.clone()
    filled[torch.meshgrid(*places, indexing="ij")] = value
    return filled, value.numel()
