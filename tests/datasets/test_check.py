"""The check of a data set: each thing that is wrong is found once, with its file and a remedy."""

import json

import imagecodecs
import numpy as np
import pytest
import SimpleITK as sitk

from umamba_seg.datasets import check
from umamba_seg.datasets.check import Finding, Report, check_case_images, check_dataset
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.datasets.splits import make_splits
from umamba_seg.errors import UserError

SPACING = {"spacing": (1.0, 2.0, 3.0)}
NOISE = np.random.default_rng(1).integers(0, 1000, (6, 8, 10)).astype(np.int16)


def _check(folder, **options) -> Report:
    return check_dataset(load_raw_dataset(folder), **options)


def _only(report: Report) -> Finding:
    assert len(report.findings) == 1, report.as_text()
    return report.findings[0]


def test_sound_dataset(make_dataset):
    report = _check(make_dataset(channels=2))
    assert report.as_text() == "cases checked: 2, errors: 0, warnings: 0"
    report.raise_if_errors()


@pytest.mark.parametrize(
    ("geometry", "severity", "what"),
    [
        ({"spacing": (1.0, 2.0, 3.6)}, "error", "has spacing (1, 2, 3.6) mm, but a_0000.nii.gz has (1, 2, 3) mm"),
        ({"spacing": (1.0, 2.0, 3.001)}, "warning", "has spacing (1, 2, 3.001) mm"),
        ({"spacing": (1.0, 2.0, 3.000001)}, None, ""),
        ({"origin": (56.0, 0.0, 0.0)}, "error", "has origin (56, 0, 0) mm, but a_0000.nii.gz has (0, 0, 0) mm"),
        ({"origin": (0.01, 0.0, 0.0)}, "warning", "(header noise)"),
        ({"direction": (-1.0, 0.0, 0.0, 0.0, -1.0, 0.0, 0.0, 0.0, 1.0)}, "error", "has direction (-1, 0, 0, 0, -1"),
    ],
)
def test_label_on_another_grid(make_dataset, save_volume, geometry, severity, what):
    folder = make_dataset()
    label = np.zeros((6, 8, 10), np.uint8)
    label[2, 2, 2] = 1
    save_volume(folder / "labelsTr" / "a.nii.gz", label, **(SPACING | geometry))
    report = _check(folder)
    if severity is None:
        assert not report.findings
        return
    finding = _only(report)
    assert (finding.severity, finding.where) == (severity, "labelsTr/a.nii.gz")
    assert what in finding.what


def test_label_of_another_shape(make_dataset, save_volume):
    folder = make_dataset()
    label = np.zeros((6, 8, 9), np.uint8)
    label[2, 2, 2] = 1
    save_volume(folder / "labelsTr" / "a.nii.gz", label, **SPACING)
    assert _only(_check(folder)).what == "has shape 9×8×6 (x first), but a_0000.nii.gz has 10×8×6"


def test_channels_must_agree_in_spacing_as_nnunet_wants(make_dataset, save_volume):
    folder = make_dataset(channels=2)
    save_volume(folder / "imagesTr" / "b_0001.nii.gz", NOISE, spacing=(1.0, 2.0, 3.001))
    finding = _only(_check(folder))
    assert (finding.severity, finding.where) == ("error", "imagesTr/b_0001.nii.gz")
    assert "has spacing (1, 2, 3.001) mm, but b_0000.nii.gz" in finding.what


@pytest.mark.parametrize(
    ("values", "dtype", "severity", "what", "remedy"),
    [
        ([1, 7, 9], np.uint8, "error", "holds the values 7, 9, which dataset.json does not name", "remap them"),
        ([-1], np.int16, "error", "holds the values -1,", "remap"),
        ([255], np.uint8, "error", "holds the values 255,", "write 1 instead of 255"),
        ([0.5, 1], np.float32, "error", "not whole numbers: 0.5", "nearest neighbour"),
        ([np.nan], np.float32, "error", "not whole numbers: nan", "nearest neighbour"),
        ([0], np.uint8, "warning", "has no foreground voxel", "check that this is meant"),
    ],
)
def test_label_values(make_dataset, save_volume, values, dtype, severity, what, remedy):
    folder = make_dataset()
    label = np.zeros((6, 8, 10), dtype)
    label.ravel()[: len(values)] = values
    save_volume(folder / "labelsTr" / "a.nii.gz", label, **SPACING)
    finding = _only(_check(folder))
    assert (finding.severity, finding.where) == (severity, "labelsTr/a.nii.gz")
    assert what in finding.what
    assert remedy in finding.remedy


