"""Folders of pictures become nnU-Net raw data sets; every change is reported and no bit of an image is lost."""

import json
import shutil

import imagecodecs
import numpy as np
import pytest
import tifffile
from PIL import Image as PilImage

from umamba_seg.datasets import folder as folder_module
from umamba_seg.datasets.check import check_dataset
from umamba_seg.datasets.folder import convert
from umamba_seg.datasets.images import read_image
from umamba_seg.datasets.pictures import read_picture
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 255, (20, 24)).astype(np.uint8)
RGB = RNG.integers(0, 255, (20, 24, 3)).astype(np.uint8)
OPAQUE = np.full((20, 24, 1), 255, np.uint8)
MASK = np.zeros((20, 24), np.uint8)
MASK[3:9, 4:12] = 255


@pytest.fixture
def run(tmp_path, caplog):
    """``run(images, masks)`` writes {file name: pixels} into two folders, converts them, and returns (folder, log)."""
    caplog.set_level("INFO", "umamba_seg")

    def run(images, masks=None, tests=None, **options):
        masks = {f"{name.split('.')[0]}.png": MASK for name in images} if masks is None else masks
        for subfolder, pictures in (("images", images), ("masks", masks), ("tests", tests or {})):
            (tmp_path / subfolder).mkdir(exist_ok=True)
            for name, pixels in pictures.items():
                _write(tmp_path / subfolder / name, pixels)
        test_images = tmp_path / "tests" if tests else None
        folders = (tmp_path / "images", tmp_path / "masks", tmp_path / "raw")
        return convert(*folders, 5, "Cells", test_images=test_images, **options), caplog.text

    return run


def _write(path, pixels):
    if isinstance(pixels, bytes):
        path.write_bytes(pixels)
    elif path.suffix == ".png":
        path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(pixels)))
    elif path.suffix == ".tif":
        tifffile.imwrite(path, pixels, photometric="rgb" if pixels.ndim == 3 and pixels.shape[-1] > 2 else "minisblack")
    else:
        PilImage.fromarray(pixels).save(path)


def _content(folder):
    return json.loads((folder / "dataset.json").read_text())


def _image(folder, case):
    (path,) = (folder / "imagesTr").glob(f"{case}_0000.*")
    return np.moveaxis(read_image(path).array, 0, -1).squeeze()


