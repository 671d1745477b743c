"""Step 2: fingerprint + network + budget -> plans.json, by nnU-Net's search with our network in its result."""

from __future__ import annotations

import hashlib
import json
import math
from importlib.metadata import version
from pathlib import Path

from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.paths import nnUNet_preprocessed
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.json_export import recursive_fix_for_json_export

import umamba_seg
from umamba_seg.errors import UserError
from umamba_seg.files import read_json
from umamba_seg.log import quiet
from umamba_seg.networks import NetworkSpec, Topology
from umamba_seg.plan.architecture import describe
from umamba_seg.plan.budgets import Budget
from umamba_seg.plan.plans import PLANS_TABLE, topology_of, topology_table
from umamba_seg.text import times

_PUBLISHED_FEATURES = 32  # of the first stage, in nnU-Net's plans and in the networks of fixed depth


def _topology(configuration: dict) -> Topology:
    """What nnU-Net's search found for its own U-Net."""
    arguments = configuration["architecture"]["arch_kwargs"]
    return topology_of(
        {
            "patch_size": configuration["patch_size"],
            "topology": arguments | {"features": arguments["features_per_stage"]},
        }
    )


class Planner(ExperimentPlanner):
    """nnU-Net's planner: its search stays; the network, the budget and the name of the shared data are ours.

    Args:
        dataset_name: E.g. ``Dataset004_Hippocampus``; its fingerprint must exist and nnU-Net's folders be exported.
        network: The network that the plans name. One of fixed depth gets nnU-Net's patch, brought to the nearest extent
            that it divides, and a batch of as many voxels.
        budget: What it may cost.
        plans_name: File name of the plans, without ending.
    """

    def __init__(self, dataset_name: str, network: NetworkSpec, budget: Budget, plans_name: str):
        super().__init__(dataset_name, plans_name=plans_name)
        self.network, self.budget = network, budget
        self.UNet_base_num_features = budget.base_features
        self.UNet_max_features_2d, self.UNet_max_features_3d = budget.max_features[2], budget.max_features[3]
        self.UNet_reference_val_2d, self.UNet_reference_val_3d = budget.reference[2], budget.reference[3]
        self.UNet_reference_val_corresp_bs_2d = budget.reference_batch[2]
        self.UNet_reference_val_corresp_bs_3d = budget.reference_batch[3]
        self.UNet_vram_target_GB = self.UNet_reference_val_corresp_GB  # the budget's references are scaled already

    @staticmethod
    def static_estimate_VRAM_usage(
        patch_size, input_channels, output_channels, arch_class_name, arch_kwargs, arch_kwargs_req_import
    ) -> int:
        """nnU-Net's count of feature-map voxels, without its setting of torch's threads to the augmentation workers:
        there may be none."""
        network = get_network_from_plans(
            arch_class_name, arch_kwargs, arch_kwargs_req_import, input_channels, output_channels, allow_init=False
        )
        return network.compute_conv_feature_map_size(patch_size)

    def get_plans_for_configuration(self, *args, **kwargs) -> dict:
        plan = super().get_plans_for_configuration(*args, **kwargs)
        found = _topology(plan)
        if self.network.levels is None:
            topology = found
            self._require_three_stages(plan)
        else:
            topology = self.network.levels.topology(found.patch_size, self.budget.base_features / _PUBLISHED_FEATURES)
            growth = math.prod(topology.patch_size) / math.prod(found.patch_size)
            plan["batch_size"] = max(self.UNet_min_batch_size, int(plan["batch_size"] / growth))
        plan["patch_size"] = list(topology.patch_size)
        plan["topology"] = topology_table(topology)
        plan["data_identifier"] = self._shared_data_name(plan)
        return plan

    def _require_three_stages(self, plan: dict) -> None:
        if len(plan["architecture"]["arch_kwargs"]["strides"]) < 3:
            raise UserError(
                self.dataset_name,
                f"the images are too small: {times(plan['median_image_size_in_voxels'])} voxels (median) give fewer "
                "than the three stages that nnU-Net's deep supervision needs",
                "use larger images",
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
        plans[PLANS_TABLE] = {
            "network": self.network.name,
            "budget": self.budget.name,
            "training": self._training(),
            "versions": {"umamba_seg": umamba_seg.__version__, "nnunetv2": version("nnunetv2")},
        }
        super().save_plans(plans)

    def _training(self) -> dict:
        options = self.budget.training
        rate = self.network.learning_rates.get(options.optimizer, options.initial_lr)
        return options.overridden(initial_lr=rate).model_dump()

    def _configurations_of_network(self, configurations: dict) -> dict:
        kept = {}
        for name, plan in configurations.items():
            if "inherits_from" in plan:
                if plan["inherits_from"] in kept:
                    kept[name] = plan
            elif len(plan["patch_size"]) in self.network.dims:
                kept[name] = plan | describe(self.network, topology_of(plan))
        if not kept:
            self.network.require_dims(len(configurations["2d"]["patch_size"]))
        return kept


def _refuse_other_network(dataset_name: str, network: NetworkSpec, plans_name: str) -> None:
    """nnU-Net keeps configurations that only the old plans have, and models are found by the plans' name."""
    path = Path(nnUNet_preprocessed) / dataset_name / f"{plans_name}.json"
    there = read_json(path).get(PLANS_TABLE, {}).get("network") if path.is_file() else None
    if there not in (None, network.name):
        raise UserError(path, f"holds plans for {there}", "choose another name with -p")


def plan_dataset(dataset_name: str, network: NetworkSpec, budget: Budget, plans_name: str) -> dict:
    """Plan every configuration of a data set and write ``plans_name.json`` into its preprocessed folder.

    Returns:
        The plans as written.

    Raises:
        UserError: The network has none of the data set's dimensions, or plans of this name are there for another one.
    """
    _refuse_other_network(dataset_name, network, plans_name)
    with quiet():
        return Planner(dataset_name, network, budget, plans_name).plan_experiment()
