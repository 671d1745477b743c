"""Cells found one to one: the counts against slow definitions, and folders of masks."""

import csv
import json
import math
import re

import numpy as np
import pytest
from scipy.optimize import linear_sum_assignment

from umamba_seg.datasets.instances import RULES
from umamba_seg.datasets.pictures import write_picture
from umamba_seg.errors import UserError
from umamba_seg.evaluate.instances import (
    PROTOCOLS,
    THRESHOLDS,
    InstanceProtocol,
    evaluate_instances,
    instances_table,
    match,
    score,
)
from umamba_seg.evaluate.results import read_case_metrics
from umamba_seg.evaluate.statistics import bootstrap_mean


def boxes(shape=(50, 60), count=25, seed=0):
    """Boxes over each other, as instances."""
    rng = np.random.default_rng(seed)
    instances = np.zeros(shape, int)
    for number in rng.permutation(count) + 1:
        y, x = (rng.integers(0, side - 4) for side in shape)
        instances[y : y + rng.integers(2, 14), x : x + rng.integers(2, 14)] = number * 7
    return instances


def pairs(shape=(50, 60), seed=0):
    """Two sets of boxes; half of the second are those of the first, moved by a pixel."""
    first, other = boxes(shape, seed=seed), boxes(shape, seed=seed + 100)
    return first, np.where(np.arange(shape[1]) < shape[1] // 2, np.roll(first, 1, axis=0), other)


def slow_iou(reference, prediction):
    numbers = [np.unique(mask[mask > 0]) for mask in (reference, prediction)]
    table = np.zeros([len(found) for found in numbers])
    for row, one in enumerate(numbers[0]):
        for column, other in enumerate(numbers[1]):
            first, second = reference == one, prediction == other
            table[row, column] = (first & second).sum() / (first | second).sum()
    return table


def slow_match(reference, prediction, threshold):
    """By the assignment that makes most pairs, and where nobody has a choice by the first that fits."""
    enough = slow_iou(reference, prediction) >= threshold
    optimal = enough[linear_sum_assignment(-enough.astype(int))].sum()
    if threshold >= 0.5:
        greedy, taken = 0, set()
        for row in enough:
            fits = [column for column in np.flatnonzero(row) if column not in taken]
            greedy += bool(fits)
            taken.update(fits[:1])
        assert greedy == optimal
    return optimal


@pytest.mark.parametrize("seed", range(4))
def test_counts_against_the_definition(seed):
    reference, prediction = pairs(seed=seed)
    thresholds = (0.05, 0.2, *THRESHOLDS)
    found = match(reference, prediction, thresholds)
    assert found.matched == tuple(slow_match(reference, prediction, threshold) for threshold in thresholds)
    assert 0 < found.matched[2] < found.reference
    assert (found.reference, found.predicted) == tuple(len(np.unique(mask)) - 1 for mask in (reference, prediction))


def test_halves_share_one_cell():
    """At an IoU of exactly 0.5 two halves fit one cell; one of them is taken."""
    reference, prediction = np.ones((4, 8), int), np.repeat([[1, 2]], 4, axis=0).repeat(4, axis=1)
    assert match(reference, prediction).matched[:2] == (1, 0)
    assert match(prediction, reference).matched[:2] == (1, 0)


@pytest.mark.parametrize(
    ("reference", "prediction", "state", "f1"),
    [(1, 0, "missed", 0), (0, 1, "invented", 0), (0, 0, "both_empty", math.nan), (1, 1, "present", 1)],
)
def test_empty_images(reference, prediction, state, f1):
    found = match(np.full((3, 3), reference), np.full((3, 3), prediction))
    assert found.state == state
    values = found.values()
    assert [values["instance_f1"], values["instance_f1_mean"]] == pytest.approx([f1, f1], nan_ok=True)
    assert math.isnan(values["instance_recall"]) == (reference == 0)
    assert math.isnan(values["instance_precision"]) == (prediction == 0)


def test_the_numbers_of_an_image():
    found = match(*pairs())
    values = found.values()
    tp, fp, fn = found.matched[0], found.predicted - found.matched[0], found.reference - found.matched[0]
    assert values["instance_precision"] == tp / (tp + fp)
    assert values["instance_recall"] == tp / (tp + fn)
    precision, recall = values["instance_precision"], values["instance_recall"]
    assert values["instance_f1"] == pytest.approx(2 * precision * recall / (precision + recall))
    f1 = [2 * tp / (found.reference + found.predicted) for tp in found.matched]
    assert values["instance_f1_mean"] == pytest.approx(np.mean(f1))


def slow_without_border(instances, width):
    kept = instances.copy()
    for number in np.unique(instances[instances > 0]):
        for y, x in np.argwhere(instances == number):
            if min(y, x, instances.shape[0] - 1 - y, instances.shape[1] - 1 - x) < width:
                kept[instances == number] = 0
    return kept


def test_umamba_leaves_out_cells_at_the_border():
    reference, prediction = pairs()
    expected = match(slow_without_border(reference, 2), slow_without_border(prediction, 2))
    assert score(reference, prediction, PROTOCOLS["umamba_cells"]) == expected
    assert expected.reference < match(reference, prediction).reference
    assert score(reference, prediction, PROTOCOLS["default"]) == match(reference, prediction)


def test_large_images_are_scored_in_patches():
    protocol = InstanceProtocol("small", "", border=2, large=3000, patch=20)
    reference, prediction = pairs()
    assert reference.size == 3000
    expected = None
    for y in (0, 20, 40):
        for x in (0, 20, 40):
            patches = [np.zeros((20, 20), int), np.zeros((20, 20), int)]
            for patch, mask in zip(patches, (reference, prediction), strict=True):
                part = mask[y : y + 20, x : x + 20]
                patch[: part.shape[0], : part.shape[1]] = part
            found = match(*(slow_without_border(patch, 2) for patch in patches))
            expected = found if expected is None else expected + found
    assert score(reference, prediction, protocol) == expected
    whole = score(reference[:-1], prediction[:-1], protocol)
    assert whole == match(*(slow_without_border(mask[:-1], 2) for mask in (reference, prediction)))


def test_umamba_cells_as_its_script():
    found = PROTOCOLS["umamba_cells"]
    assert (found.border, found.large, found.patch) == (2, 25_000_000, 2000)
    assert set(PROTOCOLS) == set(RULES)


@pytest.fixture
def folders(tmp_path):
    """References and predictions of three images, one of them without any cell."""
    empty = np.zeros((50, 60), np.uint16)
    images = {"a": pairs(), "b": pairs(seed=1), "c": (empty, empty)}
    for place in ("references", "predictions"):
        (tmp_path / place).mkdir()
    for case, (reference, prediction) in images.items():
        write_picture(tmp_path / "references" / f"{case}_label.tif", reference.astype(np.uint16))
        write_picture(tmp_path / "predictions" / f"{case}.png", prediction.astype(np.uint16))
    return tmp_path / "references", tmp_path / "predictions"


def test_folders(folders):
    results = evaluate_instances(*folders)
    counts = [match(*pairs()), match(*pairs(seed=1))]
    f1 = [found.values()["instance_f1"] for found in counts]
    numbers = results["statistics"]["cells"]["instance_f1"]
    assert [numbers[key] for key in ("mean", "low", "high")] == pytest.approx(bootstrap_mean(np.array(f1)))
    assert (numbers["median"], numbers["min"], numbers["max"]) == pytest.approx((np.mean(f1), min(f1), max(f1)))
    assert (numbers["cases"], numbers["undefined"]) == (2, 1)
    pooled = results["pooled"]
    assert pooled["instance_f1"] == (counts[0] + counts[1]).values()["instance_f1"]
    assert pooled["pairs"]["0.75"] == counts[0].matched[5] + counts[1].matched[5]
    assert results["counts"]["cells"] == {"cases": 3, "both_empty": 1, "missed": 0, "invented": 0}
    read = read_case_metrics(folders[1])
    assert (read.protocol, read.classes) == ("default", ("cells",))
    assert read.metrics["instance_f1"] == "higher"
    assert read.metrics["reference_cells"] is None
    assert read.values["b"]["cells"] == pytest.approx(counts[1].values())
    rows = list(csv.DictReader((folders[1] / "metrics.csv").read_text().splitlines()))
    assert [(row["case"], row["state"]) for row in rows] == [("a", "present"), ("b", "present"), ("c", "both_empty")]
    assert rows[2]["instance_f1"] == ""


def test_command(folders, umamba_seg, tmp_path):
    done = umamba_seg("evaluate", "--instances", *folders).succeeded()
    total = match(*pairs()) + match(*pairs(seed=1))
    assert f"{total.reference} cells in 3 references" in done.out
    assert f"{total.matched[0]} matched at IoU 0.5; 1 images without any cell have no F1" in done.out
    assert f"{total.values()['instance_f1']:.4f}" in done.out
    words = ("--protocol", "umamba_cells", "-o", tmp_path / "official.json", "--json")
    done = umamba_seg("evaluate", "--instances", *folders, *words).succeeded()
    assert done.result["protocol"] == "umamba_cells"
    content = json.loads((tmp_path / "official.json").read_text())
    assert content["pooled"] == done.result["pooled"]
    assert content["pooled"]["reference_cells"] < total.reference
    assert content["protocol"]["border"] == 2


def test_two_sets_of_instances_are_compared(folders, umamba_seg, tmp_path):
    perfect = tmp_path / "perfect"
    perfect.mkdir()
    for path in folders[0].glob("*.tif"):
        (perfect / path.name.replace("_label", "")).write_bytes(path.read_bytes())
    words = ("--metric", "instance_f1", "-o", tmp_path, "--json")
    (found,) = umamba_seg("compare", folders[1], perfect, "-r", folders[0], *words).succeeded().result["differences"]
    assert (found["first"], found["second"], found["target"]) == ("predictions", "perfect", "cells")
    assert (found["won"], found["cases"], found["left_out"]) == (2, 2, 1)


def test_a_prediction_that_is_missing(folders, caplog):
    (folders[1] / "b.png").unlink()
    with pytest.raises(UserError, match="predictions: predictions of b are missing; predict them, or --chill"):
        evaluate_instances(*folders)
    results = evaluate_instances(*folders, allow_missing=True)
    assert len(results["cases"]) == 2
    assert results["settings"]["missing"] == ["b"]
    assert "1 images were not predicted and left out: b" in instances_table(results)
    assert "1 cases were not predicted and are left out: b" in caplog.text


def test_a_prediction_of_another_size(folders):
    write_picture(folders[1] / "a.png", np.zeros((5, 6), np.uint16))
    with pytest.raises(UserError, match=r"a.png: has the shape 5×6, its reference 50×60"):
        evaluate_instances(*folders)


def test_a_prediction_without_reference(folders):
    write_picture(folders[1] / "d.png", np.zeros((5, 6), np.uint16))
    with pytest.raises(UserError, match="references: holds no reference for d; name the folder that does"):
        evaluate_instances(*folders)


def test_segmentations_are_no_instances(folders):
    for path in folders[1].glob("*.png"):
        classes = np.zeros((50, 60), np.uint8)
        classes[:5, :5] = classes[10:20, 10:20] = 1
        write_picture(path, classes)
    with pytest.raises(UserError, match="predictions: 3 of 3 numbers stand in several places of one mask, as those of"):
        evaluate_instances(*folders)
    assert not (folders[1] / "metrics.json").exists()


def test_no_masks(folders, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: holds no instance masks"):
        evaluate_instances(folders[0], tmp_path / "empty")


def test_instances_of_another_rule_than_the_protocol(folders):
    (folders[1] / "instances.json").write_text(json.dumps({"rule": "default"}))
    evaluate_instances(*folders)
    with pytest.raises(
        UserError, match="were made by the rule 'default', which is not that of umamba_cells; make them"
    ):
        evaluate_instances(*folders, protocol="umamba_cells")


def test_masks_of_which_nobody_knows_how_they_were_made(folders):
    unknown, made = "It is not known how these cells were made: there is no inst", "Cells are made of interior"
    shown = instances_table(evaluate_instances(*folders, protocol="umamba_cells"))
    assert unknown in shown
    assert made not in shown
    (folders[1] / "instances.json").write_text(json.dumps({"rule": "umamba_cells"}))
    shown = instances_table(evaluate_instances(*folders, protocol="umamba_cells"))
    assert unknown not in shown
    assert made in shown


def test_the_interval_of_one_image_says_nothing(folders):
    for name in "bc":
        (folders[1] / f"{name}.png").unlink()
    shown = instances_table(evaluate_instances(*folders, allow_missing=True))
    assert re.search(r"F1 at IoU 0.5 +0\.\d{4} +– +– ", shown)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--protocol", "nnmamba"],
            "--protocol nnmamba: no such protocol for instances; choose one of default, umamba",
        ),
        (["--metrics", "dice"], "evaluate --instances: takes no metrics; leave it out"),
        (["-o", "x.csv"], "-o x.csv: not a .json file in a folder that is there"),
    ],
)
def test_commands_that_are_refused(folders, umamba_seg, words, message):
    done = umamba_seg("evaluate", "--instances", *folders, *words)
    assert done.code == 2
    assert message in done.err
