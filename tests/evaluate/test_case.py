"""Metrics of a case against slow definitions: loops over voxels, all pairs of surface elements."""

import itertools
import math

import numpy as np
import pytest
from skimage.measure import marching_cubes, mesh_surface_area

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate import evaluate_case
from umamba_seg.evaluate.surfaces import surfel_distances

METRICS = (
    "dice",
    "iou",
    "precision",
    "sensitivity",
    "specificity",
    "accuracy",
    "nsd@1.5mm",
    "hd95",
    "hd",
    "assd",
    "asd",
)
ONE = {"x": 1}


def slow_border(mask):
    """Voxels with a neighbour along an axis that is outside of the mask or of the image, one by one."""
    found = []
    for voxel in itertools.product(*map(range, mask.shape)):
        steps = [np.eye(mask.ndim, dtype=int)[axis] * sign for axis in range(mask.ndim) for sign in (-1, 1)]
        neighbours = [tuple(np.array(voxel) + step) for step in steps]
        inside = [
            all(0 <= place < length for place, length in zip(neighbour, mask.shape, strict=True)) and mask[neighbour]
            for neighbour in neighbours
        ]
        if mask[voxel] and not all(inside):
            found.append(voxel)
    return np.array(found, float)


def slow_area(cube, spacing):
    """Of the surface through 2x2x2 voxels, or length through 2x2, computed for this one cube."""
    if cube.ndim == 3:
        corners = cube if cube.sum() <= 4 else ~cube
        points, triangles, _, _ = marching_cubes(corners.astype(float), 0.5, method="lorensen")
        return mesh_surface_area(points.astype(float) * spacing, triangles)
    cut = [  # middles of the edges between a corner inside and one outside
        np.array(a) / 2 + np.array(b) / 2
        for a, b in itertools.combinations(itertools.product((0, 1), repeat=2), 2)
        if sum(map(abs, np.subtract(a, b))) == 1 and cube[a] != cube[b]
    ]
    if len(cut) == 2:
        return np.linalg.norm((cut[0] - cut[1]) * spacing)
    return np.linalg.norm(spacing)  # two corners are cut off: two halves of a diagonal


def slow_surfels(mask, spacing):
    """Corners between voxels, and the area through the voxels around each."""
    padded = np.pad(mask, 1)
    points, areas = [], []
    for corner in itertools.product(*(range(length + 1) for length in mask.shape)):
        around = padded[tuple(slice(place, place + 2) for place in corner)]
        if around.any() and not around.all():
            points.append(corner)
            areas.append(slow_area(around, np.array(spacing)))
    return np.array(points, float), np.array(areas)


def slow_distances(points, others, spacing):
    differences = (points[:, None] - others[None]) * spacing
    return np.sqrt((differences**2).sum(-1)).min(axis=1)


def slow_metrics(r, p, spacing):
    """METRICS by their definitions, for two masks that are not empty."""
    both, either = (r & p).sum(), (r | p).sum()
    a, b = slow_border(r), slow_border(p)
    from_r, from_p = slow_distances(a, b, spacing), slow_distances(b, a, spacing)
    (a, size_r), (b, size_p) = slow_surfels(r, spacing), slow_surfels(p, spacing)
    near_r, near_p = slow_distances(a, b, spacing) <= 1.5, slow_distances(b, a, spacing) <= 1.5
    return {
        "dice": 2 * both / (r.sum() + p.sum()),
        "iou": both / either,
        "precision": both / p.sum(),
        "sensitivity": both / r.sum(),
        "specificity": (~r & ~p).sum() / (~r).sum() if not r.all() else math.nan,
        "accuracy": (r == p).mean(),
        "nsd@1.5mm": (size_r[near_r].sum() + size_p[near_p].sum()) / (size_r.sum() + size_p.sum()),
        "hd95": max(np.percentile(from_r, 95), np.percentile(from_p, 95)),
        "hd": max(from_r.max(), from_p.max()),
        "assd": (from_r.sum() + from_p.sum()) / (len(from_r) + len(from_p)),
        "asd": from_p.mean(),
    }


