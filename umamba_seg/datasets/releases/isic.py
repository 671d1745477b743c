"""ISIC 2017 and 2018 (task 1): lesions of the skin."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from umamba_seg.datasets.folder import find_pictures
from umamba_seg.datasets.pictures import write_picture
from umamba_seg.datasets.releases.pictures import ENDING, RGB, Pictures, foreground, items, require_folder, to_rgb
from umamba_seg.datasets.releases.release import Content, Item, Release
from umamba_seg.errors import UserError

_FOLDER = "the folder that holds ISIC-2017_Training_Data or ISIC2018_Task1-2_Training_Input, of one year"
_SUPERPIXELS = "_superpixels"


@dataclass(frozen=True)
class _Year:
    """The names of a year's folders, ``{}`` being the part, and what the part for tests is called."""

    images: str
    masks: str
    test: str


_YEARS = {
    "2017": _Year("ISIC-2017_{}_Data", "ISIC-2017_{}_Part1_GroundTruth", "Test_v2"),
    "2018": _Year("ISIC2018_Task1-2_{}_Input", "ISIC2018_Task1_{}_GroundTruth", "Test"),
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    release, year = _year_of(source)
    training = _part(source, year, "Training")
    validation = _part(source, year, "Validation") if _has_both(source, year, "Validation") else []
    tests = _part(source, year, year.test) if _unpacked(source, year.images.format(year.test)).is_dir() else []
    left_out = []
    if not validation:
        left_out.append("there are no validation pictures with masks: nnU-Net will split the training cases itself")
    if tests and not tests[0].labels:
        left_out.append("there are no masks of the test pictures: they are converted without labels")
    names = [[item.identifier for item in part] for part in (training, validation)]
    pictures = Pictures(to_rgb)

    def write_label(item: Item, path: Path) -> None:
        (mask,) = item.labels
        write_picture(path, foreground(mask, pictures.read_mask(mask, item)))

    return Content(
        {
            "channel_names": RGB,
            "labels": {"background": 0, "lesion": 1},
            "file_ending": ENDING,
            "name": f"ISIC {release}, lesion boundaries",
            "reference": "https://challenge.isic-archive.com",
            "release": release,
        },
        [*training, *validation],
        tests,
        pictures.write_images,
        write_label,
        splits=[{"train": names[0], "val": names[1]}] if validation else None,
        left_out=tuple(left_out),
    )


def _year_of(source: Path) -> tuple[str, _Year]:
    found = [
        (name, year) for name, year in _YEARS.items() if _unpacked(source, year.images.format("Training")).is_dir()
    ]
    if not found:
        raise UserError(source, "holds no training pictures of ISIC 2017 or 2018", f"give {_FOLDER}")
    if len(found) > 1:
        raise UserError(source, "holds ISIC 2017 and 2018", "put them into two folders: some pictures are in both")
    return found[0]


def _has_both(source: Path, year: _Year, part: str) -> bool:
    return all(_unpacked(source, name.format(part)).is_dir() for name in (year.images, year.masks))


def _unpacked(source: Path, name: str) -> Path:
    """The folder of an archive, which may lie in one of the same name, as some programs unpack it."""
    return inner if (inner := source / name / name).is_dir() else source / name


def _part(source: Path, year: _Year, part: str) -> list[Item]:
    """The cases of a part; without labels where there is no folder of masks, which only training must have."""
    images, masks = (_unpacked(source, name.format(part)) for name in (year.images, year.masks))
    found = find_pictures(images).items()
    pictures = {name: path for name, path in found if not name.endswith(_SUPERPIXELS)}  # 2017 has them among the images
    if part == "Training":
        require_folder(masks, "unpack the masks beside the images")
    if not masks.is_dir():
        return [Item(name, (path,)) for name, path in pictures.items()]
    return items(pictures, find_pictures(masks), images, masks)


RELEASE = Release(
    name="isic",
    title="ISIC 2017 or 2018, lesion boundaries",
    dataset_id=705,
    dataset_name="ISIC",
    folder=_FOLDER,
    layout="https://challenge.isic-archive.com/data, from memory",
    verified=False,
    find=_find,
)
