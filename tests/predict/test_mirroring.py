"""Reflections of a tile, and the classes that change places with its sides."""

from pathlib import Path

import pytest
import torch

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.predict.mirroring import Exchange, Flip, exchange_of, flips, named_pairs


def labels_of(entries, order=None):
    return Labels.from_json({"labels": entries, "regions_class_order": order}, Path("dataset.json"))


SIDES = labels_of({"background": 0, "kidney_left": 1, "spine": 2, "kidney_right": 3})


def test_every_combination_once():
    assert [flip.axes for flip in flips((0, 2), None, None)] == [(), (0,), (2,), (0, 2)]
    assert flips((), None, None) == [Flip()]


def test_channels_change_places_where_the_sides_do():
    exchange = exchange_of(SIDES, [(1, 3)], 2, staged=False)
    assert exchange == Exchange(inputs=(0, 1), classes=(0, 3, 2, 1))
    assert [flip.exchange for flip in flips((0, 2), 2, exchange)] == [None, None, exchange, exchange]


def test_undoing_restores_the_tile_and_names_its_own_sides():
    tile = torch.randn(4, 3, 4, 5)  # one channel per class, as a network that knows everything gives
    for flip in flips((0, 1, 2), 2, Exchange((0, 1, 2, 3), (0, 3, 2, 1))):
        seen = flip.apply(tile)
        if 2 in flip.axes:
            seen = seen[[0, 3, 2, 1]]  # in the mirrored patient the left kidney is the right one
        assert torch.equal(flip.undo(seen), tile)


def test_labels_of_the_stage_before_change_places_too():
    exchange = exchange_of(SIDES, [(1, 3)], 2, staged=True)
    assert exchange is not None
    assert exchange.inputs == (0, 1, 4, 3, 2)
    tile = torch.randn(5, 2, 2, 2)
    assert torch.equal(Flip((2,), exchange).apply(tile), tile[[0, 1, 4, 3, 2]].flip(3))
    ignoring = labels_of({"background": 0, "left": 1, "right": 2, "ignore": 3})
    found = exchange_of(ignoring, [(1, 2)], 1, staged=True)
    assert found == Exchange(inputs=(0, 2, 1), classes=(0, 2, 1))


def test_regions_change_places_as_their_values_do():
    regions = labels_of({"background": 0, "left": [1, 2], "both": [1, 2, 3, 4], "right": [3, 4]}, [1, 2, 3])
    pairs = [(1, 3), (2, 4)]
    assert exchange_of(regions, pairs, 1, staged=True) == Exchange(inputs=(0, 3, 4, 1, 2), classes=(2, 1, 0))
    one_side = labels_of({"background": 0, "left": [1, 2], "other": 3, "last": 4}, [1, 3, 4])
    assert exchange_of(one_side, pairs, 1, staged=False) is None


def test_labels_by_name():
    assert named_pairs(SIDES, [("kidney_left", "kidney_right")]) == [(1, 3)]
    with pytest.raises(UserError, match="--swap-labels: no label kidney; choose among kidney_left, spine, kidney_"):
        named_pairs(SIDES, [("kidney", "kidney_right")])
    for pairs in ([("kidney_left", "spine"), ("spine", "kidney_right")], [("spine", "spine")]):
        with pytest.raises(UserError, match="--swap-labels: names spine twice; give each label one other side"):
            named_pairs(SIDES, pairs)
