"""What is measured and how, as data: the house's rules, and those of the papers' own scripts.

A table can only be compared with a paper's when it was computed as the paper's was: scripts differ on empty masks, on
the tolerance and its unit, on spacing, on cropping and on what is averaged over what. Nothing here computes;
``case.py`` and ``statistics.py`` interpret it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Literal

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate.metrics import DEFAULT_METRICS, parse_metrics

NAN, INF = math.nan, math.inf

ALL_LABELS = "(all labels)"
"""The class of metrics that take every label for one object."""


@dataclass(frozen=True)
class Empty:
    """The value of a metric where there is nothing to measure: both masks are empty, the prediction alone is (the
    class was missed), the reference alone is (it was invented). NaN and infinity are counted, not averaged."""

    both_empty: float
    missed: float
    invented: float

    @classmethod
    def always(cls, value: float) -> Empty:
        return cls(value, value, value)


_OVERLAP, _DISTANCE = Empty(NAN, 0, 0), Empty(NAN, INF, INF)
_HOUSE_EMPTY: Mapping[str, Empty] = {
    "dice": _OVERLAP,
    "iou": _OVERLAP,
    "nsd": _OVERLAP,
    "lesion_f1": _OVERLAP,
    "hd95": _DISTANCE,
    "hd": _DISTANCE,
    "assd": _DISTANCE,
    "asd": _DISTANCE,
    "volume_error": Empty(NAN, -1, INF),
}


@dataclass(frozen=True)
class Protocol:
    """How segmentations are measured.

    Attributes:
        name: What ``--protocol`` calls it.
        source: Where the rules come from.
        metrics: What is measured.
        notes: How it differs from the house's rules, a sentence each, for the table's footer.
        means: What the numbers of a class and over classes are. ``"classes"``: mean over cases, then over classes.
            ``"cases"``: over classes it is the mean over cases of the mean over the classes that are in the case.
            ``"pooled"``: the metric of the voxels of all cases counted together.
        spacing: Whether distances are in mm; otherwise voxels count 1 along every axis.
        nsd: ``"surfels"``, the share of both surfaces' area, or ``"halves"``, the mean of two shares of border voxels;
            see ``metrics.py``.
        hd95: The larger of the two directed 95th percentiles, or the percentile of both directions ``"pooled"``.
        empty: Metric (NSD at any tolerance is ``"nsd"``) -> its value where there is nothing to measure.
        tolerances: Class -> tolerance of the metric ``nsd``. Every class of the data set must be among them.
        only: The classes that are measured; all of them must be in the data set. Empty: all that there are.
        reference_slices: Classes that are measured between the reference's first and last slice (z), the last one
            left out.
        all_labels: Metrics that are measured once a case, with every label taken for one object.
        digits: Decimal digits to which every value of a case is rounded before it is averaged.
    """

    name: str
    source: str
    metrics: tuple[str, ...]
    notes: tuple[str, ...] = ()
    means: Literal["classes", "cases", "pooled"] = "classes"
    spacing: bool = True
    nsd: Literal["surfels", "halves"] = "surfels"
    hd95: Literal["larger", "pooled"] = "larger"
    empty: Mapping[str, Empty] = field(default_factory=lambda: _HOUSE_EMPTY)
    tolerances: Mapping[str, float] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    reference_slices: tuple[str, ...] = ()
    all_labels: tuple[str, ...] = ()
    digits: int | None = None

    def as_json(self) -> dict:
        """Its fields; those of metrics that it does not measure are left out of ``empty``."""
        measured = {metric.partition("@")[0] for metric in self.metrics}
        values = {item.name: getattr(self, item.name) for item in fields(self)}
        values["empty"] = {name: vars(rule) for name, rule in self.empty.items() if name in measured}
        return values


@dataclass(frozen=True)
class Target:
    """What is measured of one class.

    Attributes:
        values: The label values that form it.
        metrics: Empty for a class that a protocol leaves out.
        tolerance: Of the metric ``nsd``.
        reference_slices: As in :class:`Protocol`.
    """

    values: tuple[int, ...]
    metrics: tuple[str, ...]
    tolerance: float | None = None
    reference_slices: bool = False


_MEDPY = (
    "MedPy's definitions without spacing: distances are in voxels, HD95 is the percentile of both directions pooled"
)
_SYNAPSE = ("aorta", "gallbladder", "left kidney", "right kidney", "liver", "pancreas", "spleen", "stomach")
_ONE_IF_INVENTED = Empty(both_empty=0, missed=0, invented=1)
_BOTH_RIGHT = Empty(both_empty=1, missed=0, invented=0)

_PROTOCOLS = (
    Protocol(
        name="nnunet",
        source="Dice and IoU as nnunetv2 2.8.1, evaluation/evaluate_predictions.py, which has no other metrics",
        metrics=DEFAULT_METRICS,
    ),
    Protocol(
        name="umamba_abdomen",
        source="bowang-lab/U-Mamba @28459e3, evaluation/abdomen_DSC_Eval.py and abdomen_NSD_Eval.py",
        metrics=("dice", "nsd"),
        notes=(
            "a class that neither segmentation holds scores 1, an invented one 0",
            "NSD has a tolerance of its own for each organ, from 2 to 7 mm",
            "aorta, IVC and esophagus are measured on the slices from the reference's first to the last but one",
            "every value of a case is rounded to four digits before it is averaged",
        ),
        empty={"dice": _BOTH_RIGHT, "nsd": _BOTH_RIGHT},
        tolerances={
            "liver": 5,
            "right kidney": 3,
            "spleen": 3,
            "pancreas": 5,
            "aorta": 2,
            "ivc": 2,
            "right adrenal gland": 2,
            "left adrenal gland": 2,
            "gallbladder": 2,
            "esophagus": 3,
            "stomach": 5,
            "duodenum": 7,
            "left kidney": 3,
        },
        reference_slices=("aorta", "ivc", "esophagus"),
        digits=4,
    ),
    Protocol(
        name="umamba_endoscopy",
        source="bowang-lab/U-Mamba @28459e3, evaluation/endoscopy_DSC_Eval.py and endoscopy_NSD_Eval.py",
        metrics=("dice", "nsd@2px"),
        notes=(
            "the mean is over images: of each, over the labels that the reference or the prediction holds",
            "NSD has a tolerance of 2 pixels; spacing is ignored",
        ),
        means="cases",
        spacing=False,
    ),
    Protocol(
        name="segmamba_brats",
        source="ge-xing/SegMamba @cff3597, 5_compute_metrics.py",
        metrics=("dice", "hd95"),
        notes=(
            "Dice is 0 and HD95 is 50 wherever a mask is empty, in a case that correctly holds nothing as well",
            _MEDPY,
            "the script averages over 250 places whatever the number of cases; here it is over the cases",
        ),
        spacing=False,
        hd95="pooled",
        empty={"dice": Empty.always(0), "hd95": Empty.always(50)},
    ),
    Protocol(
        name="nnmamba",
        source="lhaof/nnMamba @6fb35a3, nnMamba Document/nsd.py, which calls nnU-Net v1's normalized_surface_dice",
        metrics=("dice", "nsd@0.5px"),
        notes=(
            "NSD takes all labels for one object: borders between classes do not count",
            "NSD is the mean of the shares of the two surfaces' border voxels within 0.5 voxels; spacing is ignored",
            "where one mask is empty the script ends with an error; here NSD is 0, and undefined where both are",
        ),
        spacing=False,
        nsd="halves",
        all_labels=("nsd@0.5px",),
    ),
    Protocol(
        name="vmunet_isic",
        source="JCruan519/VM-UNet, engine.py",
        metrics=("iou", "dice", "accuracy", "specificity", "sensitivity"),
        notes=(
            "the pixels of all images are counted together: large lesions weigh more, and no image has a score alone",
            "the paper's mIoU is the IoU of the lesion, without the background",
            "the script measures images as the network saw them (resized); here it is on the grid of the files",
        ),
        means="pooled",
        spacing=False,
    ),
    Protocol(
        name="vmunet_synapse",
        source="JCruan519/VM-UNet, engine_synapse.py and utils.py",
        metrics=("dice", "hd95"),
        notes=(
            "an invented class has Dice 1 and HD95 0, one that was missed or that neither holds 0 and 0",
            _MEDPY,
            "the script feeds the network slices zoomed to 224x224; predictions are measured here as they are",
        ),
        spacing=False,
        hd95="pooled",
        empty={"dice": _ONE_IF_INVENTED, "hd95": Empty.always(0)},
        only=_SYNAPSE,
    ),
    Protocol(
        name="msvmunet_synapse",
        source="gndlwch2w/msvm-unet @abb1a8e, inference.py and utils.py",
        metrics=("dice", "hd95", "iou", "asd"),
        notes=(
            "an invented class has Dice and IoU 1 and distances 0, one that was missed or that neither holds 0",
            f"{_MEDPY}; ASD is the mean over the prediction's border voxels alone",
            "the paper's caption gives HD95 in mm; the script computes it in voxels",
        ),
        spacing=False,
        hd95="pooled",
        empty={
            "dice": _ONE_IF_INVENTED,
            "iou": _ONE_IF_INVENTED,
            "hd95": Empty.always(0),
            "asd": Empty.always(0),
        },
        only=_SYNAPSE,
    ),
    Protocol(
        name="tamingmambas_synapse",
        source="LucaLumetti/TamingMambas @0f1881a, evaluation/synapse.py",
        metrics=("dice", "hd95"),
        notes=(
            "a class that neither segmentation holds has Dice 1 (the script prints 100), one that one of them lacks 0",
            "HD95 is 0 wherever a mask is empty, which flatters a network that misses organs",
            _MEDPY,
        ),
        spacing=False,
        hd95="pooled",
        empty={"dice": _BOTH_RIGHT, "hd95": Empty.always(0)},
        only=_SYNAPSE,
    ),
    Protocol(
        name="mambaunet",
        source="ziyangwang007/Mamba-UNet @dfe92ba, code/test_2D_fully.py",
        metrics=("dice",),
        notes=(
            "Dice is 0 wherever a mask is empty (MedPy)",
            "Dice alone: no code of the repository computes the other columns of the papers' tables",
            "the script measures slices resized to 256x256; predictions are measured here on the grid of the files",
        ),
        spacing=False,
        empty={"dice": Empty.always(0)},
    ),
    Protocol(
        name="uumamba_acdc",
        source="UU-Mamba, evaluation/ACDC_DSC_Eval.py",
        metrics=("dice",),
        notes=(
            "Dice alone: the script's tolerances are not used",
            "empty masks and rounding as in U-Mamba's script, from which this one descends (not checked)",
        ),
        empty={"dice": _BOTH_RIGHT},
        only=("right ventricle", "myocardium", "left ventricle"),
        digits=4,
    ),
)

PROTOCOLS: Mapping[str, Protocol] = {protocol.name: protocol for protocol in _PROTOCOLS}
DEFAULT_PROTOCOL = "nnunet"


def choose_protocol(name: str = DEFAULT_PROTOCOL, metrics: Iterable[str] | None = None) -> Protocol:
    """A protocol by name; the default one with other metrics than its own, where they are given.

    Raises:
        UserError: No such protocol or metric, or metrics for a protocol of a paper.
    """
    if name not in PROTOCOLS:
        raise UserError(f"--protocol {name}", "no such protocol", f"choose one of {', '.join(PROTOCOLS)}")
    protocol = PROTOCOLS[name]
    if metrics is None:
        return protocol
    if name != DEFAULT_PROTOCOL:
        what = f"the protocol {name} measures {', '.join(protocol.metrics)}, as its paper does"
        raise UserError("--metrics", what, "leave out --metrics or --protocol")
    return replace(protocol, metrics=parse_metrics(metrics))


def targets_of(protocol: Protocol, labels: Labels) -> dict[str, Target]:
    """What is measured of each class, in the order of ``labels``; last, if the protocol wants it, of all labels.

    Raises:
        UserError: Classes that the protocol names cannot be told from the data set's names.
    """
    known = _match_classes(protocol, list(labels.foreground))
    by_class = tuple(metric for metric in protocol.metrics if metric not in protocol.all_labels)
    targets = {}
    for name, value in labels.foreground.items():
        targets[name] = Target(
            values=value if isinstance(value, tuple) else (value,),
            metrics=by_class if not protocol.only or known[name] in protocol.only else (),
            tolerance=protocol.tolerances.get(known[name]),
            reference_slices=known[name] in protocol.reference_slices,
        )
    if protocol.all_labels:
        foreground = tuple(value for value in labels.values if value not in (0, labels.ignore))
        targets[ALL_LABELS] = Target(foreground, protocol.all_labels)
    return targets


def _match_classes(protocol: Protocol, names: list[str]) -> dict[str, str]:
    """The data set's name of each class -> the protocol's, or itself."""
    wanted = (*protocol.only, *protocol.tolerances)
    known = {name: _canonical(name, wanted) for name in names}
    where = f"--protocol {protocol.name}"
    remedy = f"name the classes in dataset.json so that each can be told; it holds {', '.join(names)}"
    missing = [name for name in protocol.only if name not in known.values()]
    if missing:
        raise UserError(where, f"measures {', '.join(protocol.only)}, but there is no {', '.join(missing)}", remedy)
    strange = [name for name in names if known[name] not in protocol.tolerances]
    if protocol.tolerances and strange:
        what = f"has no tolerance for {', '.join(strange)}, only for {', '.join(protocol.tolerances)}"
        raise UserError(where, what, remedy)
    twice = [name for name in wanted if list(known.values()).count(name) > 1]
    if twice:
        raise UserError(where, f"more than one class may be {', '.join(twice)}", remedy)
    return known


_WORDS = {"l": "left", "r": "right", "oesophagus": "esophagus", "myo": "myocardium"}
_NAMES = {
    "rk": "right kidney",
    "lk": "left kidney",
    "rag": "right adrenal gland",
    "lag": "left adrenal gland",
    "right adrenal": "right adrenal gland",
    "left adrenal": "left adrenal gland",
    "gall bladder": "gallbladder",
    "inferior vena cava": "ivc",
    "postcava": "ivc",
    "rv": "right ventricle",
    "lv": "left ventricle",
    "lvc": "left ventricle",
    "mlv": "myocardium",
}


def _by_words(name: str) -> frozenset[str]:
    words = (match[0].lower() for match in re.finditer(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))
    return frozenset(_WORDS.get(word, word) for word in words)


def _canonical(name: str, wanted: Iterable[str]) -> str:
    """The wanted class behind a name: ``kidney_left``, ``LeftKidney``, ``LK`` -> ``left kidney``; else the name."""
    found = {_by_words(known): known for known in wanted}
    found |= {_by_words(short): full for short, full in _NAMES.items() if full in found.values()}
    return found.get(_by_words(name), name)