def test_float_labels_of_whole_numbers_are_fine(make_dataset, save_volume):
    folder = make_dataset()
    save_volume(folder / "labelsTr" / "a.nii.gz", (NOISE % 3).astype(np.float32), **SPACING)
    assert not _check(folder).findings


def test_ignore_label_is_allowed_but_is_no_foreground(make_dataset, save_volume):
    folder = make_dataset(labels={"background": 0, "organ": 1, "tumour": 2, "ignore": 3})
    label = np.zeros((6, 8, 10), np.uint8)
    label[0] = 3
    save_volume(folder / "labelsTr" / "a.nii.gz", label, **SPACING)
    assert _only(_check(folder)).what == "has no foreground voxel"


def test_regions_and_an_unused_label(make_dataset):
    regions = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": 3}
    finding = _only(_check(make_dataset(labels=regions, regions_class_order=[1, 2, 3])))
    assert (finding.severity, finding.what) == ("warning", 'the label "enhancing" occurs in no training case')


def test_intensities(make_dataset, save_volume):
    folder = make_dataset()
    broken = NOISE.astype(np.float32)
    broken[0, 0, :3] = np.nan, np.inf, -np.inf
    save_volume(folder / "imagesTr" / "a_0000.nii.gz", broken, **SPACING)
    save_volume(folder / "imagesTr" / "b_0000.nii.gz", np.full_like(NOISE, 7), **SPACING)
    error, warning = _check(folder).findings
    assert (error.where, error.what) == ("imagesTr/a_0000.nii.gz", "holds NaN or infinity in 3 of 480 voxels")
    assert (warning.severity, warning.what) == ("warning", "is constant: every voxel is 7")


def test_unreadable_files_do_not_stop_the_check(make_dataset):
    folder = make_dataset(["a", "b", "c"])
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    content = (folder / "labelsTr" / "b.nii.gz").read_bytes()
    (folder / "labelsTr" / "b.nii.gz").write_bytes(content[:50])
    report = _check(folder)
    assert [finding.where for finding in report.errors] == ["imagesTr/a_0000.nii.gz", "labelsTr/b.nii.gz"]
    with pytest.raises(
        UserError,
        match=r"(?s)the check found 2 errors; mend what is wrong and check again:\n .*a_0000.nii.gz: is empty",
    ):
        report.raise_if_errors()


def test_pairs(make_dataset):
    folder = make_dataset()
    (folder / "labelsTr" / "b.nii.gz").rename(folder / "labelsTr" / "c.nii.gz")
    (folder / "labelsTr" / "._c.nii.gz").touch()
    findings = _check(folder).errors
    assert [(finding.where, finding.what) for finding in findings] == [
        ("b", "has images but no label file"),
        ("labelsTr/c.nii.gz", "has no image in imagesTr"),
    ]


def test_duplicates_within_training_are_a_warning(make_dataset):
    folder = make_dataset(["a", "b"])
    (folder / "imagesTr" / "b_0000.nii.gz").write_bytes((folder / "imagesTr" / "a_0000.nii.gz").read_bytes())
    finding = _only(_check(folder))
    assert (finding.severity, finding.what) == ("warning", "a, b hold the same images")


