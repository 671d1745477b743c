"""EndoVis 2017: types of instruments in frames of robotic surgery."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from umamba_seg.datasets.folder import find_pictures
from umamba_seg.datasets.masks import read_codes
from umamba_seg.datasets.pictures import write_picture
from umamba_seg.datasets.releases.pictures import ENDING, RGB, Pictures, require_folder, to_rgb, values
from umamba_seg.datasets.releases.release import Content, Item, Release
from umamba_seg.errors import UserError
from umamba_seg.text import times

_FOLDER = "the folder of the unpacked archives instrument_1_4_training.zip and so on"
_REMEDY = "give the frames and masks as they were released"
TYPES = {
    "Bipolar_Forceps": 1,
    "Prograsp_Forceps": 2,
    "Large_Needle_Driver": 3,
    "Vessel_Sealer": 4,
    "Grasping_Retractor": 5,
    "Monopolar_Curved_Scissors": 6,
    "Ultrasound_Probe": 7,
}
_OTHER = {"Other": 7}
"""What the folder of the probe's masks is called."""

_TYPE_MASKS = "TypeSegmentation"
_RELEASED, _CROPPED = (1080, 1920), (1024, 1280)
_TOP, _LEFT = 28, 320


def _find(source: Path, options: Mapping[str, str]) -> Content:
    found = (path for path in source.rglob("instrument_dataset_*") if path.is_dir())
    sequences = sorted(path for path in found if "__MACOSX" not in path.parts)  # which some archives hold as well
    is_test = {path: "test" in path.relative_to(source).as_posix().lower() for path in sequences}
    training = [item for path in sequences if not is_test[path] for item in _frames(path, "")]
    tests = [item for path in sequences if is_test[path] for item in _frames(path, "test_")]
    without = sum(not item.labels for item in tests)
    left_out = (f"{without} of {len(tests)} test frames have no masks: they are converted without labels",)
    pictures = Pictures(lambda path, pixels: to_rgb(path, _crop(path, pixels)))
    return Content(
        {
            "channel_names": RGB,
            "labels": {"background": 0} | {name.replace("_", " "): value for name, value in TYPES.items()},
            "file_ending": ENDING,
            "group_pattern": r"seq\d+",
            "name": "EndoVis 2017 robotic instruments, types",
            "reference": "https://endovissub2017-roboticinstrumentsegmentation.grand-challenge.org",
        },
        training,
        tests,
        pictures.write_images,
        _write_label,
        left_out=left_out if without else (),
    )


def _frames(sequence: Path, prefix: str) -> list[Item]:
    """The frames of a sequence; those of training must have masks."""
    match = re.fullmatch(r"instrument_dataset_(\d+)", sequence.name)
    if not match:
        raise UserError(sequence, "is not named instrument_dataset_ and a number", _REMEDY)
    frames = find_pictures(require_folder(sequence / "left_frames", _REMEDY))
    folders = _mask_folders(sequence)
    if not folders and not prefix:
        raise UserError(sequence / "ground_truth", "holds no folders of masks", _REMEDY)
    for folder in folders:
        _type_of(folder)
        if missing := sorted(path.name for path in frames.values() if not (folder / path.name).is_file()):
            raise UserError(folder, f"has no mask of {missing[0]} (and lacks {len(missing)} in all)", _REMEDY)
    name = f"{prefix}seq{int(match[1]):02d}"
    return [
        Item(f"{name}_{stem}", (path,), tuple(folder / path.name for folder in folders))
        for stem, path in frames.items()
    ]


def _mask_folders(sequence: Path) -> list[Path]:
    """One folder of masks per instrument; or, in the tests that were published later, one of all types."""
    if (sequence / "gt").is_dir():
        return [require_folder(sequence / "gt" / _TYPE_MASKS, _REMEDY)]
    truth = sequence / "ground_truth"
    return sorted(path for path in truth.iterdir() if path.is_dir()) if truth.is_dir() else []


def _type_of(folder: Path) -> int | None:
    """The type of the instrument in a folder's masks by its name, such as Left_Prograsp_Forceps_labels.

    None where the masks hold the types.
    """
    if folder.name == _TYPE_MASKS:
        return None
    found = [value for name, value in (TYPES | _OTHER).items() if name in folder.name]
    if len(found) != 1:
        raise UserError(folder, "names no instrument that is known", f"name one of {', '.join(TYPES)}")
    return found[0]


def _write_label(item: Item, path: Path) -> None:
    """Join the masks of instruments, whose values tell its parts apart. Where two overlap, the higher type stays."""
    label = np.zeros(_CROPPED, np.uint8)
    for mask in item.labels:
        codes, kind = _crop(mask, read_codes(mask)), _type_of(mask.parent)
        types = values(mask, codes, max(TYPES.values())) if kind is None else np.where(codes > 0, kind, 0)
        label = np.maximum(label, types).astype(np.uint8)
    write_picture(path, label)


def _crop(path: Path, pixels: np.ndarray) -> np.ndarray:
    """A frame without its black frame; one of that size already as it is."""
    if pixels.shape[:2] == _CROPPED:
        return pixels
    if pixels.shape[:2] != _RELEASED:
        what = f"has shape {times(pixels.shape[:2])} (y, x) instead of {times(_RELEASED)} or {times(_CROPPED)}"
        raise UserError(path, what, _REMEDY)
    height, width = _CROPPED
    return pixels[_TOP : _TOP + height, _LEFT : _LEFT + width]


RELEASE = Release(
    name="endovis",
    title="EndoVis 2017 instruments",
    dataset_id=704,
    dataset_name="Endovis17",
    folder=_FOLDER,
    layout="https://endovissub2017-roboticinstrumentsegmentation.grand-challenge.org/Data/ and from memory",
    verified=False,
    find=_find,
)
