"""Surfaces of masks, and how far each of their elements is from the other surface.

Two notions of a surface are in use, and papers differ by them:

* **Border voxels**: voxels of the mask with a face (in 2-D: edge) neighbour outside of it. What lies beyond the image
  is outside. An element is a voxel, at its centre; all count the same. (MedPy, MONAI, nnU-Net v1.)
* **Surface elements** ("surfels"): the corners between voxels whose 2x2x2 (2x2) voxels are neither all inside nor all
  outside. An element stands at the corner and counts by the area (length) of the surface through these voxels.
  (Nikolov et al. 2018, arXiv:1809.04430, and the code of DeepMind that came with it.)

Nearest elements are found with a k-d tree over the elements, not with a distance transform over voxels: time and memory
follow the surfaces, however large the box around them is.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.ndimage import binary_erosion
from scipy.spatial import KDTree

Planes = Sequence[np.ndarray]


@dataclass(frozen=True, eq=False)
class Distances:
    """From every element of each surface to the nearest element of the other.

    Attributes:
        reference: Of the reference's elements to the prediction's surface, in the unit of the spacing.
        prediction: Of the prediction's elements to the reference's surface.
        reference_sizes: What each element of the reference counts: 1 per border voxel, else its area or length.
        prediction_sizes: The same of the prediction's elements.
    """

    reference: np.ndarray
    prediction: np.ndarray
    reference_sizes: np.ndarray
    prediction_sizes: np.ndarray


def voxel_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], planes: Planes
) -> Distances:
    """Distances between the border voxels of two masks that are not empty.

    Args:
        reference: Boolean, two or three axes.
        prediction: Boolean, of the same shape.
        spacing: Size of a voxel along each axis.
        planes: Of each plane of the arrays along each axis, its place in the image. Planes that no mask touches may be
            left out.
    """
    first, second = (mask & ~np.asarray(binary_erosion(mask), bool) for mask in (reference, prediction))
    to_second, to_first = _mutual(first, second, spacing, planes)
    return Distances(to_second, to_first, np.ones(len(to_second)), np.ones(len(to_first)))


def surfel_distances(
    reference: np.ndarray, prediction: np.ndarray, spacing: tuple[float, ...], planes: Planes
) -> Distances:
    """Distances between the surface elements of two masks that are not empty; arguments as :func:`voxel_distances`."""
    sizes = _surfel_sizes(tuple(spacing))
    corners = [np.concatenate([along[:1], along + 1]) for along in planes]  # corner i lies before voxel i
    codes = [_corner_codes(mask) for mask in (reference, prediction)]
    first, second = ((code != 0) & (code != len(sizes) - 1) for code in codes)
    to_second, to_first = _mutual(first, second, spacing, corners)
    return Distances(to_second, to_first, sizes[codes[0][first]], sizes[codes[1][second]])


def _mutual(
    first: np.ndarray, second: np.ndarray, spacing: tuple[float, ...], planes: Planes
) -> tuple[np.ndarray, np.ndarray]:
    indices = np.nonzero(first), np.nonzero(second)
    points, others = (
        np.stack([place[index] for place, index in zip(planes, along, strict=True)], axis=1) for along in indices
    )
    return (
        _nearest(points, ~second[indices[0]], others, np.array(spacing)),
        _nearest(others, ~first[indices[1]], points, np.array(spacing)),
    )


def _nearest(points: np.ndarray, apart: np.ndarray, others: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """From each point to the nearest of the others; only points that are ``apart`` from all of them need a search.

    The tree only tells which element is nearest. The distance is computed from whole steps of the grid, as a distance
    transform does: differences of coordinates in mm would be a rounding error above a tolerance that they equal.
    """
    distances = np.zeros(len(points))
    tree = KDTree(others * spacing, compact_nodes=False, balanced_tree=False)
    _, nearest = tree.query(points[apart] * spacing)
    distances[apart] = np.sqrt((((points[apart] - others[nearest]) * spacing) ** 2).sum(axis=1))
    return distances


def _corner_codes(mask: np.ndarray) -> np.ndarray:
    """For every corner of the grid the voxels around it that are inside, one bit each; one longer per axis."""
    padded = np.pad(mask, 1).view(np.uint8)
    codes = np.zeros([length + 1 for length in mask.shape], np.uint8)
    for bit, offsets in enumerate(itertools.product((0, 1), repeat=mask.ndim)):
        around = tuple(slice(start, start + length) for start, length in zip(offsets, codes.shape, strict=True))
        codes |= padded[around] << bit
    return codes


@functools.lru_cache(maxsize=64)
def _surfel_sizes(spacing: tuple[float, ...]) -> np.ndarray:
    """The area (length) of the surface through the 2x2x2 (2x2) voxels of every code."""
    corners = list(itertools.product((0, 1), repeat=len(spacing)))
    cubes = ((np.arange(2 ** len(corners))[:, None] >> np.arange(len(corners))) & 1).reshape(-1, *(2,) * len(spacing))
    size = _contour_length if len(spacing) == 2 else _surface_area
    return np.array([0.0, *(size(cube, spacing) for cube in cubes[1:-1]), 0.0])


def _contour_length(square: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Marching squares: the contour runs between the middles of the edges that it cuts."""
    if square.sum() == 2 and square[0, 0] != square[1, 1]:  # two neighbours: straight along the axis on which they lie
        return spacing[0] if square[0, 0] == square[1, 0] else spacing[1]
    diagonal = math.hypot(*spacing)
    return diagonal if square.sum() == 2 else diagonal / 2


def _surface_area(cube: np.ndarray, spacing: tuple[float, ...]) -> float:
    """Marching cubes by Lorensen and Cline. Inside and outside are exchanged where more than half is inside, so that
    a mask and its complement have the same area in the ambiguous cases, too (as in DeepMind's table)."""
    from skimage.measure import marching_cubes, mesh_surface_area

    inside = cube if cube.sum() <= 4 else 1 - cube
    points, triangles, _, _ = marching_cubes(inside.astype(np.float32), 0.5, method="lorensen")
    return float(mesh_surface_area(points.astype(np.float64) * np.array(spacing), triangles))
