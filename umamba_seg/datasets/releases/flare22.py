"""FLARE22: the 50 labelled abdominal CT, and the 50 validation cases where they are there."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.organs import UMAMBA, labels_entry, translation
from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import content_of, pair, sort_files

_CASES = {"training": r"FLARE22_Tr_\d{4}", "validation": r"FLARE(?:22_?)?Ts_\d{4}"}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    patterns = {
        part + end: rf"(?:.*/)?(?P<case>{case}){end}\.nii\.gz" for part, case in _CASES.items() for end in ("_0000", "")
    }
    files, others = sort_files(source, patterns)
    training, tests = (
        pair(source, {"image": files[f"{part}_0000"]}, files[part], needs_labels=part == "training") for part in _CASES
    )
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": labels_entry(UMAMBA),
        "name": "FLARE22",
        "reference": "https://flare22.grand-challenge.org",
    }
    return content_of(dataset_json, training, tests, translation(UMAMBA, UMAMBA), others)


RELEASE = Release(
    name="flare22",
    title="FLARE22",
    dataset_id=701,
    dataset_name="AbdomenCT",
    folder="the folder that holds the labelled cases (images/FLARE22_Tr_0001_0000.nii.gz, "
    "labels/FLARE22_Tr_0001.nii.gz) and, if you have them, those of validation (FLARETs_0001_0000.nii.gz, "
    "FLARETs_0001.nii.gz)",
    layout="names of the training files: U-Mamba's data/README.md; those of the validation files: from memory",
    verified=False,
    find=_find,
)
