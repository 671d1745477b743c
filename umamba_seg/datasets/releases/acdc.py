"""ACDC: cardiac cine MR, two frames a patient."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import content_of, pair, sort_files

_FRAME = r"(?:.*/)?{part}/patient\d{{3}}/(?P<case>patient\d{{3}}_frame\d{{2}}){end}\.nii\.gz"


def _find(source: Path, options: Mapping[str, str]) -> Content:
    parts = ("training", "testing")
    patterns = {part + end: _FRAME.format(part=part, end=end) for part in parts for end in ("", "_gt")}
    files, others = sort_files(source, patterns)
    training, tests = (
        pair(source, {"image": files[part]}, files[f"{part}_gt"], needs_labels=part == "training") for part in parts
    )
    dataset_json = {
        "channel_names": {"0": "cine MR"},
        "labels": {"background": 0, "right ventricle": 1, "myocardium": 2, "left ventricle": 3},
        "group_pattern": r"^(patient\d+)",
        "name": "ACDC",
        "reference": "https://humanheart-project.creatis.insa-lyon.fr",
        "licence": "CC BY-NC-SA 4.0 (from a secondary source)",
    }
    return content_of(dataset_json, training, tests, {value: value for value in range(4)}, others)


RELEASE = Release(
    name="acdc",
    title="ACDC",
    dataset_id=27,
    dataset_name="ACDC",
    folder="the folder that holds training and testing, with folders patient001 and so on",
    layout="nnU-Net's Dataset027_ACDC.py; that the test patients have their _gt files: from memory",
    verified=False,
    find=_find,
)
