"""The predictor in memory: equal to nnU-Net's where it does the same, and what it does beyond."""

import errno
import json

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from umamba_seg.errors import UserError
from umamba_seg.predict.predictor import Predictor

REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "inner": 3}
SIDES = {"background": 0, "kidney_left": 1, "spine": 2, "kidney_right": 3}
SWAP = {"axes": [0, 1, 2], "swap": {"axis": 2, "pairs": [[1, 3]]}, "reason": "a test"}


@pytest.fixture
def image(trained):
    """A test image of the data set, as a file."""
    return sorted((trained.raw / "imagesTs").glob("*.nii.gz"))[0]


pytestmark = pytest.mark.usefixtures("single_precision")


def nnunets(model, image, *, folds=(0,), mirroring=False, previous=None):
    """Segmentation and probabilities by nnU-Net itself."""
    theirs = nnUNetPredictor(use_mirroring=mirroring, device=torch.device("cpu"), allow_tqdm=False)
    theirs.initialize_from_trained_model_folder(str(model), folds, "checkpoint_final.pth")
    array, properties = theirs.plans_manager.image_reader_writer_class().read_images([str(image)])
    return theirs.predict_single_npy_array(array, properties, previous, save_or_return_probabilities=True)


@pytest.mark.parametrize(
    ("labels", "order", "folds", "mirroring"),
    [(None, None, 1, True), (None, None, 2, False), (REGIONS, [1, 2, 3], 1, False)],
)
def test_it_is_nnunets_prediction(make_model, image, labels, order, folds, mirroring):
    model = make_model(labels, order=order, folds=folds)
    wanted, chances = nnunets(model, image, folds=tuple(range(folds)), mirroring=mirroring)
    predictor = Predictor.load(model, None, "cpu", mirroring=mirroring)
    found = predictor.predict([image], probabilities=True)
    assert (found.segmentation == wanted).mean() > 0.99999
    np.testing.assert_allclose(found.probabilities.astype(np.float32), chances, atol=2e-3)
    assert (predictor.predict([image]).segmentation == found.segmentation).all()


def test_slices_of_a_2d_plan(make_model, image):
    """Where the resampled image is not of the original size, and slices lie apart."""
    arguments = {
        "n_stages": 2, "features_per_stage": [4, 8], "kernel_sizes": [[3, 3], [3, 3]], "strides": [[1, 1], [2, 2]],
        "n_conv_per_stage": [1, 1], "n_conv_per_stage_decoder": [1], "conv_bias": True,
        "conv_op": "torch.nn.modules.conv.Conv2d", "norm_op": "torch.nn.modules.instancenorm.InstanceNorm2d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True}, "dropout_op": None, "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU", "nonlin_kwargs": {"inplace": True},
    }  # fmt: skip
    plan = {
        "network_class_name": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
        "arch_kwargs": arguments,
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }
    model = make_model(architecture=plan, patch_size=[16, 16], spacing=[2.0, 1.7], output_strides=[[1, 1]],
                       mirroring={"axes": [0, 1], "swap": None, "reason": "a test"})  # fmt: skip
    wanted, _ = nnunets(model, image)
    found = Predictor.load(model, None, "cpu", mirroring=False).predict([image])
    assert found.segmentation.shape == wanted.shape
    assert (found.segmentation == wanted).mean() > 0.9999


def test_a_mirrored_patient_gets_mirrored_labels(make_model):
    """Left and right change places; without the exchange they would not."""
    predictor = Predictor.load(make_model(SIDES, mirroring=SWAP), None, "cpu")
    assert [flip.exchange.classes for flip in predictor.flips if flip.exchange] == [(0, 3, 2, 1)] * 4
    plan = predictor.plans["configurations"]["3d_fullres"]  # one tile, without padding: nothing else is symmetric
    array = np.random.default_rng(0).uniform(1, 2, (1, *plan["patch_size"])).astype(np.float32)
    case = {"spacing": plan["spacing"], "probabilities": True}
    straight, mirrored = (predictor.predict(x, **case).probabilities for x in (array, array[..., ::-1].copy()))
    turned = mirrored[[0, 3, 2, 1]][..., ::-1]
    np.testing.assert_allclose(straight.astype(np.float32), turned.astype(np.float32), atol=2e-3)
    assert np.abs(straight.astype(np.float32) - mirrored[..., ::-1].astype(np.float32)).max() > 0.01


