"""The made-up data set is sound for nnU-Net, the same for the same seed, and not solved by a threshold."""

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
from scipy.ndimage import distance_transform_edt
from skimage.io import imread

from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.datasets.synthetic import LABELS, make_dataset
from umamba_seg.errors import UserError

GRID = {"shape": (40, 36, 20), "spacing": (1.5, 1.5, 3.0)}
COUNTS = {"train_cases": 3, "test_cases": 2}


@pytest.fixture(scope="module")
def volumes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dataset(tmp_path_factory.mktemp("raw"), 7, "Synth", **COUNTS, **GRID, seed=3, channels=2)


def _arrays(folder: Path) -> dict[str, np.ndarray]:
    return {
        str(path.relative_to(folder)): sitk.GetArrayFromImage(sitk.ReadImage(path))
        for path in sorted(folder.rglob("*.nii.gz"))
    }


def _best_threshold_dice(image: np.ndarray, mask: np.ndarray) -> float:
    """Dice of the best of all intervals between the image's percentiles."""
    edges = np.quantile(image, np.linspace(0, 1, 101)[1:-1])
    bins = np.searchsorted(edges, image.ravel(), side="right")
    inside = np.append(0, np.bincount(bins, mask.ravel(), 100).cumsum())
    chosen = np.append(0, np.bincount(bins, minlength=100).cumsum())
    overlap, size = np.triu(inside[None] - inside[:, None]), np.triu(chosen[None] - chosen[:, None])
    return float((2 * overlap / (size + mask.sum())).max())


def test_is_a_sound_raw_dataset(volumes):
    raw = load_raw_dataset(volumes)
    assert volumes.name == "Dataset007_Synth"
    assert [case.identifier for case in raw.cases] == ["synth_000", "synth_001", "synth_002"]
    assert raw.channels == 2
    assert raw.json["labels"] == LABELS
    assert raw.json["numTraining"] == 3
    assert raw.json["file_ending"] == ".nii.gz"
    assert sorted(path.name for path in (volumes / "labelsTs").iterdir()) == ["synth_003.nii.gz", "synth_004.nii.gz"]
    assert len(list((volumes / "imagesTs").iterdir())) == 4
    assert [path.name for path in volumes.parent.iterdir()] == [volumes.name], "the draft folder is gone"


def test_same_seed_same_arrays(volumes, tmp_path):
    first = _arrays(volumes)
    again = _arrays(make_dataset(tmp_path, 1, "Again", **COUNTS, **GRID, seed=3, channels=2))
    other = _arrays(make_dataset(tmp_path, 2, "Other", **COUNTS, **GRID, seed=4, channels=2))
    assert first.keys() == again.keys()
    assert all(np.array_equal(first[name], again[name]) for name in first)
    assert not all(np.array_equal(first[name], other[name]) for name in first)


def test_every_organ_in_every_case_and_cases_differ(volumes):
    labels = [array for name, array in _arrays(volumes).items() if name.startswith("labels")]
    for array in labels:
        assert np.unique(array).tolist() == sorted(LABELS.values())
    assert len({array.shape for array in labels}) > 1


def test_geometry_is_oblique_and_the_same_for_image_label_and_both_readers(volumes):
    spacings = set()
    for path in sorted(volumes.glob("labelsT*/*.nii.gz")):
        label = sitk.ReadImage(path)
        direction = np.reshape(label.GetDirection(), (3, 3))
        tilt = np.degrees(np.arccos((np.trace(direction) - 1) / 2))
        assert 1 < tilt <= 20.01
        np.testing.assert_allclose(direction @ direction.T, np.eye(3), atol=1e-6)
        to_ras = np.diag([-1, -1, 1])
        affine = nibabel.load(path).affine
        np.testing.assert_allclose(affine[:3, :3], to_ras @ direction @ np.diag(label.GetSpacing()), atol=1e-5)
        np.testing.assert_allclose(affine[:3, 3], to_ras @ label.GetOrigin(), atol=1e-3)
        for image in sorted((volumes / path.parent.name.replace("labels", "images")).glob(f"{path.name[:9]}_*")):
            np.testing.assert_array_equal(nibabel.load(image).affine, affine)
            assert sitk.ReadImage(image).GetSize() == label.GetSize()
        spacings.add(label.GetSpacing())
        np.testing.assert_allclose(label.GetSpacing(), GRID["spacing"], rtol=0.031)
    assert len(spacings) == 5


def test_the_aorta_is_thick_enough_to_segment_well(volumes):
    for name, array in _arrays(volumes).items():
        if name.startswith("labels"):
            radii = [distance_transform_edt(plane).max() for plane in array == LABELS["aorta"] if plane.any()]
            assert np.median(radii) >= 2.5


def test_no_threshold_finds_an_organ(tmp_path):
    folder = make_dataset(
        tmp_path, 1, "Hard", train_cases=4, test_cases=0, shape=(56, 48, 28), spacing=(1.5, 1.5, 3.0), seed=0
    )
    arrays = _arrays(folder)
    for case in range(4):
        image, label = arrays[f"imagesTr/synth_00{case}_0000.nii.gz"], arrays[f"labelsTr/synth_00{case}.nii.gz"]
        for name in ("liver", "kidneys", "aorta"):
            assert _best_threshold_dice(image, label == LABELS[name]) < 0.8, (name, case)


def test_two_dimensions(tmp_path):
    folder = make_dataset(tmp_path, 8, "Flat", **COUNTS, shape=(64, 48), spacing=(1, 1), seed=0, channels=2)
    assert json.loads((folder / "dataset.json").read_text())["file_ending"] == ".png"
    assert len(load_raw_dataset(folder).cases) == 3
    for path in sorted((folder / "labelsTr").iterdir()):
        label = imread(path)
        images = [imread(folder / "imagesTr" / f"{path.stem}_{channel:04d}.png") for channel in range(2)]
        assert np.unique(label).tolist() == sorted(LABELS.values())
        assert abs(label.shape[0] - 48) <= 2, "rows are y"
        assert abs(label.shape[1] - 64) <= 3, "columns are x"
        for image in images:
            assert (image.shape, image.dtype) == (label.shape, np.uint8)
        assert not np.array_equal(*images)


def test_refuses_a_number_that_is_taken(volumes):
    with pytest.raises(UserError, match="there is a data set 7 already"):
        make_dataset(volumes.parent, 7, "Synth", **COUNTS, **GRID, seed=3)


@pytest.mark.parametrize("shape", [(8,), (8, 8, 8, 8), (48, 48)])
def test_refuses_what_is_no_grid(tmp_path, shape):
    with pytest.raises(UserError, match="do not describe a grid"):
        make_dataset(tmp_path, 1, "Bad", **COUNTS, shape=shape, spacing=(1.0, 1.0, 1.0), seed=0)


def test_refuses_a_grid_too_small_for_the_organs_and_leaves_nothing(tmp_path):
    with pytest.raises(UserError, match=r"too small: label \d is lost in case 0; give more voxels"):
        make_dataset(tmp_path, 1, "Tiny", **COUNTS, shape=(4, 4, 2), spacing=(1.0, 1.0, 1.0), seed=0)
    assert not list(tmp_path.iterdir())
