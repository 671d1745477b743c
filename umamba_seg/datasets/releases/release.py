"""What a converter says of a data set as its makers publish it, and the writing that all converters share."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.splits import Split
from umamba_seg.datasets.writing import dataset_name, new_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, write_json
from umamba_seg.log import logger, progress
from umamba_seg.text import shorten


@dataclass(frozen=True)
class Item:
    """A case as the makers publish it.

    Attributes:
        identifier: Its name in nnU-Net's raw form.
        images: Files in channel order; a picture of several channels is one file.
        labels: The file of its labels, or the masks that are joined into one; none for a case without.
    """

    identifier: str
    images: tuple[Path, ...]
    labels: tuple[Path, ...] = ()


@dataclass(frozen=True)
class Content:
    """What was found in a folder, and how its files are written.

    Attributes:
        dataset_json: The entries of dataset.json, without ``numTraining``.
        training: Cases with labels, for imagesTr and labelsTr.
        tests: For imagesTs, and labelsTs where they have labels.
        write_images: Writes the images of a case into a folder, as ``IDENTIFIER_0000.ending`` and so on.
        write_label: Writes one label file from those of a case.
        splits: Folds that the makers fix; None leaves them to nnU-Net.
        left_out: What is there and was not taken, in sentences for the log.
        dataset: Number and name of the new data set, where they are not those of the release.
    """

    dataset_json: dict[str, Any]
    training: Sequence[Item]
    tests: Sequence[Item]
    write_images: Callable[[Item, Path], None]
    write_label: Callable[[Item, Path], None]
    splits: list[Split] | None = None
    left_out: tuple[str, ...] = ()
    dataset: tuple[int, str] | None = None


@dataclass(frozen=True)
class Option:
    """A choice that a converter leaves to the user: ``--NAME`` with one of ``choices``, the first by default."""

    name: str
    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Release:
    """A data set as its makers publish it.

    Attributes:
        name: What ``umamba-seg convert NAME`` calls it.
        title: Of the data set, for people.
        dataset_id, dataset_name: Of the new data set, unless others are asked for or the options make it another.
        folder: What the folder given with ``-i`` holds, in words.
        layout: Where the layout of files is described.
        verified: Whether the layout was compared with a copy of the release; the sources alone do not count.
        find: ``find(source, options)`` lists the cases. It raises UserError where the layout is another.
        options: What the user may choose.
    """

    name: str
    title: str
    dataset_id: int
    dataset_name: str
    folder: str
    layout: str
    verified: bool
    find: Callable[[Path, Mapping[str, str]], Content]
    options: tuple[Option, ...] = ()


def convert(
    release: Release, source: Path, raw: Path, dataset_id: int | None, name: str | None, options: Mapping[str, str]
) -> Path:
    """Convert a release to ``raw/DatasetNNN_Name``, whole or not at all.

    Args:
        release: What is converted.
        source: The folder of the release.
        raw: The folder of raw data sets.
        dataset_id, name: Of the new data set; the release's by default.
        options: A choice for every option of the release, by name.

    Returns:
        The folder of the new data set.

    Raises:
        UserError: The folder is not laid out as the release is, a file is missing or damaged, or the number is taken.
    """
    if not source.is_dir():
        raise UserError(source, "no such folder", f"give {release.folder}")
    content = release.find(source, options)
    if not content.training:
        seen = f" ({'; '.join(content.left_out)})" if content.left_out else ""
        raise UserError(source, f"holds no training case of {release.title}{seen}", f"give {release.folder}")
    _require_distinct([*content.training, *content.tests], source)
    default_id, default_name = content.dataset or (release.dataset_id, release.dataset_name)
    number, name = default_id if dataset_id is None else dataset_id, name or default_name
    dataset_json = content.dataset_json | {"numTraining": len(content.training)}
    Labels.from_json(dataset_json, source)
    if not release.verified:
        logger.warning("the layout was not compared with a copy of %s: look at a few cases", release.title)
    for sentence in content.left_out:
        logger.warning("%s", sentence)
    with new_dataset(raw, number, name) as folder:
        for items, part in ((content.training, "Tr"), (content.tests, "Ts")):
            for item in progress(items, f"converting {part}", len(items)):
                content.write_images(item, make_folder(folder / f"images{part}"))
                if item.labels:
                    ending = dataset_json["file_ending"]
                    content.write_label(item, make_folder(folder / f"labels{part}") / f"{item.identifier}{ending}")
        write_json(folder / "dataset.json", dataset_json)
        if content.splits is not None:
            write_json(folder / "splits_final.json", content.splits)
    logger.info("%d training and %d test cases of %s", len(content.training), len(content.tests), release.title)
    return raw / dataset_name(number, name)


def _require_distinct(items: Sequence[Item], source: Path) -> None:
    twice = sorted(name for name, count in Counter(item.identifier for item in items).items() if count > 1)
    if twice:
        raise UserError(source, f"holds more than one case named {shorten(twice)}", "leave one of each")
