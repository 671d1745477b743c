"""What each paper's protocol makes of masks whose numbers were worked out by hand."""

import math

import numpy as np
import pytest

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate import evaluate_case
from umamba_seg.evaluate.case import ClassScores
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.evaluate.protocols import ALL_LABELS, PROTOCOLS, choose_protocol, targets_of
from umamba_seg.evaluate.results import build_results

ORGANS = (
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "IVC",
    "RAG",
    "LAG",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)
SYNAPSE = ("aorta", "gallbladder", "kidney_left", "kidney_right", "liver", "pancreas", "spleen", "stomach")


def numbered(names):
    return {name: value for value, name in enumerate(names, 1)}


def box(*slices, shape=(4, 10, 10), value=1):
    array = np.zeros(shape, int)
    array[slices] = value
    return array


def scores(name, reference, prediction, spacing=(1, 1, 1), labels=None) -> dict[str, ClassScores]:
    return evaluate_case(reference, prediction, spacing, labels or {"x": 1}, protocol=name)


def value(name, reference, prediction, metric="dice", spacing=(1, 1, 1), of="x", labels=None):
    return scores(name, reference, prediction, spacing, labels)[of].values[metric]


def over_classes(name, labels, *cases):
    protocol = choose_protocol(name)
    found = [CaseScores(f"c{i}", scores(name, *case, labels=labels), "", ()) for i, case in enumerate(cases)]
    return build_results(found, targets_of(protocol, Labels(labels, None, None)), protocol, {})


