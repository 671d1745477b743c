"""LiTS: liver and liver tumours in CT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import find_single_images

_PATTERNS = {
    "image": r"(?:.*/)?volume-(?P<case>\d+)\.nii(?:\.gz)?",
    "label": r"(?:.*/)?segmentation-(?P<case>\d+)\.nii(?:\.gz)?",
    "test": r"(?:.*/)?test-volume-(?P<case>\d+)\.nii(?:\.gz)?",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "name": "LiTS",
        "reference": "https://competitions.codalab.org/competitions/17094",
        "licence": "CC BY-NC-ND 4.0 (from memory)",
    }
    return find_single_images(
        source, _PATTERNS, dataset_json, {0: 0, 1: 1, 2: 2}, prefix="lits_", test_prefix="lits_test_"
    )


RELEASE = Release(
    name="lits",
    title="LiTS",
    dataset_id=33,
    dataset_name="LiTS",
    folder="the folder that holds volume-0.nii, segmentation-0.nii and so on, in one folder or in batches",
    layout="openmedlab/Awesome-Medical-Dataset @81da0ee, resources/LiTS.md; names of the files: from memory",
    verified=False,
    find=_find,
)
