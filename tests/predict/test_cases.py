"""Images are read once, checked, and are then what nnU-Net's own reader would have given."""

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.natural_image_reader_writer import NaturalImage2DIO
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from umamba_seg.errors import UserError
from umamba_seg.predict.cases import from_array, list_cases, read_case, read_previous, require_channels


def description(channels=1, ending=".nii.gz"):
    return {"channel_names": {str(number): "CT" for number in range(channels)}, "file_ending": ending}


def write(path, array, spacing, direction=None):
    image = sitk.GetImageFromArray(array)
    image.SetSpacing(spacing)
    image.SetOrigin([7.5, -3.25, 11.0][: array.ndim])
    if direction is not None:
        image.SetDirection(direction)
    sitk.WriteImage(image, str(path))
    return path


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha"])
@pytest.mark.parametrize(
    ("shape", "spacing", "direction"),
    [
        ((5, 6, 7), (0.7, 0.8, 3.0), None),
        ((4, 5, 6), (1.0, 1.0, 2.5), (-1, 0, 0, 0, 0, 1, 0, 1, 0)),
        ((6, 7), (0.5, 0.25), None),
    ],
)
def test_it_is_what_nnunets_reader_gives(tmp_path, ending, shape, spacing, direction):
    rng = np.random.default_rng(0)
    files = [
        write(tmp_path / f"c_{number:04d}{ending}", rng.integers(-900, 900, shape).astype(np.int16), spacing, direction)
        for number in range(2)
    ]
    found, properties = read_case("c", files, description(2, ending), SimpleITKIO)
    expected, expected_properties = SimpleITKIO().read_images([str(file) for file in files])
    assert np.array_equal(found, expected)
    assert properties == expected_properties


def test_other_readers_read_for_themselves(tmp_path):
    from skimage import io

    picture = np.random.default_rng(0).integers(0, 255, (9, 8, 3), np.uint8)
    io.imsave(tmp_path / "c_0000.png", picture, check_contrast=False)
    found, properties = read_case("c", [tmp_path / "c_0000.png"], description(3, ".png"), NaturalImage2DIO)
    expected, expected_properties = NaturalImage2DIO().read_images([str(tmp_path / "c_0000.png")])
    assert np.array_equal(found, expected)
    assert properties == expected_properties


def test_what_is_wrong_with_a_file_is_said_before_the_reader_sees_it(tmp_path):
    file = write(tmp_path / "c_0000.nii.gz", np.zeros((4, 5, 6), np.float32), (1, 1, 1))
    file.write_bytes(file.read_bytes()[:40])
    with pytest.raises(UserError, match=r"c_0000.nii.gz: its compressed data is damaged or cut short"):
        read_case("c", [file], description(), SimpleITKIO)
    good = write(tmp_path / "d_0000.nii.gz", np.ones((4, 5, 6), np.float32), (1, 1, 1))
    with pytest.raises(UserError, match="its files hold 1 channels instead of 2"):
        read_case("d", [good], description(2), SimpleITKIO)


def test_a_case_that_lacks_a_channel(tmp_path):
    present = {0: tmp_path / "c_0000.nii.gz", 2: tmp_path / "c_0002.nii.gz"}
    with pytest.raises(UserError, match=r"c_0001.nii.gz missing; add the missing files or remove the case"):
        require_channels("c", present, tmp_path, description(3))
    require_channels("c", {0: present[0]}, tmp_path, description(1))
    with pytest.raises(UserError, match="c has 2 channel files instead of 1"):
        require_channels("c", {0: present[0], 1: present[2]}, tmp_path, description(1))


def test_pictures_in_memory_get_the_slice_spacing_of_pictures_in_files(tmp_path):
    file = write(tmp_path / "c_0000.nii.gz", np.ones((6, 7), np.float32), (0.5, 0.25))
    _, properties = read_case("c", [file], description(), SimpleITKIO)
    array, in_memory = from_array("c", np.ones((1, 6, 7)), (0.25, 0.5), 1)
    assert array.shape == (1, 1, 6, 7)
    assert in_memory["spacing"] == properties["spacing"]


def test_the_stage_before_as_a_picture(tmp_path):
    """A 2-D segmentation has no z."""
    file = write(tmp_path / "c.nii.gz", np.ones((6, 7), np.uint8), (1, 1))
    assert read_previous("c", file, (1, 6, 7), [0, 1], SimpleITKIO).shape == (1, 1, 6, 7)


def test_the_stage_before_is_turned_as_the_image_is(tmp_path):
    """Where a reader reorients images, the segmentation beside them lies as they do."""
    image = np.arange(1, 121, dtype=np.float32).reshape(4, 5, 6)
    where = {"spacing": (1, 1, 2), "direction": (1, 0, 0, 0, -1, 0, 0, 0, 1)}
    files = [
        write(tmp_path / "c_0000.nii.gz", image, **where),
        write(tmp_path / "c.nii.gz", np.uint8(image > 60), **where),
    ]
    for reader in (SimpleITKIO, NibabelIOWithReorient):
        data, _ = read_case("c", files[:1], description(), reader)
        stage = read_previous("c", files[1], data.shape[1:], [0, 1], reader)
        np.testing.assert_array_equal(stage, data > 60)
    turned, _ = read_case("c", files[:1], description(), NibabelIOWithReorient)
    assert not np.array_equal(turned[0], image), "or this test would see nothing"


def test_cases_of_a_folder(tmp_path):
    write(tmp_path / "a_0000.nii.gz", np.ones((4, 5, 6), np.float32), (1, 1, 1))
    write(tmp_path / "stranger.nii.gz", np.ones((4, 5, 6), np.float32), (1, 1, 1))
    assert list_cases(tmp_path, ".nii.gz") == ({"a": {0: tmp_path / "a_0000.nii.gz"}}, ["stranger.nii.gz"])