NOTHING = np.zeros((4, 10, 10), int)
CUBE = box(slice(1, 3), slice(2, 6), slice(2, 6))
AORTA = {"of": "aorta", "labels": {"aorta": 1, "liver": 2}}
EMPTY = {  # protocol -> metric -> both empty, missed, invented
    "nnunet": {"dice": (math.nan, 0, 0), "hd95": (math.nan, math.inf, math.inf)},
    "umamba_abdomen": {"dice": (1, 0, 0), "nsd": (1, 0, 0)},
    "umamba_endoscopy": {"dice": (math.nan, 0, 0), "nsd@2px": (math.nan, 0, 0)},
    "segmamba_brats": {"dice": (0, 0, 0), "hd95": (50, 50, 50)},
    "nnmamba": {"dice": (math.nan, 0, 0)},
    "vmunet_isic": {"dice": (math.nan, 0, 0), "iou": (math.nan, 0, 0)},
    "vmunet_synapse": {"dice": (0, 0, 1), "hd95": (0, 0, 0)},
    "msvmunet_synapse": {"dice": (0, 0, 1), "iou": (0, 0, 1), "hd95": (0, 0, 0), "asd": (0, 0, 0)},
    "tamingmambas_synapse": {"dice": (1, 0, 0), "hd95": (0, 0, 0)},
    "mambaunet": {"dice": (0, 0, 0)},
    "uumamba_acdc": {"dice": (1, 0, 0)},
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_empty_masks(name):
    labels = {"_synapse": numbered(SYNAPSE), "_abdomen": numbered(ORGANS), "_acdc": numbered(("RV", "MLV", "LVC"))}
    chosen = next((table for end, table in labels.items() if name.endswith(end)), {"x": 1})
    of = next(iter(chosen))
    for metric, expected in EMPTY[name].items():
        pairs = ((NOTHING, NOTHING), (CUBE, NOTHING), (NOTHING, CUBE))
        found = tuple(value(name, *pair, metric, of=of, labels=chosen) for pair in pairs)
        assert found == pytest.approx(expected, nan_ok=True), metric


def test_umamba_measures_long_organs_on_the_references_slices_but_the_last():
    reference = box(slice(0, 3), slice(2, 6), slice(2, 6), shape=(6, 10, 10))
    prediction = reference.copy()
    prediction[2], prediction[5, :5] = 0, 1  # wrong where nobody looks
    prediction[1, 2:4] = 0  # half of the second slice is missing: 16 + 8 of 16 + 16
    assert value("umamba_abdomen", reference, prediction, **AORTA) == round(2 * 24 / (24 + 32), 4)
    whole = value("umamba_abdomen", reference * 2, prediction * 2, of="liver", labels=AORTA["labels"])
    assert whole == round(2 * 24 / (24 + 50 + 48), 4)


def test_umamba_cannot_measure_a_long_organ_of_one_slice():
    reference = box(1, slice(2, 6), slice(2, 6))
    found = scores("umamba_abdomen", reference, reference, labels=AORTA["labels"])["aorta"]
    assert found.state == "present"
    assert all(map(math.isnan, found.values.values()))
    flat = scores("umamba_abdomen", CUBE[1], CUBE[1], spacing=(1, 1), labels=AORTA["labels"])["aorta"]
    assert all(map(math.isnan, flat.values.values()))


def test_umamba_tolerates_each_organ_its_own_distance():
    """A slab moved by 3 mm: its faces are within the tolerance of the spleen (3), not of the gallbladder (2)."""
    labels = {"spleen": 1, "gallbladder": 2}
    reference = box(slice(1, 2), slice(2, 6), slice(2, 6), shape=(9, 10, 10))
    moved = np.roll(reference, 1, axis=0)
    assert value("umamba_abdomen", reference, moved, "nsd", (3, 1, 1), "spleen", labels) == 1
    assert value("umamba_abdomen", reference * 2, moved * 2, "nsd", (3, 1, 1), "gallbladder", labels) < 1


def test_umamba_rounds_to_four_digits():
    reference, prediction = box(1, 1, slice(0, 3)), box(1, 1, slice(1, 5))
    assert value("umamba_abdomen", reference, prediction, of="liver", labels={"liver": 1}) == 0.5714
    assert value("nnunet", reference, prediction) == 4 / 7


def test_endoscopy_averages_each_image_over_the_labels_in_it():
    """First image: 1 is perfect, 2 was missed. Second: 1 alone, half of it. Third: nothing."""
    first, second, nothing = box(0, 0, slice(0, 4)), box(0, 0, slice(0, 2)), NOTHING
    missed = box(3, 3, 3, value=2)
    spread = ((first + missed, first, (1, 1, 1)), (first, second, (1, 1, 1)), (nothing, nothing, (1, 1, 1)))
    found = over_classes("umamba_endoscopy", {"x": 1, "y": 2}, *spread)
    assert found["overall"]["dice"]["mean"] == pytest.approx((0.5 + 2 / 3) / 2)
    assert found["statistics"]["x"]["dice"]["mean"] == pytest.approx((1 + 2 / 3) / 2)
    assert found["counts"]["y"] == {"cases": 3, "both_empty": 2, "missed": 1, "invented": 0}


def test_endoscopy_counts_two_pixels_whatever_the_spacing():
    reference, moved = box(slice(2, 6), slice(2, 6), shape=(12, 12)), box(slice(4, 8), slice(2, 6), shape=(12, 12))
    assert value("umamba_endoscopy", reference, moved, "nsd@2px", spacing=(9, 9)) == 1
    assert value("umamba_endoscopy", reference, np.roll(moved, 1, 0), "nsd@2px", spacing=(0.1, 0.1)) < 1


def test_segmamba_pools_both_directions_and_ignores_spacing():
    """Rows of 4 and of 24 pixels that begin together: of 28 distances 8 are 0, the others 1 to 20; one in twenty of
    28 is 1.4, so the percentile lies between the second largest, 19, and the third, 18."""
    reference, prediction = box(0, slice(0, 4), shape=(1, 30)), box(0, slice(0, 24), shape=(1, 30))
    pooled = value("segmamba_brats", reference, prediction, "hd95", spacing=(7, 7))
    assert pooled == pytest.approx(18 + 0.65)
    assert value("nnunet", reference, prediction, "hd95", spacing=(1, 1)) == pytest.approx(18 + 0.85)


def test_nnmamba_takes_all_labels_for_one_object():
    """The border between the labels is wrong, the object is not. Then one of its 8 voxels is too many."""
    labels = {"x": 1, "y": 2}
    reference, prediction = box(0, slice(0, 8), shape=(1, 20)), box(0, slice(0, 8), shape=(1, 20), value=2)
    found = scores("nnmamba", reference, prediction, (5, 5), labels)
    assert found[ALL_LABELS].values == {"nsd@0.5px": 1}
    assert found["x"].values == {"dice": 0}
    longer = box(0, slice(0, 10), shape=(1, 20))
    assert value("nnmamba", reference, longer, "nsd@0.5px", (5, 5), ALL_LABELS, labels) == pytest.approx((1 + 0.8) / 2)


def test_vmunet_counts_the_pixels_of_all_images_together():
    large, small = box(slice(0, 4), slice(0, 10), slice(0, 5)), box(0, 0, 0)
    found = over_classes("vmunet_isic", {"x": 1}, (large, large, (1, 1, 1)), (small, NOTHING, (1, 1, 1)))
    assert found["statistics"]["x"]["iou"]["mean"] == pytest.approx(200 / 201)
    assert found["overall"]["iou"]["mean"] == pytest.approx(200 / 201)
    assert found["statistics"]["x"]["accuracy"]["mean"] == pytest.approx(799 / 800)


@pytest.mark.parametrize("name", ["vmunet_synapse", "msvmunet_synapse", "tamingmambas_synapse"])
def test_synapse_measures_eight_organs_in_voxels(name):
    labels = numbered((*SYNAPSE, "duodenum"))
    reference = box(0, slice(0, 4), shape=(1, 30))
    prediction = box(0, slice(0, 24), shape=(1, 30))
    found = scores(name, reference, prediction, (7, 7), labels)
    assert found["duodenum"].values == {}
    assert found["aorta"].values["hd95"] == pytest.approx(18.65)
    assert found["aorta"].values["dice"] == pytest.approx(8 / 28)
    if name == "msvmunet_synapse":  # of the prediction's 24 pixels 4 are at 0, the others at 1 to 20
        assert found["aorta"].values["asd"] == pytest.approx(210 / 24)
        assert found["aorta"].values["iou"] == pytest.approx(4 / 24)
    results = over_classes(name, labels, (reference, prediction, (7, 7)))
    assert results["settings"]["left_out"] == ["duodenum"]
    assert results["classes"] == list(SYNAPSE)


@pytest.mark.parametrize(
    ("name", "labels"), [("mambaunet", {"x": 1}), ("uumamba_acdc", numbered(("RV", "MLV", "LVC")))]
)
def test_dice_alone(name, labels):
    reference, prediction = box(1, 1, slice(0, 3)), box(1, 1, slice(1, 5))
    found = scores(name, reference, prediction, labels=labels)[next(iter(labels))].values
    assert found == {"dice": 0.5714 if name == "uumamba_acdc" else 4 / 7}


@pytest.mark.parametrize(
    "names",
    [
        ("Aorta", "Gallbladder", "LeftKidney", "RightKidney", "Liver", "Pancreas", "Spleen", "Stomach"),
        ("aorta", "gall_bladder", "kidney_L", "kidney_R", "liver", "pancreas", "spleen", "stomach"),
        ("aorta", "gallbladder", "LK", "RK", "liver", "pancreas", "spleen", "stomach"),
    ],
)
def test_classes_are_told_by_their_names(names):
    targets = targets_of(PROTOCOLS["vmunet_synapse"], Labels(numbered(names), None, None))
    assert all(target.metrics for target in targets.values())


def test_tolerances_follow_the_names():
    names = ("Liver", "inferior_vena_cava", "adrenal_gland_right", "oesophagus")
    targets = targets_of(PROTOCOLS["umamba_abdomen"], Labels(numbered(names), None, None))
    assert [target.tolerance for target in targets.values()] == [5, 2, 2, 3]
    assert [target.reference_slices for target in targets.values()] == [False, True, False, True]


@pytest.mark.parametrize(
    ("name", "names", "message"),
    [
        ("umamba_abdomen", ("liver", "tumour"), "has no tolerance for tumour, only for liver, right kidney, spleen"),
        ("vmunet_synapse", ("liver", "aorta"), "but there is no gallbladder, left kidney, right kidney, pancreas"),
        ("umamba_abdomen", ("LK", "left kidney"), "more than one class may be left kidney"),
        ("uumamba_acdc", ("RV", "MLV"), "measures right ventricle, myocardium, left ventricle, but there is no left"),
    ],
)
def test_classes_that_do_not_fit_are_refused(name, names, message):
    with pytest.raises(UserError, match=f"--protocol {name}: .*{message}") as caught:
        targets_of(PROTOCOLS[name], Labels(numbered(names), None, None))
    assert f"it holds {', '.join(names)}" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "metrics", "message"),
    [
        ("brats", None, "--protocol brats: no such protocol; choose one of nnunet, umamba_abdomen"),
        (
            "mambaunet",
            ["iou"],
            "--metrics: the protocol mambaunet measures dice, as its paper does; leave out --metrics",
        ),
        ("nnunet", ["dise"], "--metrics dise: no such metric; choose among dice, iou"),
        ("nnunet", ["nsd"], "--metrics nsd: no tolerance above 0 in mm; write it behind an @, as in nsd@1.5mm"),
        ("nnunet", ["nsd@2"], "--metrics nsd@2: no tolerance"),
        ("nnunet", ["nsd@0mm"], "--metrics nsd@0mm: no tolerance"),
        ("nnunet", ["nsd@2px"], "--metrics nsd@2px: no tolerance"),
        ("nnunet", [], "--metrics: names no metric; name some"),
    ],
)
def test_what_cannot_be_measured_is_refused(name, metrics, message):
    with pytest.raises(UserError) as caught:
        choose_protocol(name, metrics)
    assert str(caught.value).startswith(message)


def test_groups_and_repeated_names():
    protocol = choose_protocol("nnunet", ["dice", "volume", "nsd@1.5mm", "dice"])
    assert protocol.metrics == ("dice", "volume_error", "reference_ml", "prediction_ml", "nsd@1.5mm")


@pytest.mark.parametrize("protocol", PROTOCOLS.values(), ids=PROTOCOLS.keys())
def test_every_protocol_names_its_source_and_what_differs(protocol):
    assert protocol.source
    assert protocol.notes or protocol.name == "nnunet"
    assert set(protocol.all_labels) <= set(protocol.metrics)
