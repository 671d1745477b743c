"""Decathlon tasks become nnU-Net raw data sets, whole or not at all."""

import json

import nibabel
import numpy as np
import pytest

from umamba_seg.datasets import msd
from umamba_seg.datasets.check import check_dataset
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError

AFFINE = np.array([[-2.0, 0, 0, 10], [0, 1.5, 0, -20], [0, 0, 3.0, 30], [0, 0, 0, 1]])


@pytest.fixture
def make_task(tmp_path):
    """``make_task(channels=2, **entries)`` writes Task07_Organ with cases a and b and the test case t."""

    def make(channels: int = 1, folder: str = "Task07_Organ", **entries):
        task = tmp_path / folder
        rng = np.random.default_rng(0)
        for name in ("imagesTr/a", "imagesTr/b", "imagesTs/t", "labelsTr/a", "labelsTr/b"):
            shape = (5, 6, 7) if channels == 1 or "labels" in name else (5, 6, 7, channels)
            voxels = rng.integers(0, 3 if "labels" in name else 900, shape).astype(np.int16)
            (task / name).parent.mkdir(parents=True, exist_ok=True)
            nibabel.Nifti1Image(voxels, AFFINE).to_filename(task / f"{name}.nii.gz")
            (task / name).with_name(f"._{name[-1]}.nii.gz").write_bytes(b"mac")
        content = {
            "name": "Organ",
            "licence": "CC",
            "tensorImageSize": "4D",
            "modality": {str(channel): f"M{channel}" for channel in range(channels)},
            "labels": {"0": "background", "1": "organ", "2": "tumour"},
            "numTraining": 99,
            "training": [{"image": f"./imagesTr/{c}.nii.gz", "label": f"./labelsTr/{c}.nii.gz"} for c in "ab"],
            "test": ["./imagesTs/t.nii.gz"],
        }
        (task / "dataset.json").write_text(json.dumps(content | entries))
        return task

    return make


def test_three_axes(make_task, tmp_path):
    task = make_task()
    folder = msd.convert(task, tmp_path / "raw")
    assert folder == tmp_path / "raw" / "Dataset007_Organ"
    names = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.*"))
    assert names == [
        "dataset.json",
        *(f"imagesTr/{case}_0000.nii.gz" for case in "ab"),
        "imagesTs/t_0000.nii.gz",
        *(f"labelsTr/{case}.nii.gz" for case in "ab"),
    ]
    assert (folder / "imagesTr/a_0000.nii.gz").read_bytes() == (task / "imagesTr/a.nii.gz").read_bytes()
    assert json.loads((folder / "dataset.json").read_text()) == {
        "channel_names": {"0": "M0"},
        "labels": {"background": 0, "organ": 1, "tumour": 2},
        "file_ending": ".nii.gz",
        "name": "Organ",
        "licence": "CC",
        "numTraining": 2,
    }
    assert not check_dataset(load_raw_dataset(folder)).findings