def test_training_image_in_the_test(make_dataset, save_volume):
    """Found by voxels: the copy is stored in another way."""
    folder = make_dataset()
    first = sitk.GetArrayFromImage(sitk.ReadImage(str(folder / "imagesTr" / "a_0000.nii.gz")))
    save_volume(folder / "imagesTs" / "x_0000.nii.gz", first, spacing=(1.0, 1.0, 1.0))
    report = _check(folder)
    assert report.cases == 3
    finding = _only(report)
    assert (finding.severity, finding.where) == ("error", "a")
    assert "in imagesTr (a) and in imagesTs (x)" in finding.what


def test_case_and_patient_in_the_test(make_dataset, save_volume):
    folder = make_dataset(["p1_a", "p2_a"])
    save_volume(folder / "imagesTs" / "p1_a_0000.nii.gz", NOISE, **SPACING)
    assert _only(_check(folder)).what == "cases both in imagesTr and in imagesTs (1): p1_a"
    finding = _only(_check(folder, group_pattern="^[^_]+"))
    assert (finding.severity, finding.what) == ("warning", "patients both in imagesTr and in imagesTs (1): p1")


def test_test_images_are_checked_and_named(make_dataset, save_volume):
    folder = make_dataset()
    save_volume(folder / "imagesTs" / "x.nii.gz", NOISE)
    assert _only(_check(folder)).where == "imagesTs"
    (folder / "imagesTs" / "x.nii.gz").unlink()
    assert not _check(folder).findings  # an empty folder is none
    save_volume(folder / "imagesTs" / "x_0000.nii.gz", NOISE, **SPACING)
    save_volume(folder / "labelsTs" / "x.nii.gz", np.full_like(NOISE, 9), **SPACING)
    assert "holds the values 9" in _only(_check(folder)).what


def test_patient_on_both_sides_of_a_fold(make_dataset):
    folder = make_dataset(["p1_a", "p1_b", "p2_a"], group_pattern="^([^_]+)_")
    splits = [{"train": ["p1_a", "p2_a"], "val": ["p1_b"]}, {"train": ["p1_a", "p1_b"], "val": ["p2_a"]}]
    finding = _only(_check(folder, splits=splits))
    assert (finding.severity, finding.where) == ("error", "splits_final.json, fold 0")
    assert finding.what == "p1 is in training (p1_a) and in validation (p1_b)"
    assert not _check(folder, splits=splits, group_pattern=".+").findings  # the argument outranks dataset.json


def test_splits_with_unknown_and_repeated_cases(make_dataset):
    splits = [{"train": ["a", "z"], "val": ["a", "b"]}]
    unknown, both = _check(make_dataset(), splits=splits).errors
    assert unknown.what == "names cases that do not exist (1): z"
    assert both.what == "a is in training (a) and in validation (a)"


@pytest.mark.parametrize(
    ("pattern", "what"), [("(", "not a regular expression"), ("^p", "no group in 2 of 2 cases: a, b")]
)
def test_bad_group_pattern_is_a_finding(make_dataset, pattern, what):
    assert what in _only(_check(make_dataset(group_pattern=pattern))).what


def test_worker_processes_find_the_same(make_dataset, monkeypatch):
    folder = make_dataset()
    (folder / "imagesTr" / "a_0000.nii.gz").write_bytes(b"")
    monkeypatch.setattr(check, "_POOL_BYTES", 0)
    assert _check(folder, processes=2) == _check(folder)


def _picture_dataset(make_dataset, pixels, **entries):
    folder = make_dataset([], ending=".png", numTraining=1, labels={"background": 0, "cell": 1}, **entries)
    for name, content in (("imagesTr/a_0000.png", pixels), ("labelsTr/a.png", (pixels[..., 0] > 99).astype(np.uint8))):
        (folder / name).parent.mkdir()
        (folder / name).write_bytes(imagecodecs.png_encode(np.ascontiguousarray(content)))
    return folder


@pytest.fixture
def rgba() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 255, (20, 24, 4)).astype(np.uint8)


def test_rgb_png_counts_three_channels(make_dataset, rgba):
    folder = _picture_dataset(make_dataset, rgba[..., :3], channel_names={"0": "R", "1": "G", "2": "B"})
    assert not _check(folder).findings