def test_labels_that_change_places_are_named(make_model, caplog):
    model = make_model(SIDES, mirroring={"axes": [0, 1], "swap": None, "reason": "a test"})
    caplog.set_level("INFO")
    predictor = Predictor.load(model, None, "cpu", swap_labels=[("kidney_left", "kidney_right")])
    assert "these labels change places: kidney_left and kidney_right" in caplog.text
    assert len(predictor.flips) == 8
    assert len(Predictor.load(model, None, "cpu").flips) == 4


def test_sure_and_unsure(make_model, image):
    predictor = Predictor.load(make_model(folds=3), None, "cpu", mirroring=False)
    found = predictor.predict([image], uncertainty=True, probabilities=True)
    single = [Predictor.load(predictor.model_folder, [fold], "cpu", mirroring=False) for fold in "012"]
    alone = [one.predict([image], probabilities=True) for one in single]
    chances = np.mean([one.probabilities.astype(np.float32) for one in alone], 0)
    entropy = -(chances * np.log(chances + 1e-12)).sum(0) / np.log(len(chances))
    np.testing.assert_allclose(found.entropy, entropy, atol=5e-3)
    assert np.abs(found.probabilities - chances).max() > 5e-3  # those of the mean logits
    others = [one.segmentation != found.segmentation for one in alone]
    assert found.disagreement.max() > 0
    assert np.mean(np.abs(np.mean(others, 0) - found.disagreement) < 1e-3) > 0.999
    assert single[0].predict([image], uncertainty=True).disagreement is None


def test_second_stage_of_a_cascade(make_model, image, tmp_path):
    model = make_model(previous_stage="3d_lowres")
    predictor = Predictor.load(model, None, "cpu", mirroring=False)
    read = sitk.ReadImage(str(image))
    stage = np.random.default_rng(0).integers(0, 3, sitk.GetArrayFromImage(read).shape).astype(np.uint8)
    wanted, _ = nnunets(model, image, previous=stage[None].astype(np.int16))
    assert (predictor.predict([image], previous=stage).segmentation == wanted).mean() > 0.9999
    written = sitk.GetImageFromArray(stage)
    written.CopyInformation(read)
    sitk.WriteImage(written, str(tmp_path / "stage.nii.gz"))
    case = predictor.prepare([image], previous=tmp_path / "stage.nii.gz")
    assert len(case.data) == 1 + len(predictor.labels.values) - 1
    with pytest.raises(UserError, match=r"^image: the model is the second stage .*; predict with 3d_lowres first"):
        predictor.prepare([image])
    with pytest.raises(UserError, match="has shape 2×3×4, its image 14×31×35; give the segmentation of this image"):
        predictor.prepare([image], previous=np.zeros((2, 3, 4), np.uint8))
    with pytest.raises(UserError, match=r"holds the values \[77\], which are no labels of the model"):
        predictor.prepare([image], previous=np.full_like(stage, 77))
    with pytest.raises(UserError, match="takes no segmentation of a stage before it; leave it out"):
        Predictor.load(make_model(name="first"), None, "cpu").prepare([image], previous=stage)


def test_an_image_in_memory_is_segmented_as_its_file(trained, image):
    predictor = Predictor.load(trained.model, None, "cpu")
    array = sitk.GetArrayFromImage(sitk.ReadImage(str(image)))
    from_file = predictor.predict([image])
    in_memory = predictor.predict(array[None], spacing=from_file.properties["spacing"])
    assert (in_memory.segmentation == from_file.segmentation).all()
    assert from_file.segmentation.shape == array.shape
    assert from_file.segmentation.dtype == np.uint8


