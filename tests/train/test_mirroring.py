"""Flips that exchange labels, and their place in nnU-Net's transforms."""

import pickle

import pytest
import torch
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from umamba_seg.train.mirroring import SwapMirror, inference_axes, with_swaps

IGNORE = 6
# Left kidney 1, right kidney 4, left lung 5, right lung 2, spleen 3.
SWAP = {"axis": 1, "pairs": [[1, 4], [5, 2]]}
IMAGE = torch.arange(10.0).reshape(1, 2, 5)
LABELS = torch.tensor([[[1, 0, 3, 0, 4], [5, -1, IGNORE, 2, 2]]], dtype=torch.int16)
BY_HAND = {  # flipped axes -> image and labels
    (): (IMAGE.tolist(), LABELS.tolist()),
    (0,): ([[[5, 6, 7, 8, 9], [0, 1, 2, 3, 4]]], [[[5, -1, IGNORE, 2, 2], [1, 0, 3, 0, 4]]]),
    (1,): ([[[4, 3, 2, 1, 0], [9, 8, 7, 6, 5]]], [[[1, 0, 3, 0, 4], [5, 5, IGNORE, -1, 2]]]),
    (0, 1): ([[[9, 8, 7, 6, 5], [4, 3, 2, 1, 0]]], [[[5, 5, IGNORE, -1, 2], [1, 0, 3, 0, 4]]]),
}


def test_what_a_flip_makes_of_image_and_labels():
    mirror, seen = SwapMirror((0, 1), SWAP["axis"], SWAP["pairs"]), set()
    for seed in range(20):
        torch.manual_seed(seed)
        axes = tuple(MirrorTransform((0, 1)).get_parameters()["axes"])  # the same draws as the stock one
        torch.manual_seed(seed)
        sample = mirror(image=IMAGE.clone(), segmentation=LABELS.clone())
        assert (sample["image"].tolist(), sample["segmentation"].tolist()) == BY_HAND[axes]
        assert sample["segmentation"].dtype == LABELS.dtype
        seen.add(axes)
    assert seen == set(BY_HAND)


@pytest.mark.parametrize("content", [-1, 0, 1, 4, IGNORE])
def test_a_patch_may_hold_one_value_alone(content):
    mirror = SwapMirror((0, 1), SWAP["axis"], SWAP["pairs"])
    found = mirror._apply_to_segmentation(torch.full((1, 3, 3), content, dtype=torch.int16), axes=[1])
    assert found.unique().tolist() == [{1: 4, 4: 1}.get(content, content)]


def test_the_stage_before_of_a_cascade_is_exchanged_as_well():
    mirror = SwapMirror((0, 1), SWAP["axis"], SWAP["pairs"])
    both = torch.tensor([[[1, 0]], [[4, 1]]], dtype=torch.int16)
    assert mirror._apply_to_segmentation(both, axes=[1]).tolist() == [[[0, 4]], [[4, 1]]]


def training_transforms(slicewise: bool, **more):
    patch = (4, 16, 16) if slicewise else (16, 16, 16)
    axes = None if slicewise else [[1, 1, 1]]
    return nnUNetTrainer.get_training_transforms(patch, (-0.1, 0.1), axes, (0, 1, 2), slicewise, [False], **more)


@pytest.mark.parametrize("slicewise", [False, True])
def test_only_the_mirroring_of_nnunets_transforms_is_replaced(slicewise):
    stock = training_transforms(slicewise)
    ours = with_swaps(stock, {"axis": 2, "pairs": [[1, 2]]})
    changed = [(old, new) for old, new in zip(stock.transforms, ours.transforms, strict=True) if old is not new]
    ((old, new),) = changed
    assert (type(old), type(new)) == (MirrorTransform, SwapMirror)
    assert (new.allowed_axes, new.swap_axis) == ((0, 1, 2), 2)


@pytest.mark.parametrize("slicewise", [False, True])
def test_a_side_keeps_its_name_through_all_of_nnunets_augmentation(slicewise):
    """The left half of a patch is 1 and the right half is 2, however it was flipped; only turned by six degrees."""
    depth = 4 if slicewise else 16
    labels = torch.ones((1, depth, 16, 16), dtype=torch.int16)
    labels[..., 8:] = 2
    transforms = with_swaps(training_transforms(slicewise), {"axis": 2, "pairs": [[1, 2]]})
    for seed in range(8):
        torch.manual_seed(seed)
        sample = transforms(image=torch.zeros((1, depth, 16, 16)), segmentation=labels.clone())["segmentation"]
        found = sample if slicewise else sample[0]
        assert set(found[..., :5].unique().tolist()) <= {0, 1}
        assert set(found[..., 11:].unique().tolist()) <= {0, 2}


def test_regions_are_made_from_exchanged_values():
    transforms = with_swaps(training_transforms(True, regions=[(1, 3), (2, 4)]), {"axis": 2, "pairs": [[1, 2], [3, 4]]})
    labels = torch.ones((1, 4, 16, 16), dtype=torch.int16)
    labels[..., 8:] = 4
    for seed in range(8):
        torch.manual_seed(seed)
        left, right = transforms(image=torch.zeros((1, 4, 16, 16)), segmentation=labels.clone())["segmentation"]
        assert left[..., 5:11].any()
        assert right[..., 5:11].any()
        assert not left[..., 11:].any()
        assert not right[..., :5].any()


def test_workers_may_be_sent_the_transform():
    mirror = pickle.loads(pickle.dumps(SwapMirror((0, 1), SWAP["axis"], SWAP["pairs"])))
    assert mirror._apply_to_segmentation(LABELS, axes=[1]).tolist() == BY_HAND[(1,)][1]


@pytest.mark.parametrize(
    ("axes", "swap", "allowed"),
    [
        ([0, 1, 2], None, (0, 1, 2)),
        ([0, 1, 2], {"axis": 2, "pairs": [[1, 2]]}, (0, 1)),
        ([0, 1], {"axis": 0, "pairs": [[1, 2]]}, (1,)),
        ([1], {"axis": 1, "pairs": [[1, 2]]}, None),
        ([], None, None),
    ],
)
def test_prediction_flips_what_needs_no_exchange(axes, swap, allowed):
    found = inference_axes({"axes": axes, "swap": swap, "reason": ""})
    assert found == allowed
    predictor = nnUNetPredictor(device=torch.device("cpu"))
    predictor.network, predictor.allowed_mirroring_axes = torch.nn.ReLU(), found
    x = torch.rand(1, 1, 2, 2, 2)
    assert torch.allclose(predictor._internal_maybe_mirror_and_predict(x), x)