def test_alpha_channel_is_counted_and_named(make_dataset, rgba):
    finding = _only(_check(_picture_dataset(make_dataset, rgba, channel_names={"0": "R", "1": "G", "2": "B"})))
    assert finding.what == "its files hold 4 channels instead of 3"
    assert "drop the alpha channel" in finding.remedy


def test_colour_mask(make_dataset, rgba):
    folder = _picture_dataset(make_dataset, rgba[..., :3], channel_names={"0": "R", "1": "G", "2": "B"})
    (folder / "labelsTr" / "a.png").write_bytes((folder / "imagesTr" / "a_0000.png").read_bytes())
    assert _only(_check(folder)).what == "has 3 channels"


def test_images_to_predict(tmp_path, save_volume, caplog):
    good = save_volume(tmp_path / "c_0000.nii.gz", NOISE)
    flat = save_volume(tmp_path / "c_0001.nii.gz", np.zeros_like(NOISE))
    check_case_images("c", [good, flat], 2)
    assert "c_0001.nii.gz: is constant: every voxel is 0; check that" in caplog.text
    with pytest.raises(UserError, match="c: its files hold 1 channels instead of 2; add or remove channels"):
        check_case_images("c", [good], 2)
    other = save_volume(tmp_path / "d_0001.nii.gz", np.full(NOISE.shape, np.inf, np.float32), spacing=(1.0, 1.0, 2.0))
    with pytest.raises(UserError, match=r"(?s)c: its images have 2 errors.*has spacing \(1, 1, 2\).*480 of 480 voxels"):
        check_case_images("c", [good, other], 2)


def test_long_reports_are_cut_in_errors_only(tmp_path):
    findings = tuple(Finding("error", f"case {number}", "is wrong", "mend it") for number in range(25))
    report = Report(tmp_path, 25, findings)
    with pytest.raises(UserError, match=r"(?s)25 errors.*case 19: is wrong; mend it\n  and 5 more"):
        report.raise_if_errors()
    assert report.as_text().count("is wrong") == 25


def test_report_as_json(tmp_path):
    report = Report(
        tmp_path, 3, (Finding("error", "a", "is wrong", "mend it"), Finding("warning", "b", "is odd", "look"))
    )
    content = json.loads(json.dumps(report.as_json()))
    assert content["dataset"] == tmp_path.name
    assert (content["cases"], content["errors"], content["warnings"]) == (3, 1, 1)
    assert content["findings"][1] == {"severity": "warning", "where": "b", "what": "is odd", "remedy": "look"}
    assert "error    a: is wrong\n         mend it" in report.as_text()


@pytest.mark.parametrize("name", ["msd_spleen2_crop", "spine_multicontrast"])
def test_sound_real_data(shared_data, name):
    assert not _check(shared_data(name)).findings


def test_prostatex_labels_as_published(shared_data, tmp_path):
    source = shared_data("prostatex")
    for name in ("imagesTr", "dataset.json"):
        (tmp_path / name).symlink_to(source / name)
    (tmp_path / "labelsTr").symlink_to(source / "labelsTr_as_published_WRONG_SPACING")
    report = _check(tmp_path)
    wrong = [finding.what.split(" mm, but")[0] for finding in report.errors if "PX0000" in finding.where]
    assert [what.split(" (")[0] for what in wrong] == ["has spacing", "has origin"]
    assert "3.6" in wrong[0]
    assert _only(_check(source)).what == "has no foreground voxel"


def test_sunnybrook_random_split_leaks_patients(shared_data):
    dataset = load_raw_dataset(shared_data("sunnybrook_2d"))
    names = [case.identifier for case in dataset.cases]
    report = check_dataset(dataset, group_pattern="^[^_]+", splits=make_splits(names))
    assert len(report.errors) > 50
    assert report.errors[0].what.startswith("SC-HF-I-01 is in training (SC-HF-I-01_0048, ")
    by_patient = make_splits(names, group_pattern="^[^_]+")
    assert not check_dataset(dataset, group_pattern="^[^_]+", splits=by_patient).findings
