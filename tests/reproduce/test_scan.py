"""Networks beside their twins and beside the ResEnc U-Net: which pairs, which numbers, which sentences."""

import math

import numpy as np
import pytest

from umamba_seg.errors import UserError
from umamba_seg.evaluate.compare import MEAN, compare
from umamba_seg.evaluate.results import read_case_metrics
from umamba_seg.evaluate.statistics import bootstrap_mean, bootstrap_seeds
from umamba_seg.reproduce.collect import collect
from umamba_seg.reproduce.runs import jobs_of

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.6, 0.9, (40, 2))
NOISE = RNG.normal(0, 0.02, (40, 2))
TWINS = {"Bot": "umamba_bot", "Bot without the scan": "umamba_bot_noscan"}
DICE = [{"name": "dice", "title": "Dice", "dataset": "liver", "metric": "dice"}]
NO_NOISE_BETWEEN_TRAININGS = (
    "With one seed, the noise between trainings is not in these intervals: how far another training of the same "
    "network would fall cannot be told."
)


@pytest.fixture
def compared(paper, finish, folders):
    """``compared(rows, {("umamba_bot", 0): numbers}, seeds=(0,))`` is the outcome of runs that have these Dice."""

    def of(rows, numbers, seeds=(0,), metric="dice"):
        column = {"name": "it", "title": "It", "dataset": "liver", "metric": metric}
        table = paper(rows, [column], seeds=seeds, dataset={"metrics": metric})
        jobs = jobs_of(table, folders)
        for job in jobs:
            if (job.network, job.seed) in numbers:
                finish(job, **{metric: numbers[job.network, job.seed]})
        return collect(table, jobs, {}, [])

    return of


def test_pairs_are_twins_and_the_baseline(compared):
    networks = ("plain_conv_unet", "residual_encoder_unet", "umamba_bot", "umamba_bot_noscan", "segmamba_noscan")
    outcome = compared(
        {name: name for name in networks}, {(name, 0): BASE + shift for shift, name in enumerate(networks)}
    )
    pairs = [(networks[pair.first], networks[pair.second], pair.twins) for pair in outcome.differences]
    assert pairs == [
        ("umamba_bot", "umamba_bot_noscan", True),
        ("residual_encoder_unet", "plain_conv_unet", False),
        ("residual_encoder_unet", "umamba_bot", False),
        ("residual_encoder_unet", "segmamba_noscan", False),
    ]


def test_one_seed_is_what_compare_says(compared, tmp_path):
    outcome = compared(TWINS, {("umamba_bot", 0): BASE, ("umamba_bot_noscan", 0): BASE + NOISE})
    (pair,) = outcome.differences
    files = sorted((tmp_path / "root").rglob("metrics.json"))
    wanted = compare({str(number): read_case_metrics(path) for number, path in enumerate(files)}).differences[0]
    found = pair.difference
    assert found.target == MEAN
    names = ("mean", "low", "high", "won", "lost", "tied", "p", "corrected_p", "cases", "left_out")
    assert [getattr(found, name) for name in names] == [getattr(wanted, name) for name in names]
    assert (pair.metric, pair.better, pair.seeds) == ("dice", "higher", (0,))
    assert pair.by_seed == pytest.approx((NOISE.mean(),))
    assert np.isnan(pair.over_seeds.low)


def test_no_difference_is_said_to_be_none(compared):
    outcome = compared(TWINS, {("umamba_bot", 0): BASE, ("umamba_bot_noscan", 0): BASE + NOISE})
    one = outcome.differences[0].difference
    assert outcome.answers == [
        f"Bot without the scan: Dice {one.mean:+.3f} (95 % {one.low:.3f} to {one.high:.3f}, 40 cases, 1 seed; Wilcoxon "
        f"p = {one.p:.2g}): no difference can be told; what the scan adds here cannot be told from the noise.",
        "A case counts with the mean over its classes, and of several seeds with the mean over these.",
        NO_NOISE_BETWEEN_TRAININGS,
    ]


@pytest.mark.parametrize(("shift", "word"), [(0.05, "better"), (-0.05, "worse")])
def test_a_difference_is_said_to_be_one(compared, shift, word):
    outcome = compared(TWINS, {("umamba_bot", 0): BASE, ("umamba_bot_noscan", 0): BASE + shift + NOISE})
    assert outcome.answers[0].startswith(f"Bot without the scan: Dice {shift + NOISE.mean():+.3f} (95 % ")
    assert outcome.answers[0].endswith(
        f"1 seed; Wilcoxon p < 0.001): {word} without the scan by more than the noise between cases."
    )


def test_of_a_distance_less_is_better(compared):
    numbers = {("umamba_bot", 0): 5 + BASE, ("umamba_bot_noscan", 0): 4 + BASE + NOISE}
    outcome = compared(TWINS, numbers, metric="hd95")
    assert outcome.answers[0].startswith(f"Bot without the scan: hd95 {NOISE.mean() - 1:+.2f} mm (95 % ")
    assert outcome.answers[0].endswith("better without the scan by more than the noise between cases.")


def test_too_few_cases_for_a_test(compared):
    outcome = compared(TWINS, {("umamba_bot", 0): BASE[:4], ("umamba_bot_noscan", 0): BASE[:4] + 0.1})
    assert (
        "4 cases, 1 seed; no test): they differ in 4 of 4 cases, too few for a test; no difference can be told"
        in (outcome.answers[0])
    )


def test_infinite_distances_are_won_or_lost(compared):
    first = 5 + BASE.copy()
    first[:2, 0] = math.inf
    numbers = {("umamba_bot", 0): first, ("umamba_bot_noscan", 0): 4 + BASE + NOISE}
    (sentence, *_) = compared(TWINS, numbers, metric="hd95").answers
    assert sentence.startswith(
        "Bot without the scan: hd95 wins 40 and loses 0 of 40 cases, 2 by an infinite distance (1 seed; Wilcoxon p < "
        "0.001): better without the scan"
    )


