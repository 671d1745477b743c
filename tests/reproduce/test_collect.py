"""Finished runs as numbers of a table, and what stands below it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest

from umamba_seg.errors import UserError
from umamba_seg.evaluate.protocols import PROTOCOLS
from umamba_seg.evaluate.statistics import bootstrap_mean, bootstrap_seeds, class_means, seed_means
from umamba_seg.files import read_json, write_json
from umamba_seg.preprocess import origin_of
from umamba_seg.reproduce.collect import collect
from umamba_seg.reproduce.runs import jobs_of
from umamba_seg.reproduce.splits import split_hash

RNG = np.random.default_rng(0)
NAN, INF = math.nan, math.inf
DICE, HD95 = RNG.uniform(0.5, 1, (12, 2)), RNG.uniform(1, 9, (12, 2))
BOT = {"U-Mamba_Bot": "umamba_bot"}


@pytest.fixture
def collected(paper, finish, folders):
    """``collected(paper(...), {seed: {"dice": ...}})`` finishes the seeds of the only network."""

    def of(table, seeds, **how):
        jobs = jobs_of(table, folders)
        for job in jobs:
            if job.seed in seeds:
                finish(job, **seeds[job.seed], **how)
        return collect(table, jobs, {}, [])

    return of


def test_one_seed_has_the_numbers_of_the_file(paper, finish, folders):
    columns = [
        {"name": name, "title": name, "dataset": "liver", "metric": "dice", "target": target}
        for name, target in (("all", None), ("left", "left"))
    ]
    table = paper(BOT, columns)
    (job,) = jobs_of(table, folders)
    content = read_json(finish(job, dice=DICE, hd95=HD95))
    outcome = collect(table, [job], {}, [])
    for name, numbers in (("all", content["overall"]["dice"]), ("left", content["statistics"]["left"]["dice"])):
        found = outcome.cells[0, name]
        assert (found.value, found.low, found.high) == (numbers["mean"], numbers["low"], numbers["high"])
        assert math.isnan(found.spread)
        assert (found.seeds, found.cases) == ((0,), 12)
    assert outcome.missing == {}
    assert outcome.epochs == {(0, "liver"): (6,)}


def test_several_seeds_are_averaged_over_the_same_cases(paper, collected):
    other = DICE + RNG.normal(0, 0.02, DICE.shape)
    outcome = collected(paper(BOT, seeds=(0, 1)), {0: {"dice": DICE, "hd95": HD95}, 1: {"dice": other, "hd95": HD95}})
    found = outcome.cells[0, "dice"]
    assert found.value == pytest.approx((DICE.mean() + other.mean()) / 2)
    assert found.spread == pytest.approx(abs(DICE.mean() - other.mean()) / math.sqrt(2))
    assert (found.low, found.high) == pytest.approx(bootstrap_mean((DICE + other).mean(axis=1) / 2)[1:])
    assert found.seeds == (0, 1)


@pytest.mark.parametrize("means", ["classes", "cases"])
def test_one_seed_of_the_mean_over_seeds_is_the_mean(means):
    values = np.where(RNG.uniform(size=(9, 3, 2)) < 0.2, NAN, RNG.uniform(size=(9, 3, 2)))
    measured, protocol = np.ones((3, 2), bool), replace(PROTOCOLS["nnunet"], means=means)
    plain = class_means(values, np.zeros((9, 3, 4)), measured, protocol)
    for found, wanted in zip(seed_means(values[None], measured, protocol), plain, strict=True):
        np.testing.assert_array_equal(found, wanted)
    for found, wanted in zip(seed_means(np.stack([values, values]), measured, protocol), plain, strict=True):
        np.testing.assert_allclose(found, wanted)


def test_other_seeds_widen_an_interval():
    cases = RNG.normal(0, 0.01, 30)
    apart = bootstrap_seeds(np.stack([cases + shift for shift in (-0.1, 0, 0.1)]))
    alike = bootstrap_seeds(np.stack([cases] * 3))
    assert apart.value == pytest.approx(cases.mean())
    assert alike == pytest.approx(bootstrap_mean(cases))
    assert apart.high - apart.low > 10 * (alike.high - alike.low)


def test_one_seed_or_case_has_no_interval_over_seeds():
    assert bootstrap_seeds(np.array([[0.1, 0.3, NAN]])) == pytest.approx((0.2, NAN, NAN), nan_ok=True)
    assert bootstrap_seeds(np.array([[0.1, INF], [0.3, 1]])) == pytest.approx((0.2, NAN, NAN), nan_ok=True)
    assert bootstrap_seeds(np.array([[NAN], [1]])) == pytest.approx((NAN, NAN, NAN), nan_ok=True)


def test_what_was_not_run_is_missing(paper, collected):
    outcome = collected(paper(BOT, seeds=(0, 1)), {})
    assert outcome.cells == {}
    assert outcome.missing == {(0, "liver"): ("not run", "not run yet")}
    assert "liver: there is no splits_final.json; the table fixes no split" in outcome.footer


def test_what_failed_is_no_number_and_says_why(paper, finish, folders):
    table = paper(BOT, seeds=(0, 1))
    jobs = jobs_of(table, folders)
    failed = {jobs[1]: "fold_0: memory ran out"}
    assert collect(table, jobs, {}, [], failed).missing == {(0, "liver"): ("failed", "fold_0: memory ran out")}
    finish(jobs[0], dice=DICE, hd95=HD95)
    outcome = collect(table, jobs, {}, [], failed)
    assert outcome.missing == {}
    assert f"FAILED: {jobs[1]}: fold_0: memory ran out" in outcome.footer
    assert not any("not run yet" in line for line in outcome.footer)


def test_a_seed_that_is_missing_is_named(paper, collected):
    outcome = collected(paper(BOT, seeds=(0, 1, 2)), {1: {"dice": DICE, "hd95": HD95}})
    assert outcome.cells[0, "dice"].seeds == (1,)
    assert outcome.missing == {}
    assert "liver, U-Mamba_Bot: not run yet with seed 0, 2, and without it in the mean" in outcome.footer


def test_numbers_that_are_not_finite_are_counted(paper, collected):
    dice, hd95 = DICE.copy(), HD95.copy()
    dice[0, 0] = NAN
    hd95[0, 0], hd95[1, 1], hd95[2, 1] = NAN, INF, INF
    outcome = collected(paper(BOT), {0: {"dice": dice, "hd95": hd95}})
    assert outcome.cells[0, "hd95"].value == pytest.approx(
        np.mean([hd95[1:, 0].mean(), np.mean([hd95[0, 1], *hd95[3:, 1]])])
    )
    text = "numbers (of all cases, classes and trainings) are in no mean"
    assert f"liver, Dice: 1 undefined of 24 {text}" in outcome.footer
    assert f"liver, HD95 (mm): 1 undefined and 2 infinite of 24 {text}" in outcome.footer


def test_a_class_without_any_number_stays_undefined(paper, collected):
    dice = DICE.copy()
    dice[:, 1] = NAN
    outcome = collected(paper(BOT), {0: {"dice": dice, "hd95": HD95}})
    assert math.isnan(outcome.cells[0, "dice"].value)


def test_cells_have_an_f1(paper, folders):
    column = {"name": "f1", "title": "F1", "dataset": "liver", "metric": "f1"}
    table = paper(BOT, [column], dataset={"protocol": "umamba_cells", "metrics": None, "configuration": "2d"})
    (job,) = jobs_of(table, folders)
    f1 = [0.5, 0.75, None]
    numbers = {"mean": 0.625, "low": 0.5, "high": 0.75, "cases": 2, "undefined": 1}
    content = {
        "format": 1,
        "protocol": {"name": "umamba_cells", "source": "U-Mamba", "notes": ["Cells of interior."]},
        "settings": {"references": "labels", "endings": [".tif"], "missing": []},
        "classes": ["cells"],
        "metrics": {"instance_f1": {"better": "higher", "unit": ""}},
        "statistics": {"cells": {"instance_f1": numbers}},
        "overall": {"instance_f1": numbers},
        "cases": [
            {"case": str(number), "classes": {"cells": {"state": "present", "n_ref": 9, "instance_f1": value}}}
            for number, value in enumerate(f1)
        ],
    }
    job.segmentations.mkdir(parents=True)
    write_json(job.segmentations / "metrics.json", content)
    outcome = collect(table, [job], {}, [])
    found = outcome.cells[0, "f1"]
    assert (found.value, found.low, found.high, found.cases) == (0.625, 0.5, 0.75, 3)
    assert "liver: protocol umamba_cells: Cells of interior." in outcome.footer
    assert any("F1: 1 undefined of 3 numbers" in line for line in outcome.footer)
    assert any("1 fold without run.json" in line for line in outcome.footer)


def test_another_protocol_is_refused(paper, finish, folders):
    table = paper(BOT)
    (job,) = jobs_of(table, folders)
    path = finish(job, dice=DICE, hd95=HD95)
    path.write_text(path.read_text().replace('"name": "nnunet"', '"name": "segmamba_brats"'))
    with pytest.raises(
        UserError, match="was measured by the protocol segmamba_brats, but the table asks for nnunet"
    ) as e:
        collect(table, [job], {}, [])
    assert e.value.where == str(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"metric": "assd"}, "holds no assd, only dice, hd95"),
        ({"target": "spleen"}, "holds no dice of spleen, only of left, right"),
    ],
)
def test_a_column_that_was_not_measured_is_refused(paper, collected, change, message):
    column = {"name": "x", "title": "x", "dataset": "liver", "metric": "dice"}
    with pytest.raises(UserError, match=message):
        collected(paper(BOT, [column | change]), {0: {"dice": DICE, "hd95": HD95}})


def test_seeds_of_other_cases_are_refused(paper, finish, folders):
    jobs = jobs_of(paper(BOT, seeds=(0, 1)), folders)
    finish(jobs[0], dice=DICE, hd95=HD95)
    finish(jobs[1], dice=DICE, hd95=HD95, case="other")
    with pytest.raises(UserError, match="the cases are not the same"):
        collect(paper(BOT, seeds=(0, 1)), jobs, {}, [])


# -------------------------------------------------------------------------------------------------------------- footer

SPLITS = [{"train": ["t_1", "t_2", "t_3"], "val": [f"case_{number:02d}" for number in range(12)]}]
NUMBERS = {0: {"dice": DICE, "hd95": HD95}}


def test_the_footer_says_what_was_done(paper, collected):
    table = paper(BOT, dataset={"notes": ["Slices of a patient."]}, table={"notes": ["A note."]})
    lines = collected(table, NUMBERS).footer
    assert lines[:5] == [
        "liver: Dataset901_Tiny, 3d_fullres, fold 0 (3 training cases); scored: the 12 cases that it holds out",
        f"liver: SHA-256 of the folds {split_hash(SPLITS)[:12]}; the table fixes none",
        "liver: split: nnU-Net's",
        "liver: Slices of a patient.",
        "liver: protocol nnunet (Dice and IoU as nnunetv2 2.8.1, evaluation/evaluate_predictions.py, which has no "
        "other metrics); measured: dice, hd95",
    ]
    assert "A note." in lines
    (training,) = [line for line in lines if line.startswith("training of")]
    assert training.startswith("training of all networks: seed 0; budget cpu: about a second per iteration")
    assert training.endswith("; no recipe: the options of the budget; 6 epochs of 50 iterations (run.json)")
    assert "trained on a CPU, 2 threads; umamba_seg 0.1, torch 2.9" in lines
    assert any("percentile bootstrap over cases" in line for line in lines)
    assert not any("published" in line for line in lines)


def test_another_split_shows(paper, finish, folders):
    table = paper(BOT, dataset={"split_sha256": split_hash(SPLITS)})
    (job,) = jobs_of(table, folders)
    finish(job, dice=DICE, hd95=HD95)
    hashed = split_hash(SPLITS)[:12]
    assert f"liver: SHA-256 of the folds {hashed}, as the table fixes it" in collect(table, [job], {}, []).footer

    other = [{"train": ["t_1", "case_11"], "val": [*SPLITS[0]["val"][:11], "t_2"]}]
    write_json(job.preprocessed / "splits_final.json", other)
    lines = collect(table, [job], {}, []).footer
    found = split_hash(other)[:12]
    assert f"liver: SHA-256 of the folds {found}, NOT the table's {hashed}, so that numbers do not compare" in lines
    assert "liver: NOT the split of the training: no fold holds out case_11, scored of umamba_bot with seed 0" in lines
    assert "liver: 1 case not scored (t_2) of umamba_bot with seed 0" in lines


def test_data_that_was_changed_after_the_training_shows(paper, finish, folders, monkeypatch):
    table = paper(BOT)
    (job,) = jobs_of(table, folders)
    finish(job, dice=DICE, hd95=HD95)
    (job.preprocessed / f"{job.plans}.json").touch()
    plans = {"plans_name": job.plans, "configurations": {"3d_fullres": {"data_identifier": "1mm"}}}
    monkeypatch.setattr("umamba_seg.reproduce.footer.read_plans", lambda *_: plans)
    path = job.fold_folders[0] / "run.json"
    manifest = read_json(path)
    (job.preprocessed / "1mm.stamp").write_text("of the raw files")
    now = origin_of(job.preprocessed, plans, "3d_fullres")
    for begun, shows in ((None, False), (now, False), ("other", True)):
        first = manifest["starts"][0] | ({} if begun is None else {"data": begun})
        write_json(path, manifest | {"starts": [first, first | {"data": now}]})
        lines = [line for line in collect(table, [job], {}, []).footer if "NOT the data of the training" in line]
        assert bool(lines) == shows
    assert lines[0].endswith("were preprocessed since that of umamba_bot with seed 0 began")


def test_training_on_all_cases_shows(paper, collected):
    lines = collected(paper(BOT, dataset={"folds": ["all"], "scored": "test"}), NUMBERS).footer
    assert (
        "liver: Dataset901_Tiny, 3d_fullres, trained on all cases (15 cases); scored: the 12 cases of imagesTs" in lines
    )
    assert "liver: no split counts, as the training takes all cases" in lines


def test_another_protocol_shows(paper, collected):
    lines = collected(paper(BOT, dataset={"protocol": "segmamba_brats", "metrics": None}), NUMBERS).footer
    assert any("protocol segmamba_brats (ge-xing/SegMamba @cff3597, 5_compute_metrics.py)" in line for line in lines)
    assert any("HD95 is 50 wherever a mask is empty" in line for line in lines)


def test_seeds_and_changes_of_the_user_show(paper, finish, folders):
    table = paper(BOT, seeds=(3, 4))
    jobs = jobs_of(table, folders)
    for job in jobs:
        finish(job, dice=DICE, hd95=HD95)
    lines = collect(table, jobs, {}, ["seeds 3, 4 instead of the table's 0"]).footer
    assert lines[0] == "changed for this run: seeds 3, 4 instead of the table's 0"
    assert any(line.startswith("training of all networks: seeds 3, 4; ") for line in lines)
    assert any(line.startswith("sd of seeds") for line in lines)


def test_a_training_that_is_not_the_tables_shows(paper, finish, folders):
    table = paper(
        {"A": "umamba_bot", "B": "umamba_enc"}, table={"training": {"budget": "cpu", "epochs": 6, "recipe": "umamba"}}
    )
    jobs = jobs_of(table, folders)
    finish(jobs[0], dice=DICE, hd95=HD95, options={"recipe": "umamba", "iterations_per_epoch": 250})
    path = finish(jobs[1], dice=DICE, hd95=HD95, options={"epochs": 9}).parents[1] / "run.json"
    manifest = read_json(path)
    manifest["starts"][0]["overrides"]["initial_lr"] = {"planned": 0.01, "run": 0.1}
    manifest["starts"][0]["threads"] = 1
    write_json(path, manifest)
    lines = collect(table, jobs, {}, []).footer
    trainings = {line.partition(":")[0]: line for line in lines if line.startswith("training of")}
    assert set(trainings) == {"training of A", "training of B"}
    assert "; recipe umamba; 6 epochs" in trainings["training of A"]
    assert any(line.startswith("recipe umamba: Ma, Li, Wang: U-Mamba, arXiv:2401.04722;") for line in lines)
    assert "NOT" not in trainings["training of A"]
    assert trainings["training of B"].endswith(
        "; 9 epochs of 50 iterations (run.json); NOT the table's recipe: run.json has none; NOT the table's 6 epochs; "
        "NOT the table's 250 iterations in each; initial_lr 0.1 instead of the plan's 0.01"
    )
    assert [line for line in lines if line.startswith("trained on")] == [
        "trained on a CPU, 2 threads; umamba_seg 0.1, torch 2.9",
        "trained on a CPU, 1 thread; umamba_seg 0.1, torch 2.9",
    ]


def test_a_data_set_that_cannot_be_had(paper, folders):
    table = paper(BOT, dataset={"dataset": None})
    outcome = collect(table, jobs_of(table, folders), {}, [])
    assert outcome.footer[:2] == ["liver: no network is run on it here", "liver: split: nnU-Net's"]
    assert json.dumps(outcome.missing) == "{}"
