"""PROMISE12: the prostate in MR."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import find_single_images

_NOT_TEST = r"(?:(?!.*[Tt]est).*/)?"
_PATTERNS = {  # training and test cases have the same names; those of the live challenge are left out
    "test": r"(?:.*/)?(?!live)[^/]*[Tt]est[^/]*/(?P<case>Case\d{2})\.mhd",
    "image": rf"{_NOT_TEST}(?P<case>Case\d{{2}})\.mhd",
    "label": rf"{_NOT_TEST}(?P<case>Case\d{{2}})_segmentation\.mhd",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    dataset_json = {
        "channel_names": {"0": "T2"},
        "labels": {"background": 0, "prostate": 1},
        "name": "PROMISE12",
        "reference": "https://promise12.grand-challenge.org",
        "release": "https://zenodo.org/records/8026660",
    }
    return find_single_images(source, _PATTERNS, dataset_json, {0: 0, 1: 1}, test_prefix="Test")


RELEASE = Release(
    name="promise12",
    title="PROMISE12",
    dataset_id=24,
    dataset_name="PROMISE12",
    folder="the folder that holds Case00.mhd, Case00_segmentation.mhd, their .raw files and so on, or one above (its "
    "test cases lie in a folder whose name says so)",
    layout="openmedlab/Awesome-Medical-Dataset @81da0ee, resources/PROMISE12.md; names of files and folders: "
    "from memory",
    verified=False,
    find=_find,
)