def measured(r, p, spacing, metrics=METRICS, labels=ONE, protocol="nnunet"):
    scores = evaluate_case(np.asarray(r), np.asarray(p), spacing, labels, metrics, protocol)
    return scores["x"].values


def masks(seed):
    """Two masks of two or three axes: noise, boxes up to the image's border, everything, or one voxel."""
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 8, size=rng.integers(2, 4)))
    spacing = tuple(rng.uniform(0.3, 4, size=len(shape)))

    def one(kind):
        mask = np.zeros(shape, bool)
        if kind == "noise":
            mask = rng.random(shape) < rng.uniform(0.1, 0.9)
        elif kind == "box":
            mask[tuple(slice(rng.integers(0, 2), rng.integers(2, length + 1)) for length in shape)] = True
        elif kind == "full":
            mask[:] = True
        mask[tuple(rng.integers(length) for length in shape)] = True
        return mask

    kinds = ("noise", "noise", "box", "full", "voxel")
    return one(rng.choice(kinds)), one(rng.choice(kinds)), spacing


@pytest.mark.parametrize("seed", range(60))
def test_metrics_agree_with_slow_definitions(seed):
    r, p, spacing = masks(seed)
    assert measured(r, p, spacing) == pytest.approx(slow_metrics(r, p, spacing), abs=1e-9, nan_ok=True)


@pytest.mark.parametrize(
    ("seed", "shape", "spacing", "share", "expected"),
    [
        (0, (7, 9, 8), (3.0, 0.7, 1.1), 0.3, (0.96836580958063, 0.8527628291157713, 3.0, 0.7755387711901378)),
        (1, (5, 6, 4), (1.0, 1.0, 1.0), 0.5, (1.0, 0.9158760563240773, 1.4142135623730951, 0.5862068965517241)),
        (2, (12, 11), (0.5, 2.0), 0.4, (0.9719643662425065, 0.800761576429524, 2.0615528128088303, 0.5258620689655172)),
        (3, (6, 5, 9), (2.5, 2.5, 0.8), 0.05, (0.405, 0.255, 4.768647607026546, 3.0723200827530674)),
    ],
)
def test_numbers_of_deepminds_surface_distance_and_medpy(seed, shape, spacing, share, expected):
    rng = np.random.default_rng(seed)
    r, p = rng.random(shape) < share, rng.random(shape) < share
    found = measured(r, p, spacing, ("nsd@1mm", "nsd@0.4mm", "hd", "asd"))
    assert tuple(found.values()) == pytest.approx(expected, abs=1e-12)


def test_areas_of_surfels():
    def areas(*voxels):
        mask = np.zeros((4, 4, 4), bool)
        mask[tuple(np.transpose(voxels))] = True
        return sorted(surfel_distances(mask, mask, (1.0, 1.0, 1.0), [np.arange(4)] * 3).reference_sizes)

    assert areas((1, 1, 1)) == pytest.approx([math.sqrt(3) / 8] * 8)
    assert areas((1, 1, 1), (1, 1, 2)) == pytest.approx([math.sqrt(3) / 8] * 8 + [math.sqrt(2) / 2] * 4)


def test_a_tolerance_that_equals_the_distance_counts():
    r, p = np.zeros((30, 4, 4)), np.zeros((30, 4, 4))
    r[20], p[21] = 1, 1
    for spacing in (0.7, 0.8, np.float32(0.8)):
        found = measured(r, p, (spacing, 1, 1), [f"nsd@{spacing:.1f}mm", "nsd@0.69mm"])
        assert found[f"nsd@{spacing:.1f}mm"] == 1
        assert found["nsd@0.69mm"] < 1


def test_stray_voxels_far_away_change_nothing_but_themselves():
    """The planes between are left out of the arrays that are looked at, not of the distances."""
    r, p = np.zeros((9, 8, 40), bool), np.zeros((9, 8, 40), bool)
    r[2:5, 3:6, 4:8], p[2:5, 3:6, 5:8] = True, True
    p[8, 0, 39] = p[0, 7, 20] = r[8, 7, 30] = True
    assert measured(r, p, (2, 1, 0.5)) == pytest.approx(slow_metrics(r, p, (2, 1, 0.5)))
    found = measured(r, p, (2, 1, 0.5), ["lesion"])
    assert found == {
        "lesion_f1": pytest.approx(2 / 5),
        "lesions_found": 1,
        "lesions_missed": 1,
        "lesions_false": 2,
    }


