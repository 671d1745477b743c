"""Step 2 for fine-tuning: the plan of a trained model, adapted to another data set.

The weights of a network belong to its patch, to a spacing, and to images that were normalised in one way. So network,
topology, patch, batch, spacing, resampling and the order of axes stay the source's, as nnU-Net keeps them when it moves
plans between data sets. What follows from the images is the new data set's: their sizes, who reads them, the memory
that their channels and labels take, and the folder of the preprocessed data.

A channel is normalised as the channel of the source that it stands for (:func:`match_channels`), with the source's
statistics: an image then looks as the source would have seen it. It has the new data set's own scheme and statistics
where there is no such channel, and where the source's scheme is for Hounsfield units or 8-bit colours and the channel
holds others.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from umamba_seg.errors import UserError
from umamba_seg.files import read_json, write_json
from umamba_seg.log import logger, quiet
from umamba_seg.networks import NetworkSpec
from umamba_seg.plan.budgets import Budget
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.planner import Planner
from umamba_seg.plan.plans import PLANS_TABLE, input_channels, topology_of
from umamba_seg.plan.recipes import Recipe
from umamba_seg.text import gib, times

if TYPE_CHECKING:
    from umamba_seg.train.pretrained import Source

_INTENSITIES = "foreground_intensity_properties_per_channel"
_OF_ONE_UNIT = ("CTNormalization", "RGBTo01Normalization")
_NOTABLY = 1.05  # more memory than allowed; a single channel or class more takes less
_OTHER_SCALE = 2  # ratio of spacings from which on what the source has learned may not be what the images show


def match_names(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """For each name of ``target`` the place in ``source`` of one that agrees but for its case; each is taken once."""
    free: dict[str, list[int]] = {}
    for place, name in enumerate(source):
        free.setdefault(name.casefold(), []).append(place)
    places = (free.get(name.casefold()) for name in target)
    return [found.pop(0) if found else None for found in places]


def match_channels(source: Sequence[str], target: Sequence[str]) -> list[int | None]:
    """For each channel of ``target`` the one of ``source`` that it stands for.

    That of the same name; and where both have as many channels, those left over in their order. None for a channel that
    the source does not have.
    """
    matched = match_names(source, target)
    if len(source) != len(target):
        return matched
    left = iter([place for place in range(len(source)) if place not in matched])
    return [next(left) if place is None else place for place in matched]


def channel_names(dataset_json: dict) -> list[str]:
    """The names of the input channels, by their number."""
    names = dataset_json["channel_names"]
    return [names[number] for number in sorted(names, key=int)]


def adopt_plans(source: Source, preprocessed: Path, plans_name: str, recipe: Recipe | None = None) -> dict:
    """Adapt the plan that a model was trained with, and write ``plans_name.json`` into a preprocessed folder.

    Args:
        source: The model.
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name`` of the new data set, which holds its fingerprint;
            nnU-Net's folders must have been exported.
        plans_name: File name of the plans, without ending.
        recipe: How the network is trained; what it does not give, and all without one, is as the source's plans say.

    Returns:
        The plans as written: the source's configuration alone, and in the table ``umamba_seg`` as ``pretrained`` the
        ``model``, ``dataset`` and ``configuration`` of the source.

    Raises:
        UserError: The source is 3-D and the images are flat, the recipe does not fit the source's options, or other
            plans have this name.
    """
    path = preprocessed / f"{plans_name}.json"
    if path.is_file() and read_json(path).get(PLANS_TABLE, {}).get("pretrained") != source.origin:
        raise UserError(path, f"holds plans that do not come from {source.model}", "choose another name with -p")
    with quiet():
        plans = Adopter(source, preprocessed, plans_name, recipe).plan_experiment()
    plans[PLANS_TABLE]["pretrained"] = source.origin
    write_json(path, plans)
    return plans


class Adopter(Planner):
    """A planner with nothing to search for: the network is the source's, and has one topology.

    Args:
        source, preprocessed, plans_name, recipe: See :func:`adopt_plans`.
    """

    def __init__(self, source: Source, preprocessed: Path, plans_name: str, recipe: Recipe | None):
        super().__init__(
            preprocessed.name, _network(source), _budget(source), plans_name, recipe=recipe or _recipe(source)
        )
        self._source, self._preprocessed = source, preprocessed
        self._dims = len(source.planned["patch_size"])
        extent = np.median(self.dataset_fingerprint["shapes_after_crop"], axis=0)
        self._flat = 1 in extent
        if self._flat and self._dims == 3:
            what = f"is a 3-D model, and the images of {preprocessed.name} have {times(extent)} voxels"
            raise UserError(source.model, what, "choose a 2-D model")

    def determine_transpose(self) -> tuple[list[int], list[int]]:
        """The source's; but flat images have one plane only."""
        if self._flat:
            forward, backward = super().determine_transpose()
            return [int(axis) for axis in forward], [int(axis) for axis in backward]
        return self._source.plans["transpose_forward"], self._source.plans["transpose_backward"]

    def plan_experiment(self) -> dict:
        """In the place of nnU-Net's search."""
        forward, backward = self.determine_transpose()
        spacings, shapes = (
            np.array(self.dataset_fingerprint[key], dtype=float)[:, forward]
            for key in ("spacings", "shapes_after_crop")
        )
        self._warn_of_scale(np.median(spacings, axis=0))
        plan = self._configuration(spacings, shapes)
        plans = {
            "dataset_name": self.dataset_name,
            "plans_name": self.plans_identifier,
            "original_median_spacing_after_transp": np.median(spacings, axis=0).tolist(),
            "original_median_shape_after_transp": np.rint(np.median(shapes, axis=0)).astype(int).tolist(),
            "image_reader_writer": self.determine_reader_writer().__name__,
            "transpose_forward": forward,
            "transpose_backward": backward,
            "configurations": {self._source.configuration: plan},
            "experiment_planner_used": type(self).__name__,
            "label_manager": self._source.plans["label_manager"],
            _INTENSITIES: self.dataset_fingerprint[_INTENSITIES],
        }
        shutil.copy(Path(self.raw_dataset_folder) / "dataset.json", self._preprocessed)
        self.save_plans(plans)
        return plans

    def _configuration(self, spacings: np.ndarray, shapes: np.ndarray) -> dict:
        """The source's, with what follows from the images; both arrays (cases, 3) in the order of the plan's axes."""
        planned, dims = self._source.planned, self._dims
        resampled = shapes.copy()
        resampled[:, -dims:] = np.rint(resampled[:, -dims:] * spacings[:, -dims:] / planned["spacing"])
        median = np.median(resampled, axis=0)
        plan = {key: value for key, value in planned.items() if key not in ("mirroring", "next_stage")}
        plan["median_image_size_in_voxels"] = median[-dims:].tolist()
        plan["normalization_schemes"], plan["use_mask_for_norm"] = self._normalisation()
        plan["data_identifier"] = self._shared_data_name(plan)
        plan["planning"] = self._planning(plan, float(median.prod()) * len(self.dataset))
        return plan

    def _normalisation(self) -> tuple[list[str], list[bool]]:
        """Scheme of each channel, and whether it sees the nonzero voxels only; statistics go into the fingerprint."""
        planned, known = self._source.planned, self._source.plans[_INTENSITIES]
        schemes, masks = self.determine_normalization_scheme_and_whether_mask_is_used_for_norm()
        intensities = dict(self.dataset_fingerprint[_INTENSITIES])
        matched = match_channels(self._source.channel_names, channel_names(self.dataset_json))
        for channel, place in enumerate(matched):
            if place is None:
                continue
            scheme = planned["normalization_schemes"][place]
            if scheme in _OF_ONE_UNIT and scheme != schemes[channel]:
                continue
            schemes[channel], masks[channel] = scheme, planned["use_mask_for_norm"][place]
            intensities[str(channel)] = known[str(place)]
        self.dataset_fingerprint = self.dataset_fingerprint | {_INTENSITIES: intensities}
        return schemes, masks

    def _planning(self, plan: dict, data_voxels: float) -> dict:
        """The source's reasons, with the memory and the amount of data of this data set."""
        reasons = {key: value for key, value in plan.get("planning", {}).items() if key != "measured"}
        estimated = self._memory(plan, topology_of(plan), plan["batch_size"], self.network, self.options)
        # The source may be beyond its limit already: a yardstick is a target.
        allowed = max(reasons.get("limit_bytes", math.inf), reasons.get("estimated_bytes", 0))
        if estimated > _NOTABLY * allowed:
            logger.warning(
                "%s: a training step of %d samples takes %s with %d channels and %d classes, and %s are allowed; "
                "if memory runs out, lower batch_size in the plans",
                self.dataset_name, plan["batch_size"], gib(estimated), input_channels(plan, self.dataset_json),
                self._num_classes, gib(allowed),
            )  # fmt: skip
        return reasons | {
            "estimated_bytes": estimated,
            "batch_by_data": data_voxels * self.max_dataset_covered / math.prod(plan["patch_size"]),
            "data_voxels": data_voxels,
        }

    def _warn_of_scale(self, spacing: np.ndarray) -> None:
        """Resampling is silent, and may make something of the images that neither data set looks like."""
        own, planned = spacing[-self._dims :], np.array(self._source.planned["spacing"])
        if max(*(own / planned), *(planned / own)) > _OTHER_SCALE:
            logger.warning(
                "%s: the images have %s mm (median), and are resampled to the %s mm of the source",
                self.dataset_name, times(own), times(planned),
            )  # fmt: skip


