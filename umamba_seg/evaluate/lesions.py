"""Lesions found, missed and invented: connected components of two masks, matched by overlap.

The rule is that of the ISLES'22 challenge (Hernandez Petzsche et al. 2022, Scientific Data 9:762): components touch by
faces, edges or corners (26 neighbours, in 2-D 8); a lesion of the reference is found if the prediction holds at least
one voxel of it; a component of the prediction that overlaps no lesion is false. One component may find several lesions.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from scipy.ndimage import generate_binary_structure, label


class Lesions(NamedTuple):
    """How many lesions of the reference were found and missed, and how many components of the prediction are false."""

    found: int
    missed: int
    false: int


def match_lesions(reference: np.ndarray, prediction: np.ndarray) -> Lesions:
    """Match the components of two boolean masks of one shape."""
    lesions, found = _components(reference, prediction)
    components, true = _components(prediction, reference)
    return Lesions(found, lesions - found, components - true)


def _components(mask: np.ndarray, other: np.ndarray) -> tuple[int, int]:
    """How many components ``mask`` has, and how many of them hold a voxel of ``other``."""
    components = np.empty(mask.shape, np.int32)
    count = int(label(mask, generate_binary_structure(mask.ndim, mask.ndim), output=components))  # type: ignore[arg-type]
    touched = np.zeros(count + 1, bool)
    touched[components[other]] = True
    return count, int(touched[1:].sum())
