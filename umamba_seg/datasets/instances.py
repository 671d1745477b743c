"""Masks that number cells one by one -> labels background, interior, boundary that a network can learn, and back.

The form is that of U-Mamba's cell data. Networks segment classes, not instances; a boundary between two cells that
touch is what tells them apart after prediction.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umamba_seg.datasets.images import read_image
from umamba_seg.datasets.masks import read_codes
from umamba_seg.datasets.pictures import write_picture
from umamba_seg.datasets.raw import visible_files
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.files import make_folder, move_into_place, read_json, write_json
from umamba_seg.log import progress
from umamba_seg.text import times

INTERIOR, BOUNDARY = 1, 2
MASKS_FOLDER = "instancesTr"
LABELS_ENTRY = {"background": 0, "interior": INTERIOR, "boundary": BOUNDARY}
INSTANCES_ENTRY = {"interior": INTERIOR, "boundary": BOUNDARY, "masks": MASKS_FOLDER}
"""The entry ``instances`` of ``dataset.json``, which is not part of nnU-Net: how its labels become instances again."""

RULES = {
    "default": "a cell is a connected piece of interior, grown back over the boundary that it reaches first",
    "umamba_cells": "a cell is a connected piece of interior, without its boundary (U-Mamba's evaluation)",
}
"""How a segmentation becomes instances. The second is what U-Mamba's evaluation script of its cell data does."""

RULE_FILE = "instances.json"
"""Beside instance masks that we made: the rule, and from what."""

_MOST_INSTANCES = np.iinfo(np.uint16).max


@dataclass(frozen=True)
class Survey:
    """What there is in instance masks.

    Attributes:
        count: Number of instances.
        scattered: How many of them lie in several pieces that do not touch.
    """

    count: int = 0
    scattered: int = 0

    def __add__(self, other: Survey) -> Survey:
        return Survey(self.count + other.count, self.scattered + other.scattered)

    def refuse_classes(self, where: Path) -> None:
        """See that these are masks of instances.

        Raises:
            UserError: Most are scattered, as the values of class masks are.
        """
        if 2 * self.scattered > self.count:
            what = (
                f"{self.scattered} of {self.count} numbers stand in several places of one mask, as those of classes do"
            )
            raise UserError(where, what, "give masks in which every cell has a number of its own")


def survey(instances: np.ndarray) -> Survey:
    """Count the instances of a mask, numbered 1, 2, ...; corners touch."""
    pieces = _pieces(instances)
    owners = instances.ravel()[np.unique(pieces, return_index=True)[1]]
    counts = np.bincount(owners[owners > 0])
    return Survey(int(np.count_nonzero(counts)), int(np.count_nonzero(counts > 1)))


def _pieces(values: np.ndarray) -> np.ndarray:
    """The connected pieces of equal values but 0, numbered from 1; corners touch."""
    from skimage.measure import label

    return np.asarray(label(values, connectivity=values.ndim))


def instances_to_segmentation(instances: np.ndarray) -> np.ndarray:
    """Labels of a mask that numbers its instances.

    A pixel of an instance is boundary if one of its four neighbours (six in 3-D) is no part of the instance, else
    interior: one pixel thick inside every instance, so two between instances that touch, whose interiors then do not
    meet even at corners. Every instance keeps one connected interior: where it falls apart, the largest piece (the
    others become boundary); where none is left, the pixel that is nearest to its centre.

    Args:
        instances: (y, x) or (z, y, x), 0 for background. Any integers.

    Returns:
        0 background, 1 interior, 2 boundary, in uint8.
    """
    from skimage.segmentation import find_boundaries

    instances = number_instances(instances)
    inside = np.where(find_boundaries(instances, connectivity=1, mode="inner"), 0, instances)
    pieces = _pieces(inside)
    sizes = np.bincount(pieces.ravel())
    owners = np.zeros(len(sizes), np.int64)
    owners[pieces.ravel()] = inside.ravel()
    largest = {owners[piece]: piece for piece in np.argsort(sizes, kind="stable") if owners[piece]}
    interior = np.isin(pieces, list(largest.values()))
    _give_interior(instances, set(range(1, instances.max() + 1)) - set(largest), interior)
    return np.where(interior, INTERIOR, np.where(instances > 0, BOUNDARY, 0)).astype(np.uint8)


def _give_interior(instances: np.ndarray, without: set[int], interior: np.ndarray) -> None:
    """Mark the pixel nearest to the centre of each instance that is too thin to have an interior."""
    from scipy.ndimage import find_objects

    boxes = find_objects(instances) if without else []
    for number in without:
        box = boxes[number - 1]
        pixels = np.argwhere(instances[box] == number)
        nearest = np.square(pixels - pixels.mean(axis=0)).sum(axis=1).argmin()
        interior[box][tuple(pixels[nearest])] = True


def segmentation_to_instances(
    segmentation: np.ndarray, interior: int = INTERIOR, boundary: int = BOUNDARY, *, rule: str = "default"
) -> np.ndarray:
    """The instances of a segmentation: connected pieces of interior, whose corners touch, and their boundary.

    Args:
        segmentation: Labels, (y, x) or (z, y, x).
        interior: The label of interiors.
        boundary: The label of boundaries.
        rule: One of :data:`RULES`. Under the first, a pixel of the boundary goes to the interior that reaches it first
            within the foreground, over sides of pixels (a watershed on the distance to the interior). Boundary that
            none reaches belongs to no instance.

    Returns:
        The number of each pixel's instance, from 1, and 0 elsewhere; in int32.
    """
    from scipy.ndimage import distance_transform_edt
    from skimage.segmentation import watershed

    inside = segmentation == interior
    pieces = _pieces(inside).astype(np.int32)
    if rule == "umamba_cells" or not inside.any():
        return pieces
    distance = np.asarray(distance_transform_edt(~inside))
    return watershed(distance, pieces, mask=inside | (segmentation == boundary))


