"""The packaged tables: their numbers are the collected ones, and all that they name exists."""

import json
import os
import re
from pathlib import Path
from typing import NamedTuple

import pytest
import SimpleITK as sitk

from umamba_seg.cli import build_parser
from umamba_seg.config import configs_folder
from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.releases import RELEASES
from umamba_seg.datasets.splits import make_splits
from umamba_seg.datasets.writing import dataset_name
from umamba_seg.errors import UserError
from umamba_seg.evaluate import instances
from umamba_seg.evaluate.case import metric_words
from umamba_seg.evaluate.protocols import choose_protocol, targets_of
from umamba_seg.networks import find
from umamba_seg.plan.recipes import read_recipe
from umamba_seg.reproduce.outcome import metric_of
from umamba_seg.reproduce.runs import dims_of
from umamba_seg.reproduce.splits import split_hash
from umamba_seg.reproduce.table import PaperDataset, PaperTable, papers, read_table

ROOT = Path(__file__).resolve().parents[2]
TABLES = {name: read_table(name) for name in papers()}
DATASETS = {f"{name}, {key}": found for name, table in TABLES.items() for key, found in table.datasets.items()}
WIDE = {
    "umamba_table3": "umamba_table3_3d",
    "umamba_table4": "umamba_table4_2d",
    "segmamba_efficiency": "segmamba_efficiency",
    "nnmamba_brats": "nnmamba_brats",
    "nnmamba_amos": "nnmamba_amos",
    "nnunet_revisited": "nnunet_revisited",
}
"""Packaged table -> the collected one with the same rows and columns."""

OURS = ("ours_hippocampus", "ours_sunnybrook")


class Number(NamedTuple):
    """A published number, with its source in words."""

    value: float | str | None
    sd: float | None
    status: str
    source: str | None


UNKNOWN = Number(None, None, "unknown", None)


@pytest.fixture(scope="module")
def collected() -> dict[str, dict]:
    """The numbers as they were collected, not part of the project."""
    data = Path(os.environ.get("UMAMBA_TEST_DATA") or ROOT.parent / "shared" / "data")
    file = data.parent / "tables.json"
    if not file.is_file():
        pytest.skip(f"there is no {file}")
    return json.loads(file.read_text(encoding="utf-8"))["tables"]


def _numbers(table: PaperTable) -> dict[tuple[str, str], Number]:
    return {
        (row.method, column): Number(one.value, one.sd, one.status, one.source and table.sources[one.source])
        for row in table.rows
        for column, one in row.published.items()
    }


def _number(written: object, status: str, source: str) -> Number:
    """Such as 0.86, "0.86+-0.08", "about 82.1", "OOM", "unknown" or None."""
    if written in (None, "unknown"):
        return UNKNOWN
    value, _, sd = str(written).removeprefix("about ").partition("+-")
    return Number(float(value) if re.match(r"\d", value) else value, float(sd) if sd else None, status, source)


# ----------------------------------------------------------------------------------------------- the published numbers


def test_which_tables_there_are():
    assert set(papers()) == {*WIDE, "segmamba_main", "lightmunet", *OURS}


@pytest.mark.parametrize("name", WIDE)
def test_numbers_of_a_wide_table(collected, name):
    entry = collected[WIDE[name]]
    first, *columns = entry["columns"]
    expected = {
        (row[first], column): _number(
            row[column],
            row.get("value_status", {}).get(column, row["status"]),
            row["source"].replace("read by eye; copy", "read by eye)"),  # cut off there
        )
        for row in entry["rows"]
        for column in columns
    }
    assert _numbers(TABLES[name]) == expected
    assert [row.method for row in TABLES[name].rows] == [row[first] for row in entry["rows"]]


def test_numbers_of_segmamba(collected):
    columns = {
        ("BraTS2023", "WT Dice"): "BraTS2023_WT_Dice",
        ("BraTS2023", "avg Dice (WT,TC,ET)"): "BraTS2023_avg_Dice",
        ("BraTS2023", "avg HD95"): "BraTS2023_avg_HD95",
        ("AIIB2023", "IoU"): "AIIB2023_IoU",
        ("CRC-500", "Dice"): "CRC500_Dice",
        ("CRC-500", "HD95"): "CRC500_HD95",
    }
    rows = collected["segmamba_main"]["rows"]
    known = {
        (row["method"], columns[row["dataset"], row["metric"]]): _number(row["value"], row["status"], row["source"])
        for row in rows
        if row["dataset"] is not None
    }
    found = _numbers(TABLES["segmamba_main"])
    assert {place: number for place, number in found.items() if number != UNKNOWN} == known
    assert {("SegMamba", "BraTS2023_TC_Dice"), ("SegMamba", "BraTS2023_ET_Dice")} <= set(found)
    assert {method for method, _ in found} == {row["method"] for row in rows}