def test_four_axes_are_split_without_changing_voxels_or_geometry(make_task, tmp_path):
    task = make_task(channels=2)
    source = nibabel.load(task / "imagesTr" / "a.nii.gz")
    source.header.set_slope_inter(0.37, 5)  # an int16 file with scaling
    nibabel.Nifti1Image(source.get_fdata(), AFFINE, source.header, dtype=np.int16).to_filename(
        task / "imagesTr/b.nii.gz"
    )
    folder = msd.convert(task, tmp_path / "raw", 12, "Two")
    assert folder.name == "Dataset012_Two"
    for case in "ab":
        whole = nibabel.load(task / "imagesTr" / f"{case}.nii.gz")
        for channel in range(2):
            part = nibabel.load(folder / "imagesTr" / f"{case}_{channel:04d}.nii.gz")
            assert part.get_data_dtype() == np.int16
            assert np.array_equal(part.affine, AFFINE)
            assert np.array_equal(part.get_fdata(), whole.get_fdata()[..., channel])
            assert (part.dataobj.slope, part.dataobj.inter) == (whole.dataobj.slope, whole.dataobj.inter)
    assert not check_dataset(load_raw_dataset(folder)).findings


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"folder": "organ"}, "its name does not give the number .*; give the number"),
        ({"folder": "organ", "number": 3, "name": ""}, "data set name: '' is not allowed"),
        ({"number": 0}, "0 is out of range"),
        ({"modality": None}, 'has no "modality"'),
        ({"labels": {"background": 0}}, '"labels" is {.*write values to distinct names'),
        ({"labels": {"0": "background", "1": "organ", "2": "organ"}}, "write values to distinct names"),
        ({"labels": {"0": "background", "2": "organ"}}, "not consecutive"),
        ({"training": []}, 'lists no cases under "training"'),
        ({"training": [{"image": "./imagesTr/a.nii.gz"}]}, "lists {'image'"),
        ({"training": ["./imagesTr/a.nii.gz"]}, "lists './imagesTr/a.nii.gz'; list files"),
        ({"test": ["./imagesTs/t.nii"]}, "lists {'image': './imagesTs/t.nii'}"),
        ({"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/b.nii.gz"}]}, "a.nii.gz with b.nii.gz"),
        ({"training": [{"image": "./imagesTr/a.nii.gz", "label": "./labelsTr/a.nii.gz"}] * 2}, "more than once: a.nii"),
        ({"test": ["./imagesTs/u.nii.gz"]}, r"lists missing files \(1\): .*imagesTs/u.nii.gz"),
        ({"modality": {"0": "CT", "1": "PET"}}, "has shape 5×6×7, but dataset.json names 2 channels"),
        ({"channels": 2, "modality": {"0": "CT"}}, "has shape 5×6×7×2, but dataset.json names 1 channels"),
    ],
)
def test_refusals_leave_nothing_behind(make_task, tmp_path, entries, message):
    task = make_task(**{key: value for key, value in entries.items() if key != "number"})
    raw = tmp_path / "raw"
    with pytest.raises(UserError, match=message):
        msd.convert(task, raw, entries.get("number"))
    assert not raw.exists() or not any(raw.iterdir())


def test_damaged_file_and_interruption_leave_nothing_behind(make_task, tmp_path, monkeypatch):
    task, raw = make_task(), tmp_path / "raw"
    content = (task / "labelsTr" / "b.nii.gz").read_bytes()
    (task / "labelsTr" / "b.nii.gz").write_bytes(content[:-20])
    with pytest.raises(UserError, match=r"labelsTr/b.nii.gz: its compressed data is damaged or cut short"):
        msd.convert(task, raw)
    assert not any(raw.iterdir())
    (task / "labelsTr" / "b.nii.gz").write_bytes(content)

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(msd, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        msd.convert(task, raw)
    assert not any(raw.iterdir())


def test_number_that_is_taken(make_task, tmp_path):
    task, raw = make_task(), tmp_path / "raw"
    msd.convert(task, raw)
    for name in ("Organ", "Other"):
        with pytest.raises(UserError, match="Dataset007_Organ: there is a data set 7 already"):
            msd.convert(task, raw, 7, name)


def test_unlisted_files_are_named(make_task, tmp_path, caplog):
    task = make_task(test=[])
    msd.convert(task, tmp_path / "raw")
    assert "imagesTs: dataset.json does not list t.nii.gz" in caplog.text


def test_hippocampus(shared_data, tmp_path):
    source = shared_data("hippocampus")
    with pytest.raises(UserError, match="give the number of the new data set"):
        msd.convert(source, tmp_path)
    folder = msd.convert(source, tmp_path, 4)
    assert folder.name == "Dataset004_Hippocampus"
    images = sorted((source / "imagesTr").glob("[!.]*"))
    assert len(images) == 200
    for image in images:
        name = image.name.removesuffix(".nii.gz")
        assert (folder / "imagesTr" / f"{name}_0000.nii.gz").read_bytes() == image.read_bytes()
        assert (folder / "labelsTr" / image.name).read_bytes() == (source / "labelsTr" / image.name).read_bytes()
    assert not check_dataset(load_raw_dataset(folder)).findings
