"""AMOS22: abdominal CT and MR, 15 organs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from umamba_seg.datasets.releases.organs import AMOS, UMAMBA, labels_entry, translation
from umamba_seg.datasets.releases.release import Content, Option, Release
from umamba_seg.datasets.releases.volumes import content_of, pair, sort_files

_LAST_CT = 500
_CASES = r"(?:.*/)?{folder}/(?P<case>amos_\d{{4}})\.nii\.gz"
_FOLDERS = ("imagesTr", "labelsTr", "imagesVa", "labelsVa", "imagesTs", "labelsTs")
_CHANNELS = {"both": "CT or MR", "ct": "CT", "mr": "MR"}
_DATASETS = {"both": (219, "AMOS"), "ct": (218, "AMOSCT"), "mr": (217, "AMOSMR")}


def _find(source: Path, options: Mapping[str, str]) -> Content:
    modality, organs = options["modality"], AMOS if options["labels"] == "amos" else UMAMBA
    files, others = sort_files(source, {folder: _CASES.format(folder=folder) for folder in _FOLDERS})
    files = {folder: _of_modality(cases, modality) for folder, cases in files.items()}
    training, validation, tests = (
        pair(source, {"image": files[f"images{part}"]}, files[f"labels{part}"], needs_labels=part != "Ts")
        for part in ("Tr", "Va", "Ts")
    )
    if options["validation"] == "train":
        training = [*training, *validation]
    else:
        tests = validation  # its labels are public, those of imagesTs are not
    dataset_json = {
        "channel_names": {"0": _CHANNELS[modality]},
        "labels": labels_entry(organs),
        "name": "AMOS22",
        "reference": "https://amos22.grand-challenge.org",
        "licence": "CC BY 4.0 (from a secondary source)",
        "release": "https://zenodo.org/records/7262581",
    }
    is_702 = modality == "mr" and organs is UMAMBA
    if not is_702:
        dataset_json["overwrite_image_reader_writer"] = "NibabelIOWithReorient"  # as nnU-Net's scripts have it
    dataset = (702, "AbdomenMR") if is_702 else _DATASETS[modality]
    return content_of(dataset_json, training, tests, translation(AMOS, organs), others, dataset)


def _of_modality(cases: dict[str, Path], modality: str) -> dict[str, Path]:
    wanted = {"both": (True, False), "ct": (False,), "mr": (True,)}[modality]
    return {case: path for case, path in cases.items() if (int(case[-4:]) > _LAST_CT) in wanted}


RELEASE = Release(
    name="amos",
    title="AMOS22",
    dataset_id=_DATASETS["both"][0],
    dataset_name=_DATASETS["both"][1],
    folder="amos22, which holds imagesTr, labelsTr, imagesVa, labelsVa and imagesTs",
    layout="nnU-Net's Dataset218_Amos2022_task1.py and Dataset219_Amos2022_task2.py",
    verified=False,
    find=_find,
    options=(
        Option("modality", ("both", "ct", "mr"), "which cases are taken: those above amos_0500 are MR"),
        Option(
            "labels",
            ("amos", "umamba"),
            "amos: the 15 organs; umamba: the 13 of U-Mamba's data set 702, bladder and prostate become background",
        ),
        Option(
            "validation",
            ("train", "test"),
            "train: the validation cases are training cases too, as nnU-Net's script has it; test: they take the place "
            "of the test cases, whose labels are not public",
        ),
    ),
)
