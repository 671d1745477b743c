"""Folders of 2-D pictures and masks -> nnU-Net raw. Nothing is lost silently: all that is changed is reported."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from umamba_seg.datasets.instances import (
    INSTANCES_ENTRY,
    LABELS_ENTRY,
    MASKS_FOLDER,
    Survey,
    write_cells,
)
from umamba_seg.datasets.masks import LabelMap, map_of, read_codes
from umamba_seg.datasets.pictures import ENDINGS, read_picture, write_picture
from umamba_seg.datasets.raw import count_endings, visible_files
from umamba_seg.datasets.splits import groups_of
from umamba_seg.datasets.writing import dataset_name, new_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import write_json
from umamba_seg.log import logger, progress
from umamba_seg.text import shorten, times

MASK_SUFFIX = re.compile(r"_(mask|label|seg|segmentation)$", re.IGNORECASE)


@dataclass(frozen=True)
class _Form:
    """What all images of the new data set have in common."""

    colour: bool
    ending: str


def convert(
    images: Path,
    labels: Path,
    raw: Path,
    dataset_id: int,
    name: str,
    *,
    test_images: Path | None = None,
    group_pattern: str | None = None,
    instances: bool = False,
) -> Path:
    """Convert 2-D images (PNG, TIFF, BMP, JPEG) and masks (PNG, TIFF, BMP) to ``raw/DatasetNNN_Name``.

    An image and its mask have the same name up to the ending, and up to ``_mask``, ``_label``, ``_seg`` or
    ``_segmentation`` at the end of the mask's. What was changed is logged:

    * alpha channels and further TIFF pages are dropped, palettes are expanded;
    * a set without any colour becomes grey; if one image has colour, all become RGB;
    * intensities keep their bits: PNG where it can hold them, else TIFF;
    * masks of other values than 0, 1, 2, ... are mapped to those in ascending order (0 stays 0), and ``dataset.json``
      keeps the map as ``mask_values``.

    Args:
        images: Folder of images.
        labels: Folder of their masks.
        raw: The folder of raw data sets.
        dataset_id: Number of the new data set.
        name: Name of the new data set.
        test_images: Folder of images without masks, for imagesTs.
        group_pattern: Finds the patient in an image's name; kept in ``dataset.json`` for the splits.
        instances: The masks number cells. They become labels of background, interior and boundary (see
            :func:`~umamba_seg.datasets.instances.instances_to_segmentation`), and stay as ``instancesTr``.

    Returns:
        The folder of the new data set.

    Raises:
        UserError: A file is unreadable or unpaired, shapes differ, or a mask does not hold classes.
    """
    pictures = _without_channel(find_pictures(images))
    masks = pair(pictures, find_pictures(labels), images, labels)
    tests = _without_channel(find_pictures(test_images)) if test_images else {}
    groups_of(pictures, group_pattern)
    form = _survey([*pictures.values(), *tests.values()])
    label_map = None if instances else _survey_masks(masks)
    with new_dataset(raw, dataset_id, name) as folder:
        wanted = {"imagesTr": True, "labelsTr": True, "imagesTs": bool(tests)}
        for subfolder in [name for name, needed in wanted.items() if needed]:
            (folder / subfolder).mkdir()
        found = Survey()
        for case, path in progress(pictures.items(), "converting", len(pictures)):
            shape = _convert_image(path, folder / "imagesTr" / f"{case}_0000{form.ending}", form)
            codes = read_mask(masks[case], path, shape)
            if label_map:
                write_picture(folder / "labelsTr" / f"{case}{form.ending}", label_map.apply(codes))
            else:
                found += write_cells(folder / "labelsTr" / f"{case}{form.ending}", codes)
        if instances:
            _report_instances(found, labels)
        for case, path in progress(tests.items(), "converting tests", len(tests)):
            _convert_image(path, folder / "imagesTs" / f"{case}_0000{form.ending}", form)
        write_json(folder / "dataset.json", _dataset_json(form, label_map, len(pictures), group_pattern))
    return raw / dataset_name(dataset_id, name)


def find_pictures(folder: Path) -> dict[str, Path]:
    """Stem -> file, of the pictures in a folder.

    Raises:
        UserError: There are none, or two have the same stem.
    """
    names = visible_files(folder)
    found: dict[str, Path] = {}
    for name in names:
        path = folder / name
        if path.suffix.lower() not in ENDINGS:
            continue
        if path.stem in found:
            raise UserError(path, f"has the same name as {found[path.stem].name}", "remove one of the two")
        found[path.stem] = path
    if not found:
        what = f"holds no pictures (there: {count_endings(names)})"
        raise UserError(folder, what, f"give a folder of {', '.join(ENDINGS)} files")
    if len(found) < len(names):
        others = sorted(set(names) - {path.name for path in found.values()})
        logger.warning("%s: left out, as no pictures: %s", folder, shorten(others))
    return found


def _without_channel(pictures: dict[str, Path]) -> dict[str, Path]:
    """Drop the ``_0000`` of images that are named in nnU-Net's raw form already."""
    if all(stem.endswith("_0000") for stem in pictures):
        return {stem.removesuffix("_0000"): path for stem, path in pictures.items()}
    return pictures