def test_one_slice_is_measured_as_an_image():
    r, p = np.zeros((1, 9, 9)), np.zeros((1, 9, 9))
    r[0, 2:7, 2:7], p[0, 2:7, 3:8] = 1, 1
    names = ("dice", "nsd@1mm", "hd95", "assd")
    flat = measured(r[0], p[0], (2, 3), names)
    assert measured(r, p, (7, 2, 3), names) == flat
    assert flat["assd"] == pytest.approx(slow_metrics(r[0] > 0, p[0] > 0, (2, 3))["assd"])


def test_volumes():
    r, p = np.zeros((4, 10, 10)), np.zeros((4, 10, 10))
    r[:2], p[:3] = 1, 1
    found = measured(r, p, (5, 1, 2), ["volume"])
    assert found == {"volume_error": 0.5, "reference_ml": 2, "prediction_ml": 3}
    flat = measured(r[:, 0], p[:, 0], (5, 1), ["volume"])
    assert math.isnan(flat["reference_ml"])
    assert flat["volume_error"] == 0.5


NOTHING, SOMETHING = np.zeros((3, 4, 5), int), np.zeros((3, 4, 5), int)
SOMETHING[1, 1:3, 2] = 1
ALL = ("dice", "iou", "nsd@1mm", "hd95", "hd", "assd", "asd", "volume", "lesion", "precision", "sensitivity")


@pytest.mark.parametrize(
    ("reference", "prediction", "state", "overlap", "distance", "error"),
    [
        (NOTHING, NOTHING, "both_empty", math.nan, math.nan, math.nan),
        (SOMETHING, NOTHING, "missed", 0, math.inf, -1),
        (NOTHING, SOMETHING, "invented", 0, math.inf, math.inf),
    ],
)
def test_empty_masks(reference, prediction, state, overlap, distance, error):
    scores = evaluate_case(reference, prediction, (1, 2, 3), ONE, ALL)["x"]
    expected = dict.fromkeys(("dice", "iou", "nsd@1mm", "lesion_f1"), overlap)
    expected |= dict.fromkeys(("hd95", "hd", "assd", "asd"), distance)
    expected |= {"volume_error": error, "reference_ml": reference.sum() * 6 / 1000}
    expected |= {"prediction_ml": prediction.sum() * 6 / 1000}
    expected |= {
        "lesions_found": 0,
        "lesions_missed": int(state == "missed"),
        "lesions_false": int(state == "invented"),
    }
    expected |= {
        "precision": 0 if state == "invented" else math.nan,
        "sensitivity": 0 if state == "missed" else math.nan,
    }
    assert scores.state == state
    assert scores.values == pytest.approx(expected, nan_ok=True)


def test_equal_masks_are_perfect():
    full = np.ones((3, 4, 5))
    for mask in (SOMETHING, full):
        found = measured(mask, mask, (1, 2, 3), ["dice", "nsd@0.1mm", "hd", "assd", "lesion_f1"])
        assert found == {"dice": 1, "nsd@0.1mm": 1, "hd": 0, "assd": 0, "lesion_f1": 1}


def test_regions_are_unions_of_labels():
    rng = np.random.default_rng(5)
    r, p = rng.integers(0, 4, (5, 6, 7)), rng.integers(0, 4, (5, 6, 7))
    labels = {"whole": (1, 2, 3), "core": (2, 3), "rest": (0, 1)}
    found = evaluate_case(r, p, (1, 1, 2), labels, ["dice", "hd95"])
    for name, values in labels.items():
        expected = measured(np.isin(r, values), np.isin(p, values), (1, 1, 2), ["dice", "hd95"])
        assert found[name].values == pytest.approx(expected)


