"""Planes that the moving window hands over equal those of a buffer for the whole volume, and nnU-Net's."""

from itertools import product

import numpy as np
import pytest
import torch
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from umamba_seg.predict.window import Tiling, sweep

VOLUMES = [
    ((9, 20, 17), (4, 8, 8)),
    ((30, 12, 11), (8, 8, 8)),
    ((5, 9, 7), (8, 8, 8)),
    ((6, 5, 21), (8, 4, 6)),
    ((7, 13, 9), (8, 8)),
    ((3, 6, 5), (8, 8)),
    ((1, 40, 33), (16, 16)),
]


def network_of(patch_size, classes=3):
    """Two channels -> ``classes``, depending on where in the tile a voxel lies."""
    torch.manual_seed(0)
    kind = torch.nn.Conv3d if len(patch_size) == 3 else torch.nn.Conv2d
    convolution, place = kind(2, classes, 3, padding=1), torch.randn(classes, *patch_size)
    return lambda x: convolution(x) + place


def collect(data, tiling, network, classes=3, **how):
    result = torch.full((classes, *(tiling.shape[axis] for axis in tiling.order)), float("nan"))
    run = lambda tiles: network(tiles)[:, None]  # noqa: E731
    with torch.inference_mode():
        for first, planes in sweep(
            data, tiling, run, members=1, classes=classes, tiles_at_once=2, device=torch.device("cpu"), **how
        ):
            result[:, first : first + planes.shape[2]] = planes[0]
    return result.permute(0, *(1 + tiling.order.index(axis) for axis in range(3)))


@pytest.mark.parametrize(("shape", "patch_size"), VOLUMES)
def test_every_plane_equals_that_of_a_whole_buffer(shape, patch_size):
    """Bit for bit: the same sums in the same order."""
    data = np.random.default_rng(0).normal(size=(2, *shape)).astype(np.float32)
    tiling, network = Tiling(shape, patch_size, 0.5), network_of(patch_size)
    padded, weight = tiling.pad(data), tiling.weights(torch.device("cpu"))
    sums = torch.zeros(3, *(tiling.padded[axis] for axis in tiling.order))
    weights = torch.zeros(sums.shape[1:])
    extents = [tiling.patch[axis] for axis in tiling.order]
    starts = [tiling.starts[axis] for axis in tiling.order]
    with torch.inference_mode():
        for first in starts[0]:
            corners = list(product([first], *starts[1:]))
            for n in range(0, len(corners), 2):
                logits = network(torch.stack([tiling.tile(padded, corner) for corner in corners[n : n + 2]]))
                for corner, one in zip(corners[n : n + 2], logits, strict=True):
                    place = tuple(slice(at, at + extent) for at, extent in zip(corner, extents, strict=True))
                    sums[:, *place] += tiling.swept(one) * weight
                    weights[place] += weight
    whole = (sums / weights).permute(0, *(1 + tiling.order.index(axis) for axis in range(3)))
    whole = whole[:, *(slice(low, low + size) for low, size in zip(tiling.before, shape, strict=True))]
    assert torch.equal(collect(data, tiling, network), whole)


@pytest.mark.parametrize(("shape", "patch_size"), VOLUMES)
@pytest.mark.parametrize("step_size", [0.5, 1.0])
def test_it_is_nnunets_window(shape, patch_size, step_size, single_precision):
    data = np.random.default_rng(1).normal(size=(2, *shape)).astype(np.float32)
    network = network_of(patch_size)

    class Network(torch.nn.Module):
        def forward(self, x):
            return network(x)

    theirs = nnUNetPredictor(step_size, use_mirroring=False, device=torch.device("cpu"), allow_tqdm=False)
    theirs.network = Network()
    theirs.configuration_manager = type("Configuration", (), {"patch_size": list(patch_size)})
    theirs.label_manager = type("Labels", (), {"num_segmentation_heads": 3})
    expected = theirs.predict_sliding_window_return_logits(torch.from_numpy(data))
    found = collect(data, Tiling(shape, patch_size, step_size), network)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("shape", "patch_size", "axis"),
    [((300, 64, 64), (64, 64, 64), 0), ((64, 64, 300), (64, 64, 64), 2), ((30, 512, 512), (128, 128), 0)],
)
def test_the_window_moves_where_it_leaves_the_smallest_buffer(shape, patch_size, axis):
    tiling = Tiling(shape, patch_size, 0.5)
    assert tiling.axis == axis
    assert np.prod(tiling.window) == (512 * 512 if len(patch_size) == 2 else 64**3)


def test_members_are_kept_apart():
    data = np.ones((1, 4, 4, 4), np.float32)
    run = lambda tiles: torch.stack([tiles, 2 * tiles], 1)  # noqa: E731
    how = {"members": 2, "classes": 1, "tiles_at_once": 2, "device": torch.device("cpu")}
    found = [
        [planes[member].unique().tolist() for member in (0, 1)]
        for _, planes in sweep(data, Tiling((4, 4, 4), (4, 4, 4), 0.5), run, **how)
    ]
    assert found == [[[1.0], [2.0]]]
