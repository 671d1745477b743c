"""The rules for labels."""

from pathlib import Path

import pytest

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError

BRATS = {"background": 0, "whole_tumour": [1, 2, 3], "tumour_core": [2, 3], "enhancing": 3}


def _parse(labels, **entries) -> Labels:
    return Labels.from_json({"labels": labels, **entries}, Path("dataset.json"))


def test_plain_labels():
    labels = _parse({"background": 0, "liver": 1, "tumour": 2})
    assert labels.foreground == {"liver": 1, "tumour": 2}
    assert (labels.values, labels.ignore, labels.has_regions) == ((0, 1, 2), None, False)
    assert labels.regions_class_order is None


def test_ignore_label():
    labels = _parse({"background": 0, "ignore": 2, "organ": 1})
    assert (labels.values, labels.ignore, labels.foreground) == ((0, 1, 2), 2, {"organ": 1})


def test_brats_regions():
    labels = _parse(BRATS | {"ignore": 4}, regions_class_order=[1, 2, 3])
    assert labels.foreground == {"whole_tumour": (1, 2, 3), "tumour_core": (2, 3), "enhancing": 3}
    assert (labels.values, labels.ignore, labels.regions_class_order) == ((0, 1, 2, 3, 4), 4, (1, 2, 3))
    assert labels.has_regions


def test_list_of_one_value_is_no_region():
    assert not _parse({"background": 0, "organ": [1]}).has_regions


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({"0": "background", "1": "tumour"}, 'turn it round: "labels": {"background": 0, "tumour": 1}'),
        ({}, "missing or not an object"),
        (["background"], "missing or not an object"),
        ({"organ": 1}, '"background" is missing'),
        ({"background": 1, "organ": 0}, '"background" is 1'),
        ({"background": 0}, "nothing but background"),
        ({"background": 0, "organ": "1"}, "\"organ\" is '1'; write a whole number without quotes"),
        ({"background": 0, "organ": 1.5}, '"organ" is 1.5'),
        ({"background": 0, "organ": True}, '"organ" is True'),
        ({"background": 0, "organ": -1}, '"organ" is -1'),
        ({"background": 0, "organ": []}, r'"organ" is \[\]'),
        ({"background": 0, "organ": 1, "tumour": 1}, '"organ" and "tumour" are both 1'),
        ({"background": 0, "organ": 0}, '"background" and "organ" are both 0'),
        ({"background": 0, "organ": 1, "tumour": 255}, r"\[0, 1, 255\] are not consecutive"),
        ({"background": "0", "organ": "1"}, "\"background\" is '0'; write a whole number without quotes"),
        ({"background": 0, "organ": 1, "tumour": 3, "ignore": 2}, '"ignore" is 2, .* 3; give ignore the highest value'),
        ({"background": 0, "organ": 1, "ignore": 255}, '"ignore" is 255, .* "ignore": 2'),
        ({"background": 0, "organ": 1, "ignore": 1}, '"ignore" is 1, but the highest other label is 1'),
        ({"background": 0, "organ": 1, "ignore": [2, 3]}, r'"ignore" is the region \[2, 3\]'),
    ],
)
def test_refusals(labels, message):
    with pytest.raises(UserError, match=message):
        _parse(labels)


@pytest.mark.parametrize(
    ("order", "message"),
    [
        (None, 'no "regions_class_order"; list one label value for each of whole_tumour, tumour_core, enhancing'),
        ([1, 2], "has 2 entries for 3 regions"),
        ([1, 2, 9], r"holds \[9\]"),
        ([0, 1, 2], r"holds \[0\]"),
    ],
)
def test_regions_class_order_refusals(order, message):
    with pytest.raises(UserError, match=message):
        _parse(BRATS, regions_class_order=order)
