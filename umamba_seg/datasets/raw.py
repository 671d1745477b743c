"""The raw data set as a value: nnU-Net's folder of images, labels and ``dataset.json``, found and validated.

Only names and ``dataset.json`` are read here; :mod:`umamba_seg.datasets.check` opens the images.
"""

from __future__ import annotations

import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_seg.datasets.images import ENDINGS, PICTURE_ENDINGS, ending_of
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import is_file_name, read_json
from umamba_seg.text import shorten

_UNREAD_ENDINGS = (".jpg", ".jpeg", ".gipl", ".mhd", ".hdr", ".img", ".mgz", ".dcm")
"""Images that are not read: beside others they are named, not left out silently."""


_EVERY_CHANNEL = "add the missing files or remove these cases; every case needs the same channels"
_READERS = ("None", "SimpleITKIO", "NibabelIO", "NibabelIOWithReorient", "NaturalImage2DIO", "Tiff3DIO")


@dataclass(frozen=True)
class Case:
    """One case: its image files in channel order, and its label file where there is one."""

    identifier: str
    images: tuple[Path, ...]
    label: Path | None


@dataclass(frozen=True)
class RawDataset:
    """A raw data set whose ``dataset.json`` and file names are in order.

    Attributes:
        folder: ``nnUNet_raw/DatasetNNN_Name``.
        json: The content of ``dataset.json``.
        labels: What the label files may hold and mean.
        cases: The training cases, sorted by identifier. ``label`` is None where the label file is missing.
        channels: Number of input channels, as ``channel_names`` counts them.
        file_ending: Ending of all images and labels, such as ``.nii.gz``.
    """

    folder: Path
    json: dict[str, Any]
    labels: Labels
    cases: tuple[Case, ...]
    channels: int
    file_ending: str

    @property
    def group_pattern(self) -> str | None:
        """The entry ``group_pattern`` of dataset.json: finds the patient in a case's name. Not part of nnU-Net.

        Raises:
            UserError: It is not a string.
        """
        pattern = self.json.get("group_pattern")
        if pattern is not None and not isinstance(pattern, str):
            remedy = "write a regular expression in quotes, or leave it out"
            raise UserError(self.folder / "dataset.json", f'"group_pattern" is {pattern!r}', remedy)
        return pattern


def _raise(error: UserError) -> None:
    raise error


def load_raw_dataset(folder: Path, complain: Callable[[UserError], None] = _raise) -> RawDataset:
    """Read and validate ``dataset.json`` and the file names of the training cases.

    The optional table ``"dataset"`` (identifier -> {"images": [...], "label": ...}) replaces imagesTr and labelsTr, as
    in nnU-Net: its paths are relative to ``folder``, and environment variables in them are expanded.

    Args:
        folder: ``nnUNet_raw/DatasetNNN_Name``.
        complain: Called with what is wrong with names and numbers of images. The default raises it; a check collects
            it and goes on with the cases that are complete.

    Raises:
        UserError: Anything is missing, malformed or contradicts itself.
    """
    if not folder.is_dir():
        raise UserError(folder, "no such folder", "give the folder of a raw data set (it holds dataset.json)")
    path = folder / "dataset.json"
    content = read_json(path)
    if "training" in content and "file_ending" not in content:
        what = "lists its cases as the Decathlon and nnU-Net v1 do"
        raise UserError(path, what, "convert the data set with `umamba-seg convert msd`")
    channels = _channels(content, path)
    ending = require_file_ending(content, path)
    labels = Labels.from_json(content, path)
    _require_known_reader(content, path)
    if "dataset" in content:
        cases = _listed_cases(content["dataset"], folder, channels, ending)
    else:
        files = find_cases(folder / "imagesTr", ending, channels, complain)
        cases = label_cases(files, folder / "labelsTr", ending)
    if problem := _count_problem(content, cases, path):
        complain(problem)
    return RawDataset(folder, content, labels, cases, channels, ending)


def read_description(path: Path) -> dict[str, Any]:
    """A ``dataset.json`` whose channels, ending, labels and reader are in order.

    Raises:
        UserError: One of them is not.
    """
    content = read_json(path)
    _channels(content, path)
    require_file_ending(content, path)
    Labels.from_json(content, path)
    _require_known_reader(content, path)
    return content


