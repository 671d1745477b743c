"""Reading nnU-Net's summaries."""

import math

from umamba_seg.datasets.labels import Labels
from umamba_seg.evaluate import class_metrics, summary_table

LABELS = Labels({"tumour": (1, 2, 3), "core": 3}, ignore=None, regions_class_order=(1, 3))


def metrics(tumour: float, core: float) -> dict:
    return {"(3, 1, 2)": {"Dice": tumour}, "(3,)": {"Dice": core}}


def test_classes_are_found_whatever_order_their_values_have():
    assert class_metrics(metrics(0.5, 0.25), LABELS) == {"tumour": {"Dice": 0.5}, "core": {"Dice": 0.25}}


def test_table_counts_what_has_no_dice():
    cases = [{"metrics": metrics(0.5, math.nan)}, {"metrics": metrics(1.0, 0.25)}]
    summary = {"metric_per_case": cases, "foreground_mean": {"Dice": 0.5}}
    tumour, core = (line.split() for line in summary_table(summary, LABELS).splitlines()[2:4])
    assert tumour == ["tumour", "0.7500", "0.7500", "0.5000", "1.0000", "2", "0"]
    assert core == ["core", "0.2500", "0.2500", "0.2500", "0.2500", "1", "1"]