def number_instances(codes: np.ndarray) -> np.ndarray:
    """Whatever integers tell the instances of a mask apart -> 1, 2, ... in their order; 0 stays. In int32."""
    values, numbers = np.unique(codes, return_inverse=True)
    return (numbers.reshape(codes.shape) + (values[0] != 0)).astype(np.int32)


def read_instances(path: Path) -> np.ndarray:
    """The instances (y, x) of a PNG, TIFF or BMP, told apart by grey values or colours, as 1, 2, ... in int32.

    Raises:
        UserError: The mask is unreadable, JPEG or not of whole numbers up to 65535.
    """
    return number_instances(read_codes(path))


def write_instances(path: Path, instances: np.ndarray) -> None:
    """Write the instances (y, x) as PNG or TIFF of 16 bits, under another name first.

    Raises:
        UserError: There are more than 65535.
    """
    if instances.max() > _MOST_INSTANCES:
        what = f"{instances.max()} instances do not fit into 16 bits (at most {_MOST_INSTANCES})"
        raise UserError(path, what, "cut the image into tiles")
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        write_picture(part, instances.astype(np.uint16))
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_cells(path: Path, codes: np.ndarray) -> Survey:
    """Write a mask that numbers its cells as labels, and the cells beside: ``labelsTr/x.png``, ``instancesTr/x.png``.

    Args:
        path: Of the labels, whose folder is ``labelsTr`` or ``labelsTs`` and exists.
        codes: (y, x), whatever integers tell the cells apart; 0 for background.

    Returns:
        What there is in the mask.

    Raises:
        UserError: There are more than 65535 cells.
    """
    instances = number_instances(codes)
    masks = make_folder(path.parent.with_name(path.parent.name.replace("labels", "instances")))
    write_instances(masks / path.name, instances)
    write_picture(path, instances_to_segmentation(instances))
    return survey(instances)


def separate_folder(segmentations: Path, output: Path, *, rule: str = "default") -> list[Path]:
    """Turn a folder of segmentations of pictures, which holds its ``dataset.json``, into instance masks.

    Args:
        segmentations: Folder of ``CASE.ending``, as ``predict`` writes it for a data set with ``instances``.
        output: Folder of the masks: 16-bit TIFF where segmentations are TIFF, else PNG; and ``instances.json``.
        rule: One of :data:`RULES`.

    Returns:
        The masks.

    Raises:
        UserError: There is nothing to do, or ``dataset.json`` does not say which labels are interior and boundary.
        CasesFailed: Some segmentations are unreadable, of other labels or volumes; the others are written.
    """
    description = read_json(segmentations / "dataset.json")
    interior, boundary = _labels_of(description, segmentations / "dataset.json")
    ending = description["file_ending"]
    names = [name for name in visible_files(segmentations) if name.endswith(ending)]
    if not names:
        raise UserError(segmentations, f"holds no segmentations ending in {ending}", "name the folder of segmentations")
    if output.resolve() == segmentations.resolve():
        raise UserError(f"-o {output}", "is the folder of segmentations", "name another")
    make_folder(output)
    kind = ".tif" if ending in (".tif", ".tiff") else ".png"
    written, failures = [], {}
    for name in progress(names, "instances", len(names)):
        target = output / f"{name.removesuffix(ending)}{kind}"
        try:
            segmentation = _read_segmentation(segmentations / name, {0, interior, boundary})
            write_instances(target, segmentation_to_instances(segmentation, interior, boundary, rule=rule))
        except UserError as error:
            failures[name.removesuffix(ending)] = str(error)
        else:
            written.append(target)
    write_json(output / RULE_FILE, {"rule": rule, "meaning": RULES[rule], "segmentations": str(segmentations)})
    if failures:
        raise CasesFailed(failures, [str(path) for path in written])
    return written


def _labels_of(description: Mapping[str, Any], path: Path) -> tuple[int, int]:
    """The labels of interior and boundary."""
    entry = description.get("instances")
    table = entry if isinstance(entry, dict) else {}
    interior, boundary = table.get("interior"), table.get("boundary")
    if type(interior) is not int or type(boundary) is not int or min(interior, boundary) < 1 or interior == boundary:
        what = f'"instances" is {entry!r}' if "instances" in description else 'has no "instances"'
        remedy = 'name the labels of interior and boundary, for example "instances": {"interior": 1, "boundary": 2}'
        raise UserError(path, what, remedy)
    return interior, boundary


def _read_segmentation(path: Path, known: set[int]) -> np.ndarray:
    array = read_image(path).array
    if array.ndim != 3 or len(array) != 1:
        raise UserError(path, f"is no 2-D segmentation ({times(array.shape)})", "instances are made of pictures only")
    if unknown := set(np.unique(array).tolist()) - known:
        what = f"holds {sorted(unknown)}, which are neither background, interior nor boundary"
        raise UserError(path, what, "give segmentations of this data set")
    return array[0]
