"""Releases of volumes become sound raw data sets, and what is not as published is refused by name."""

import json
import re
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from umamba_seg.datasets.check import check_dataset
from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.datasets.releases import RELEASES
from umamba_seg.datasets.releases.organs import AMOS, BTCV, SYNAPSE8, UMAMBA, translation
from umamba_seg.datasets.releases.release import convert
from umamba_seg.errors import UserError
from umamba_seg.evaluate.protocols import choose_protocol, targets_of

NAMES = ("brats", "brats 2021", "acdc", "amos", "flare22", "btcv", "lits", "kits", "aiib", "promise12", "imagecas")


@pytest.fixture
def converted(tmp_path):
    """``converted("amos", source, modality="mr")`` is the folder of the new data set."""

    def run(name: str, source: Path, **options: str) -> Path:
        release = RELEASES[name.split()[0]]
        chosen = {option.name: option.choices[0] for option in release.options} | options
        return convert(release, source, tmp_path / "raw", None, None, chosen)

    return run


def content(folder: Path) -> dict:
    return json.loads((folder / "dataset.json").read_text())


def identifiers(folder: Path, part: str) -> list[str]:
    return sorted(path.name.removesuffix(".nii.gz") for path in (folder / part).glob("*"))


def array(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


EXPECTED = {
    "brats": (
        "Dataset137_BraTS2023",
        ["BraTS-GLI-00000-000", "BraTS-GLI-00000-001", "BraTS-GLI-00002-000"],
        ["BraTS-GLI-00001-000"],
        [],
    ),
    "brats 2021": ("Dataset138_BraTS2021", ["BraTS2021_00000", "BraTS2021_00002"], ["BraTS2021_00001"], []),
    "acdc": (
        "Dataset027_ACDC",
        ["patient001_frame01", "patient001_frame12", "patient002_frame01"],
        ["patient101_frame01"],
        ["patient101_frame01"],
    ),
    "amos": (
        "Dataset219_AMOS",
        ["amos_0001", "amos_0004", "amos_0008", "amos_0507", "amos_0508", "amos_0510"],
        ["amos_0002", "amos_0600"],
        [],
    ),
    "flare22": ("Dataset701_AbdomenCT", ["FLARE22_Tr_0001", "FLARE22_Tr_0002"], ["FLARETs_0001"], ["FLARETs_0001"]),
    "btcv": ("Dataset090_BTCV", ["abdomen_0001", "abdomen_0021"], ["abdomen_0061"], []),
    "lits": ("Dataset033_LiTS", ["lits_000", "lits_003", "lits_128"], ["lits_test_000"], []),
    "kits": ("Dataset220_KiTS2023", ["case_00000", "case_00401"], [], []),
    "aiib": ("Dataset123_AIIB23", ["AIIB23_23", "AIIB23_24"], ["AIIB23_171"], []),
    "promise12": ("Dataset024_PROMISE12", ["Case00", "Case01"], ["TestCase00"], []),
    "imagecas": ("Dataset125_ImageCAS", ["imagecas_001", "imagecas_020"], [], []),
}


@pytest.mark.parametrize("name", NAMES)
def test_names_and_a_check_without_findings(make_release, converted, name):
    folder = converted(name, make_release(name))
    dataset, training, tests, test_labels = EXPECTED[name]
    channels = len(content(folder)["channel_names"])
    assert folder.name == dataset
    assert identifiers(folder, "imagesTr") == [
        f"{case}_{channel:04d}" for case in training for channel in range(channels)
    ]
    assert identifiers(folder, "labelsTr") == training
    assert identifiers(folder, "imagesTs") == [f"{case}_{channel:04d}" for case in tests for channel in range(channels)]
    assert identifiers(folder, "labelsTs") == test_labels
    assert not check_dataset(load_raw_dataset(folder)).findings


BRATS = "ASNR-MICCAI-BraTS2023-GLI-Challenge-TrainingData/BraTS-GLI-00000-001/BraTS-GLI-00000-001"


@pytest.mark.parametrize(
    ("name", "copy", "original"),
    [
        ("brats", "imagesTr/BraTS-GLI-00000-001_0000", f"{BRATS}-t1n"),
        ("brats", "imagesTr/BraTS-GLI-00000-001_0001", f"{BRATS}-t1c"),
        ("brats", "imagesTr/BraTS-GLI-00000-001_0002", f"{BRATS}-t2w"),
        ("brats", "imagesTr/BraTS-GLI-00000-001_0003", f"{BRATS}-t2f"),
        ("brats", "labelsTr/BraTS-GLI-00000-001", f"{BRATS}-seg"),
        ("brats 2021", "imagesTr/BraTS2021_00002_0001", "TrainingData/BraTS2021_00002/BraTS2021_00002_t1ce"),
        ("acdc", "imagesTr/patient001_frame12_0000", "training/patient001/patient001_frame12"),
        ("acdc", "labelsTs/patient101_frame01", "testing/patient101/patient101_frame01_gt"),
        ("amos", "imagesTr/amos_0510_0000", "imagesVa/amos_0510"),
        ("amos", "labelsTr/amos_0510", "labelsVa/amos_0510"),
        ("btcv", "labelsTr/abdomen_0021", "Training/label/label0021"),
        ("btcv", "imagesTs/abdomen_0061_0000", "Testing/img/img0061"),
        ("kits", "labelsTr/case_00401", "case_00401/segmentation"),
        ("imagecas", "imagesTr/imagecas_020_0000", "1-200/20.img"),
    ],
)
def test_files_are_copied_byte_for_byte(make_release, converted, name, copy, original):
    source = make_release(name)
    folder = converted(name, source)
    assert (folder / f"{copy}.nii.gz").read_bytes() == (source / f"{original}.nii.gz").read_bytes()


def test_plain_nifti_is_compressed_and_otherwise_the_same(make_release, converted):
    source = make_release("lits")
    folder = converted("lits", source)
    for copy, original in (("imagesTr/lits_003_0000", "volume-3"), ("labelsTr/lits_003", "segmentation-3")):
        unpacked = nibabel.Nifti1Image.from_filename(folder / f"{copy}.nii.gz")
        plain = nibabel.Nifti1Image.from_filename(source / "Training Batch 1" / f"{original}.nii")
        assert unpacked.header == plain.header
        assert np.array_equal(np.asanyarray(unpacked.dataobj), np.asanyarray(plain.dataobj))


@pytest.mark.parametrize("compressed", [False, True])
def test_meta_images_keep_voxels_and_geometry(make_release, converted, compressed):
    source = make_release("promise12") / "training_data"
    pairs = (("imagesTr/Case01_0000", "Case01"), ("labelsTr/Case01", "Case01_segmentation"))
    for _, name in pairs:
        sitk.WriteImage(sitk.ReadImage(str(source / f"{name}.mhd")), str(source / f"{name}.mhd"), compressed)
    assert (source / "Case01.zraw").exists() == compressed
    folder = converted("promise12", source.parent)
    for target, name in pairs:
        written = sitk.ReadImage(str(folder / f"{target}.nii.gz"))
        original = sitk.ReadImage(str(source / f"{name}.mhd"))
        assert np.array_equal(sitk.GetArrayFromImage(written), sitk.GetArrayFromImage(original))
        assert written.GetPixelID() == original.GetPixelID()
        for quantity in ("Spacing", "Origin", "Direction"):
            assert np.allclose(getattr(written, f"Get{quantity}")(), getattr(original, f"Get{quantity}")(), atol=1e-6)


def test_labels_of_brats_2021_become_those_of_2023(make_release, converted):
    source = make_release("brats 2021")
    folder = converted("brats 2021", source)
    before = array(source / "TrainingData" / "BraTS2021_00000" / "BraTS2021_00000_seg.nii.gz")
    after = array(folder / "labelsTr" / "BraTS2021_00000.nii.gz")
    assert np.array_equal(after, np.where(before == 4, 3, before))
    assert after.dtype == np.uint8


@pytest.mark.parametrize("name", ["brats", "brats 2021"])
def test_regions_of_brats_restore_the_labels(make_release, converted, name):
    """As nnU-Net does it: each region writes its value over those before."""
    entries = content(converted(name, make_release(name)))
    labels = Labels.from_json(entries, Path("dataset.json"))
    assert list(labels.foreground) == ["whole tumor", "tumor core", "enhancing tumor"]
    for value in (0, 1, 2, 3):
        restored = 0
        for region, writes in zip(labels.foreground.values(), labels.regions_class_order or (), strict=True):
            if value in (region if isinstance(region, tuple) else (region,)):
                restored = writes
        assert restored == value


@pytest.mark.parametrize(
    ("name", "pattern", "group"),
    [("brats", "BraTS-GLI-00002-001", "00002"), ("acdc", "patient007_frame12", "patient007")],
)
def test_patients_are_found_in_names(make_release, converted, name, pattern, group):
    found = re.search(content(converted(name, make_release(name)))["group_pattern"], pattern)
    assert found
    assert found[1] == group


@pytest.mark.parametrize(
    ("options", "dataset", "training", "tests", "channel"),
    [
        ({"modality": "ct"}, "Dataset218_AMOSCT", ["amos_0001", "amos_0004", "amos_0008"], ["amos_0002"], "CT"),
        ({"modality": "mr"}, "Dataset217_AMOSMR", ["amos_0507", "amos_0508", "amos_0510"], ["amos_0600"], "MR"),
        (
            {"validation": "test"},
            "Dataset219_AMOS",
            ["amos_0001", "amos_0004", "amos_0507", "amos_0508"],
            ["amos_0008", "amos_0510"],
            "CT or MR",
        ),
        (
            {"modality": "mr", "labels": "umamba", "validation": "test"},
            "Dataset702_AbdomenMR",
            ["amos_0507", "amos_0508"],
            ["amos_0510"],
            "MR",
        ),
    ],
)
def test_choices_of_amos(make_release, converted, options, dataset, training, tests, channel):
    folder = converted("amos", make_release("amos"), **options)
    assert folder.name == dataset
    assert identifiers(folder, "labelsTr") == training
    assert identifiers(folder, "imagesTs") == [f"{case}_0000" for case in tests]
    assert identifiers(folder, "labelsTs") == (tests if options.get("validation") == "test" else [])
    assert content(folder)["channel_names"] == {"0": channel}
    assert not [finding for finding in check_dataset(load_raw_dataset(folder)).findings]


@pytest.mark.parametrize(
    ("name", "options", "label", "original", "table"),
    [
        (
            "amos",
            {"modality": "mr", "labels": "umamba"},
            "amos_0507",
            "labelsTr/amos_0507",
            # liver, right kidney, ... of U-Mamba by AMOS's number; bladder and prostate are gone
            {0: 0, 6: 1, 2: 2, 1: 3, 10: 4, 8: 5, 9: 6, 11: 7, 12: 8, 4: 9, 5: 10, 7: 11, 13: 12, 3: 13, 14: 0, 15: 0},
        ),
        (
            "btcv",
            {"labels": "synapse8"},
            "abdomen_0001",
            "Training/label/label0001",
            # aorta, gallbladder, left kidney, right kidney, liver, pancreas, spleen, stomach
            {0: 0, 8: 1, 4: 2, 3: 3, 2: 4, 6: 5, 11: 6, 1: 7, 7: 8, 5: 0, 9: 0, 10: 0, 12: 0, 13: 0},
        ),
    ],
)
def test_labels_in_another_order(make_release, converted, name, options, label, original, table):
    source = make_release(name)
    folder = converted(name, source, **options)
    before, after = array(source / f"{original}.nii.gz"), array(folder / "labelsTr" / f"{label}.nii.gz")
    for value, wanted in table.items():
        assert (before == value).any()
        assert set(after[before == value].tolist()) == {wanted}
    assert not check_dataset(load_raw_dataset(folder)).findings


def test_translation_of_an_order_into_itself_changes_nothing():
    for organs in (AMOS, BTCV, UMAMBA, SYNAPSE8):
        assert translation(organs, organs) == {value: value for value in range(len(organs) + 1)}


@pytest.mark.parametrize(
    ("name", "options", "protocol"),
    [
        ("flare22", {}, "umamba_abdomen"),
        ("amos", {"modality": "mr", "labels": "umamba"}, "umamba_abdomen"),
        ("acdc", {}, "uumamba_acdc"),
        ("acdc", {}, "mambaunet"),
        ("btcv", {}, "vmunet_synapse"),
        ("btcv", {"labels": "synapse8"}, "tamingmambas_synapse"),
        ("brats", {}, "segmamba_brats"),
    ],
)
def test_protocols_of_papers_know_the_classes(make_release, converted, name, options, protocol):
    chosen = choose_protocol(protocol)
    labels = Labels.from_json(content(converted(name, make_release(name), **options)), Path("dataset.json"))
    targets = targets_of(chosen, labels)
    measured = [target for target in targets.values() if target.metrics]
    assert len(measured) == (len(chosen.only) or len(labels.foreground))
    assert all(target.tolerance for target in measured) == bool(chosen.tolerances)


def first_label(name: str, layout) -> str:
    return next(path for path, values in layout(name).items() if values)


def refused(converted, name: str, source: Path, **options: str) -> str:
    """The message; nothing is left behind."""
    with pytest.raises(UserError) as error:
        converted(name, source, **options)
    raw = source.parent / "raw"
    assert not raw.exists() or not any(raw.iterdir())
    return str(error.value)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_folders_are_refused(converted, tmp_path, name):
    (tmp_path / "empty").mkdir()
    release = RELEASES[name.split()[0]]
    message = f"empty: holds no training case of {release.title}; give {release.folder}"
    assert message in refused(converted, name, tmp_path / "empty")
    assert f"no such folder; give {release.folder}" in refused(converted, name, tmp_path / "nowhere")


@pytest.mark.parametrize("name", NAMES)
def test_missing_labels_are_named(make_release, converted, layout, name):
    source = make_release(name)
    (source / first_label(name, layout)).unlink()
    message = refused(converted, name, source)
    assert re.search(r"holds cases that are not whole \(1\): \S+ has no \S*(label|seg)", message)


@pytest.mark.parametrize("name", NAMES)
def test_foreign_label_values_are_named(make_release, converted, save, layout, name):
    source = make_release(name)
    label = source / first_label(name, layout)
    voxels = array(label)
    voxels[0, 0, :2] = 77, 99
    save(label, voxels)
    message = refused(converted, name, source)
    assert f"{label}: holds the values 77, 99, but the labels of this data set are 0, 1" in message


@pytest.mark.parametrize("name", NAMES)
def test_other_shapes_are_named(make_release, converted, save, layout, name):
    source = make_release(name)
    label = source / first_label(name, layout)
    save(label, array(label)[:-1])
    assert f"{label}: has shape 5×6×15, but " in refused(converted, name, source)


@pytest.mark.parametrize(
    ("geometry", "message"),
    [
        ({"Spacing": (1.5, 1.25, 2.1)}, "has spacing (1.5, 1.25, 2.1), but imaging.nii.gz has (1.5, 1.25, 2)"),
        ({"Origin": (-20.0, 31.0, 5.0)}, "has origin (-20, 31, 5), but imaging.nii.gz has (-20, 30, 5)"),
        ({"Direction": (1, 0, 0, 0, 1, 0, 0, 0, 1)}, "has direction (1, 0, 0, 0, 1, 0, 0, 0, 1), but imaging.nii.gz"),
    ],
)
def test_other_grids_are_named_all_at_once(make_release, converted, save, geometry, message):
    source = make_release("kits")
    for case in ("case_00000", "case_00401"):
        label = source / case / "segmentation.nii.gz"
        save(label, array(label), **geometry)
    found = refused(converted, "kits", source)
    assert f"case_00000/segmentation.nii.gz: {message}" in found
    assert "; 1 more lie on other grids than their images: " in found
    assert "case_00401/segmentation.nii.gz" in found


def test_noise_of_rounded_headers_is_no_other_grid(make_release, converted, save):
    source = make_release("kits")
    label = source / "case_00000" / "segmentation.nii.gz"
    save(label, array(label), Origin=(-20.001, 30.0, 5.0))
    report = check_dataset(load_raw_dataset(converted("kits", source)))
    assert [finding.severity for finding in report.findings] == ["warning"]


def test_a_channel_that_is_missing_or_lies_elsewhere(make_release, converted, save):
    source = make_release("brats")
    image = source / f"{BRATS}-t2w.nii.gz"
    voxels = array(image)
    save(image, voxels, Origin=(0.0, 0.0, 0.0))
    assert "BraTS-GLI-00000-001-t2w.nii.gz: has origin (0, 0, 0), but BraTS-GLI-00000-001-t1n" in refused(
        converted, "brats", source
    )
    image.unlink()
    assert "(1): BraTS-GLI-00000-001 has no -t2w; add" in refused(converted, "brats", source)


def test_both_years_of_brats(make_release, converted):
    make_release("brats")
    source = make_release("brats 2021")
    message = "holds cases of BraTS 2023 and of BraTS 2021; choose one with --year"
    assert message in refused(converted, "brats", source)
    for year in ("2023", "2021"):
        assert converted("brats", source, year=year).name.endswith(year)


@pytest.mark.parametrize(("there", "year"), [("brats", "2021"), ("brats 2021", "2023")])
def test_the_other_year_of_brats(make_release, converted, there, year):
    message = rf"holds BraTS .*, and not BraTS {year}.*; give the folder of BraTS {year}.*, or --year 202\d"
    assert re.search(message, refused(converted, "brats", make_release(there), year=year))


def test_a_folder_of_something_else_is_named(make_release, converted):
    message = refused(converted, "kits", make_release("amos"))
    assert (
        "holds no training case of KiTS23 (left out, as no part of the data set: imagesTr/amos_0001.nii.gz, " in message
    )


@pytest.mark.parametrize(("name", "image"), [("kits", "case_00401/imaging.nii.gz"), ("lits", "test-volume-0.nii")])
def test_files_that_are_cut_short(make_release, converted, name, image):
    path = make_release(name) / image
    path.write_bytes(path.read_bytes()[:-100])
    assert f"{image}: " in refused(converted, name, path.parents[image.count("/")])


@pytest.mark.parametrize(
    ("compressed", "message"),
    [
        (False, "Case01.mhd: its file of voxels holds 860 of the 960 bytes"),
        (True, "Case01.zraw: its compressed data is damaged or cut short"),
    ],
)
def test_meta_images_that_are_cut_short(make_release, converted, compressed, message):
    source = make_release("promise12")
    header = source / "training_data" / "Case01.mhd"
    sitk.WriteImage(sitk.ReadImage(str(header)), str(header), compressed)
    voxels = header.with_suffix(".zraw" if compressed else ".raw")
    voxels.write_bytes(voxels.read_bytes()[:-100])
    assert message in refused(converted, "promise12", source)
    voxels.unlink()
    assert f"{voxels}: no such file" in refused(converted, "promise12", source)


def test_volumes_of_four_axes(make_release, converted):
    source = make_release("acdc")
    frame = source / "training" / "patient001" / "patient001_frame01.nii.gz"
    nibabel.Nifti1Image(np.zeros((4, 5, 6, 7), np.uint8), np.eye(4)).to_filename(frame)
    assert "patient001_frame01.nii.gz: has shape 4×5×6×7, which is no volume" in refused(converted, "acdc", source)


def test_two_files_of_one_case(make_release, converted):
    source = make_release("imagecas")
    (source / "201-400").mkdir()
    shutil.copy(source / "1-200" / "1.img.nii.gz", source / "201-400")
    assert re.search(
        r"201-400/1\.img\.nii\.gz: is a second file of 1, beside .*1-200/1\.img\.nii\.gz",
        refused(converted, "imagecas", source),
    )


@pytest.mark.parametrize(
    ("name", "left_out"),
    [
        ("acdc", "training/patient001/patient001_4d.nii.gz"),
        ("flare22", "UnlabeledCase/Case_00001_0000.nii.gz"),
        ("promise12", "livechallenge_test_data/Case00.mhd"),
    ],
)
def test_what_is_left_out_is_named_and_hidden_files_do_not_count(make_release, converted, caplog, name, left_out):
    source = make_release(name)
    (source / Path(left_out)).with_name(f"._{Path(left_out).name}").write_bytes(b"mac")
    converted(name, source)
    assert f"left out, as no part of the data set: {left_out}\n" in f"{caplog.text}"
    assert "the layout was not compared with a copy" in caplog.text


def test_numbers_names_and_help(umamba_seg):
    numbers = {release.dataset_id for release in RELEASES.values()}
    assert len(numbers) == len({release.dataset_name for release in RELEASES.values()}) == len(RELEASES)
    for name, release in RELEASES.items():
        shown = " ".join(umamba_seg("convert", name, "--help").succeeded().out.split())
        assert release.title in shown
        assert all(f"--{option.name}" in shown for option in release.options)
        assert ("It was not compared with a copy" in shown) != release.verified


def test_command_line(make_release, umamba_seg, tmp_path):
    source = make_release("amos")
    words = ("--modality", "ct", "-d", 77, "--name", "Mine", "--root", tmp_path, "--json")
    done = umamba_seg("convert", "amos", "-i", source, *words).succeeded()
    folder = tmp_path / "nnUNet_raw" / "Dataset077_Mine"
    assert done.result == {"dataset": "Dataset077_Mine", "folder": str(folder)}
    assert content(folder)["numTraining"] == 3
    again = umamba_seg("convert", "amos", "-i", source, *words)
    assert again.code == 2
    assert "there is a data set 77 already" in again.err