def test_p_is_corrected_over_all_pairs(compared):
    rows = TWINS | {"ResEnc": "residual_encoder_unet"}
    numbers = {("umamba_bot", 0): BASE, ("umamba_bot_noscan", 0): BASE + NOISE + 0.01}
    numbers["residual_encoder_unet", 0] = BASE + NOISE[::-1] + 0.008
    outcome = compared(rows, numbers)
    small, large = sorted(outcome.differences, key=lambda pair: pair.difference.p)
    assert small.difference.corrected_p == pytest.approx(2 * small.difference.p)
    assert large.difference.corrected_p == pytest.approx(max(large.difference.p, 2 * small.difference.p))
    assert "p is corrected for 2 comparisons (Holm)." in outcome.answers
    assert outcome.answers[1].startswith("Bot beside ResEnc: Dice ")


# --------------------------------------------------------------------------------------------------------------- seeds


def seeds_of(shifts):
    numbers, generator = {}, np.random.default_rng(1)
    for seed, shift in enumerate(shifts):
        noise = generator.normal(0, 0.01, BASE.shape)
        numbers |= {("umamba_bot", seed): BASE, ("umamba_bot_noscan", seed): BASE + shift + noise}
    return numbers


def test_several_seeds(compared):
    numbers = seeds_of((0.04, 0.05, 0.06))
    outcome = compared(TWINS, numbers, seeds=(0, 1, 2))
    (pair,) = outcome.differences
    by_case = np.array([(numbers["umamba_bot_noscan", seed] - BASE).mean(axis=1) for seed in range(3)])
    assert pair.seeds == (0, 1, 2)
    assert pair.by_seed == pytest.approx(by_case.mean(axis=1))
    assert pair.over_seeds == pytest.approx(bootstrap_seeds(by_case))
    one = pair.difference
    assert (one.mean, one.low, one.high) == pytest.approx(bootstrap_mean(by_case.mean(axis=0)))
    low, high = pair.over_seeds[1:]
    each = ", ".join(f"{value:+.3f}" for value in pair.by_seed)
    assert outcome.answers[0].endswith(
        f"40 cases, 3 seeds; Wilcoxon p < 0.001; seed by seed {each}, and with other seeds as well 95 % {low:.3f} to "
        f"{high:.3f}): better without the scan by more than the noise between cases and between seeds."
    )
    assert NO_NOISE_BETWEEN_TRAININGS not in outcome.answers
    assert outcome.answers[-1] == "An interval over so few seeds is rough."


def test_seeds_that_disagree(compared):
    outcome = compared(TWINS, seeds_of((-0.01, 0.0, 0.06)), seeds=(0, 1, 2))
    assert outcome.answers[0].endswith(
        "better without the scan by more than the noise between cases, but not by more than that between seeds: other "
        "trainings may turn it round."
    )


def test_what_is_undefined_with_one_seed_counts_with_none(compared):
    numbers = seeds_of((0.01, 0.02))
    hidden = numbers["umamba_bot_noscan", 1].copy()
    hidden[0] = math.nan
    hidden[1, 0] = math.nan
    outcome = compared(TWINS, numbers | {("umamba_bot_noscan", 1): hidden}, seeds=(0, 1))
    (pair,) = outcome.differences
    assert (pair.difference.cases, pair.difference.left_out) == (39, 1)
    assert pair.difference.mean == pytest.approx(np.mean(pair.by_seed))
    assert pair.difference.mean == pytest.approx(pair.over_seeds.value)


def test_only_seeds_of_both_are_compared(compared):
    numbers = seeds_of((0.01, 0.02))
    del numbers["umamba_bot", 0]
    (pair,) = compared(TWINS, numbers, seeds=(0, 1)).differences
    assert pair.seeds == (1,)


def test_no_seed_of_both_is_no_pair(compared):
    numbers = seeds_of((0.01, 0.02))
    del numbers["umamba_bot", 0], numbers["umamba_bot_noscan", 1]
    outcome = compared(TWINS, numbers, seeds=(0, 1))
    assert outcome.differences == outcome.answers == []


# ----------------------------------------------------------------------------------------------------------- conditions


def test_other_trainings_are_named(paper, finish, folders):
    rows = {"Bot": "umamba_bot", "ResEnc": {"network": "residual_encoder_unet", "training": {"recipe": "nnunet"}}}
    table = paper(rows, DICE)
    jobs = jobs_of(table, folders)
    for job in jobs:
        finish(job, dice=BASE)
    (sentence, *_) = collect(table, jobs, {}, []).answers
    assert sentence.startswith("Bot beside ResEnc: Dice +0.000")
    assert sentence.endswith("no difference can be told. They were trained differently (recipe nnunet and none).")


def test_a_twin_of_another_training_is_none(paper, finish, folders):
    rows = {"Bot": "umamba_bot", "Twin": {"network": "umamba_bot_noscan", "training": {"recipe": "nnunet"}}}
    table = paper(rows, DICE)
    jobs = jobs_of(table, folders)
    for job in jobs:
        finish(job, dice=BASE)
    assert collect(table, jobs, {}, []).differences == []


def test_other_cases_are_refused(paper, finish, folders):
    table = paper(TWINS, DICE)
    jobs = jobs_of(table, folders)
    finish(jobs[0], dice=BASE)
    finish(jobs[1], dice=BASE, case="other")
    with pytest.raises(UserError, match="the cases are not the same"):
        collect(table, jobs, {}, [])
