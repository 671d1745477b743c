"""BraTS 2023 (adult glioma) and BraTS 2021, told apart by the names of their files."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import content_of, pair, sort_files
from umamba_seg.errors import UserError


@dataclass(frozen=True)
class _Edition:
    """A year's names and values.

    Attributes:
        case: Regular expression of a case.
        channels, segmentation: What follows it in the names of files; channels are T1, T1 with contrast, T2, FLAIR.
        values: Value in the segmentation -> label: 1 necrosis, 2 edema, 3 enhancing tumor.
        dataset: Number and name of the new data set.
        entries: Of dataset.json.
    """

    case: str
    channels: tuple[str, ...]
    segmentation: str
    values: Mapping[int, int]
    dataset: tuple[int, str]
    entries: Mapping[str, Any]


_2023 = _Edition(
    case=r"BraTS-GLI-\d{5}-\d{3}",
    channels=("-t1n", "-t1c", "-t2w", "-t2f"),
    segmentation="-seg",
    values={0: 0, 1: 1, 2: 2, 3: 3},
    dataset=(137, "BraTS2023"),
    entries={
        "name": "BraTS 2023 GLI",
        "reference": "https://www.synapse.org/Synapse:syn51514105",
        "group_pattern": r"^BraTS-GLI-(\d{5})",  # what follows is the visit
    },
)
_2021 = _Edition(
    case=r"BraTS2021_\d{5}",
    channels=("_t1", "_t1ce", "_t2", "_flair"),
    segmentation="_seg",
    values={0: 0, 1: 1, 2: 2, 4: 3},
    dataset=(138, "BraTS2021"),
    entries={"name": "BraTS 2021", "reference": "https://www.synapse.org/Synapse:syn25829067/wiki/610863"},
)


def _find(source: Path, options: Mapping[str, str]) -> Content:
    sorted_2023, sorted_2021 = (sort_files(source, _patterns(edition)) for edition in (_2023, _2021))
    is_2021 = any(sorted_2021[0].values())
    if is_2021 and any(sorted_2023[0].values()):
        raise UserError(source, "holds cases of BraTS 2023 and of BraTS 2021", "give the folder of one of them")
    edition, (files, others) = (_2021, sorted_2021) if is_2021 else (_2023, sorted_2023)
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
        "channel_names": {"0": "T1", "1": "T1 contrast", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "whole tumor": [1, 2, 3], "tumor core": [1, 3], "enhancing tumor": [3]},
        "regions_class_order": [2, 1, 3],  # what of the whole is no core is edema, what of the core is not enhancing 1
        **edition.entries,
    }
    return content_of(dataset_json, training, tests, edition.values, others, edition.dataset)


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
)
