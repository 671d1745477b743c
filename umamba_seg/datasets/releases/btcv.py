"""BTCV (Beyond the Cranial Vault, abdomen), which the 2-D papers call Synapse."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.organs import BTCV, SYNAPSE8, labels_entry, translation
from umamba_seg.datasets.releases.release import Content, Option, Release
from umamba_seg.datasets.releases.volumes import find_single_images

_PATTERNS = {
    "image": r"(?:.*/)?Training/img/img(?P<case>\d{4})\.nii\.gz",
    "label": r"(?:.*/)?Training/label/label(?P<case>\d{4})\.nii\.gz",
    "test": r"(?:.*/)?Testing/img/img(?P<case>\d{4})\.nii\.gz",
}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    organs = BTCV if options["labels"] == "btcv" else SYNAPSE8
    dataset_json = {
        "channel_names": {"0": "CT"},
        "labels": labels_entry(organs),
        "name": "BTCV, abdomen",
        "reference": "https://www.synapse.org/Synapse:syn3193805",
    }
    dataset = (91, "Synapse8") if organs is SYNAPSE8 else None
    return find_single_images(
        source,
        _PATTERNS,
        dataset_json,
        translation(BTCV, organs),
        prefix="abdomen_",
        test_prefix="abdomen_",
        dataset=dataset,
    )


RELEASE = Release(
    name="btcv",
    title="BTCV (Synapse multi-organ)",
    dataset_id=90,
    dataset_name="BTCV",
    folder="RawData, which holds Training/img, Training/label and Testing/img",
    layout="openmedlab/Awesome-Medical-Dataset @81da0ee, resources/BTCV.md; names of the folders: from memory",
    verified=False,
    find=_find,
    options=(
        Option(
            "labels",
            ("btcv", "synapse8"),
            "btcv: the 13 organs; synapse8: the 8 of the 2-D papers in their order, the others become background",
        ),
    ),
)
