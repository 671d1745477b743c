"""AIIB23: airways in CT of fibrotic lungs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import find_single_images

_PATTERNS = {
    "test": r"(?:.*[Vv]alid.*/)img/(?P<case>[^/]+)\.nii\.gz",
    "image": r"(?:.*/)?img/(?P<case>[^/]+)\.nii\.gz",
    "label": r"(?:.*/)?gt/(?P<case>[^/]+)\.nii\.gz",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "airway": 1},
        "name": "AIIB23",
        "reference": "https://codalab.lisn.upsaclay.fr/competitions/13238",
    }
    return find_single_images(source, _PATTERNS, dataset_json, {0: 0, 1: 1})


RELEASE = Release(
    name="aiib",
    title="AIIB23",
    dataset_id=123,
    dataset_name="AIIB23",
    folder="the folder that holds img and gt, with files of the same names, or one above (its validation images lie in "
    "a folder whose name says so)",
    layout="from memory; openmedlab/Awesome-Medical-Dataset @81da0ee, resources/AIIB23.md describes the data set",
    verified=False,
    find=_find,
)