def _network(source: Source) -> NetworkSpec:
    """The network as the source's plan describes it: one of the user's own cannot be found by its name."""
    architecture = source.planned["architecture"]
    return NetworkSpec(
        name=source.plans[PLANS_TABLE]["network"],
        network=architecture["network_class_name"],
        arguments=lambda _topology: architecture["arch_kwargs"],
        dims=(len(source.planned["patch_size"]),),
        paper=f"{source.model}",
        imports=tuple(architecture["_kw_requires_import"]),
    )


def _budget(source: Source) -> Budget:
    """The source's, whose limit is the number of bytes that it came to; an official checkpoint has none."""
    table = source.plans[PLANS_TABLE]
    return Budget(
        name=table["budget"],
        meaning=table.get("budget_meaning", "the plan of an official checkpoint"),
        device_type="cpu" if table["budget"] == "cpu" else "cuda",
        limit=source.planned.get("planning", {}).get("limit_bytes", math.inf),
        training=TrainingOptions.read(table["training"], f"plans {source.plans['plans_name']}"),
    )


def _recipe(source: Source) -> Recipe | None:
    """That of the source's options, if they come from one; they hold its values already."""
    table = source.plans[PLANS_TABLE]
    name = table["training"].get("recipe")
    return Recipe(name, table["recipe_source"], training={}) if name else None
