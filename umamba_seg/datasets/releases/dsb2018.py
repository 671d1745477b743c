"""Data Science Bowl 2018: nuclei in microscopy, one mask file each, which become interior and boundary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from umamba_seg.datasets.folder import find_pictures
from umamba_seg.datasets.instances import INSTANCES_ENTRY, LABELS_ENTRY, write_cells
from umamba_seg.datasets.releases.pictures import ENDING, RGB, Pictures, foreground, require_folder, to_rgb
from umamba_seg.datasets.releases.release import Content, Item, Release
from umamba_seg.errors import UserError
from umamba_seg.log import logger

_FOLDER = "the folder that holds stage1_train, with a folder of images and one of masks for every picture"
_REMEDY = "give pictures and masks as they were released"


def _find(source: Path, options: Mapping[str, str]) -> Content:
    training = _part(require_folder(source / "stage1_train", f"give {_FOLDER}"), with_masks=True)
    tests = source / "stage1_test"
    pictures = Pictures(to_rgb)

    def write_label(item: Item, path: Path) -> None:
        write_cells(path, _number(item, pictures))

    return Content(
        {
            "channel_names": RGB,
            "labels": LABELS_ENTRY,
            "file_ending": ENDING,
            "instances": INSTANCES_ENTRY,
            "name": "Data Science Bowl 2018, nuclei (BBBC038)",
            "reference": "https://bbbc.broadinstitute.org/BBBC038; Caicedo et al., Nat Methods 2019",
            "licence": "CC0 1.0",
        },
        training,
        _part(tests, with_masks=False) if tests.is_dir() else [],
        pictures.write_images,
        write_label,
    )


def _part(folder: Path, *, with_masks: bool) -> list[Item]:
    return [
        _item(path, with_masks=with_masks)
        for path in sorted(folder.iterdir())
        if path.is_dir() and not path.name.startswith(".")
    ]


def _item(folder: Path, *, with_masks: bool) -> Item:
    images = find_pictures(require_folder(folder / "images", _REMEDY))
    if list(images) != [folder.name]:
        raise UserError(folder / "images", f"does not hold {folder.name}.png alone", _REMEDY)
    masks = find_pictures(require_folder(folder / "masks", _REMEDY)).values() if with_masks else ()
    return Item(folder.name, tuple(images.values()), tuple(masks))


def _number(item: Item, pictures: Pictures) -> np.ndarray:
    """The nuclei (y, x), numbered from 1 in the order of their files; a pixel of two belongs to the later."""
    nuclei, shared = np.zeros((), np.int32), 0
    for number, mask in enumerate(item.labels, 1):
        inside = foreground(mask, pictures.read_mask(mask, item)) > 0
        shared += np.count_nonzero(inside & (nuclei > 0))
        nuclei = np.where(inside, number, nuclei)
    if shared:
        logger.warning("%s: %d pixels lie in two masks and went to the later", item.images[0], shared)
    return nuclei


RELEASE = Release(
    name="dsb2018",
    title="Data Science Bowl 2018, nuclei",
    dataset_id=707,
    dataset_name="Nuclei",
    folder=_FOLDER,
    layout="https://bbbc.broadinstitute.org/BBBC038, from memory",
    verified=False,
    find=_find,
)
