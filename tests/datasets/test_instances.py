"""Instance masks become interior and boundary, and come back."""

import json

import imagecodecs
import numpy as np
import pytest
import tifffile
from scipy.ndimage import distance_transform_edt
from skimage.measure import label

from umamba_seg.datasets.check import check_dataset
from umamba_seg.datasets.folder import convert
from umamba_seg.datasets.instances import (
    instances_to_segmentation,
    read_instances,
    segmentation_to_instances,
    survey,
    write_instances,
)
from umamba_seg.datasets.pictures import read_picture, write_picture
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.evaluate.instances import match

GREY = np.random.default_rng(0).integers(0, 255, (60, 70)).astype(np.uint8)


def cells(shape=(60, 70), count=40, seed=0):
    """Cells that fill most of an image and touch: the nearest of random points, where it is near."""
    rng = np.random.default_rng(seed)
    points = np.zeros(shape, int)
    points[tuple(rng.integers(0, side, count) for side in shape)] = rng.permutation(count) + 1
    distance, nearest = distance_transform_edt(points == 0, return_indices=True)
    return np.where(distance < 6, points[tuple(nearest)], 0)


def slow_segmentation(instances):
    """The definition, cell by cell and pixel by pixel."""
    segmentation = np.where(instances > 0, 2, 0)
    for number in np.unique(instances[instances > 0]):
        cell = instances == number
        outside = np.pad(~cell, 1, mode="edge")
        inside = cell.copy()
        for place in np.argwhere(cell):
            for axis in range(cell.ndim):
                for step in (0, 2):
                    neighbour = place + 1
                    neighbour[axis] += step - 1
                    inside[tuple(place)] &= not outside[tuple(neighbour)]
        if inside.any():
            pieces = label(inside, connectivity=cell.ndim)
            sizes = np.bincount(pieces.ravel())[1:]
            inside = pieces == len(sizes) - sizes[::-1].argmax()  # of equal pieces the last
        else:
            pixels = np.argwhere(cell)
            inside[tuple(pixels[np.linalg.norm(pixels - pixels.mean(axis=0), axis=1).argmin()])] = True
        segmentation[inside] = 1
    return segmentation


@pytest.mark.parametrize("shape", [(60, 70), (10, 20, 22)])
def test_interior_and_boundary(shape):
    instances = cells(shape)
    found = instances_to_segmentation(instances)
    assert found.dtype == np.uint8
    assert np.array_equal(found, slow_segmentation(instances))


@pytest.mark.parametrize(("shape", "count"), [((60, 70), 40), ((14, 20, 22), 4)])
def test_cells_that_touch_come_back(shape, count):
    instances = cells(shape, count)
    again = segmentation_to_instances(instances_to_segmentation(instances))
    counts = match(instances, again)
    assert counts.reference == counts.predicted == counts.matched[0] == count
    assert ((again > 0) == (instances > 0)).mean() > 0.99


def test_cells_without_touching_come_back_exactly():
    instances = np.zeros((40, 40), int)
    instances[2:9, 3:11], instances[12:14, 2:20], instances[20, 5], instances[30:40, 35:40] = 7, 3, 900, 12
    again = segmentation_to_instances(instances_to_segmentation(instances))
    assert np.array_equal(again, np.select([instances == number for number in (7, 3, 900, 12)], [1, 2, 3, 4]))


def test_a_cell_with_two_lobes_stays_one():
    instances = np.zeros((12, 30), int)
    instances[1:10, 1:10] = instances[1:11, 15:28] = instances[5, 10:15] = 1
    segmentation = instances_to_segmentation(instances)
    assert label(segmentation == 1).max() == 1
    assert (segmentation[:, 1:10] != 1).all()  # the smaller lobe
    assert np.array_equal(segmentation_to_instances(segmentation), instances)