def test_what_the_reference_ignores_is_in_no_mask():
    r, p = np.zeros((6, 6), int), np.zeros((6, 6), int)
    r[1:3, 1:3], p[1:3, 1:4], p[5, 5] = 1, 1, 1
    r[:, 3:] = 3
    found = evaluate_case(r, p, (1, 1), Labels({"x": 1, "y": 2}, ignore=3, regions_class_order=None), ["dice", "hd"])
    assert found["x"].values == {"dice": 1, "hd": 0}
    assert found["x"].counts == (4, 0, 0, 14)
    assert found["y"].state == "both_empty"


def test_values_without_a_label_are_background_with_a_warning(caplog):
    r, p = SOMETHING.copy(), SOMETHING.astype(np.int16)
    p[0, 0, 0], p[0, 0, 1] = 7, -2
    assert measured(r, p.clip(0), (1, 1, 1), ["dice"]) == {"dice": 1}
    assert evaluate_case(r, p, (1, 1, 1), ONE, ["dice"])["x"].values == {"dice": 1}
    assert "the values [-2, 7] have no label; they count as background" in caplog.text


@pytest.mark.parametrize(
    ("reference", "prediction", "spacing", "message"),
    [
        (
            NOTHING,
            NOTHING[1:],
            (1, 1, 1),
            "prediction: has the shape 2×4×5, its reference 3×4×5; compare segmentations",
        ),
        (NOTHING, NOTHING, (1, 1), "spacing: 1×1 mm for an image of 3 axes; give one positive number for each axis"),
        (NOTHING, NOTHING, (1, 0, 1), "spacing: 1×0×1 mm"),
        (NOTHING, NOTHING, (1, math.inf, 1), "spacing: 1×inf×1 mm"),
        (NOTHING[0, 0], NOTHING[0, 0], (1,), "reference: has 1 axes"),
        (NOTHING, NOTHING + 0.5, (1, 1, 1), "prediction: holds numbers that are not whole; give labels"),
        (NOTHING + math.nan, NOTHING, (1, 1, 1), "reference: holds numbers that are not whole"),
        (NOTHING + math.inf, NOTHING, (1, 1, 1), "reference: holds numbers that are not whole"),
    ],
)
def test_arrays_that_cannot_be_compared(reference, prediction, spacing, message):
    with pytest.raises(UserError) as caught:
        evaluate_case(reference, prediction, spacing, ONE)
    assert str(caught.value).startswith(message)


def test_labels_stored_as_other_types():
    for dtype in (bool, np.int64, np.float32, np.uint16):
        assert measured(SOMETHING.astype(dtype), SOMETHING.astype(dtype), (1, 1, 1), ["dice"]) == {"dice": 1}
    many = {f"c{value}": value for value in range(1, 301)}
    found = evaluate_case(SOMETHING * 300, SOMETHING * 300, (1, 1, 1), many, ["dice"])
    assert found["c300"].values == {"dice": 1}
    assert math.isnan(found["c44"].values["dice"])


def test_labels_and_metrics_may_be_written_otherwise():
    reference = np.array([[1, 2, 0, 3]])
    found = evaluate_case(reference, reference, (1, 1), {"x": [2, 1], "y": (3,), "z": 3}, "dice, iou")
    assert found["x"].counts.tp == 2
    assert found["y"].values == found["z"].values == {"dice": 1, "iou": 1}
    assert evaluate_case(reference, reference, (1, 1), {"x": [1, 2], "y": 3}, "dice")["x"].values == {"dice": 1}


@pytest.mark.parametrize("labels", [{"background": 0, "x": 1}, {"x": "1"}, {"x": 1.5}, {"x": []}, {"x": -1}, {"x": 0}])
def test_labels_that_are_refused(labels):
    array = np.array([[1, 0]])
    with pytest.raises(UserError, match=r"labels: '\w+' is .*; give each class a whole number above 0, or a list"):
        evaluate_case(array, array, (1, 1), labels)


def test_an_image_is_no_prediction():
    with pytest.raises(UserError, match="prediction: holds no labels: more than 20 values that have no name"):
        evaluate_case(np.ones((6, 6), int), np.arange(36).reshape(6, 6), (1, 1), ONE)
    few = np.minimum(np.arange(36), 21).reshape(6, 6)
    assert evaluate_case(np.ones((6, 6), int), few, (1, 1), ONE)["x"].counts.tp == 1