def test_grey_images_and_0_255_masks(run):
    folder, log = run({"a.png": GREY, "b.bmp": GREY + 1, "c.tif": GREY + 2})
    assert _content(folder) == {
        "channel_names": {"0": "grey"},
        "labels": {"background": 0, "value_255": 1},
        "numTraining": 3,
        "file_ending": ".png",
        "mask_values": {"0": 0, "255": 1},
    }
    assert "masks: values became labels: 0 -> 0, 255 -> 1" in log
    for number, case in enumerate("abc"):
        assert np.array_equal(_image(folder, case), GREY + number)
        label = read_image(folder / "labelsTr" / f"{case}.png").array[0]
        assert np.array_equal(label, MASK // 255)
    assert not check_dataset(load_raw_dataset(folder)).findings
    assert not (folder / "imagesTs").exists()


@pytest.mark.parametrize("suffix", ["_mask", "_label", "_seg", "_segmentation", "_MASK", ""])
def test_suffixes_of_masks(run, suffix):
    folder, log = run({"a.png": GREY}, {f"a{suffix}.png": MASK // 255})
    assert (folder / "labelsTr" / "a.png").exists()
    assert _content(folder)["labels"] == {"background": 0, "label_1": 1}
    assert "mask_values" not in _content(folder)
    assert "masks:" not in log


def test_alpha_is_dropped_and_reported(run):
    varying = np.dstack([RGB, GREY])
    constant = np.dstack([RGB, OPAQUE])
    grey_alpha = np.dstack([GREY, OPAQUE])
    folder, log = run({"a.png": varying, "b.png": constant[::-1], "c.png": grey_alpha})
    assert np.array_equal(_image(folder, "a"), RGB)
    assert np.array_equal(_image(folder, "c"), np.dstack([GREY] * 3))
    assert "1 of 3 images: a varying alpha channel was dropped" in log
    assert "2 of 3 images: a constant alpha channel was dropped" in log
    assert "1 of 3 images: expanded from grey to RGB, as other images have colour" in log
    assert _content(folder)["channel_names"] == {"0": "R", "1": "G", "2": "B"}


def test_rgb_without_colour_becomes_grey(run):
    folder, log = run({"a.png": np.dstack([GREY] * 3), "b.png": GREY[::-1]})
    assert np.array_equal(_image(folder, "a"), GREY)
    assert "1 of 2 images: reduced from RGB with three equal channels to grey" in log
    assert load_raw_dataset(folder).channels == 1


def test_palettes_are_expanded(run, tmp_path):
    palette = PilImage.fromarray(GREY % 3, mode="P")
    palette.putpalette([0, 0, 0, 255, 0, 0, 0, 0, 255])
    for name in ("a.png", "b.tif"):
        palette.save(tmp_path / name)
    folder, _ = run({"a.png": (tmp_path / "a.png").read_bytes(), "b.tif": (tmp_path / "b.tif").read_bytes()})
    expected = np.array([[0, 0, 0], [255, 0, 0], [0, 0, 255]])[GREY % 3]
    assert np.array_equal(_image(folder, "a"), expected)
    assert np.array_equal(_image(folder, "b"), expected)


def test_jpeg_images_are_read_but_not_written(run, tmp_path):
    folder, _ = run({"a.jpg": RGB})
    assert _image(folder, "a").shape == (20, 24, 3)
    assert _content(folder)["file_ending"] == ".png"


@pytest.mark.parametrize(
    ("pixels", "ending"),
    [
        (GREY.astype(np.uint16) * 257 + 3, ".png"),
        (RGB.astype(np.uint16) * 257 + 3, ".tif"),
        (GREY.astype(np.float32) / 7, ".tif"),
        (GREY.astype(np.int32) - 100000, ".tif"),
    ],
)
def test_no_bit_is_lost(run, pixels, ending):
    source = "a.png" if pixels.dtype == np.uint16 else "a.tif"
    folder, _ = run({source: pixels})
    assert _content(folder)["file_ending"] == ending
    written = _image(folder, "a")
    assert written.dtype == pixels.dtype
    assert np.array_equal(written, pixels)
    assert not check_dataset(load_raw_dataset(folder)).findings


def test_mixed_bit_depths_are_named(run):
    folder, log = run({"a.png": GREY, "b.png": GREY.astype(np.uint16) * 257})
    assert "different number types, and keep them: uint8 (1), uint16 (1)" in log
    assert _image(folder, "b").max() > 255


@pytest.mark.parametrize(
    ("masks", "labels", "values"),
    [
        ([[0, 128], [255]], {"background": 0, "value_128": 1, "value_255": 2}, {"0": 0, "128": 1, "255": 2}),
        (
            [[(0, 0, 0), (255, 0, 0)], [(0, 255, 0)]],
            {"background": 0, "value_00ff00": 1, "value_ff0000": 2},
            {"#000000": 0, "#00ff00": 1, "#ff0000": 2},
        ),
        ([[(0, 0, 0), (9, 9, 9)], [9, 0]], {"background": 0, "value_9": 1}, {"0": 0, "9": 1}),
        ([[0, 1, 2], [2]], {"background": 0, "label_1": 1, "label_2": 2}, None),
    ],
)
def test_values_of_masks(run, masks, labels, values):
    names = [f"m{number}" for number in range(len(masks))]
    pixels = [np.array(mask, np.uint8)[np.arange(480).reshape(20, 24) % len(mask)] for mask in masks]
    images = {f"{name}.png": GREY + number for number, name in enumerate(names)}
    folder, _ = run(images, {f"{name}.png": mask for name, mask in zip(names, pixels, strict=True)})
    content = _content(folder)
    assert (content["labels"], content.get("mask_values")) == (labels, values)
    assert not check_dataset(load_raw_dataset(folder)).errors


def test_masks_without_0_keep_background_free(run):
    folder, log = run({"a.png": GREY}, {"a.png": np.where(MASK, 9, 4).astype(np.uint8)})
    assert _content(folder)["labels"] == {"background": 0, "value_4": 1, "value_9": 2}
    assert "no mask holds 0, so label 0 (background) stays empty" in log


def test_one_bit_and_transparent_masks(run, tmp_path):
    PilImage.fromarray(MASK).convert("1").save(tmp_path / "one.png")
    transparent = np.dstack([MASK, MASK, MASK, OPAQUE])
    folder, log = run(
        {"a.png": GREY, "b.png": RGB}, {"a.png": (tmp_path / "one.png").read_bytes(), "b.png": transparent}
    )
    for case in "ab":
        assert np.array_equal(read_image(folder / "labelsTr" / f"{case}.png").array[0], MASK // 255)
    assert "1 masks: a constant alpha channel was dropped" in log


def test_masks_that_hold_no_classes(run):
    with pytest.raises(UserError, match="no mask has any foreground"):
        run({"a.png": GREY}, {"a.png": MASK * 0})
    with pytest.raises(UserError, match=r"a.png: with it the masks hold more than 100 distinct values"):
        run({"a.png": GREY}, {"a.png": GREY})


def test_jpeg_mask(run):
    with pytest.raises(UserError, match="is a JPEG, whose compression alters"):
        run({"a.png": GREY}, {"a.jpg": MASK})


def test_mask_of_fractions(run):
    with pytest.raises(UserError, match=r"not whole numbers from 0 to 65535 \(its type is float32\)"):
        run({"a.png": GREY}, {"a.tif": MASK.astype(np.float32) / 510})


def test_shapes_must_agree(run, tmp_path):
    with pytest.raises(
        UserError, match=r"masks/a.png: has shape 19×24 \(y, x\), but its image .*images/a.png has 20×24"
    ):
        run({"a.png": GREY}, {"a.png": MASK[1:]})
    assert not any((tmp_path / "raw").iterdir())


@pytest.mark.parametrize(
    ("images", "masks", "message"),
    [
        ({"a.png": GREY, "b.png": GREY}, {"a.png": MASK}, r"images without a mask in .*masks \(1\): b; give"),
        ({"a.png": GREY}, {"a.png": MASK, "c_mask.png": MASK}, r"masks without an image \(1\): c"),
        ({"a.png": GREY}, {"a.png": MASK, "a_seg.png": MASK}, "a_seg.png: is a second mask of a, beside a.png"),
        ({"a.png": GREY, "a.bmp": GREY}, {"a.png": MASK}, "a.png: has the same name as a.bmp"),
        ({}, {"a.png": MASK}, r"holds no pictures \(there: nothing\)"),
        ({"a.gif": b"GIF"}, {"a.png": MASK}, r"holds no pictures \(there: .gif \(1\)\)"),
        ({"a.png": b"hello"}, {"a.png": MASK}, "is not a sound PNG file"),
        ({"a.tif": b"hello"}, {"a.png": MASK}, "is a damaged TIFF file"),
        ({"a.png": b""}, {"a.png": MASK}, r"is empty \(0 bytes\)"),
        ({"a.tif": np.zeros((7, 20, 24, 2), np.uint8)}, {"a.png": MASK}, "is a stack of pictures, not one"),
    ],
)
def test_refusals(run, images, masks, message):
    with pytest.raises(UserError, match=message):
        run(images, masks)


def test_cmyk(run, tmp_path):
    PilImage.fromarray(RGB).convert("CMYK").save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="is a CMYK picture"):
        run({"a.jpg": (tmp_path / "a.jpg").read_bytes()})
    PilImage.fromarray(RGB).convert("CMYK").save(tmp_path / "b.tif")
    with pytest.raises(UserError, match="has the colour model SEPARATED"):
        read_picture(tmp_path / "b.tif")


def test_miniswhite_tiff_is_inverted(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", GREY, photometric="miniswhite")
    assert np.array_equal(read_picture(tmp_path / "a.tif").pixels, 255 - GREY)


def test_test_images_group_pattern_and_other_files(run):
    images = {"p1_a.png": GREY, "notes.txt": b"x", ".DS_Store": b"x", "._p1_a.png": b"x"}
    masks = {"p1_a.png": MASK}
    folder, log = run(images, masks, tests={"t.png": RGB}, group_pattern="^[^_]+")
    assert "left out, as no pictures: notes.txt" in log
    assert load_raw_dataset(folder).group_pattern == "^[^_]+"
    assert read_image(folder / "imagesTs" / "t_0000.png").array.shape == (3, 20, 24)
    assert _image(folder, "p1_a").shape == (20, 24, 3)


def test_group_pattern_must_fit(run, tmp_path):
    with pytest.raises(UserError, match="finds no group in 1 of 1 cases: a"):
        run({"a.png": GREY}, group_pattern="^p")
    assert not (tmp_path / "raw").exists()


def test_interruption_leaves_nothing_behind(run, tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(folder_module, "write_json", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run({"a.png": GREY})
    assert not any((tmp_path / "raw").iterdir())


def _convert_odd(shared_data, tmp_path, pattern):
    """Convert files of odd_2d with a mask for each; the new data set and the sources."""
    sources = sorted(shared_data("odd_2d").glob(pattern))
    for subfolder in ("images", "masks"):
        (tmp_path / subfolder).mkdir()
    for source in sources:
        shutil.copy(source, tmp_path / "images")
        mask = np.zeros(read_picture(source).pixels.shape[:2], np.uint8)
        mask[5:20, 5:20] = 255
        _write(tmp_path / "masks" / f"{source.stem}_mask.png", mask)
    return convert(tmp_path / "images", tmp_path / "masks", tmp_path / "raw", 1, "Odd"), sources


def test_odd_2d_keeps_16_bits(shared_data, tmp_path, caplog):
    caplog.set_level("INFO", "umamba_seg")
    folder, sources = _convert_odd(shared_data, tmp_path, "*16*")
    assert len(sources) == 6
    reference = tifffile.imread(shared_data("odd_2d") / "sub-tif_sample-16gray_SEM.tif")
    assert reference.max() > 255
    for source in sources:  # all six hold the same picture
        assert np.array_equal(_image(folder, source.stem), reference)
    assert "3 of 6 images: further TIFF pages were left out" in caplog.text
    assert "2 of 6 images: a constant alpha channel was dropped" in caplog.text
    assert "4 of 6 images: reduced from RGB" in caplog.text


def test_odd_2d_all_at_once(shared_data, tmp_path):
    folder, sources = _convert_odd(shared_data, tmp_path, "*_SEM.*")
    assert len(sources) == 14
    assert not check_dataset(load_raw_dataset(folder)).errors


def test_dsb2018(shared_data, tmp_path, caplog):
    source = shared_data("dsb2018_nuclei")
    caplog.set_level("INFO", "umamba_seg")
    folder = convert(source / "images", source / "semantic_labels", tmp_path, 18, "Nuclei")
    assert "59 of 59 images: a constant alpha channel was dropped" in caplog.text
    assert load_raw_dataset(folder).channels == 3
    assert not check_dataset(load_raw_dataset(folder)).findings
    with pytest.raises(UserError, match="no instance numbers"):
        convert(source / "images", source / "instance_labels", tmp_path, 19, "Nuclei")
