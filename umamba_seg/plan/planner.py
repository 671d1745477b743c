"""Step 2: fingerprint + network + budget -> plans.json, by nnU-Net's planner with a search that knows the network."""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

import torch
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

import umamba_seg
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import read_json, write_json
from umamba_seg.log import quiet
from umamba_seg.networks import NetworkSpec, Topology, find
from umamba_seg.plan.architecture import describe
from umamba_seg.plan.budgets import Budget, Yardstick
from umamba_seg.plan.memory import training_memory
from umamba_seg.plan.mirroring import find_sides, mirroring_table
from umamba_seg.plan.options import TrainingOptions
from umamba_seg.plan.plans import PLANS_TABLE, input_channels, topology_of, topology_table
from umamba_seg.plan.probe import measure_plan, settle, timed
from umamba_seg.plan.recipes import Recipe
from umamba_seg.plan.safety import require_safe
from umamba_seg.plan.search import SMALLEST_BATCH, batch_within, largest_that_fits
from umamba_seg.plan.step import Measurement, Setting
from umamba_seg.plan.topology import fixed_topologies, open_topologies
from umamba_seg.text import gib, times

_PUBLISHED_FEATURES = 32  # of the first stage, in nnU-Net's plans and in the networks of fixed depth


def _nnunets_topology(configuration: dict) -> Topology:
    """What nnU-Net's search found for its own U-Net."""
    arguments = configuration["architecture"]["arch_kwargs"]
    return topology_of(
        {
            "patch_size": configuration["patch_size"],
            "topology": arguments | {"features": arguments["features_per_stage"]},
        }
    )


@functools.cache
def _peak(architecture: str, setting: Setting, device_type: str, options: TrainingOptions) -> int:
    """Bytes of a training step. Searches for several configurations and budgets come by the same patches."""
    return training_memory(json.loads(architecture), setting, device_type, options).peak