def test_numbers_of_lightmunet(collected):
    prefixes = {"LiTS (3D)": ["LiTS"], "Montgomery+Shenzhen (2D)": ["CXR"], "LiTS / X-ray": ["LiTS", "CXR"]}
    expected = {}
    for row in collected["lightmunet"]["rows"]:
        data_sets = prefixes[row["dataset"]]
        for column in ("DSC", "mIoU", "params_M", "FLOPs_G"):
            values = str(row[column]).split(" / ")  # of both data sets, where the row is of two
            for data_set, value in zip(data_sets, values * (len(data_sets) // len(values)), strict=True):
                expected[row["method"], f"{data_set}_{column}"] = _number(value, row["status"], row["source"])
    assert _numbers(TABLES["lightmunet"]) == expected


@pytest.mark.parametrize("name", OURS)
def test_ours_publish_nothing(name):
    assert _numbers(TABLES[name]) == {}


def test_repetitions_by_others_stand_below_umambas_table(collected):
    (note,) = [note for note in TABLES["umamba_table3"].notes if "Repeated by others" in note]
    rows = collected["umamba_repro_spread"]["rows"]
    assert all(str(row["DSC_percent"]) in note and row["source"] in note and row["status"] in note for row in rows)


# ------------------------------------------------------------------------------------------------ what the tables name


@pytest.mark.parametrize("name", TABLES)
def test_networks_and_recipes_are_there(name):
    table = TABLES[name]
    for row in table.rows:
        recipe = table.training_of(row).recipe
        assert recipe is None or read_recipe(recipe)
        if row.network is not None:
            find(row.network).require_segmentation()
            assert {dims_of(found) for found in table.datasets.values()} & set(find(row.network).dims)
    assert any(row.network for row in table.rows)


@pytest.mark.parametrize("name", TABLES)
def test_the_protocols_measure_the_columns(name):
    for column in TABLES[name].columns:
        if column.metric is None:
            continue
        dataset = TABLES[name].datasets[str(column.dataset)]
        if dataset.protocol in instances.PROTOCOLS:
            assert metric_of(column) in instances.METRICS
        else:
            assert metric_of(column) in choose_protocol(dataset.protocol, metric_words(dataset.metrics)).metrics


@pytest.mark.parametrize("where", DATASETS)
def test_a_data_set_has_a_section_and_dimensions(where):
    dataset = DATASETS[where]
    assert f"\n## {dataset.section}\n" in (ROOT / "datasets.md").read_text(encoding="utf-8")
    assert len(dataset.costs.patch_size) == dims_of(dataset)
    assert dataset.costs.spacing is None or len(dataset.costs.spacing) == dims_of(dataset)


CONVERTED = {where: found for where, found in DATASETS.items() if found.convert}


def test_a_data_set_is_converted_in_one_way_everywhere():
    ways = {(found.dataset, found.section, found.convert) for found in CONVERTED.values()}
    assert len({name for name, *_ in ways}) == len(ways)


_2023, _2021, _AMOS = "BraTS-GLI-00000-000-", "BraTS2021_00000_", "{}Tr/amos_{}.nii.gz"
SMALLEST: dict[str, list[str]] = {
    "Dataset027_ACDC": [f"training/patient001/patient001_frame01{end}.nii.gz" for end in ("", "_gt")],
    "Dataset033_LiTS": ["volume-0.nii", "segmentation-0.nii"],
    "Dataset090_BTCV": ["Training/img/img0001.nii.gz", "Training/label/label0001.nii.gz"],
    "Dataset123_AIIB23": ["img/1.nii.gz", "gt/1.nii.gz"],
    "Dataset137_BraTS2023": [f"{_2023}{part}.nii.gz" for part in ("t1n", "t1c", "t2w", "t2f", "seg")],
    "Dataset138_BraTS2021": [f"{_2021}{part}.nii.gz" for part in ("t1", "t1ce", "t2", "flair", "seg")],
    "Dataset217_AMOSMR": [_AMOS.format(folder, "0507") for folder in ("images", "labels")],
    "Dataset218_AMOSCT": [_AMOS.format(folder, "0001") for folder in ("images", "labels")],
    "Dataset219_AMOS": [_AMOS.format(folder, "0001") for folder in ("images", "labels")],
    "Dataset220_KiTS2023": [f"case_00000/{part}.nii.gz" for part in ("imaging", "segmentation")],
    "Dataset701_AbdomenCT": ["FLARE22_Tr_0001_0000.nii.gz", "FLARE22_Tr_0001.nii.gz"],
    "Dataset702_AbdomenMR": [_AMOS.format(folder, "0507") for folder in ("images", "labels")],
    "Dataset703_NeurIPSCell": ["Training-labeled/images/1.png", "Training-labeled/labels/1_label.tiff"],
    "Dataset704_Endovis17": [
        f"instrument_dataset_1/{folder}/frame000.png"
        for folder in ("left_frames", "ground_truth/Left_Prograsp_Forceps_labels")
    ],
    "Dataset706_ChestXray": ["CXR_png/CHNCXR_0001_0.png", "mask/CHNCXR_0001_0_mask.png"],
}
"""Data set -> the files by which its converter knows it. Of pictures the names alone are looked at."""


def _made_labels(dataset: PaperDataset, folder: Path) -> Labels:
    """Of the data set that the converter makes, whose name must be the table's."""
    args = build_parser().parse_args(["convert", *dataset.convert, "-i", str(folder), "-d", "1", "--name", "Any"])
    release = RELEASES[args.source]
    for name in SMALLEST[str(dataset.dataset)]:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if ".nii" in name:
            sitk.WriteImage(sitk.Image([2, 2, 2], sitk.sitkUInt8), str(path))
        else:
            path.touch()
    content = release.find(folder, {option.name: getattr(args, option.name) for option in release.options})
    made = content.dataset or (release.dataset_id, release.dataset_name)
    assert dataset_name(*made) == dataset.dataset
    return Labels.from_json(content.dataset_json | {"numTraining": 1}, folder)


@pytest.mark.parametrize("where", [where for where, found in CONVERTED.items() if found.convert != ("msd",)])
def test_a_converter_makes_the_data_set_and_its_classes(where, tmp_path):
    dataset, (name, key) = CONVERTED[where], where.split(", ")
    labels = _made_labels(dataset, tmp_path)
    if dataset.protocol in instances.PROTOCOLS:
        return
    measured = targets_of(choose_protocol(dataset.protocol, metric_words(dataset.metrics)), labels)
    wanted = {column.target for column in TABLES[name].columns if column.dataset == key and column.target}
    assert wanted <= set(measured)


def test_the_split_of_hippocampus_is_nnunets(shared_data):
    names = [path.name.removesuffix(".nii.gz") for path in shared_data("hippocampus").glob("labelsTr/[!.]*.nii.gz")]
    assert split_hash(make_splits(names)) == TABLES["ours_hippocampus"].datasets["hippocampus"].split_sha256


# --------------------------------------------------------------------------------------------------- what is no table


@pytest.mark.parametrize(
    ("written", "instead", "message"),
    [
        (
            'value = 31.18, status = "official", source = "readme"',
            'value = 31.18, status = "official"',
            "the published number 31.18 has no source",
        ),
        (
            'value = 31.18, status = "official", source = "readme"',
            'value = 31.18, status = "official", source = "hearsay"',
            "the source hearsay of nnUNet, params_M, is not among the sources",
        ),
        ("\nparams_M = {", "\nweights = {", "nnUNet has numbers for ['weights'], which are no columns"),
        (
            'value = 31.18, status = "official"',
            'value = 31.18, status = "unknown"',
            'a number that was not found has the status "unknown" and no value, and only such a one',
        ),
        (
            'value = 31.18, status = "official"',
            'status = "official"',
            'a number that was not found has the status "unknown" and no value, and only such a one',
        ),
    ],
)
def test_a_number_that_cannot_be_traced_is_refused(tmp_path, written, instead, message):
    text = (configs_folder() / "papers" / "nnmamba_amos.toml").read_text(encoding="utf-8")
    assert written in text
    file = tmp_path / "nnmamba_amos.toml"
    file.write_text(text.replace(written, instead, 1), encoding="utf-8")
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_table(str(file))
    assert str(file) in str(caught.value)