def find_cases(
    folder: Path, file_ending: str, channels: int | None = None, complain: Callable[[UserError], None] = _raise
) -> dict[str, tuple[Path, ...]]:
    """Find images named ``CASE_0000.ending``, ``CASE_0001.ending``, ...; hidden files are ignored.

    Args:
        folder: The folder of images.
        file_ending: Their ending, such as ``.nii.gz``.
        channels: Number of channels that each case must have. A PNG, BMP or TIFF may hold several channels, so for
            those this is only the largest number of files.
        complain: See :func:`load_raw_dataset`.

    Returns:
        identifier -> its files in channel order, sorted by identifier.

    Raises:
        UserError: No images, an image with another name or ending, or a channel missing.
    """
    found, strangers = list_images(folder, file_ending)
    if strangers:
        what = f"images that are not named CASE_0000{file_ending} ({len(strangers)}): {shorten(strangers)}"
        remedy = "rename or remove them: the identifier, an underscore, the channel in four digits, the ending"
        complain(UserError(folder, what, remedy))
    problems = {case: channel_problem(case, list(files), channels, file_ending) for case, files in found.items()}
    if named := [problem for problem in problems.values() if problem]:
        complain(UserError(folder, shorten(named), _EVERY_CHANNEL))
    return {case: tuple(files.values()) for case, files in found.items() if not problems[case]}


def list_images(folder: Path, file_ending: str) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """What is in a folder of images, whether or not every case is complete.

    Returns:
        identifier -> {channel number: file}, sorted; and the names of images of another name or ending.

    Raises:
        UserError: There is no image named so at all.
    """
    names = visible_files(folder)
    pattern = re.compile(rf"(?P<case>.+)_(?P<channel>\d{{4}}){re.escape(file_ending)}")
    found: dict[str, dict[int, Path]] = defaultdict(dict)
    strangers = []
    for name in names:
        if match := pattern.fullmatch(name):
            found[match["case"]][int(match["channel"])] = folder / name
        elif ending_of(name.lower()) in (*ENDINGS, *_UNREAD_ENDINGS):
            strangers.append(name)
    if not found:
        what = f"no images named CASE_0000{file_ending} (there: {shorten(strangers) or count_endings(names)})"
        remedy = "name images so: the identifier, an underscore, the channel in four digits, the ending"
        raise UserError(folder, what, remedy if strangers else "check the folder")
    return {case: dict(sorted(files.items())) for case, files in sorted(found.items())}, strangers


def label_cases(files: dict[str, tuple[Path, ...]], labels: Path, ending: str) -> tuple[Case, ...]:
    """Join images found by :func:`find_cases` to the label files ``CASE.ending`` of a folder, where they exist."""
    paths = {case: labels / f"{case}{ending}" for case in files}
    return tuple(Case(case, images, paths[case] if paths[case].is_file() else None) for case, images in files.items())


def count_endings(names: list[str]) -> str:
    """``.json (1), .nii.gz (12)``, to say what is in a folder."""
    there = Counter(ending_of(name) or "no ending" for name in names)
    return ", ".join(f"{ending} ({count})" for ending, count in sorted(there.items())) or "nothing"


def visible_files(folder: Path) -> list[str]:
    """The names of the files in a folder, sorted, without hidden ones (``._x``, ``.DS_Store``).

    Raises:
        UserError: No such folder.
    """
    if not folder.is_dir():
        raise UserError(folder, "no such folder", "check the path: it must be a folder of images")
    return sorted(path.name for path in folder.iterdir() if not path.is_dir() and not path.name.startswith("."))


def channel_problem(case: str, present: Sequence[int], channels: int | None, ending: str) -> str | None:
    """What is wrong with the channel numbers of a case; they must run from 0, and be ``channels``, if that is known."""
    wanted = channels if channels and ending not in PICTURE_ENDINGS else max(present) + 1
    missing = [f"{case}_{number:04d}{ending}" for number in range(wanted) if number not in present]
    if missing:
        return f"{shorten(missing)} missing"
    if channels and len(present) > channels:
        return f"{case} has {len(present)} channel files instead of {channels}"
    return None


