"""Scan orders as index maps."""

from __future__ import annotations

import pytest
import torch

from umamba_kernels import Order


@pytest.mark.parametrize(
    ("order", "visited"),
    [
        (Order(), [0, 1, 2, 3, 4, 5]),
        (Order(reverse=True), [5, 4, 3, 2, 1, 0]),
        (Order(slices=2), [0, 3, 1, 4, 2, 5]),
        (Order(slices=3), [0, 2, 4, 1, 3, 5]),
        (Order(slices=6), [0, 1, 2, 3, 4, 5]),
        (Order(reverse=True, slices=2), [5, 2, 4, 1, 3, 0]),
    ],
    ids=str,
)
def test_index(order, visited):
    assert order.index(6).tolist() == visited


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("slices", [1, 2, 3, 4, 6, 12])
def test_gather_follows_index_and_scatter_undoes_it(reverse, slices):
    order = Order(reverse, slices)
    x = torch.randn(2, 3, 12)
    assert torch.equal(order.gather(x), x[..., order.index(12)])
    assert torch.equal(order.scatter(order.gather(x)), x)


@pytest.mark.parametrize("slices", [1, 2, 3, 4, 6, 12])
def test_reversal_commutes_with_slicing(slices):
    sliced = Order(slices=slices)
    x = torch.arange(12)
    assert torch.equal(sliced.gather(x.flip(-1)), sliced.gather(x).flip(-1))


def test_default_order_costs_nothing():
    x = torch.zeros(2, 3)
    assert Order().gather(x) is x
    assert Order().scatter(x) is x


@pytest.mark.parametrize(
    ("slices", "length", "message"),
    [
        (7, 100, "slices = 7 does not divide the length 100; its nearest divisors: 5, 10"),
        (9, 6, "slices = 9 does not divide the length 6; its nearest divisors: 6$"),
    ],
)
def test_slices_that_do_not_divide_are_refused(slices, length, message):
    order = Order(slices=slices)
    for refused in (lambda: order.index(length), lambda: order.scatter(torch.zeros(length))):
        with pytest.raises(ValueError, match=message):
            refused()


def test_slices_start_at_one():
    with pytest.raises(ValueError, match="slices = 0, wanted 1 or more"):
        Order(slices=0)