def test_the_rule_of_umamba_leaves_boundaries_out():
    segmentation = np.zeros((9, 20), int)
    segmentation[1:8, 1:18] = 2
    segmentation[2:7, 2:8], segmentation[2:7, 11:17] = 1, 1
    segmentation[0, 19] = 2  # no interior reaches it
    official = segmentation_to_instances(segmentation, rule="umamba_cells")
    assert np.array_equal(official, np.where(segmentation == 1, 1, 0) * np.where(np.arange(20) < 9, 1, 2))
    grown = segmentation_to_instances(segmentation)
    assert ((grown > 0) == ((segmentation > 0) & (np.arange(20) < 19))).all()
    assert (grown[1:8, 1:9] == 1).all()
    assert (grown[1:8, 10:18] == 2).all()


def test_no_interior_is_no_instance():
    assert not segmentation_to_instances(np.full((5, 5), 2)).any()


def test_other_labels_for_interior_and_boundary():
    instances = cells()
    segmentation = instances_to_segmentation(instances)
    swapped = np.choose(segmentation, [0, 2, 1])
    assert np.array_equal(segmentation_to_instances(swapped, 2, 1), segmentation_to_instances(segmentation))


def test_survey_counts_what_lies_in_pieces():
    mask = np.zeros((10, 10), int)
    mask[0, 0], mask[1, 1], mask[5, 5] = 1, 1, 2  # corners touch
    found = survey(mask)
    assert (found.count, found.scattered) == (2, 0)
    mask[9, 9] = 2
    assert (survey(mask) + found).scattered == 1


@pytest.mark.parametrize("name", ["a.png", "a.tif"])
def test_masks_keep_16_bits(tmp_path, name):
    instances = np.arange(70_000).reshape(100, 700)
    write_instances(tmp_path / name, instances % 65_536)
    pixels = read_picture(tmp_path / name).pixels
    assert pixels.dtype == np.uint16
    assert np.array_equal(pixels, instances % 65_536)
    with pytest.raises(UserError, match=r"69999 instances do not fit into 16 bits \(at most 65535\); cut the image"):
        write_instances(tmp_path / f"b{name}", instances)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_colours_tell_instances_apart(tmp_path):
    colours = np.zeros((4, 4, 3), np.uint8)
    colours[0, 0], colours[0, 2], colours[2, 2] = (255, 0, 0), (0, 255, 0), (255, 0, 0)
    write_picture(tmp_path / "a.png", colours)
    assert read_instances(tmp_path / "a.png").tolist() == [[2, 0, 1, 0], [0] * 4, [0, 0, 2, 0], [0] * 4]


@pytest.fixture
def run(tmp_path, caplog):
    """``run(mask, ...)`` converts a set of as many images with these instance masks; (folder, log)."""
    caplog.set_level("INFO", "umamba_seg")

    def run(*masks):
        for subfolder in ("images", "masks"):
            (tmp_path / subfolder).mkdir()
        for number, mask in enumerate(masks):
            (tmp_path / "images" / f"{number}.png").write_bytes(imagecodecs.png_encode(GREY + np.uint8(number)))
            tifffile.imwrite(tmp_path / "masks" / f"{number}_label.tif", mask)
        folders = (tmp_path / "images", tmp_path / "masks", tmp_path / "raw")
        return convert(*folders, 703, "Cells", instances=True), caplog.text

    return run


def test_convert(run):
    scattered = np.zeros((60, 70), np.uint16)
    scattered[:9, :9] = scattered[20:30, 20:30] = 5
    folder, log = run((cells() * 300).astype(np.uint16), scattered)
    content = json.loads((folder / "dataset.json").read_text())
    assert content["labels"] == {"background": 0, "interior": 1, "boundary": 2}
    assert content["instances"] == {"interior": 1, "boundary": 2, "masks": "instancesTr"}
    count = len(np.unique(cells())) - 1
    assert f"masks: {count + 1} instances became interior and boundary, and stay in instancesTr" in log
    assert "masks: 1 instances lie in several pieces; only the largest has an interior" in log
    assert np.array_equal(read_picture(folder / "labelsTr" / "0.png").pixels, instances_to_segmentation(cells()))
    kept = read_picture(folder / "instancesTr" / "0.png").pixels
    assert kept.dtype == np.uint16
    assert match(cells(), kept).matched == (count,) * 10
    assert not check_dataset(load_raw_dataset(folder)).findings


