"""Left and right: in names, in the geometry of label files, in dataset.json, and on the axes of a patch."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.plan import mirroring
from umamba_seg.plan.mirroring import (
    Sides,
    exchanged_values,
    find_sides,
    is_of_one_organ,
    mirroring_table,
    paired_names,
    turned_axes,
)

KIDNEYS = {"background": 0, "left kidney": 1, "right kidney": 2}
WHERE = Path("dataset.json")
# Boxes (z, y, x) of a patient whose left is where x grows, in an array of 12x16x20.
LEFT, RIGHT = (slice(3, 9), slice(6, 11), slice(14, 18)), (slice(2, 8), slice(6, 11), slice(2, 6))
SMALL_RIGHT = (slice(4, 8), slice(7, 10), slice(2, 5))
OBLIQUE = (slice(3, 9), slice(0, 5), slice(7, 11))
ABOVE, BELOW = (slice(9, 12), slice(6, 11), slice(8, 12)), (slice(0, 3), slice(6, 11), slice(8, 12))


def drawn(**boxes) -> np.ndarray:
    """Labels (z, y, x): ``_1=LEFT`` fills that box with 1; a list fills several."""
    array = np.zeros((12, 16, 20), np.uint8)
    for name, places in boxes.items():
        for box in places if isinstance(places, list) else [places]:
            array[box] = int(name[1:])
    return array


@pytest.fixture
def files(tmp_path):
    """``files(array, ..., orientations=["RAS", ...])`` writes label files of patients; spacing 1, 1, 1.5 mm."""

    def write(*arrays: np.ndarray, orientations=("LPS",), ending=".nii.gz") -> list[Path]:
        paths = []
        for index, array in enumerate(arrays):
            image = sitk.GetImageFromArray(array)
            image.SetSpacing((1.0, 1.0, 1.5)[: array.ndim])
            if array.ndim == 3:
                image = sitk.DICOMOrient(image, orientations[index % len(orientations)])
            paths.append(tmp_path / f"case_{index}{ending}")
            sitk.WriteImage(image, str(paths[-1]))
        return paths

    return write


def sides_of(paths: list[Path], labels=KIDNEYS, **entries) -> Sides:
    return find_sides({"labels": labels, **entries}, paths, WHERE)


# --------------------------------------------------------------------------------------------------------------- names


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left kidney", "right kidney"),
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("kidney_l", "kidney_r"),
        ("Kidney.L", "Kidney.R"),
        ("lung_upper_lobe_left", "lung_upper_lobe_right"),
        ("rib_left_1", "rib_right_1"),
        ("ctx-lh-bankssts", "ctx-rh-bankssts"),
        ("FemurLeft", "FemurRight"),
        ("LKidney", "RKidney"),
        ("Lt lung", "rt Lung"),
        ("ren sinister", "ren dexter"),
        ("left", "right"),
        ("left lateral ventricle", "right lateral ventricle"),
        ("Left-Kidney", "right_kidney"),
    ],
)
def test_names_of_a_pair(left, right):
    assert paired_names([right, "spleen", left]) == [(left, right)]
    assert not is_of_one_organ(left)


@pytest.mark.parametrize(
    "names",
    [
        ("LV", "RV"),
        ("anterior", "posterior"),
        ("left kidney", "right lung"),
        ("lung_middle_lobe_right", "lung_upper_lobe_left"),
        ("clavicle", "cravicre"),
        ("leftover", "rightover"),
        ("vertebrae_L1", "vertebrae_T1"),
        ("kidney left", "kidney rh"),
        ("left kidney", "kidney"),
    ],
)
def test_names_of_no_pair(names):
    assert paired_names(names) == []


def test_every_pair_is_found_in_the_order_of_its_left_names():
    names = ["kidney_right", "lung_left", "spleen", "kidney_left", "lung_right"]
    assert paired_names(names) == [("lung_left", "lung_right"), ("kidney_left", "kidney_right")]


@pytest.mark.parametrize(
    "name",
    [
        "left ventricle",
        "Left-Ventricle",
        "heart_atrium_left",
        "left atrial appendage",
        "leftVentricularMyocardium",
        "left coronary artery",
        "liver left lobe",
        "left hepatic vein",
    ],
)
def test_parts_of_heart_and_liver_are_of_one_organ(name):
    assert is_of_one_organ(name)


@pytest.mark.parametrize(
    "name",
    [
        "Left-Lateral-Ventricle",
        "ventricle_lateral_left",
        "Left-Inf-Lat-Vent",
        "Left-VentralDC",
        "left cardinal ligament",
    ],
)
def test_what_only_sounds_like_the_heart_is_not(name):
    assert not is_of_one_organ(name)


# -------------------------------------------------------------------------------------------------- values and regions


def exchanged(labels: dict, *pairs):
    order = [value if isinstance(value, int) else value[0] for value in labels.values()]
    return exchanged_values(
        Labels.from_json({"labels": {"background": 0} | labels, "regions_class_order": order}, WHERE), pairs
    )


def test_values_of_plain_labels():
    labels = {"spleen": 1, "l": 3, "r": 2}
    assert exchanged(labels, ("l", "r")) == ((2, 3),)
    assert exchanged(labels) == ()


def test_values_of_nested_regions():
    labels = {"left kidney": [1, 2], "left tumour": 2, "right kidney": [3, 4], "right tumour": 4, "tumour": [2, 4]}
    assert exchanged(labels, ("left kidney", "right kidney"), ("left tumour", "right tumour")) == ((1, 3), (2, 4))


def test_values_that_no_region_tells_apart_may_change_places_in_any_order():
    assert exchanged({"left lung": [1, 2], "right lung": [3, 4]}, ("left lung", "right lung")) == ((1, 3), (2, 4))


@pytest.mark.parametrize(
    "labels",
    [
        {"left lung": [1, 2], "right lung": [3, 4, 5]},
        {"left lung": [1, 2], "right lung": [3, 4], "left tumour": 2},
        {"left lung": [1, 2], "right lung": [2, 3, 4]},
    ],
    ids=["unequal", "a part that is not mirrored", "overlapping"],
)
def test_regions_that_no_exchange_of_values_exchanges(labels):
    assert exchanged(labels, ("left lung", "right lung")) is None


# ------------------------------------------------------------------------------------------------------------ geometry


@pytest.mark.parametrize("reader", [None, "NibabelIO", "NibabelIOWithReorient"])
@pytest.mark.parametrize("orientation", ["LPS", "RAS", "PIR", "SLA", "ASL"])
def test_the_axis_is_that_of_the_array_that_nnunet_reads(files, orientation, reader):
    paths = files(*[drawn(_1=LEFT, _2=RIGHT)] * 3, orientations=[orientation])
    reading = {"file_ending": ".nii.gz"} | ({"overwrite_image_reader_writer": reader} if reader else {})
    sides = sides_of(paths, **reading)
    array = determine_reader_writer_from_dataset_json(reading, verbose=False)().read_seg(str(paths[0]))[0][0]
    way = [np.argwhere(array == value).mean(axis=0) for value in (1, 2)]
    assert sides.axis == np.abs(way[0] - way[1]).argmax()
    assert (sides.swap, sides.left_out) == (((1, 2),), ())
    assert sides.reason == '"left kidney" and "right kidney" change places when the left-right axis is flipped'


def test_the_decision_is_logged(files, monkeypatch):
    said = []  # by the logger itself: what caplog sees depends on whether the command line has run before
    monkeypatch.setattr(mirroring.logger, "info", lambda message, *values: said.append(message % values))
    sides = sides_of(files(*[drawn(_1=LEFT, _2=RIGHT)] * 3))
    assert said == [f"mirroring: {sides.reason}"]


def test_no_file_is_opened_unless_names_suggest_pairs():
    missing = [Path("nowhere.nii.gz")]
    assert sides_of(missing, {"background": 0, "spleen": 1}) == Sides("no two labels are named as left and right")
    heart = {"background": 0, "left ventricle": 1, "right ventricle": 2}
    assert sides_of(missing, heart) == Sides(
        '"left ventricle" and "right ventricle" are parts of one organ, not mirror images'
    )


def test_labels_of_different_size_are_not_exchanged(files):
    sides = sides_of(files(*[drawn(_1=LEFT, _2=SMALL_RIGHT)] * 3))
    assert (sides.swap, sides.left_out) == ((), (2,))
    assert 'the volumes of "left kidney" and "right kidney" differ by a factor of 3.3' in sides.reason


def test_a_side_that_is_now_the_larger_now_the_smaller_one_is_of_a_size(files):
    one, other = drawn(_1=LEFT, _2=SMALL_RIGHT), drawn(_1=LEFT, _2=RIGHT)
    assert sides_of(files(one, other, other)).swap == ((1, 2),)


def test_labels_that_lie_obliquely_are_not_exchanged(files):
    """As the chambers of the heart do, under any name."""
    sides = sides_of(files(*[drawn(_1=LEFT, _2=OBLIQUE)] * 3), {"background": 0, "chamber_l": 1, "chamber_r": 2})
    assert (sides.swap, sides.left_out) == ((), (2,))
    assert '"chamber_l" and "chamber_r" do not lie side by side' in sides.reason


def test_the_axis_along_which_labels_lie_apart_is_left_out_with_the_one_between_other_pairs(files):
    labels = KIDNEYS | {"l": 3, "r": 4}
    sides = sides_of(files(*[drawn(_1=LEFT, _2=RIGHT, _3=ABOVE, _4=BELOW)] * 3), labels)
    assert (sides.swap, sides.left_out) == ((), (0, 2))
    alone = sides_of(files(*[drawn(_1=ABOVE, _2=BELOW)] * 3))
    assert (alone.swap, alone.left_out) == ((), (0,))


def test_labels_in_no_fixed_direction_change_nothing(files):
    arrays = [drawn(_1=LEFT, _2=RIGHT), drawn(_1=ABOVE, _2=BELOW), drawn(_1=RIGHT, _2=LEFT), drawn(_1=BELOW, _2=ABOVE)]
    sides = sides_of(files(*arrays))
    assert (sides.axis, sides.swap, sides.left_out) == (None, (), ())
    assert "in no fixed direction" in sides.reason


def test_sides_that_are_mixed_up_are_not_exchanged(files):
    arrays = [drawn(_1=LEFT, _2=RIGHT), drawn(_1=RIGHT, _2=LEFT)] * 2
    assert sides_of(files(*arrays)).left_out == (2,)


def test_orientations_may_differ_in_the_way_round_but_not_in_the_axis(files):
    arrays = [drawn(_1=LEFT, _2=RIGHT)] * 4
    assert sides_of(files(*arrays, orientations=["LPS", "RAS"])).axis == 2
    mixed = files(*arrays, orientations=["LPS", "PIR"])
    for entries in ({}, {"mirror_pairs": [["left kidney", "right kidney"]]}):
        sides = sides_of(mixed, **entries)
        assert (sides.axis, sides.swap, sides.left_out) == (None, (), (0, 1, 2))
        assert "are mirror images, but no axis is left-right in all images, so none is flipped" in sides.reason


def test_labels_that_are_hardly_ever_together_are_not_exchanged(files):
    arrays = [drawn(_1=LEFT), drawn(_2=RIGHT)] * 2 + [drawn(_1=LEFT, _2=RIGHT)] * 2
    sides = sides_of(files(*arrays))
    assert (sides.swap, sides.left_out) == ((), (2,))
    assert "are together in 2 of 6 cases only" in sides.reason
    never = sides_of(files(*arrays[:4], orientations=["LPS", "PIR"]))
    assert never.left_out == (0, 1, 2)
    assert "together in 0 of 4 cases only, and no axis is left-right in all images" in never.reason


def test_one_truncated_case_in_ten_does_not_matter(files):
    whole, cut = drawn(_1=LEFT, _2=RIGHT), drawn(_1=LEFT, _2=OBLIQUE)
    assert sides_of(files(*[whole] * 9, cut)).swap == ((1, 2),)
    assert sides_of(files(*[whole] * 8, cut, cut)).swap == ()


def test_at_most_twenty_label_files_are_read_whole(files, monkeypatch):
    read = []
    monkeypatch.setattr(
        mirroring, "read_image", lambda path, plain=mirroring.read_image: read.append(path) or plain(path)
    )
    paths = files(*[drawn(_1=LEFT, _2=RIGHT)] * 45)
    assert sides_of(paths).swap == ((1, 2),)
    assert (len(read), read[0], read[-1]) == (20, paths[0], paths[-1])


def test_regions_are_exchanged_by_their_values(files):
    labels = {"background": 0, "left lung": [1, 2], "right lung": [3, 4]}
    array = drawn(_1=(slice(3, 6), *LEFT[1:]), _2=(slice(6, 9), *LEFT[1:]), _3=RIGHT, _4=(slice(2, 4), *RIGHT[1:]))
    sides = sides_of(files(*[array] * 3), labels, regions_class_order=[1, 3])
    assert (sides.axis, sides.swap) == (2, ((1, 3), (2, 4)))


def test_regions_that_cannot_be_exchanged_are_not_flipped(files):
    labels = {"background": 0, "left lung": [1, 2], "right lung": [3, 4, 5]}
    array = drawn(_1=LEFT, _3=RIGHT)
    sides = sides_of(files(*[array] * 3), labels, regions_class_order=[1, 3])
    assert (sides.swap, sides.left_out) == ((), (2,))
    assert "no exchange of label values exchanges the regions" in sides.reason


def test_pictures_have_left_and_right_where_their_labels_lie_so(files):
    across, upright = np.zeros((2, 16, 20), np.uint8)
    across[4:10, 2:6], across[4:10, 14:18] = 1, 2
    upright[1:5, 8:12], upright[11:15, 8:12] = 1, 2
    assert sides_of(files(*[across] * 3, ending=".png")) == Sides(
        '"left kidney" and "right kidney" change places when the left-right axis is flipped', 2, ((1, 2),)
    )
    assert sides_of(files(*[upright] * 3, ending=".png")).left_out == (1,)


# -------------------------------------------------------------------------------------------------------- dataset.json


def test_pairs_that_are_stated_need_no_names_and_no_voxels(files):
    """The user may even pair the ventricles."""
    labels = {"background": 0, "spleen": 1, "LV": 2, "RV": 3}
    sides = sides_of(files(*[drawn()] * 3, orientations=["PIR"]), labels, mirror_pairs=[["RV", "LV"]])
    assert (sides.axis, sides.swap, sides.left_out) == (0, ((2, 3),), ())


def test_none_stated_means_none():
    assert sides_of([Path("nowhere.nii.gz")], mirror_pairs=[]) == Sides(
        "dataset.json says that no labels are mirror images"
    )


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        (None, '"mirror_pairs" is None; list pairs of label names, "mirror_pairs": .*, or none: '),
        ({"left kidney": "right kidney"}, "list pairs of label names"),
        ([["left kidney"]], "list pairs of label names"),
        ([["left kidney", 2]], "list pairs of label names"),
        ([["left kidney", "right kydney"]], "names right kydney, which .*; choose from left kidney, right kidney"),
        ([["background", "right kidney"]], "names background, which"),
        ([["left kidney", "left kidney"]], "names left kidney twice; put every label into one pair only"),
        ([["left kidney", "right kidney"], ["right kidney", "left kidney"]], "left kidney, right kidney twice"),
    ],
)
def test_pairs_that_make_no_sense_are_refused(stated, message):
    with pytest.raises(UserError, match=message):
        sides_of([], mirror_pairs=stated)


def test_stated_regions_that_cannot_be_exchanged_are_refused():
    labels = {"background": 0, "left lung": [1, 2], "right lung": [3, 4, 5]}
    with pytest.raises(UserError, match='exchanges the regions of "left lung" and "right lung"; give both regions'):
        sides_of([], labels, regions_class_order=[1, 3], mirror_pairs=[["left lung", "right lung"]])


# ---------------------------------------------------------------------------------------------------- axes of a patch

CUBE, FLAT, SQUARE, OBLONG = (64, 64, 64), (16, 64, 64), (64, 64), (48, 96)


@pytest.mark.parametrize("patch", [CUBE, FLAT, SQUARE, OBLONG, (20, 60, 60), (21, 40, 64), (64, 96), (96, 64)])
def test_planes_that_are_turned_by_any_angle_are_nnunets(patch):
    trainer = SimpleNamespace(
        configuration_manager=SimpleNamespace(patch_size=list(patch)), print_to_log_file=lambda *_: None
    )
    angles, slicewise, *_ = nnUNetTrainer.configure_rotation_dummyDA_mirroring_and_inital_patch_size(trainer)
    plane = {1, 2} if slicewise else set(range(len(patch)))
    assert turned_axes(patch) == (plane if max(angles) > np.pi / 2 else set())


@pytest.mark.parametrize("patch", [CUBE, FLAT, SQUARE, OBLONG])
def test_without_pairs_all_axes_are_flipped(patch):
    axes = list(range(len(patch)))
    assert mirroring_table(Sides("why"), [0, 1, 2], patch) == {"axes": axes, "swap": None, "reason": "why"}


@pytest.mark.parametrize(
    ("transpose", "patch", "axes", "swap"),
    [
        ([0, 1, 2], CUBE, [0, 1, 2], 2),
        ([2, 0, 1], CUBE, [0, 1, 2], 0),
        ([1, 2, 0], CUBE, [0, 1, 2], 1),
        ([0, 1, 2], OBLONG, [0, 1], 1),
        ([1, 2, 0], OBLONG, [0, 1], 0),
        ([2, 0, 1], OBLONG, [0, 1], None),
        ([2, 0, 1], SQUARE, [0, 1], None),
        ([0, 1, 2], SQUARE, [1], 1),
        ([1, 2, 0], FLAT, [0, 1], 1),
        ([2, 0, 1], FLAT, [0, 1, 2], 0),
    ],
)
def test_labels_are_exchanged_along_the_left_right_axis_of_the_patch(transpose, patch, axes, swap):
    table = mirroring_table(Sides("why", 2, ((1, 2),)), transpose, patch)
    assert table["axes"] == axes
    assert table["swap"] == (None if swap is None else {"axis": swap, "pairs": [[1, 2]]})


@pytest.mark.parametrize(
    ("transpose", "patch", "axes"),
    [
        ([0, 1, 2], CUBE, [0, 1]),
        ([2, 0, 1], CUBE, [1, 2]),
        ([0, 1, 2], OBLONG, [0]),
        ([2, 0, 1], OBLONG, [0, 1]),
        ([0, 1, 2], SQUARE, []),
        ([0, 1, 2], FLAT, [0]),
    ],
)
def test_an_axis_may_be_left_out(transpose, patch, axes):
    table = mirroring_table(Sides("why", left_out=(2,)), transpose, patch)
    assert (table["axes"], table["swap"]) == (axes, None)


def test_what_a_configuration_changes_is_said():
    sides = Sides("they change places when the left-right axis is flipped", 2, ((1, 2),))
    assert mirroring_table(sides, [0, 1, 2], SQUARE)["reason"].endswith(
        "; training turns that plane by up to 180°, so that a flip of its other axis may be one of left and right "
        "and is left out"
    )
    assert mirroring_table(sides, [2, 0, 1], SQUARE)["reason"].endswith("axis is flipped, which the slices do not have")
    assert mirroring_table(Sides("no axis", left_out=(0, 1, 2)), [0, 1, 2], FLAT) == {
        "axes": [],
        "swap": None,
        "reason": "no axis",
    }