def _channels(content: dict[str, Any], path: Path) -> int:
    key, example = "channel_names", '"channel_names": {"0": "CT"}'
    if "modality" in content:
        raise UserError(path, 'names its channels by "modality", as nnU-Net v1 did', 'rename it to "channel_names"')
    names = content.get(key)
    if names is None:
        raise UserError(path, 'has no "channel_names"', f"name the input channels, for example {example}")
    if not isinstance(names, dict) or set(names) != {str(i) for i in range(len(names))} or not names:
        raise UserError(path, f'"{key}" is {names!r}', f'number the channels "0", "1", ... without a gap: {example}')
    if not all(isinstance(name, str) for name in names.values()):
        raise UserError(path, f'"{key}" is {names!r}', f"give every channel a name in quotes: {example}")
    return len(names)


def require_file_ending(content: dict[str, Any], path: Path) -> str:
    """The ending of a data set's images, one of those that are read.

    Raises:
        UserError: There is none, or another one.
    """
    ending = content.get("file_ending")
    if ending is None:
        remedy = 'add the ending of the images, for example "file_ending": ".nii.gz"'
        raise UserError(path, 'has no "file_ending"', remedy)
    if ending not in ENDINGS:
        what = f'"file_ending" is {ending!r}, which is none of {", ".join(ENDINGS)}'
        raise UserError(path, what, "convert the images, or correct the ending (it begins with a dot)")
    return ending


def _require_known_reader(content: dict[str, Any], path: Path) -> None:
    """nnU-Net takes another reader without a word when it does not know this one."""
    reader = content.get("overwrite_image_reader_writer", "None")
    if reader not in _READERS:
        what = f'"overwrite_image_reader_writer" is {reader!r}, which nnU-Net does not have'
        raise UserError(path, what, f"leave it out, or choose one of {', '.join(_READERS[1:])}")


def _listed_cases(table: Any, folder: Path, channels: int, ending: str) -> tuple[Case, ...]:
    """The cases of the optional table ``"dataset"``."""
    where = folder / "dataset.json"
    if not isinstance(table, dict) or not table or not all(_is_listed_case(entry) for entry in table.values()):
        remedy = 'write {"CASE": {"images": ["path", ...], "label": "path"}, ...}, or leave "dataset" out'
        raise UserError(where, '"dataset" does not list images and a label for every case', remedy)

    if paths := [name for name in table if not is_file_name(name)]:
        raise UserError(where, f'"dataset" names cases by paths: {shorten(paths)}', "give each a plain name")

    def resolve(name: str) -> Path:
        return Path(os.path.normpath(folder / os.path.expandvars(name)))

    cases = tuple(
        Case(name, tuple(resolve(image) for image in table[name]["images"]), resolve(table[name]["label"]))
        for name in sorted(table)
    )
    missing = [str(path) for case in cases for path in (*case.images, case.label) if path and not path.is_file()]
    if missing:
        what = f'"dataset" lists missing files ({len(missing)}): {shorten(missing)}'
        raise UserError(where, what, "correct the paths")
    found = (channel_problem(case.identifier, range(len(case.images)), channels, ending) for case in cases)
    if problems := [problem for problem in found if problem]:
        raise UserError(where, shorten(problems), _EVERY_CHANNEL)
    return cases


def _is_listed_case(entry: Any) -> bool:
    if not isinstance(entry, dict):
        return False
    images, label = entry.get("images"), entry.get("label")
    if not isinstance(label, str) or not isinstance(images, list) or not images:
        return False
    return all(isinstance(image, str) for image in images)


def _count_problem(content: dict[str, Any], cases: Sequence[Case], path: Path) -> UserError | None:
    stated = content.get("numTraining")
    if stated == len(cases) and not isinstance(stated, bool):
        return None
    what = f'"numTraining" is {stated!r} but there are {len(cases)} complete training cases'
    labels = path.parent / "labelsTr"
    named = {f"{case.identifier}{content['file_ending']}" for case in cases}
    if "dataset" not in content and labels.is_dir() and (orphans := sorted({*visible_files(labels)} - named)):
        what += f"; labelsTr holds labels without images: {shorten(orphans)}"
    return UserError(path, what, f'write "numTraining": {len(cases)}, or add or remove images')
