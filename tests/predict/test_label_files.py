"""Segmentations are read whole or refused, and written whole or not at all."""

import json

import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
from skimage import io

from umamba_seg.errors import UserError
from umamba_seg.predict.label_files import LabelFiles, read_labels

LABELS = (np.arange(60).reshape(6, 2, 5) % 7).astype(np.uint8)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif"])
def test_what_was_written_is_read_again(tmp_path, ending):
    path, copy = tmp_path / f"a{ending}", tmp_path / f"b{ending}"
    labels = LABELS[:1] if ending == ".png" else LABELS
    if ending == ".png":
        io.imsave(path, labels[0], check_contrast=False)
    elif ending == ".tif":
        tifffile.imwrite(path, labels)
        (tmp_path / "a.json").write_text(json.dumps({"spacing": [3, 1, 1]}))
    else:
        image = sitk.GetImageFromArray(labels)
        image.SetSpacing((0.7, 0.8, 2.5))
        sitk.WriteImage(image, str(path))
    files = LabelFiles({"file_ending": ending})
    found, properties = files.read(path)
    assert found.dtype == np.uint8
    files.write(found, copy, properties)
    np.testing.assert_array_equal(files.read(copy)[0], labels)
    np.testing.assert_equal(files.read(copy)[1], properties)
    if ending == ".tif":
        assert json.loads((tmp_path / "b.json").read_text()) == {"spacing": [3, 1, 1]}
    assert not list(tmp_path.glob(".*"))


def test_colours_are_no_labels(tmp_path):
    io.imsave(tmp_path / "a.png", np.zeros((4, 5, 3), np.uint8), check_contrast=False)
    with pytest.raises(UserError, match=r"a\.png: has 3 values per voxel"):
        read_labels(tmp_path / "a.png")


def test_a_full_disk_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = tmp_path / "a.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(LABELS), str(path))
    before = path.read_bytes()
    files = LabelFiles({"file_ending": ".nii.gz"})
    labels, properties = files.read(path)

    def cut_short(_self, _labels, name: str, _properties) -> None:
        with open(name, "wb") as file:
            file.write(before[:60])

    monkeypatch.setattr(SimpleITKIO, "write_seg", cut_short)
    with pytest.raises(OSError, match="cannot be written whole"):
        files.write(labels, path, properties)
    assert path.read_bytes() == before
    assert [found.name for found in tmp_path.iterdir()] == ["a.nii.gz"]