class Planner(ExperimentPlanner):
    """nnU-Net's planner with a search of our own: each network is planned for the memory that it takes.

    Spacings, normalisation, resampling and the decision for a low resolution stay nnU-Net's.

    Args:
        dataset_name: E.g. ``Dataset004_Hippocampus``; its fingerprint must exist and nnU-Net's folders be exported.
        network: The network that the plans name.
        budget: What it may cost.
        plans_name: File name of the plans, without ending.
        device: Where each configuration is tried; None plans by the estimate alone.
        recipe: How it is trained; what it does not give, and all without one, is the budget's.
        like: Plans of the data set whose patches, depths and batches are taken, whatever memory that needs.

    Raises:
        UserError: The fingerprint holds an image without extent or spacing, or the recipe does not fit the budget.
    """

    def __init__(
        self,
        dataset_name: str,
        network: NetworkSpec,
        budget: Budget,
        plans_name: str,
        device: torch.device | None = None,
        recipe: Recipe | None = None,
        like: dict | None = None,
    ):
        super().__init__(dataset_name, plans_name=plans_name)
        self.network, self.budget, self.device, self.recipe = network, budget, device, recipe
        self.like = like
        self.options = _options(network, budget, recipe)
        self.UNet_base_num_features = budget.base_features
        self.UNet_max_features_2d, self.UNet_max_features_3d = budget.max_features[2], budget.max_features[3]
        self.UNet_vram_target_GB = self.UNet_reference_val_corresp_GB  # the budget's references are scaled already
        if isinstance(limit := budget.limit, Yardstick):
            self.UNet_reference_val_2d, self.UNet_reference_val_3d = limit.reference[2], limit.reference[3]
            self.UNet_reference_val_corresp_bs_2d = limit.samples[2]
            self.UNet_reference_val_corresp_bs_3d = limit.samples[3]
        self._num_classes = Labels.from_json(self.dataset_json, Path("dataset.json")).num_classes
        # By number of dimensions. For a low resolution nnU-Net plans one spacing after another, each a bit coarser, and
        # the patch hardly changes: the next search starts there.
        self._found_voxels: dict[int, int] = {}
        self._require_sizes()

    def _require_sizes(self) -> None:
        fingerprint = self.dataset_fingerprint
        for case, spacing, shape in zip(
            self.dataset, fingerprint["spacings"], fingerprint["shapes_after_crop"], strict=False
        ):
            if not all(0 < value < math.inf for value in (*spacing, *shape)):
                raise UserError(
                    f"{self.dataset_name}, {case}",
                    f"spacing {times(spacing)} mm, {times(shape)} voxels: each must be a positive number",
                    "correct the image's header, then plan again",
                )

    def static_estimate_VRAM_usage(  # type: ignore[override]  (nnU-Net calls its static method through the instance)
        self, patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
    ) -> int:
        """nnU-Net's count of feature-map voxels where it is our yardstick; else its search is not needed and ends.

        Without memory, and without its setting of torch's threads to the augmentation workers: there may be none.
        """
        if not isinstance(self.budget.limit, Yardstick) or len(patch_size) not in self.network.dims:
            return 1
        with torch.device("meta"):
            network = get_network_from_plans(
                arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=False
            )
        return network.compute_conv_feature_map_size(patch_size)

    def get_plans_for_configuration(
        self, spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
    ) -> dict:
        plan = super().get_plans_for_configuration(
            spacing, median_shape, data_identifier, approximate_n_voxels_dataset, _cache
        )
        if len(spacing) in self.network.dims:
            alike = self.like and self._planned_alike(plan, self.like)
            plan |= alike or self.fitted(plan, self._limit(plan), approximate_n_voxels_dataset)
        plan["data_identifier"] = self._shared_data_name(plan)
        return plan

    def _limit(self, plan: dict) -> float:
        """Bytes of a training step, for a configuration as nnU-Net planned it."""
        if not isinstance(self.budget.limit, Yardstick):
            return self.budget.limit
        if len(plan["architecture"]["arch_kwargs"]["strides"]) < 2:
            self._refuse_small_images(plan)  # nnU-Net would plan a U-Net without depth
        dims, topology = len(plan["spacing"]), _nnunets_topology(plan)
        architecture = plan["architecture"]
        voxels = self.static_estimate_VRAM_usage(
            topology.patch_size,
            input_channels(plan, self.dataset_json),
            len(self.dataset_json["labels"]),
            architecture["network_class_name"],
            architecture["arch_kwargs"],
            architecture["_kw_requires_import"],
        )
        # Not rounded, so that nnU-Net's own network just gets its own batch.
        batch = self.budget.limit.samples[dims] * self.budget.limit.reference[dims] / voxels
        yardstick = find(self.budget.limit.network)
        # Trained as the budget says: what may be used does not follow from the recipe of another network.
        below, above = (
            self._memory(plan, topology, math.floor(batch) + more, yardstick, self.budget.training) for more in (0, 1)
        )
        return below + (batch - math.floor(batch)) * (above - below)

    def _memory(
        self, plan: dict, topology: Topology, batch_size: int, network: NetworkSpec, options: TrainingOptions
    ) -> int:
        setting = Setting(topology, input_channels(plan, self.dataset_json), self._num_classes, batch_size)
        architecture = json.dumps(network.architecture(network.planned(topology)))
        return _peak(architecture, setting, self.budget.device_type, options)

    def _topologies(self, plan: dict) -> list[Topology]:
        spacing, shape = ([float(value) for value in plan[key]] for key in ("spacing", "median_image_size_in_voxels"))
        levels, features = self.network.levels, self.budget.base_features
        if levels is not None:
            return list(fixed_topologies(levels, spacing, shape, features / _PUBLISHED_FEATURES))
        return list(open_topologies(spacing, shape, features, self.budget.max_features[len(spacing)]))

    def fitted(self, plan: dict, limit: float, data_voxels: float, factor: float = 1.0) -> dict:
        """The entries of a configuration that the search decides, with its reasons under ``planning``.

        Args:
            plan: With ``spacing`` and ``median_image_size_in_voxels``.
            limit: Bytes of a training step.
            data_voxels: Of the whole data set.
            factor: What a device was measured to take, over what is traced.

        Raises:
            UserError: The images are too small for the network, or the limit for any patch.
        """
        candidates = self._topologies(plan)
        if not candidates:
            self._refuse_small_images(plan)

        def memory(topology: Topology, batch_size: int) -> int:
            return round(factor * self._memory(plan, topology, batch_size, self.network, self.options))

        dims = len(plan["spacing"])
        topology, tried = largest_that_fits(candidates, memory, limit, self._found_voxels.get(dims))
        if topology is None:
            self._refuse_budget(candidates[-1], memory(candidates[-1], SMALLEST_BATCH), limit)
        self._found_voxels[dims] = math.prod(topology.patch_size)
        by_memory = batch_within(topology, memory, limit)
        by_data = data_voxels * self.max_dataset_covered / math.prod(topology.patch_size)
        rounded = round(by_memory) if isinstance(self.budget.limit, Yardstick) else int(by_memory)
        batch_size = max(SMALLEST_BATCH, min(rounded, round(by_data)))
        return {
            "patch_size": list(topology.patch_size),
            "batch_size": batch_size,
            "topology": topology_table(topology),
            "planning": {
                "limit_bytes": round(limit),
                "estimated_bytes": memory(topology, batch_size),
                "batch_by_memory": by_memory,
                "batch_by_data": by_data,
                "data_voxels": data_voxels,
                "fixed_depth": self.network.levels is not None,
                "largest_patch": list(candidates[0].patch_size),
                "tried": [{"patch_size": list(trial.topology.patch_size), "bytes": trial.bytes} for trial in tried],
            },
        }

    def _planned_alike(self, plan: dict, like: dict) -> dict | None:
        """The same entries as in the configuration of other plans that has the spacing; None where they have none."""
        spacing = [float(step) for step in plan["spacing"]]
        found = [other for other in like["configurations"].values() if other.get("spacing") == spacing]
        if not found:
            return None
        topology, batch_size = topology_of(found[0]), found[0]["batch_size"]
        levels = self.network.levels
        if (
            levels is not None
            and levels.topology(topology.patch_size, topology.features[0] / levels.features[0]) != topology
        ):
            what = f"{self.network.name} has levels of its own, which plans {like['plans_name']} do not have"
            raise UserError("--like", what, "plan it by its budget alone")
        estimated = self._memory(plan, topology, batch_size, self.network, self.options)
        planning = {"estimated_bytes": estimated, "limit_bytes": found[0]["planning"]["limit_bytes"]}
        return {
            "patch_size": list(topology.patch_size),
            "batch_size": batch_size,
            "topology": topology_table(topology),
            "planning": planning | {"fixed_depth": levels is not None, "like": like["plans_name"]},
        }

    def _refuse_small_images(self, plan: dict) -> NoReturn:
        raise UserError(
            self.dataset_name,
            f"the images are too small: {times(plan['median_image_size_in_voxels'])} voxels (median) give fewer "
            "than the three stages that deep supervision needs",
            "use larger images",
        )

    def _refuse_budget(self, smallest: Topology, needed: int, limit: float) -> NoReturn:
        raise UserError(
            f"budget {self.budget.name}",
            f"{self.network.name} takes {gib(needed)} for {SMALLEST_BATCH} samples of its smallest patch, "
            f"{times(smallest.patch_size)} voxels, and may take {gib(limit)}",
            "give more with --vram-gb, or choose another network",
        )

    def _shared_data_name(self, plan: dict) -> str:
        """Preprocessed data is named after what shapes it, so that networks and budgets share it."""
        keys = ("spacing", "normalization_schemes", "use_mask_for_norm", "preprocessor_name")
        shaping = {key: plan[key] for key in keys}
        shaping |= {key: value for key, value in plan.items() if key.startswith("resampling_fn_")}
        shaping["transpose_forward"] = self.determine_transpose()[0]
        shaping["intensities"] = self.dataset_fingerprint["foreground_intensity_properties_per_channel"]
        shaping["labels"] = self.dataset_json["labels"]
        recursive_fix_for_json_export(shaping)
        digest = hashlib.sha256(json.dumps(shaping, sort_keys=True).encode()).hexdigest()[:8]
        spacing = "x".join(f"{step:.3g}" for step in plan["spacing"])
        schemes = "-".join(dict.fromkeys(name.removesuffix("Normalization") for name in plan["normalization_schemes"]))
        return f"{spacing}mm_{schemes}_{digest}"

    def save_plans(self, plans: dict) -> None:
        """Write the plans, with our network in the configurations whose dimensions it has, and our table."""
        plans["configurations"] = self._configurations_of_network(plans["configurations"])
        self._decide_mirroring(plans)
        plans[PLANS_TABLE] = {
            "network": self.network.name,
            "budget": self.budget.name,
            "budget_meaning": self.budget.meaning,
            "training": self.options.model_dump(),
            "recipe_source": self.recipe and self.recipe.source,
            "versions": {"umamba_seg": umamba_seg.__version__, "nnunetv2": version("nnunetv2")},
        }
        self._forget_old_plans()
        super().save_plans(plans)

    def _decide_mirroring(self, plans: dict) -> None:
        """After the search, as the patch decides in which plane training turns it."""
        files = [Path(case["label"]) for case in self.dataset.values()]
        sides = find_sides(self.dataset_json, files, Path(self.raw_dataset_folder) / "dataset.json")
        for configuration in plans["configurations"].values():
            if "patch_size" in configuration:
                configuration["mirroring"] = mirroring_table(
                    sides, plans["transpose_forward"], configuration["patch_size"]
                )

    def _forget_old_plans(self) -> None:
        """nnU-Net keeps configurations of the file that the new plans do not have: only those added by hand should."""
        path = Path(nnUNet_preprocessed) / self.dataset_name / f"{self.plans_identifier}.json"
        if path.is_file():
            plans = read_json(path)
            found = plans["configurations"]
            plans["configurations"] = {name: plan for name, plan in found.items() if not _is_searched(plan)}
            write_json(path, plans)

    def _configurations_of_network(self, configurations: dict) -> dict:
        kept = {}
        for name, plan in configurations.items():
            if "inherits_from" in plan:  # nnU-Net's second stage of a cascade
                if plan["inherits_from"] in kept:
                    kept[name] = self._settled(name, functools.partial(self._second_stage, kept, plan))
            elif len(plan["patch_size"]) in self.network.dims:
                kept[name] = self._settled(name, functools.partial(self._described, plan))
        if not kept:
            self.network.require_dims(len(configurations["2d"]["patch_size"]))
        return kept

    def _described(self, plan: dict, factor: float = 1.0) -> dict:
        """A configuration that was searched for, with its network; searched again where the estimates are off."""
        if factor != 1:
            reasons = plan["planning"]
            plan = plan | self.fitted(plan, reasons["limit_bytes"], reasons["data_voxels"], factor)
        return plan | describe(self.network, topology_of(plan))

    def _second_stage(self, configurations: dict, second: dict, factor: float) -> dict:
        """A whole configuration like that which ``second`` inherits from, which also sees the previous stage's result.

        Patch and batch stay, as in nnU-Net, unless the budget is a limit in bytes that the wider input does not keep.
        """
        origin = second["inherits_from"]
        plan = configurations[origin] | {"previous_stage": second["previous_stage"]}
        reasons = {key: value for key, value in plan["planning"].items() if key != "measured"}
        estimated = self._memory(plan, topology_of(plan), plan["batch_size"], self.network, self.options)
        reasons["estimated_bytes"] = round(factor * estimated)
        is_target = self.like is not None or isinstance(self.budget.limit, Yardstick)
        if is_target or reasons["estimated_bytes"] <= reasons["limit_bytes"]:
            return plan | {"planning": reasons | {"as_in": origin}}
        fitted = self.fitted(plan, reasons["limit_bytes"], reasons["data_voxels"], factor)
        return self._described(plan | fitted)

    def _settled(self, name: str, planned: Callable[[float], dict]) -> dict:
        """The configuration that keeps its promise on the device; on a CPU, where memory is no limit, only measured.

        Args:
            name: Of the configuration.
            planned: It by the factor on its estimates.
        """
        if self.device is None:
            return planned(1.0)
        device = self.device

        def measured(plan: dict) -> Measurement | None:
            channels = input_channels(plan, self.dataset_json)
            return measure_plan(plan, channels, self._num_classes, self.options, device)

        where = f"plans {self.plans_identifier}, {name}"
        if device.type == "cuda":
            return settle(planned, measured, where)
        return timed(planned(1.0), measured, where)


