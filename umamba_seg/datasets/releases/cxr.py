"""Montgomery and Shenzhen: lungs in chest X-rays."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from umamba_seg.datasets.pictures import write_picture
from umamba_seg.datasets.releases.pictures import ENDING, Pictures, foreground, to_grey
from umamba_seg.datasets.releases.release import Content, Item, Release
from umamba_seg.errors import UserError
from umamba_seg.text import shorten

_FOLDER = "the folder that holds MontgomerySet, ChinaSet_AllFiles and Shenzhen's masks (CHNCXR_0001_0_mask.png)"
_SHENZHEN, _SUFFIX = "CHNCXR_", "_mask"


def _find(source: Path, options: Mapping[str, str]) -> Content:
    found = _by_name(source.rglob("CXR_png/*.png"))
    masks = _masks(source)
    if alone := sorted(set(masks) - set(found)):
        raise UserError(source, f"holds masks without a picture: {shorten(alone)}", f"give {_FOLDER}")
    without = sorted(set(found) - set(masks))
    if missing := [name for name in without if not name.startswith(_SHENZHEN)]:
        raise UserError(source, f"holds pictures without a mask: {shorten(missing)}", "add the masks as released")
    pictures = Pictures(to_grey)

    def write_label(item: Item, path: Path) -> None:
        lungs = [foreground(mask, pictures.read_mask(mask, item)) for mask in item.labels]
        write_picture(path, np.maximum.reduce(lungs))

    left_out = (f"{len(without)} pictures of Shenzhen have no mask and were left out: {shorten(without)}",)
    return Content(
        {
            "channel_names": {"0": "X-ray"},
            "labels": {"background": 0, "lung": 1},
            "file_ending": ENDING,
            "name": "Chest X-rays of Montgomery and Shenzhen, lungs",
            "reference": "National Library of Medicine; masks of Shenzhen: kaggle.com, "
            "nikhilpandey360/chest-xray-masks-and-labels",
        },
        [Item(name, (found[name],), paths) for name, paths in sorted(masks.items())],
        [],
        pictures.write_images,
        write_label,
        left_out=left_out if without else (),
    )


def _masks(source: Path) -> dict[str, tuple[Path, ...]]:
    """Name of the picture -> its mask, or its masks of the left and the right lung."""
    left, right = (_by_name(source.rglob(f"{side}Mask/*.png")) for side in ("left", "right"))
    if alone := sorted(set(left) ^ set(right)):
        raise UserError(source, f"holds the mask of one lung only of {shorten(alone)}", "add the other as released")
    whole = _by_name([*source.rglob(f"*{_SUFFIX}.png"), *source.rglob("masks/MCUCXR_*.png")])
    if twice := sorted(set(left) & set(whole)):
        raise UserError(source, f"holds more than one mask of {shorten(twice)}", "leave one of each")
    return {name: (left[name], right[name]) for name in left} | {name: (path,) for name, path in whole.items()}


def _by_name(paths: Iterable[Path]) -> dict[str, Path]:
    """Files by their names without ending and ``_mask``; hidden ones are left out."""
    found: dict[str, Path] = {}
    for path in sorted(path for path in paths if not path.name.startswith(".")):
        name = path.stem.removesuffix(_SUFFIX)
        if name in found:
            raise UserError(path, f"has the same name as {found[name]}", "leave one of the two")
        found[name] = path
    return found


RELEASE = Release(
    name="cxr",
    title="Montgomery and Shenzhen chest X-rays",
    dataset_id=706,
    dataset_name="ChestXray",
    folder=_FOLDER,
    layout="the National Library of Medicine and the Kaggle copy, from memory",
    verified=False,
    find=_find,
)
