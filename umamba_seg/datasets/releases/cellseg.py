"""NeurIPS 2022 CellSeg: cells in microscopy, numbered, which become interior and boundary."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from umamba_seg.datasets.folder import find_pictures
from umamba_seg.datasets.instances import INSTANCES_ENTRY, LABELS_ENTRY, write_cells
from umamba_seg.datasets.releases.pictures import ENDING, RGB, Pictures, items, require_folder, to_rgb
from umamba_seg.datasets.releases.release import Content, Item, Release
from umamba_seg.errors import UserError

_FOLDER = "the folder that holds Training-labeled and Tuning"
_PERCENTILES = (1, 99)


def _find(source: Path, options: Mapping[str, str]) -> Content:
    training = _part(require_folder(source / "Training-labeled", f"give {_FOLDER}"), "")
    tuning = source / "Tuning"
    tests = _part(tuning, "tuning_") if tuning.is_dir() else []  # it numbers its pictures from 1 as well
    left_out = [f"{name} was left out" for name in ("Training-unlabeled", "Testing") if (source / name).is_dir()]
    if not tests:
        left_out.append("there is no folder Tuning, so there are no test cases")
    pictures = Pictures(_to_8_bits)

    def write_label(item: Item, path: Path) -> None:
        (mask,) = item.labels
        write_cells(path, pictures.read_mask(mask, item))

    return Content(
        {
            "channel_names": RGB,
            "labels": LABELS_ENTRY,
            "file_ending": ENDING,
            "instances": INSTANCES_ENTRY,
            "name": "NeurIPS 2022 cell segmentation challenge",
            "reference": "https://neurips22-cellseg.grand-challenge.org",
        },
        training,
        tests,
        pictures.write_images,
        write_label,
        left_out=tuple(left_out),
    )


def _part(folder: Path, prefix: str) -> list[Item]:
    remedy = "give images and labels as they were released"
    images, labels = (require_folder(folder / name, remedy) for name in ("images", "labels"))
    return items(find_pictures(images), find_pictures(labels), images, labels, prefix)


def _to_8_bits(path: Path, pixels: np.ndarray) -> np.ndarray:
    """RGB of 8 bits. 8-bit pictures keep their values, the channels of others are stretched, each for itself."""
    if pixels.dtype == np.uint8:
        return to_rgb(path, pixels)
    if not np.isfinite(pixels).all():
        raise UserError(path, "holds NaN or infinity", "write the picture again without them")
    if pixels.ndim == 2:
        return to_rgb(path, _stretch(pixels))
    return np.stack([_stretch(channel) for channel in np.moveaxis(pixels, -1, 0)], axis=-1)


def _stretch(channel: np.ndarray) -> np.ndarray:
    """The first to the 99th percentile of what is not 0 -> 0 to 255; where both are one value, it and 0 are the two."""
    if not channel.any():
        return channel.astype(np.uint8)
    low, high = np.percentile(channel[channel != 0], _PERCENTILES)
    if low == high:
        low, high = min(low, 0), max(high, 0)
    return np.rint(np.interp(channel, (low, high), (0, 255))).astype(np.uint8)


RELEASE = Release(
    name="cellseg",
    title="NeurIPS 2022 CellSeg",
    dataset_id=703,
    dataset_name="NeurIPSCell",
    folder=_FOLDER,
    layout="https://neurips22-cellseg.grand-challenge.org, from memory",
    verified=False,
    find=_find,
)