def _options(network: NetworkSpec, budget: Budget, recipe: Recipe | None) -> TrainingOptions:
    """A recipe's learning rate is what was asked for; the budget's gives way to one that suits the network."""
    options = budget.training
    if recipe is not None:
        return recipe.applied(options)
    return options.overridden(initial_lr=network.learning_rates.get(options.optimizer))


def _is_searched(configuration: dict) -> bool:
    return "planning" in configuration or "inherits_from" in configuration


def _refuse_other_network(dataset_name: str, network: NetworkSpec, plans_name: str) -> None:
    """nnU-Net keeps configurations that only the old plans have, and models are found by the plans' name."""
    path = Path(nnUNet_preprocessed) / dataset_name / f"{plans_name}.json"
    if not path.is_file():
        return
    plans = read_json(path)
    require_safe(plans, path)
    there = plans.get(PLANS_TABLE, {}).get("network")
    if there not in (None, network.name):
        raise UserError(path, f"holds plans for {there}", "choose another name with -p")


def plan_dataset(
    dataset_name: str,
    network: NetworkSpec,
    budget: Budget,
    plans_name: str,
    device: torch.device | None = None,
    recipe: Recipe | None = None,
    like: dict | None = None,
) -> dict:
    """Plan every configuration of a data set and write ``plans_name.json`` into its preprocessed folder.

    Args:
        dataset_name, network, budget, plans_name, device, recipe, like: See :class:`Planner`.

    Returns:
        The plans as written.

    Raises:
        UserError: The network has none of the data set's dimensions, plans of this name are there for another one, or
            the recipe does not fit the budget.
    """
    _refuse_other_network(dataset_name, network, plans_name)
    with quiet():
        return Planner(dataset_name, network, budget, plans_name, device, recipe, like).plan_experiment()