def test_masks_of_classes_are_refused(run, tmp_path):
    mask = np.zeros((60, 70), np.uint8)
    mask[:9, :9] = mask[20:30, 20:30] = 1
    mask[40:50, :9] = 2
    with pytest.raises(UserError, match="1 of 1 numbers stand in several places of one mask, as those of classes do"):
        run(mask % 2)
    assert not list((tmp_path / "raw").iterdir())


def test_masks_without_cells_are_refused(run):
    with pytest.raises(UserError, match="no mask has any foreground"):
        run(np.zeros((60, 70), np.uint8))


def _segmentations(tmp_path, **entries):
    """A folder as ``predict`` writes it, of two sound segmentations."""
    folder = tmp_path / "predicted"
    folder.mkdir()
    for seed in (0, 1):
        write_picture(folder / f"{seed}.png", instances_to_segmentation(cells(seed=seed)))
    marker = {"instances": {"interior": 1, "boundary": 2}} | entries
    (folder / "dataset.json").write_text(json.dumps({"file_ending": ".png"} | marker))
    return folder


def test_instances_of_a_folder(tmp_path, umamba_seg):
    folder, out = _segmentations(tmp_path), tmp_path / "cells"
    done = umamba_seg("instances", folder, "-o", out, "--json").succeeded()
    assert done.result == {"instances": [str(out / "0.png"), str(out / "1.png")], "failed": {}}
    assert "2 instance masks written" in done.err
    for seed in (0, 1):
        pixels = read_picture(out / f"{seed}.png").pixels
        assert pixels.dtype == np.uint16
        assert np.array_equal(pixels, segmentation_to_instances(instances_to_segmentation(cells(seed=seed))))
    umamba_seg("instances", folder, "-o", out, "--protocol", "umamba_cells").succeeded()
    interior = instances_to_segmentation(cells()) == 1
    assert np.array_equal(read_picture(out / "0.png").pixels > 0, interior)
    assert json.loads((out / "instances.json").read_text())["rule"] == "umamba_cells"


def test_one_bad_segmentation_among_good_ones(tmp_path, umamba_seg):
    folder, out = _segmentations(tmp_path), tmp_path / "cells"
    write_picture(folder / "3.png", np.full((5, 5), 3, np.uint8))
    (folder / "4.png").write_bytes(b"")
    done = umamba_seg("instances", folder, "-o", out, "--json")
    assert done.code == 3
    assert "2 of 4 cases failed" in done.err
    assert "3.png: holds [3], which are neither background, interior nor boundary" in done.err
    assert "4.png: is empty (0 bytes)" in done.err
    assert sorted(path.name for path in out.glob("*.png")) == ["0.png", "1.png"]


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"instances": None}, '"instances" is None; name the labels of interior and boundary'),
        ({"instances": {"interior": 1, "boundary": 1}}, "name the labels"),
        ({"instances": {"interior": "1", "boundary": 2}}, "name the labels"),
        ({"file_ending": ".tif"}, "holds no segmentations ending in .tif"),
    ],
)
def test_folders_that_are_refused(tmp_path, umamba_seg, entries, message):
    done = umamba_seg("instances", _segmentations(tmp_path, **entries), "-o", tmp_path / "out")
    assert done.code == 2
    assert message in done.err


def test_the_masks_go_elsewhere(tmp_path, umamba_seg):
    folder = _segmentations(tmp_path)
    done = umamba_seg("instances", folder, "-o", folder)
    assert done.code == 2
    assert "is the folder of segmentations; name another" in done.err


def test_real_nuclei_come_back(shared_data):
    """3457 nuclei, many of them touching; measured: F1 0.9991 at IoU 0.5, 0.9916 at 0.9."""
    masks = sorted((shared_data("dsb2018_nuclei") / "instance_labels").glob("*.png"))
    found = [read_instances(path) for path in masks]
    again = [segmentation_to_instances(instances_to_segmentation(instances)) for instances in found]
    counts = [match(*pair) for pair in zip(found, again, strict=True)]
    total = sum(counts[1:], counts[0])
    assert total.reference == 3457
    assert 2 * total.matched[0] / (total.reference + total.predicted) >= 0.999
    assert 2 * total.matched[8] / (total.reference + total.predicted) >= 0.99
