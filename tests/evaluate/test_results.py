"""metrics.json and metrics.csv, written and read again."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.evaluate import evaluate_case, read_case_metrics
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.evaluate.protocols import choose_protocol, targets_of
from umamba_seg.evaluate.results import build_results, write_results

LABELS = {"left": 1, "right": 2}


def results(protocol="nnunet", metrics=("dice", "hd95", "reference_ml")):
    """In the first case the right one is missed, in the second neither holds it."""
    reference = np.zeros((3, 8, 8), int)
    reference[1, 2:4, 2:4], reference[1, 6, 6] = 1, 2
    prediction = np.where(reference == 1, 1, 0)
    chosen = choose_protocol(protocol, metrics)
    cases = [
        CaseScores("a", evaluate_case(reference, prediction, (1, 1, 1), LABELS, metrics, protocol), "origin 1", (7,)),
        CaseScores("b", evaluate_case(prediction, prediction, (1, 1, 1), LABELS, metrics, protocol), "", ()),
    ]
    about = {"references": "labels", "endings": [".NII.gz"], "missing": ["c"], "ignore_label": None}
    return build_results(cases, targets_of(chosen, Labels(LABELS, None, None)), chosen, about)


def test_numbers_come_back_as_they_were(tmp_path):
    write_results(results(), tmp_path / "metrics.json")
    found = read_case_metrics(tmp_path)
    assert (found.path, found.protocol, found.classes) == (tmp_path / "metrics.json", "nnunet", ("left", "right"))
    assert found.metrics == {"dice": "higher", "hd95": "lower", "reference_ml": None}
    assert found.values["a"]["left"] == {"dice": 1, "hd95": 0, "reference_ml": 0.004}
    assert found.values["a"]["right"] == {"dice": 0, "hd95": math.inf, "reference_ml": 0.001}
    assert found.values["b"]["right"] == pytest.approx(
        {"dice": math.nan, "hd95": math.nan, "reference_ml": 0}, nan_ok=True
    )
    assert found.states == {
        "a": {"left": "present", "right": "missed"},
        "b": {"left": "present", "right": "both_empty"},
    }
    assert found.n_ref == {"a": {"left": 4, "right": 1}, "b": {"left": 4, "right": 0}}
    assert (found.references, found.endings, found.missing) == (Path("labels"), (".nii.gz",), ("c",))
    assert read_case_metrics(tmp_path / "metrics.json").values["a"] == found.values["a"]


def test_the_file_is_strict_json_with_every_statistic(tmp_path):
    write_results(results(), tmp_path / "metrics.json")

    def refuse(word):
        raise AssertionError(word)

    found = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=refuse)
    assert found["counts"]["right"] == {"cases": 2, "both_empty": 1, "missed": 1, "invented": 0}
    assert found["statistics"]["right"]["hd95"] == {
        "mean": None,
        "low": None,
        "high": None,
        "median": None,
        "min": None,
        "max": None,
        "cases": 0,
        "undefined": 1,
        "infinite": 1,
    }
    assert found["statistics"]["left"]["dice"]["mean"] == found["statistics"]["left"]["dice"]["low"] == 1
    assert found["overall"]["dice"]["mean"] == 0.5
    assert found["overall"]["hd95"]["mean"] is None
    assert found["protocol"]["empty"]["hd95"] == {"both_empty": None, "missed": "inf", "invented": "inf"}
    assert found["settings"]["headers_differ"] == {"a": "origin 1"}
    assert found["settings"]["unnamed_values"] == {"a": [7]}
    assert "percentile bootstrap" in found["settings"]["interval"]["method"]


def test_the_sheet_has_a_row_for_each_case_and_class(tmp_path):
    sheet = write_results(results(), tmp_path / "metrics_x.json")
    assert sheet == tmp_path / "metrics_x.csv"
    with sheet.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["case"], row["class"], row["state"]) for row in rows] == [
        ("a", "left", "present"),
        ("a", "right", "missed"),
        ("b", "left", "present"),
        ("b", "right", "both_empty"),
    ]
    assert rows[1]["hd95"] == "inf"
    assert rows[3]["hd95"] == rows[3]["dice"] == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["metrics_x.csv", "metrics_x.json"]


def test_definitions_and_units_are_those_of_the_protocol():
    house, brats = results(metrics=("hd95",))["metrics"]["hd95"], results("segmamba_brats", None)["metrics"]["hd95"]
    assert (house["unit"], brats["unit"]) == ("mm", "px")
    assert "the larger of the two directed 95th percentiles" in house["definition"]
    assert "of both directions together" in brats["definition"]
    assert "the mean of the two shares" in results("nnmamba", None)["metrics"]["nsd@0.5px"]["definition"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not JSON"),
        ("{}", "is no metrics.json of format 1 (format: Field required)"),
        ('{"format": 2}', "is no metrics.json of format 1 (format: Input should be 1)"),
        (
            '{"format": 1, "protocol": {"name": "x"}, "classes": [], "metrics": {}, '
            '"settings": {"references": "x", "endings": [], "missing": []}, '
            '"cases": [{"case": "a", "classes": {"x": {"state": "present", "n_ref": 1, "dice": "high"}}}]}',
            "(cases.0.classes.x.dice: Input should be a valid number",
        ),
    ],
)
def test_files_that_are_something_else(tmp_path, content, message):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(UserError) as caught:
        read_case_metrics(tmp_path)
    assert message in str(caught.value)


def test_a_folder_without_metrics(tmp_path):
    with pytest.raises(UserError, match=r"holds no metrics.json; write it with `umamba-seg evaluate`"):
        read_case_metrics(tmp_path)
    with pytest.raises(UserError, match="no such file"):
        read_case_metrics(tmp_path / "gone.json")
