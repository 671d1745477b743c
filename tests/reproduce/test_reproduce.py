"""The verb: a table whose data is missing, one that is run from raw images, and what is changed in between."""

import csv
import json
import os
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.reproduce.table import papers, read_table

TABLE = """
name = "tiny"
title = "A tiny table"
paper = "Nobody: Nothing, 2026"
columns = [
    {{ name = "dice", title = "Dice", dataset = "liver", metric = "dice", scale = 100 }},
    {{ name = "nsd", title = "NSD", dataset = "liver", metric = "nsd@1mm" }},
]

[sources]
us = "made up for a test"

[training]
budget = "cpu"
recipe = "{recipe}"

[datasets.liver]
dataset = "Dataset901_Tiny"
section = "hippocampus"
convert = ["msd"]
scored = "test"
metrics = "dice,nsd@1mm"
split = "nnU-Net's"
costs = {{ patch_size = [32, 32, 16], batch_size = 2, input_channels = 1, num_classes = 4, source = "made up" }}

[[rows]]
method = "U-Mamba_Bot"
network = "umamba_bot"
published.dice = {{ value = 91.5, sd = 10.0, status = "secondary", source = "us" }}
"""


@pytest.fixture(scope="module")
def table(tmp_path_factory, quick_recipe) -> Path:
    folder = tmp_path_factory.mktemp("table")
    (folder / "tiny.toml").write_text(TABLE.format(recipe=quick_recipe))
    return folder / "tiny.toml"


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory, table, umamba_seg) -> SimpleNamespace:
    """The table was run, with the twin without the scan: ``root``, ``output``, ``command`` and what it printed."""
    root = tmp_path_factory.mktemp("root")
    sizes = {"train_cases": 5, "test_cases": 2, "shape": (36, 32, 14), "spacing": (2.5, 2.5, 6.0), "seed": 1}
    make_dataset(root / "nnUNet_raw", 901, "Tiny", **sizes)
    output = root / "output"
    networks = ("--with-noscan", "--only", "umamba_bot", "umamba_bot_noscan")
    command = ("reproduce", table, "--root", root, "-device", "cpu", "-o", output, *networks)
    return SimpleNamespace(root=root, output=output, command=command, done=umamba_seg(*command).succeeded())


def without_times(text: str) -> str:
    """Seconds are measured anew each time."""
    return re.sub(r"(?<=\| )×?[\d.]+ \|$", "", text, flags=re.MULTILINE)


def test_without_the_data_numbers_costs_and_the_way_are_printed(table, umamba_seg, tmp_path):
    done = umamba_seg("reproduce", table, "--root", tmp_path, "-device", "cpu", "-o", tmp_path / "out")
    assert done.code == 0
    assert "91.5 ± 10.0 (s1)" in done.out
    assert "not run" in done.out
    assert "made up for a test" in done.out
    assert "patch 32×32×16" in done.out
    assert "Dataset901_Tiny is not there" in done.err
    assert "--source liver=FOLDER" in done.err


def test_a_dry_run_prints_commands_and_runs_none(table, umamba_seg, tmp_path):
    source = tmp_path / "release"
    source.mkdir()
    command = ("reproduce", table, "--root", tmp_path, "-device", "cpu", "--dry-run", "--source", f"liver={source}")
    done = umamba_seg(*command, "--json").succeeded()
    assert [words.split()[1] for words in done.result["commands"]] == [
        "convert", "plan_and_preprocess", "train", "predict",
    ]  # fmt: skip
    [run] = done.result["runs"]
    assert run["iterations"] == 2
    assert run["seconds"] > 0
    assert run["training_bytes"] > 0
    assert [path.name for path in tmp_path.iterdir()] == ["release"]


def test_a_dry_run_says_what_cannot_be_run(table, umamba_seg, tmp_path):
    (tmp_path / "nnUNet_raw" / "Dataset901_Tiny" / "imagesTs").mkdir(parents=True)
    (tmp_path / "nnUNet_raw" / "Dataset901_Tiny" / "dataset.json").write_text('{"file_ending": ".nii.gz"}')
    (tmp_path / "nnUNet_raw" / "Dataset901_Tiny" / "imagesTs" / "a_0000.nii.gz").touch()
    done = umamba_seg("reproduce", table, "--root", tmp_path, "-device", "cpu", "--dry-run").succeeded()
    assert "cannot be run:\numamba_bot, seed 0: " in done.out
    assert "imagesTs and labelsTs are not of the same cases: a" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--source", "kidney=."], "names no data set of the table tiny; give NAME=FOLDER with a NAME of liver"),
        (["--source", "liver=nowhere"], "--source liver=nowhere: no such folder"),
        (["--only", "segmamba"], "the table tiny does not run segmamba"),
        (["--workers", "2"], "--workers 2: are of a cluster"),
        (["--cluster", "cloud"], "--cluster cloud: no such kind of cluster"),
    ],
)
def test_what_makes_no_sense_is_refused(table, umamba_seg, tmp_path, options, message):
    done = umamba_seg("reproduce", table, "--root", tmp_path, *options)
    assert done.code == 2
    assert message in done.err


