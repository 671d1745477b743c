"""Releases of 2-D pictures, as their makers lay them out, become nnU-Net raw data sets.

The layouts are those that the converters state, made here; no copy of a release was at hand.
"""

import json
import re
import shutil

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from umamba_seg.datasets.check import check_dataset
from umamba_seg.datasets.images import read_image
from umamba_seg.datasets.instances import instances_to_segmentation, read_instances
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.datasets.releases import cellseg, cxr, dsb2018, endovis, isic
from umamba_seg.datasets.releases.release import convert
from umamba_seg.errors import UserError

RNG = np.random.default_rng(0)
SHAPE = (40, 48)
INSIDE = np.zeros(SHAPE, bool)
INSIDE[8:30, 10:32] = True
CELLS = np.zeros(SHAPE, np.uint16)
CELLS[4:16, 5:20], CELLS[16:30, 5:20], CELLS[20:36, 28:44] = 3, 900, 41
ALL = {release.RELEASE.name: release.RELEASE for release in (cellseg, cxr, dsb2018, endovis, isic)}


def noise(*shape, high=255, dtype=np.uint8):
    return RNG.integers(0, high, shape).astype(dtype)


def save(path, pixels):
    """Write (y, x) or (y, x, colour) by the ending of the name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    elif path.suffix in (".tif", ".tiff"):
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 else "minisblack")
    else:
        PilImage.fromarray(pixels).save(path)
    return path


def make_isic(source, year="2017"):
    images, masks, test = {
        "2017": ("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", "Test_v2"),
        "2018": ("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", "Test"),
    }[year]
    for part, numbers in (("Training", (0, 1, 2)), ("Validation", (3,)), (test, (4,))):
        for number in numbers:
            name = f"ISIC_{number:07d}"
            save(source / images.format(part) / f"{name}.jpg", noise(*SHAPE, 3))
            save(source / masks.format(part) / f"{name}_segmentation.png", np.uint8(INSIDE) * 255)
            if year == "2017":
                save(source / images.format(part) / f"{name}_superpixels.png", noise(*SHAPE, 3))
    (source / images.format("Training") / "ISIC-2017_Training_Data_metadata.csv").write_text("image_id\n")
    return source


def make_cellseg(source):
    pictures = {
        "Training-labeled/images/cell_00001.png": noise(*SHAPE, 3),
        "Training-labeled/images/cell_00002.bmp": noise(*SHAPE),
        "Training-labeled/images/cell_00003.tif": noise(*SHAPE, high=4000, dtype=np.uint16),
        "Tuning/images/cell_00001.png": noise(*SHAPE),
    }
    for name, pixels in pictures.items():
        path = save(source / name, pixels)
        save(path.parent.parent / "labels" / f"{path.stem}_label.tiff", CELLS)
    return source


def make_endovis(source):
    def frame():
        pixels = np.zeros((1080, 1920, 3), np.uint8)
        pixels[::8, ::8] = noise(135, 240, 3)
        return pixels

    instruments = {
        1: {"Left_Prograsp_Forceps_labels": 10, "Maryland_Bipolar_Forceps_labels": 20, "Other_labels": 30},
        5: {"Grasping_Retractor_labels": 10, "Vessel_Sealer_labels": 20},
    }
    for number, folders in instruments.items():
        archive = "instrument_1_4_training" if number < 5 else "instrument_5_8_training"
        sequence = source / archive / f"instrument_dataset_{number}"
        save(sequence / "left_frames" / "frame000.png", frame())
        for place, (name, part) in enumerate(folders.items()):
            mask = np.zeros((1080, 1920), np.uint8)
            mask[200:400, 400 + 100 * place : 480 + 100 * place] = part
            mask[300:320, 400 + 100 * place : 480 + 100 * place] = 40
            save(sequence / "ground_truth" / name / "frame000.png", mask)
    save(source / "instrument_1_4_testing" / "instrument_dataset_1" / "left_frames" / "frame225.png", frame())
    return source


def make_cxr(source):
    left, right = (np.uint8(INSIDE) * 255 for _ in "lr")
    left[:, :20], right[:, 22:] = 0, 0
    for number in (1, 2):
        name = f"MCUCXR_{number:04d}_0.png"
        save(source / "MontgomerySet" / "CXR_png" / name, noise(*SHAPE))
        save(source / "MontgomerySet" / "ManualMask" / "leftMask" / name, left)
        save(source / "MontgomerySet" / "ManualMask" / "rightMask" / name, right)
    grey = noise(36, 52)
    save(source / "ChinaSet_AllFiles" / "CXR_png" / "CHNCXR_0001_0.png", np.stack([grey] * 3, -1))
    save(source / "ChinaSet_AllFiles" / "CXR_png" / "CHNCXR_0002_0.png", grey)
    save(source / "mask" / "CHNCXR_0001_0_mask.png", np.pad(np.full((20, 20), 255, np.uint8), ((8, 8), (16, 16))))
    return source


def rgba():
    return np.dstack([noise(*SHAPE, 3), np.full(SHAPE, 255, np.uint8)])


def make_dsb2018(source):
    for name in ("00ab", "11cd"):
        save(source / "stage1_train" / name / "images" / f"{name}.png", rgba())
        for value in np.unique(CELLS)[1:]:
            save(source / "stage1_train" / name / "masks" / f"m{value:04d}.png", np.uint8(value == CELLS) * 255)
    save(source / "stage1_test" / "22ef" / "images" / "22ef.png", rgba())
    return source


MAKE = {"isic": make_isic, "cellseg": make_cellseg, "endovis": make_endovis, "cxr": make_cxr, "dsb2018": make_dsb2018}


@pytest.fixture
def run(tmp_path, caplog):
    """``run("isic", source)`` converts, sees that `check` finds no error, and returns (folder, log)."""
    caplog.set_level("INFO", "umamba_seg")

    def run(name, source):
        folder = convert(ALL[name], source, tmp_path / "raw", None, None, {})
        findings = check_dataset(load_raw_dataset(folder)).findings
        assert not [finding for finding in findings if finding.severity == "error"]
        return folder, caplog.text

    return run


def picture(path):
    """(y, x) or (y, x, 3)"""
    return np.moveaxis(read_image(path).array, 0, -1).squeeze()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def content(folder):
    return json.loads((folder / "dataset.json").read_text())


@pytest.mark.parametrize("year", ["2017", "2018"])
def test_isic(tmp_path, run, year):
    source = make_isic(tmp_path / "source", year)
    folder, log = run("isic", source)
    assert "the layout was not compared with a copy" in log
    assert folder.name == "Dataset705_ISIC"
    assert content(folder) == {
        "channel_names": {"0": "R", "1": "G", "2": "B"},
        "labels": {"background": 0, "lesion": 1},
        "file_ending": ".png",
        "name": f"ISIC {year}, lesion boundaries",
        "reference": "https://challenge.isic-archive.com",
        "release": year,
        "numTraining": 4,
    }
    assert names(folder / "imagesTr") == [f"ISIC_{number:07d}_0000.png" for number in range(4)]  # no superpixels
    assert names(folder / "labelsTs") == ["ISIC_0000004.png"]
    (original,) = source.glob("*Training_[DI]*/ISIC_0000000.jpg")
    decoded = imagecodecs.jpeg8_decode(original.read_bytes())
    assert np.array_equal(picture(folder / "imagesTr" / "ISIC_0000000_0000.png"), decoded)
    assert np.array_equal(picture(folder / "labelsTr" / "ISIC_0000000.png"), INSIDE)
    assert json.loads((folder / "splits_final.json").read_text()) == [
        {"train": [f"ISIC_{number:07d}" for number in range(3)], "val": ["ISIC_0000003"]}
    ]


def test_isic_in_folders_within_folders(tmp_path, run):
    source = make_isic(tmp_path / "source")
    for folder in list(source.iterdir()):
        (tmp_path / "inner").mkdir()
        (tmp_path / "inner" / folder.name).symlink_to(folder.rename(tmp_path / folder.name))
        (tmp_path / "inner").rename(folder)
    folder, _ = run("isic", source)
    assert content(folder)["numTraining"] == 4
    assert names(folder / "labelsTs") == ["ISIC_0000004.png"]


def test_isic_without_validation_and_test_masks(tmp_path, run):
    source = make_isic(tmp_path / "source")
    shutil.rmtree(source / "ISIC-2017_Validation_Part1_GroundTruth")
    shutil.rmtree(source / "ISIC-2017_Test_v2_Part1_GroundTruth")
    folder, log = run("isic", source)
    assert content(folder)["numTraining"] == 3
    assert not (folder / "splits_final.json").exists()
    assert not (folder / "labelsTs").exists()
    assert names(folder / "imagesTs") == ["ISIC_0000004_0000.png"]
    assert "there are no validation pictures with masks" in log
    assert "there are no masks of the test pictures" in log


def test_cellseg(tmp_path, run):
    source = make_cellseg(tmp_path / "source")
    (source / "Testing").mkdir()
    folder, log = run("cellseg", source)
    assert folder.name == "Dataset703_NeurIPSCell"
    assert content(folder)["labels"] == {"background": 0, "interior": 1, "boundary": 2}
    assert content(folder)["instances"] == {"interior": 1, "boundary": 2, "masks": "instancesTr"}
    assert names(folder / "instancesTr") == ["cell_00001.png", "cell_00002.png", "cell_00003.png"]
    assert names(folder / "instancesTs") == names(folder / "labelsTs") == ["tuning_cell_00001.png"]
    numbered = np.searchsorted([0, 3, 41, 900], CELLS)
    assert np.array_equal(read_instances(folder / "instancesTs" / "tuning_cell_00001.png"), numbered)
    assert np.array_equal(picture(folder / "labelsTr" / "cell_00002.png"), instances_to_segmentation(CELLS))
    colour = imagecodecs.png_decode((source / "Training-labeled/images/cell_00001.png").read_bytes())
    assert np.array_equal(picture(folder / "imagesTr" / "cell_00001_0000.png"), colour)  # 8 bits stay as they are
    assert picture(folder / "imagesTr" / "cell_00002_0000.png").shape == (*SHAPE, 3)
    assert "Testing was left out" in log


def test_cellseg_stretches_more_than_8_bits(tmp_path, run):
    source = make_cellseg(tmp_path / "source")
    wide = source / "Training-labeled" / "images" / "cell_00003.tif"
    pixels = np.zeros((*SHAPE, 3), np.uint16)
    pixels[1:, :, 0] = noise(SHAPE[0] - 1, SHAPE[1], high=60000, dtype=np.uint16) + 1
    pixels[0, 0, 2] = 500
    save(wide, pixels)
    folder, _ = run("cellseg", source)
    written = picture(folder / "imagesTr" / "cell_00003_0000.png").astype(float)
    low, high = np.percentile(pixels[1:, :, 0], (1, 99))
    expected = np.clip((pixels[..., 0] - low) / (high - low), 0, 1) * 255
    assert np.abs(written[..., 0] - expected).max() <= 0.5
    assert not written[..., 1].any()
    assert written[0, 0, 2] == 255
    assert np.count_nonzero(written[..., 2]) == 1


def test_endovis(tmp_path, run):
    source = make_endovis(tmp_path / "source")
    left_behind = source / "__MACOSX" / "instrument_1_4_training" / "instrument_dataset_1" / "left_frames"
    left_behind.mkdir(parents=True)
    (left_behind / "._frame000.png").touch()
    folder, log = run("endovis", source)
    assert folder.name == "Dataset704_Endovis17"
    assert list(content(folder)["labels"].items())[:3] == [
        ("background", 0),
        ("Bipolar Forceps", 1),
        ("Prograsp Forceps", 2),
    ]
    assert content(folder)["group_pattern"] == r"seq\d+"
    assert names(folder / "imagesTr") == ["seq01_frame000_0000.png", "seq05_frame000_0000.png"]
    assert names(folder / "imagesTs") == ["test_seq01_frame225_0000.png"]
    label = picture(folder / "labelsTr" / "seq01_frame000.png")
    assert label.shape == (1024, 1280)
    for place, kind in enumerate((2, 1, 7)):  # in the frame at (200, 400), whatever the part
        assert (label[172:372, 80 + 100 * place : 160 + 100 * place] == kind).all()
    assert np.count_nonzero(label) == 3 * 200 * 80
    assert set(np.unique(picture(folder / "labelsTr" / "seq05_frame000.png"))) == {0, 4, 5}
    frame = imagecodecs.png_decode(next(source.rglob("frame225.png")).read_bytes())
    test = picture(folder / "imagesTs" / "test_seq01_frame225_0000.png")
    assert np.array_equal(test, frame[28:1052, 320:1600])
    assert "1 of 1 test frames have no masks" in log


def test_endovis_test_frames_with_masks_of_types(tmp_path, run):
    source = make_endovis(tmp_path / "source")
    types = save(
        source / "instrument_1_4_testing" / "instrument_dataset_1" / "gt" / "TypeSegmentation" / "frame225.png",
        np.pad(np.full((30, 30), 6, np.uint8), ((100, 950), (400, 1490))),
    )
    folder, log = run("endovis", source)
    label = picture(folder / "labelsTs" / "test_seq01_frame225.png")
    assert (label[72:102, 80:110] == 6).all()
    assert np.count_nonzero(label) == 900
    assert "have no masks" not in log
    shutil.rmtree(folder)
    save(types, np.full((1080, 1920), 8, np.uint8))
    with pytest.raises(UserError, match=r"frame225\.png: holds 8, and labels run from 0 to 7"):
        run("endovis", source)


def test_cxr(tmp_path, run):
    folder, log = run("cxr", make_cxr(tmp_path / "source"))
    assert folder.name == "Dataset706_ChestXray"
    assert content(folder)["labels"] == {"background": 0, "lung": 1}
    assert names(folder / "imagesTr") == [
        f"{name}_0_0000.png" for name in ("CHNCXR_0001", "MCUCXR_0001", "MCUCXR_0002")
    ]
    assert picture(folder / "imagesTr" / "CHNCXR_0001_0_0000.png").shape == (36, 52)
    both = INSIDE.copy()
    both[:, 20:22] = True  # the right mask ends at 22, the left one begins at 20
    assert np.array_equal(picture(folder / "labelsTr" / "MCUCXR_0001_0.png"), both & INSIDE)
    assert "1 pictures of Shenzhen have no mask and were left out: CHNCXR_0002_0" in log


def test_cxr_as_the_kaggle_copy_has_it(tmp_path, run):
    source = tmp_path / "source" / "Lung Segmentation"
    for name, mask in (("MCUCXR_0001_0", "MCUCXR_0001_0"), ("CHNCXR_0001_0", "CHNCXR_0001_0_mask")):
        save(source / "CXR_png" / f"{name}.png", noise(*SHAPE))
        save(source / "masks" / f"{mask}.png", np.uint8(INSIDE) * 255)
    folder, _ = run("cxr", source.parent)
    assert names(folder / "labelsTr") == ["CHNCXR_0001_0.png", "MCUCXR_0001_0.png"]
    assert np.array_equal(picture(folder / "labelsTr" / "MCUCXR_0001_0.png"), INSIDE)


def test_dsb2018(tmp_path, run):
    source = make_dsb2018(tmp_path / "source")
    folder, log = run("dsb2018", source)
    assert folder.name == "Dataset707_Nuclei"
    assert names(folder / "imagesTr") == ["00ab_0000.png", "11cd_0000.png"]
    assert names(folder / "imagesTs") == ["22ef_0000.png"]
    assert picture(folder / "imagesTr" / "00ab_0000.png").shape == (*SHAPE, 3)
    assert log.count("a constant alpha channel was dropped") == 1
    numbered = np.searchsorted([0, 3, 41, 900], CELLS)
    assert np.array_equal(read_instances(folder / "instancesTr" / "11cd.png"), numbered)
    assert np.array_equal(picture(folder / "labelsTr" / "11cd.png"), instances_to_segmentation(CELLS))


def test_dsb2018_with_a_pixel_in_two_masks(tmp_path, run):
    source = make_dsb2018(tmp_path / "source")
    save(source / "stage1_train" / "00ab" / "masks" / "m0041.png", np.uint8((CELLS == 41) | (CELLS == 3)) * 255)
    folder, log = run("dsb2018", source)
    assert "00ab.png: 180 pixels lie in two masks and went to the later" in log
    assert np.unique(picture(folder / "instancesTr" / "00ab.png")).tolist() == [0, 1, 2]


def test_dsb2018_real_nuclei(tmp_path, run, shared_data):
    """A published sample, whose masks were merged by others, taken apart again."""
    data = shared_data("dsb2018_nuclei")
    for name in ("0121d6759c5a", "0532c64c2fd0"):
        folder = tmp_path / "source" / "stage1_train" / name
        (folder / "images").mkdir(parents=True)
        shutil.copy(data / "images" / f"{name}.png", folder / "images")
        nuclei = read_instances(data / "instance_labels" / f"{name}.png")
        for number in range(1, nuclei.max() + 1):
            save(folder / "masks" / f"{number:04d}.png", np.uint8(nuclei == number) * 255)
    folder, _ = run("dsb2018", tmp_path / "source")
    for name in ("0121d6759c5a", "0532c64c2fd0"):
        merged = read_instances(data / "instance_labels" / f"{name}.png")
        assert np.array_equal(read_instances(folder / "instancesTr" / f"{name}.png"), merged)


def wrong(name, change, message):
    return pytest.param(name, change, message, id=f"{name}-{message}")


def rewrite(pattern, pixels):
    return lambda source: save(next(iter(sorted(source.rglob(pattern)))), pixels)


def remove(pattern):
    def change(source):
        path = next(iter(sorted(source.rglob(pattern))))
        shutil.rmtree(path) if path.is_dir() else path.unlink()

    return change


def rename(pattern, name):
    return lambda source: next(source.rglob(pattern)).rename(next(source.rglob(pattern)).with_name(name))


OTHER_SHAPE = np.zeros((20, 20), np.uint8)
GRADED = np.uint8(INSIDE) * 255 - np.uint8(INSIDE) * (np.arange(48) == 11).astype(np.uint8) * 100


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        wrong("isic", remove("ISIC-2017_Training_Data"), "holds no training pictures of ISIC 2017 or 2018; give the"),
        wrong("isic", lambda source: make_isic(source, "2018"), "holds ISIC 2017 and 2018"),
        wrong("isic", remove("ISIC-2017_Training_Part1*"), "ISIC-2017_Training_Part1_GroundTruth: no such folder"),
        wrong("isic", remove("ISIC_0000001_seg*"), r"images without a mask in .* \(1\): ISIC_0000001"),
        wrong("isic", remove("ISIC_0000001.jpg"), r"masks without an image \(1\): ISIC_0000001"),
        wrong("isic", rewrite("ISIC_0000001_seg*", GRADED), r"ISIC_0000001_segmentation\.png: holds .* 0, 155, 255"),
        wrong("isic", rewrite("ISIC_0000001_seg*", OTHER_SHAPE), r"1_segmentation\.png: has shape 20×20 \(y, x\)"),
        wrong("cellseg", remove("Training-labeled"), "Training-labeled: no such folder; give the folder that holds"),
        wrong("cellseg", remove("Tuning/labels"), "Tuning/labels: no such folder"),
        wrong("cellseg", remove("cell_00002_label.tiff"), r"images without a mask in .* \(1\): cell_00002"),
        wrong("cellseg", rewrite("cell_00002_label.tiff", OTHER_SHAPE), r"cell_00002_label\.tiff: has shape 20×20"),
        wrong(
            "cellseg",
            rewrite("cell_00003.tif", np.full(SHAPE, np.nan, np.float32)),
            r"cell_00003\.tif: holds NaN or infinity",
        ),
        wrong("endovis", remove("left_frames"), "instrument_dataset_1/left_frames: no such folder"),
        wrong("endovis", remove("ground_truth"), "ground_truth: holds no folders of masks"),
        wrong("endovis", remove("Left_Prograsp*/frame000.png"), r"Left_Prograsp_Forceps_labels: has no mask of frame"),
        wrong(
            "endovis", rename("Vessel_Sealer_labels", "Stapler_labels"), "Stapler_labels: names no instrument that is"
        ),
        wrong("endovis", rewrite("left_frames/frame000.png", OTHER_SHAPE), r"frame000\.png: has shape 20×20 \(y, x\)"),
        wrong("endovis", rewrite("Vessel*/frame000.png", OTHER_SHAPE), r"frame000\.png: has shape 20×20 \(y, x\)"),
        wrong("cxr", remove("leftMask/MCUCXR_0001*"), "holds the mask of one lung only of MCUCXR_0001_0"),
        wrong("cxr", remove("CXR_png/MCUCXR_0001*"), "holds masks without a picture: MCUCXR_0001_0"),
        wrong("cxr", remove("ManualMask"), "holds pictures without a mask: MCUCXR_0001_0, MCUCXR_0002_0"),
        wrong("cxr", rewrite("leftMask/MCUCXR_0001*", OTHER_SHAPE), r"leftMask/MCUCXR_0001_0\.png: has shape 20×20"),
        wrong("cxr", rewrite("rightMask/MCUCXR_0001*", GRADED), r"rightMask/MCUCXR_0001_0\.png: holds the values 0"),
        wrong("cxr", rewrite("CXR_png/MCUCXR_0001*", noise(*SHAPE, 3)), r"MCUCXR_0001_0\.png: has colour"),
        wrong("cxr", rewrite("CXR_png/MCUCXR_0001*", noise(*SHAPE, dtype=np.uint16)), "numbers of the type uint16"),
        wrong("dsb2018", remove("stage1_train"), "stage1_train: no such folder; give the folder that holds"),
        wrong("dsb2018", remove("stage1_train/00ab/masks"), "00ab/masks: no such folder"),
        wrong("dsb2018", remove("stage1_train/00ab/images/*.png"), "00ab/images: holds no pictures"),
        wrong("dsb2018", rewrite("masks/m0041.png", GRADED), r"masks/m0041\.png: holds the values 0, 155, 255"),
        wrong("dsb2018", rewrite("masks/m0041.png", OTHER_SHAPE), r"masks/m0041\.png: has shape 20×20"),
        wrong(
            "dsb2018",
            lambda source: save(source / "stage1_train" / "00ab" / "images" / "other.png", noise(*SHAPE)),
            r"00ab/images: does not hold 00ab\.png alone",
        ),
    ],
)
def test_what_is_no_such_release_is_refused(tmp_path, name, change, message):
    source = MAKE[name](tmp_path / "source")
    change(source)
    with pytest.raises(UserError, match=message):
        convert(ALL[name], source, tmp_path / "raw", None, None, {})
    assert not list((tmp_path / "raw").glob("*")), "half a data set was left"


@pytest.mark.parametrize("name", sorted(MAKE))
def test_an_empty_folder_is_refused(tmp_path, name):
    (tmp_path / "source").mkdir()
    with pytest.raises(UserError, match=re.escape(ALL[name].folder)):
        convert(ALL[name], tmp_path / "source", tmp_path / "raw", None, None, {})


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MAKE))
def test_trains(tmp_path, trains, name):
    trains(name, MAKE[name](tmp_path / "source"))
