"""BraTS 2023 (adult glioma) and BraTS 2021, told apart by the names of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_seg.datasets.releases.release import Content, Option, Release
from umamba_seg.datasets.releases.volumes import content_of, pair, sort_files
from umamba_seg.errors import UserError


@dataclass(frozen=True)
class _Edition:
    """A year's names and values.

    Attributes:
        title: Of the data set, for people.
        case: Regular expression of a case.
        channels, segmentation: What follows it in the names of files; channels are T1, T1 with contrast, T2, FLAIR.
        values: Value in the segmentation -> label: 1 necrosis, 2 edema, 3 enhancing tumor.
        dataset: Number and name of the new data set.
        entries: Of dataset.json.
    """

    title: str
    case: str
    channels: tuple[str, ...]
    segmentation: str
    values: Mapping[int, int]
    dataset: tuple[int, str]
    entries: Mapping[str, Any]


_2023 = _Edition(
    title="BraTS 2023 GLI",
    case=r"BraTS-GLI-\d{5}-\d{3}",
    channels=("-t1n", "-t1c", "-t2w", "-t2f"),
    segmentation="-seg",
    values={0: 0, 1: 1, 2: 2, 3: 3},
    dataset=(137, "BraTS2023"),
    entries={
        "reference": "https://www.synapse.org/Synapse:syn51514105",
        "group_pattern": r"^BraTS-GLI-(\d{5})",  # what follows is the visit
    },
)
_2021 = _Edition(
    title="BraTS 2021",
    case=r"BraTS2021_\d{5}",
    channels=("_t1", "_t1ce", "_t2", "_flair"),
    segmentation="_seg",
    values={0: 0, 1: 1, 2: 2, 4: 3},
    dataset=(138, "BraTS2021"),
    entries={"reference": "https://www.synapse.org/Synapse:syn25829067/wiki/610863"},
)
_EDITIONS = {"2023": _2023, "2021": _2021}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    found = {year: sort_files(source, _patterns(edition)) for year, edition in _EDITIONS.items()}
    year = _year(source, options["year"], [year for year, (files, _) in found.items() if any(files.values())])
    edition, (files, others) = _EDITIONS[year], found[year]
    training, tests = (
        pair(
            source,
            {channel: files[part + channel] for channel in edition.channels},
            files[part + edition.segmentation],
            needs_labels=part == "training",
        )
        for part in ("training", "validation")
    )
    dataset_json = {
        "name": edition.title,
        "channel_names": {"0": "T1", "1": "T1 contrast", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]},
        "regions_class_order": [2, 1, 3],  # what of the whole is no core is edema, what of the core is not enhancing 1
        **edition.entries,
    }
    return content_of(dataset_json, training, tests, edition.values, others, edition.dataset)


def _year(source: Path, asked: str, there: list[str]) -> str:
    """The edition to be converted."""
    if asked != "either":
        if there and asked not in there:
            what = f"holds {_EDITIONS[there[0]].title}, and not {_EDITIONS[asked].title}"
            raise UserError(source, what, f"give the folder of {_EDITIONS[asked].title}, or --year {there[0]}")
        return asked
    if len(there) > 1:
        raise UserError(source, "holds cases of BraTS 2023 and of BraTS 2021", "choose one with --year")
    return there[0] if there else "2023"


def _patterns(edition: _Edition) -> dict[str, str]:
    suffixes = (*edition.channels, edition.segmentation)
    folders = {"validation": r"(?:.*[Vv]alidation.*/)", "training": r"(?:.*/)?"}
    return {
        part + suffix: rf"{folder}(?P<case>{edition.case}){suffix}\.nii\.gz"
        for part, folder in folders.items()
        for suffix in suffixes
    }


RELEASE = Release(
    name="brats",
    title="BraTS 2023 GLI or BraTS 2021",
    dataset_id=_2023.dataset[0],
    dataset_name=_2023.dataset[1],
    folder="the folder that holds the training cases (folders BraTS-GLI-00000-000 or BraTS2021_00000 and so on), or "
    "the one that holds the folders of training and of validation",
    layout="names of files: SegMamba's 1_rename_mri_data.py (2023) and nnU-Net's Dataset137_BraTS21.py (2021); "
    "names of the folders of training and validation: from memory",
    verified=False,
    find=_find,
    options=(Option("year", ("either", *_EDITIONS), "the edition that is wanted; either: the one that is there"),),
)