@pytest.mark.parametrize(
    ("change", "spacing", "message"),
    [
        (lambda x: x[0], (1, 1, 1), r"scan: has the shape 14×31×35; give \(channels, z, y, x\) .* with 1 channels"),
        (lambda x: np.concatenate([x, x]), (1, 1, 1), "scan: has the shape 2×14×31×35"),
        (lambda x: x, None, "scan: has the spacing None; give 3 lengths in mm, those of its axes"),
        (lambda x: x, (1, 1, 0), r"scan: has the spacing \(1, 1, 0\)"),
        (lambda x: x * np.nan, (1, 1, 1), "scan: holds NaN or infinity"),
        (lambda x: x * 0, (1, 1, 1), "scan: every voxel is 0"),
        (
            lambda x: x[:, :1],
            (0.1, 1, 1),
            "scan: has 1×31×35 voxels of 0.1×1×1 mm: less than half a voxel of the model",
        ),
    ],
)
def test_arrays_that_are_no_images(trained, image, change, spacing, message):
    predictor = Predictor.load(trained.model, None, "cpu")
    array = change(sitk.GetArrayFromImage(sitk.ReadImage(str(image)))[None].astype(np.float32))
    with pytest.raises(UserError, match=message):
        predictor.predict(array, name="scan", spacing=spacing)


def test_too_little_memory_is_said_before_it_runs_out(make_model, image):
    predictor = Predictor.load(make_model(), None, "cpu", ram_gb=0.1)
    with pytest.raises(
        UserError, match=r"ct: needs .* GB of memory for \d+ classes .*allow more with --ram-gb, or take"
    ):
        predictor.predict([image], name="ct")


def test_a_network_that_overflows_is_named(make_model, image):
    predictor = Predictor.load(make_model(), None, "cpu", mirroring=False)
    with torch.no_grad():
        next(predictor.networks[0].parameters()).fill_(float("inf"))
    with pytest.raises(UserError, match="ct: the network's output is NaN or infinite in float32; look at"):
        predictor.predict([image], name="ct")


def test_what_overflows_in_half_precision_is_computed_again(make_model, image, caplog):
    """bfloat16 on a CPU stands for a GPU's half precision; a hook makes its output infinite."""
    from umamba_seg.plan.precision import Precision

    predictor = Predictor.load(make_model(), None, "cpu", mirroring=False)
    expected = predictor.predict([image]).segmentation
    predictor._precision = Precision(torch.bfloat16)

    def overflow(_module, _inputs, output):
        return output * float("inf") if torch.is_autocast_enabled("cpu") else output

    predictor.networks[0].register_forward_hook(overflow)
    assert (predictor.predict([image], name="ct").segmentation == expected).all()
    assert "tiles overflowed in bfloat16 and were computed in float32" in caplog.text


def test_the_hash_names_the_model(make_model):
    model = make_model(folds=2)
    both, one = Predictor.load(model, None, "cpu"), Predictor.load(model, ["1"], "cpu")
    assert both.folds == ["0", "1"]
    assert both.model_hash == Predictor.load(model, ["0", "1"], "cpu").model_hash != one.model_hash
    plans = json.loads((model / "plans.json").read_text())
    plans["configurations"]["3d_fullres"]["batch_size"] += 1
    (model / "plans.json").write_text(json.dumps(plans))
    assert Predictor.load(model, ["1"], "cpu").model_hash != one.model_hash


def test_a_full_disk_is_an_error_and_not_the_end_of_the_process(make_model, image, tmp_path, monkeypatch):
    """A page of a mapped file that finds no room would raise a signal; here the disk refuses beforehand."""
    asked = []

    def refuse(_file, _start, size):
        asked.append(size)
        raise OSError(errno.ENOSPC, "No space left on device")

    predictor = Predictor.load(make_model(), None, "cpu", mirroring=False)
    whole = predictor.predict([image], probabilities=True).probabilities
    monkeypatch.setattr("os.posix_fallocate", refuse)
    with pytest.raises(OSError, match="No space left"):
        predictor.segment(predictor.prepare([image]), probabilities=True, scratch=tmp_path)
    assert asked == [whole.nbytes]