def test_a_table_that_does_not_exist(umamba_seg):
    done = umamba_seg("reproduce", "umamba_table9", "--root", ".")
    assert done.code == 2
    assert f"choose one of {', '.join(papers())}" in done.err


@pytest.mark.slow
def test_a_table_is_run_from_raw_images(reproduced):
    assert {path.name for path in reproduced.output.iterdir()} == {"table.md", "table.csv", "table.html", "table.png"}
    rows = list(csv.DictReader((reproduced.output / "table.csv").read_text().splitlines()))
    ours = {(row["network"], row["column"]): float(row["ours"]) for row in rows if row["ours"]}
    assert set(ours) == {(name, column) for name in ("umamba_bot", "umamba_bot_noscan") for column in ("Dice", "NSD")}
    metrics = next(reproduced.root.glob("nnUNet_results/*/*umamba_bot_cpu*/reproduced_test_folds_0/metrics.json"))
    overall = json.loads(metrics.read_text())["overall"]
    assert ours["umamba_bot", "Dice"] == pytest.approx(100 * overall["dice"]["mean"], rel=1e-5)  # six figures
    assert "U-Mamba_Bot without the scan" in reproduced.done.out
    plans = [json.loads(path.read_text()) for path in reproduced.root.glob("nnUNet_preprocessed/*/tiny_*.json")]
    assert len({json.dumps(found["configurations"]["3d_fullres"]["topology"]) for found in plans}) == 1


@pytest.mark.slow
def test_what_is_done_is_not_done_again(reproduced, umamba_seg):
    again = umamba_seg(*reproduced.command).succeeded()
    assert without_times(again.out) == without_times(reproduced.done.out)
    assert "umamba-seg train" not in again.err
    dry = umamba_seg(*reproduced.command, "--dry-run", "--json").succeeded()
    assert {run["lacks"] for run in dry.result["runs"]} == {"nothing"}


@pytest.mark.slow
def test_another_protocol_is_measured_anew_and_shows(reproduced, umamba_seg, table):
    before = table.read_text()
    changed = before.replace('metrics = "dice,nsd@1mm"', 'protocol = "segmamba_brats"').replace("nsd@1mm", "hd95")
    table.write_text(changed)
    try:
        done = umamba_seg(*reproduced.command).succeeded()
    finally:
        table.write_text(before)
    assert "segmamba_brats" in done.out
    assert "segmamba_brats" not in reproduced.done.out
    assert "umamba-seg train" not in done.err
    again = umamba_seg(*reproduced.command).succeeded()
    assert without_times(again.out) == without_times(reproduced.done.out)


@pytest.mark.slow
def test_images_that_were_changed_are_preprocessed_anew(reproduced, umamba_seg):
    def lacks() -> set[str]:
        dry = umamba_seg(*reproduced.command, "--dry-run", "--json").succeeded()
        return {command.split()[1] for command in dry.result["commands"]}

    image = next(reproduced.root.glob("nnUNet_raw/*/imagesTr/*.nii.gz"))
    [checkpoint] = reproduced.root.glob("nnUNet_results/*/*noscan*/fold_0/checkpoint_final.pth")
    before, away = image.stat(), checkpoint.with_suffix(".away")
    try:
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
        assert lacks() == set()  # all is trained
        checkpoint.rename(away)
        assert lacks() == {"plan_and_preprocess", "train", "predict"}
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert lacks() == {"train", "predict"}
    finally:
        os.utime(image, ns=(before.st_atime_ns, before.st_mtime_ns))
        if away.is_file():
            away.rename(checkpoint)


@pytest.mark.slow
def test_workers_of_dask_do_what_is_missing(reproduced, umamba_seg):
    pytest.importorskip("distributed")
    [twin] = reproduced.root.glob("nnUNet_results/*/*noscan*/reproduced_test_folds_0")
    shutil.rmtree(twin)
    done = umamba_seg(*reproduced.command, "--cluster", "local", "--workers", 1)
    assert done.code == 0, done.err
    assert "done: umamba_bot_noscan on liver, seed 0, test cases" in done.err
    assert without_times(done.out) == without_times(reproduced.done.out)


@pytest.mark.parametrize("name", papers())
def test_packaged_tables_resolve(name, tmp_path):
    from umamba_seg.paths import resolve
    from umamba_seg.reproduce.runs import changed, jobs_of

    table, _ = changed(read_table(name), with_noscan=True)
    jobs = jobs_of(table, resolve(tmp_path))
    assert bool(jobs) == any(column.metric for column in table.columns)
    assert len({job.model for job in jobs}) == len(jobs)
