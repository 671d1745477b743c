"""Each seam of nnU-Net that the project leans on. When one of these fails, nnU-Net has changed, not we."""

import inspect
import json

import pytest
from nnunetv2.evaluation.evaluate_predictions import (
    compute_tp_fp_fn_tn,
    region_or_label_to_mask,
)
from nnunetv2.experiment_planning.experiment_planners.default_experiment_planner import ExperimentPlanner
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from nnunetv2.imageio.tif_reader_writer import Tiff3DIO
from nnunetv2.inference.export_prediction import export_prediction_from_logits
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from nnunetv2.utilities.crossval_split import generate_crossval_split
from nnunetv2.utilities.find_objects import recursive_find_trainer_class_by_name
from nnunetv2.utilities.get_network_from_plans import get_network_from_plans
from nnunetv2.utilities.label_handling.label_handling import determine_num_input_channels
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

from umamba_seg.datasets.splits import make_splits
from umamba_seg.networks import Topology, find
from umamba_seg.plan.plans import input_channels


def parameters(function) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name != "self"]


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (nnUNetTrainer.__init__, "plans configuration fold dataset_json device"),
        (
            export_prediction_from_logits,
            "predicted_array_or_file properties_dict configuration_manager plans_manager dataset_json_dict_or_file "
            "output_file_truncated save_probabilities num_threads_torch",
        ),
        (
            nnUNetPredictor.manual_initialization,
            "network plans_manager configuration_manager parameters dataset_json trainer_name "
            "inference_allowed_mirroring_axes",
        ),
        (PolyLRScheduler.step, "current_step"),
        (nnUNetDatasetBlosc2.save_seg, "seg output_filename_truncated chunks_seg blocks_seg"),
        (SimpleITKIO.write_seg, "seg output_fname properties"),
        (NibabelIOWithReorient.write_seg, "seg output_fname properties"),
        (Tiff3DIO.write_seg, "seg output_fname properties"),
        (NaturalImage2DIO.write_seg, "seg output_fname properties"),
        (compute_tp_fp_fn_tn, "mask_ref mask_pred ignore_mask"),
        (region_or_label_to_mask, "segmentation region_or_label"),
        (
            remove_all_but_largest_component_from_segmentation,
            "segmentation labels_or_regions background_label",
        ),
    ],
)
def test_signatures(function, expected):
    assert parameters(function) == expected.split()


def test_hooks_of_the_training_loop():
    hooks = "on_train_start on_epoch_start on_train_epoch_start train_step on_train_epoch_end on_validation_epoch_start"
    hooks += " validation_step on_validation_epoch_end on_epoch_end on_train_end perform_actual_validation do_split"
    assert all(callable(getattr(nnUNetTrainer, hook)) for hook in hooks.split())


def test_targets_of_the_planner_are_attributes():
    source = inspect.getsource(ExperimentPlanner.get_plans_for_configuration)
    for name in ("UNet_base_num_features", "UNet_max_features_3d", "UNet_reference_val_3d", "UNet_vram_target_GB"):
        assert f"self.{name}" in source
    assert "self.UNet_reference_val_corresp_bs_3d" in source


def test_predictor_finds_the_trainer_that_our_checkpoints_name():
    assert recursive_find_trainer_class_by_name("nnUNetTrainer") is nnUNetTrainer


def test_networks_are_built_from_the_plans_alone():
    spec = find("umamba_bot")
    topology = Topology((16, 16), ((1, 1), (2, 2)), ((3, 3), (3, 3)), (4, 8))
    arguments = json.loads(json.dumps(spec.arguments(topology)))
    network = get_network_from_plans(spec.network, arguments, [], 1, 2, allow_init=True, deep_supervision=True)
    assert network.decoder.deep_supervision


def test_our_default_split_is_nnunets():
    cases = [f"case_{i:02d}" for i in range(23)]
    assert make_splits(cases) == [
        {key: list(value) for key, value in split.items()} for split in generate_crossval_split(cases)
    ]


@pytest.mark.parametrize(
    "labels",
    [
        {"background": 0, "liver": 1, "tumour": 2},
        {"background": 0, "liver": 1, "tumour": 2, "ignore": 3},
        {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3},
    ],
    ids=["labels", "ignore", "regions"],
)
def test_a_second_stage_sees_each_foreground_label_of_the_first(labels):
    dataset_json = {"channel_names": {"0": "CT", "1": "PET"}, "labels": labels, "regions_class_order": [1, 2, 3]}
    for configuration, foreground in (({}, 0), ({"previous_stage": "3d_lowres"}, 3 if "whole" in labels else 2)):
        manager = PlansManager(
            {"label_manager": "LabelManager", "configurations": {"c": configuration | {"architecture": {}}}}
        )
        assert input_channels(configuration, dataset_json) == 2 + foreground
        assert determine_num_input_channels(manager, "c", dataset_json) == 2 + foreground


def test_the_stages_of_a_cascade_meet_where_nnunet_looks():
    where = inspect.getsource(nnUNetTrainer.__init__)
    assert "'predicted_next_stage', self.configuration_name" in where
    assert "self.configuration_manager.previous_stage_name" in where
    left = inspect.getsource(nnUNetTrainer.perform_actual_validation)
    assert "join(self.output_folder_base, 'predicted_next_stage', n)" in left
    assert "next_stages = self.configuration_manager.next_stage_names" in left
