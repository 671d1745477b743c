"""LiTS: liver and liver tumours in CT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import content_of, pair, sort_files

_PATTERNS = {
    "image": r"(?:.*/)?volume-(?P<case>\d+)\.nii(?:\.gz)?",
    "label": r"(?:.*/)?segmentation-(?P<case>\d+)\.nii(?:\.gz)?",
    "test": r"(?:.*/)?test-volume-(?P<case>\d+)\.nii(?:\.gz)?",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    files, others = sort_files(source, _PATTERNS)
    training = pair(source, {"image": files["image"]}, files["label"], prefix="lits_")
    tests = pair(source, {"image": files["test"]}, {}, prefix="lits_test_", needs_labels=False)
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "liver": 1, "tumour": 2},
        "name": "LiTS",
        "reference": "https://competitions.codalab.org/competitions/17094",
        "licence": "CC BY-NC-ND 4.0 (from memory)",
    }
    return content_of(dataset_json, training, tests, {0: 0, 1: 1, 2: 2}, others)


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