def pair(pictures: dict[str, Path], masks: dict[str, Path], images: Path, labels: Path) -> dict[str, Path]:
    """Case -> mask, for exactly the cases that have a picture; a mask may end in what :data:`MASK_SUFFIX` finds.

    Raises:
        UserError: Some pictures or masks are alone.
    """
    paired: dict[str, Path] = {}
    for stem, path in masks.items():
        case = stem if stem in pictures else MASK_SUFFIX.sub("", stem)
        if case in paired:
            raise UserError(path, f"is a second mask of {case}, beside {paired[case].name}", "remove one of the two")
        paired[case] = path
    problems = []
    if without_mask := sorted(set(pictures) - set(paired)):
        problems.append(f"images without a mask in {labels} ({len(without_mask)}): {shorten(without_mask)}")
    if without_image := sorted(set(paired) - set(pictures)):
        problems.append(f"masks without an image ({len(without_image)}): {shorten(without_image)}")
    if problems:
        remedy = "give an image and its mask the same name; the mask's may end in _mask, _label, _seg or _segmentation"
        raise UserError(images, "; ".join(problems), remedy)
    return paired


def _survey(paths: list[Path]) -> _Form:
    """Read all images, decide on a form that loses nothing, and report what it changes."""
    notes: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    types: Counter[np.dtype] = Counter()
    for path in progress(paths, "reading images", len(paths)):
        picture = read_picture(path)
        if picture.pixels.dtype.kind not in "uif":
            raise UserError(
                path, f"holds numbers of the type {picture.pixels.dtype}", "save it as 8- or 16-bit grey or RGB"
            )
        notes.update(picture.notes)
        types[picture.pixels.dtype] += 1
        kinds["grey" if picture.pixels.ndim == 2 else "grey as RGB" if _is_grey(picture.pixels) else "colour"] += 1
    colour = kinds["colour"] > 0
    if colour and kinds["grey"]:
        notes["expanded from grey to RGB, as other images have colour"] = kinds["grey"]
    if not colour and kinds["grey as RGB"]:
        notes["reduced from RGB with three equal channels to grey"] = kinds["grey as RGB"]
    for note, count in notes.items():
        logger.info("%d of %d images: %s", count, len(paths), note)
    if len(types) > 1:
        listed = ", ".join(f"{dtype} ({count})" for dtype, count in types.items())
        logger.warning("the images have different number types, and keep them: %s", listed)
    fits_png = set(types) <= ({np.dtype("u1")} if colour else {np.dtype("u1"), np.dtype("u2")})
    return _Form(colour, ".png" if fits_png else ".tif")


def _is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[..., :1]).all())


def _survey_masks(masks: dict[str, Path]) -> LabelMap:
    """Read all masks of classes, and report what their values become."""
    label_map = map_of(progress(masks.values(), "reading masks", len(masks)))
    if not label_map.is_identity:
        listed = ", ".join(f"{word} -> {label}" for word, label in label_map.names.items())
        logger.info("masks: values became labels: %s", listed)
    if label_map.first:
        logger.warning("masks: no mask holds 0, so label 0 (background) stays empty")
    return label_map


def _report_instances(found: Survey, labels: Path) -> None:
    if not found.count:
        raise UserError(labels, "no mask has any foreground", "check that these are the masks")
    found.refuse_classes(labels)
    logger.info("masks: %d instances became interior and boundary, and stay in %s", found.count, MASKS_FOLDER)
    if found.scattered:
        logger.warning("masks: %d instances lie in several pieces; only the largest has an interior", found.scattered)


def _convert_image(path: Path, target: Path, form: _Form) -> tuple[int, ...]:
    """Write an image in the form of the data set; its shape (y, x)."""
    pixels = read_picture(path).pixels
    if form.colour and pixels.ndim == 2:
        pixels = np.stack([pixels] * 3, axis=-1)
    elif not form.colour and pixels.ndim == 3:
        pixels = pixels[..., 0]
    write_picture(target, pixels)
    return pixels.shape[:2]


def read_mask(path: Path, image: Path, shape: tuple[int, ...]) -> np.ndarray:
    """The codes (see :func:`~umamba_seg.datasets.masks.read_codes`) of a mask of the same size as its image.

    Args:
        path: The mask.
        image: Its image, for the message.
        shape: Of the image, (y, x).

    Raises:
        UserError: The mask is unreadable, or of another size.
    """
    codes = read_codes(path)
    if codes.shape != shape:
        what = f"has shape {times(codes.shape)} (y, x), but its image {image} has {times(shape)}"
        raise UserError(path, what, "give an image and its mask the same size")
    return codes


def _dataset_json(form: _Form, label_map: LabelMap | None, count: int, group_pattern: str | None) -> dict[str, Any]:
    content: dict[str, Any] = {
        "channel_names": {"0": "R", "1": "G", "2": "B"} if form.colour else {"0": "grey"},
        "labels": label_map.labels_entry() if label_map else LABELS_ENTRY,
        "numTraining": count,
        "file_ending": form.ending,
    }
    if not label_map:
        content["instances"] = INSTANCES_ENTRY
    elif not label_map.is_identity:
        content["mask_values"] = label_map.names
    if group_pattern is not None:
        content["group_pattern"] = group_pattern
    return content
