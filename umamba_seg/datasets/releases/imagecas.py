"""ImageCAS: coronary arteries in CT angiography."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.release import Content, Release
from umamba_seg.datasets.releases.volumes import find_single_images

_PATTERNS = {
    "image": r"(?:.*/)?(?P<case>\d+)\.img\.nii\.gz",
    "label": r"(?:.*/)?(?P<case>\d+)\.label\.nii\.gz",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": {"background": 0, "coronary artery": 1},
        "name": "ImageCAS",
        "reference": "https://www.kaggle.com/datasets/xiaoweixumedicalai/imagecas",
    }
    return find_single_images(source, _PATTERNS, dataset_json, {0: 0, 1: 1}, prefix="imagecas_")


RELEASE = Release(
    name="imagecas",
    title="ImageCAS",
    dataset_id=125,
    dataset_name="ImageCAS",
    folder="the folder that holds 1.img.nii.gz, 1.label.nii.gz and so on, in one folder or in several",
    layout="from memory; openmedlab/Awesome-Medical-Dataset @81da0ee, resources/ImageCAS.md describes the data set",
    verified=False,
    find=_find,
)
