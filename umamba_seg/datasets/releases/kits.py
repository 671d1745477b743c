"""KiTS23: kidneys, tumours and cysts in CT."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import find_single_images

_PATTERNS = {
    "image": r"(?:.*/)?(?P<case>case_\d{5})/imaging\.nii\.gz",
    "label": r"(?:.*/)?(?P<case>case_\d{5})/segmentation\.nii\.gz",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "kidney": [1, 2, 3], "masses": [2, 3], "tumor": 2},
        "regions_class_order": [1, 3, 2],  # what of the masses is no tumor is a cyst
        "overwrite_image_reader_writer": "NibabelIOWithReorient",  # as nnU-Net's script has it
        "name": "KiTS23",
        "reference": "https://kits-challenge.org/kits23",
    }
    return find_single_images(source, _PATTERNS, dataset_json, {value: value for value in range(4)})


RELEASE = Release(
    name="kits",
    title="KiTS23",
    dataset_id=220,
    dataset_name="KiTS2023",
    folder="dataset, which holds case_00000/imaging.nii.gz, case_00000/segmentation.nii.gz and so on",
    layout="nnU-Net's Dataset220_KiTS2023.py",
    verified=False,
    find=_find,
)
