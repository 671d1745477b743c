"""Differences between sets of segmentations: their statistics against slow definitions, and what is said of them."""

import csv
import itertools
import json
import math
import os
import re

import numpy as np
import pytest
from scipy.stats import wilcoxon

from umamba_seg import figures
from umamba_seg.datasets.pictures import write_picture
from umamba_seg.errors import UserError
from umamba_seg.evaluate.compare import (
    _plot,
    compare,
    comparison_table,
    content_of,
    holm,
    sentences,
    signed_ranks,
    wilcoxon_p,
)
from umamba_seg.evaluate.results import read_case_metrics
from umamba_seg.evaluate.statistics import bootstrap_mean

RNG = np.random.default_rng(0)
BASE = RNG.uniform(0.7, 0.9, 40)


@pytest.fixture
def tables(tmp_path):
    """``tables(A={"liver": [0.8, ...], ...}, B=...)`` writes a metrics.json for each and reads it."""

    def make(metric="dice", better="higher", unit="", protocol="nnunet", **sets):
        return {
            name: read_case_metrics(_write(tmp_path / name, values, metric, better, unit, protocol))
            for name, values in sets.items()
        }

    return make


def _write(folder, values, metric="dice", better="higher", unit="", protocol="nnunet", n_ref=1000, references="labels"):
    folder.mkdir(parents=True, exist_ok=True)
    words = {math.inf: "inf", -math.inf: "-inf"}
    cases = []
    for number in range(len(next(iter(values.values())))):
        classes = {}
        for name, column in values.items():
            value = float(column[number])
            shown = None if math.isnan(value) else words.get(value, value)
            classes[name] = {"state": "present", "n_ref": n_ref, metric: shown, "reference_ml": 1.0}
        cases.append({"case": f"case_{number:02d}", "classes": classes})
    content = {
        "format": 1,
        "protocol": {"name": protocol},
        "settings": {"references": references, "endings": [".png"], "missing": []},
        "classes": list(values),
        "metrics": {metric: {"better": better, "unit": unit}, "reference_ml": {"better": None, "unit": "ml"}},
        "cases": cases,
    }
    (folder / "metrics.json").write_text(json.dumps(content))
    return folder


def test_a_clear_difference(tables):
    shift = RNG.normal(0.02, 0.01, 40)
    comparison = compare(tables(A={"liver": BASE}, B={"liver": BASE + shift}))
    (found,) = comparison.differences
    assert (found.first, found.second, found.target, found.better) == ("A", "B", "liver", "B")
    assert found.mean == pytest.approx(shift.mean())
    assert (found.low, found.high) == pytest.approx(bootstrap_mean(shift)[1:])
    assert (found.won, found.lost, found.tied) == ((shift > 0).sum(), (shift < 0).sum(), 0)
    assert found.p == found.corrected_p == pytest.approx(wilcoxon(BASE + shift, BASE).pvalue)
    (sentence,) = sentences(comparison)
    assert sentence == (
        f"B is better than A in dice (liver) by {shift.mean():.3g} (95 % interval {found.low:.3g} to {found.high:.3g}, "
        "40 cases, Wilcoxon p < 0.001): larger than the noise between these cases."
    )


def test_no_difference(tables):
    noise = RNG.normal(0, 0.02, 40)
    comparison = compare(tables(A={"liver": BASE}, B={"liver": BASE + noise}))
    (found,) = comparison.differences
    assert found.better is None
    (sentence,) = sentences(comparison)
    assert sentence.startswith(f"No difference can be told between A and B in dice (liver): B is {noise.mean():+.3g}")
    assert sentence.endswith(f"40 cases, Wilcoxon p = {found.p:.3f}), within the noise between these cases.")


@pytest.mark.parametrize(("better", "winner"), [("higher", "B"), ("lower", "A")])
def test_which_way_is_better(tables, better, winner):
    comparison = compare(
        tables("x", better, A={"liver": BASE}, B={"liver": BASE + 0.1 + RNG.uniform(0, 0.01, 40)}), "x"
    )
    (found,) = comparison.differences
    assert found.better == winner
    assert found.mean > 0.1
    assert found.effect == (1 if winner == "B" else -1)
    assert (found.won, found.lost) == ((40, 0) if winner == "B" else (0, 40))


def test_errors_around_zero_are_compared_by_their_size(tables):
    signs = RNG.choice([-1, 1], 40)
    comparison = compare(tables("x", "zero", A={"liver": 0.1 * signs}, B={"liver": BASE * signs[::-1]}), "x")
    (found,) = comparison.differences
    assert found.better == "A"
    assert found.mean == pytest.approx(BASE.mean() - 0.1)


def slow_signed_ranks(differences):
    magnitudes = [round(abs(value), 12) for value in differences]
    ranks = []
    for value, magnitude in zip(differences, magnitudes, strict=True):
        below, equal = sum(other < magnitude for other in magnitudes), magnitudes.count(magnitude)
        ranks.append(0 if magnitude == 0 else math.copysign(below + (equal + 1) / 2, value))
    return ranks


def exact_p(ranks):
    """Of every way to choose signs, the share that is as far from the middle as this one."""
    ranks = [rank for rank in ranks if rank]
    sums = [
        sum(sign * abs(rank) for sign, rank in zip(signs, ranks, strict=True))
        for signs in itertools.product((-1, 1), repeat=len(ranks))
    ]
    return np.mean(np.abs(sums) >= abs(sum(ranks)) - 1e-9)


@pytest.mark.parametrize(
    "differences",
    [
        [0.1, 0.2, 0.3, 0.4, 0.5, -0.6],
        [0.1, 0.1, -0.1, 0.1, 0.3, 0.3, 0.2],
        [0, 0, 0.1, -0.2, 0.3, 0.4, 0.4, 0.7],
        [math.inf, math.inf, -0.1, 0.2, 0.3, -math.inf, 1],
        [0.1 + 0.2 - 0.3, 0.3, 0.1 + 0.2, -1, 2, 3, 4],  # the first is 0 but for rounding, the next two are tied
    ],
)
def test_ranks_and_p_against_their_definition(differences):
    ranks = signed_ranks(np.array(differences))
    assert ranks.tolist() == slow_signed_ranks(differences)
    assert wilcoxon_p(ranks) == pytest.approx(exact_p(ranks))


def test_effect_against_its_definition(tables):
    values = BASE + np.round(RNG.normal(0.01, 0.02, 40), 2)
    (found,) = compare(tables(A={"liver": BASE}, B={"liver": values})).differences
    ranks = slow_signed_ranks(values - BASE)
    assert found.tied == ranks.count(0) > 0
    assert found.effect == pytest.approx(sum(ranks) / sum(map(abs, ranks)))


def test_too_few_cases_that_differ(tables):
    values = BASE.copy()
    values[:5] += 0.1
    comparison = compare(tables(A={"liver": BASE}, B={"liver": values}))
    (found,) = comparison.differences
    assert math.isnan(found.p)
    assert found.better is None
    assert sentences(comparison) == [
        "No difference can be told between A and B in dice (liver): they differ in 5 of 40 cases, and the test needs 6."
    ]


def test_equal_sets(tables):
    (found,) = compare(tables(A={"liver": BASE}, B={"liver": BASE})).differences
    assert (found.mean, found.low, found.high, found.tied) == (0, 0, 0, 40)
    assert math.isnan(found.effect)
    assert found.better is None


def test_undefined_cases_are_left_out(tables):
    first, second = BASE.copy(), BASE + RNG.uniform(0.01, 0.02, 40)
    first[:3] = np.nan
    second[2:5] = np.nan
    (found,) = compare(tables(A={"liver": first}, B={"liver": second})).differences
    assert (found.cases, found.left_out, found.won) == (35, 5, 35)
    assert found.mean == pytest.approx((second - first)[5:].mean())


def test_infinite_distances_are_ranked_but_not_averaged(tables):
    first, second = BASE * 10, BASE * 10
    first[:8] = np.inf
    second[7] = np.inf
    second[8:] += RNG.normal(0, 1e-3, 32)
    comparison = compare(tables("hd95", "lower", "mm", A={"liver": first}, B={"liver": second}), "hd95")
    (found,) = comparison.differences
    assert (found.cases, found.infinite, found.tied) == (40, 7, 1)
    assert found.mean == pytest.approx((second[8:] - first[8:]).sum() / 33)
    assert found.won == 7 + (second < first)[8:].sum()
    ranked = np.concatenate([np.full(7, 1e9), [0], first[8:] - second[8:]])
    assert found.p == pytest.approx(wilcoxon(ranked, zero_method="pratt").pvalue)


def test_a_set_that_misses_is_worse_though_its_mean_is_not(tables):
    first, second = BASE * 10, BASE * 10 + 1e-3
    second[:30] = np.inf
    comparison = compare(tables("hd95", "lower", "mm", A={"liver": first}, B={"liver": second}), "hd95")
    assert sentences(comparison) == [
        "A is better than B in hd95 (liver): it wins 40 cases and loses 0, 30 of them by an infinite distance "
        "(40 cases, Wilcoxon p < 0.001): larger than the noise between these cases."
    ]


def test_infinite_differences_on_both_sides(tables):
    first, second = BASE * 10, BASE * 10
    first[:20], second[20:] = np.inf, np.inf
    comparison = compare(tables("hd95", "lower", "mm", A={"liver": first}, B={"liver": second}), "hd95")
    assert math.isnan(comparison.differences[0].mean)
    assert sentences(comparison) == [
        "No difference can be told between A and B in hd95 (liver): B wins 20 cases and loses 20, 40 of them by an "
        "infinite distance (40 cases, Wilcoxon p = 1.000), within the noise between these cases."
    ]


def test_test_and_interval_must_agree(tables):
    """Many small losses and a large gain: the test sees the one, the mean the other."""
    change = np.full(40, -0.001) * np.linspace(1, 2, 40)
    change[0] = 0.09
    comparison = compare(tables(A={"liver": BASE}, B={"liver": BASE + change}))
    assert comparison.differences[0].p < 0.001
    assert comparison.differences[0].better is None
    assert sentences(comparison)[0].endswith("p < 0.001), where the interval does not bear out what the test finds.")


def test_mean_over_classes_is_over_what_both_define(tables):
    first = {"liver": BASE, "spleen": BASE.copy()}
    second = {"liver": BASE + 0.1, "spleen": BASE + 0.3}
    first["spleen"][:10] = np.nan
    comparison = compare(tables(A=first, B=second))
    assert comparison.targets == ("mean over classes", "liver", "spleen")
    expected = np.where(np.arange(40) < 10, 0.1, 0.2)
    assert comparison.paired["A", "B"][:, 0] == pytest.approx(expected)
    assert [(one.target, one.cases) for one in comparison.differences] == [
        ("mean over classes", 40),
        ("liver", 40),
        ("spleen", 30),
    ]


def test_infinities_of_both_signs_cancel_to_nothing(tables):
    first, second = {"liver": BASE.copy(), "spleen": BASE.copy()}, {"liver": BASE.copy(), "spleen": BASE.copy()}
    first["liver"][0] = second["spleen"][0] = first["liver"][1] = np.inf
    comparison = compare(tables("hd95", "lower", A=first, B=second), "hd95")
    assert comparison.paired["A", "B"][:3, 0].tolist() == pytest.approx([math.nan, -math.inf, 0], nan_ok=True)
    (main, *_) = comparison.differences
    assert (main.cases, main.left_out, main.unranked, main.infinite) == (39, 0, 1, 1)
    assert "1 more cannot be ranked: each misses another class" in sentences(comparison)[0]
    assert content_of(comparison)["differences"][0]["unranked"] == 1
    assert "each of the two misses another class" in content_of(comparison)["method"]["no rank"]


def test_unranked_cases_stand_beside_the_test(tables):
    first, second = {"liver": BASE.copy(), "spleen": BASE.copy()}, {"liver": BASE + 0.1, "spleen": BASE + 0.1}
    first["liver"][0] = second["spleen"][0] = np.inf
    (sentence,) = sentences(compare(tables("hd95", "lower", A=first, B=second), "hd95"))
    assert "(95 % interval 0.1 to 0.1, 39 cases (1 more cannot be ranked: each misses another class), Wil" in sentence


def test_a_plot_of_many_pairs_shows_the_largest_effects(tables, monkeypatch):
    shifts = [0, 0, *(0.002 * number for number in range(1, 8))]
    sets = {f"s{number}": {"liver": BASE + RNG.normal(shift, 0.01, 40)} for number, shift in enumerate(shifts)}
    comparison = compare(tables(**sets))
    drawn = []
    monkeypatch.setattr(figures, "strips", lambda panels, *_: drawn.extend(panels) or b"")
    _plot(comparison)
    effects = {f"{one.second} − {one.first}": abs(one.effect) for one in comparison.differences}
    assert len(effects) == 36
    assert set(drawn) == set(sorted(effects, key=lambda title: -effects[title])[:30])
    assert "The plot shows the 30 of 36 pairs with the largest effects." in comparison_table(comparison)


def test_the_interval_of_one_case_says_nothing(tables):
    shown = comparison_table(compare(tables(A={"liver": BASE[:1]}, B={"liver": BASE[:1] + 0.25})))
    assert re.search(r"B − A +liver +0.2500 +– +– +1 ", shown)


def slow_holm(values):
    known = sorted(value for value in values if not math.isnan(value))
    steps = [min(1, value * (len(known) - rank)) for rank, value in enumerate(known)]
    return [math.nan if math.isnan(value) else max(steps[: known.index(value) + 1]) for value in values]


@pytest.mark.parametrize("values", [[0.01, 0.04, 0.03, 0.005], [0.6, 0.5, 0.9], [0.02, math.nan, 0.03], [], [0.04]])
def test_holm(values):
    assert holm(values) == pytest.approx(slow_holm(values), nan_ok=True)


def test_three_sets_are_corrected(tables):
    sets = {
        name: {"liver": BASE + RNG.normal(shift, 0.02, 40), "spleen": BASE}
        for name, shift in zip("ABC", (0, 0.01, 0.02), strict=True)
    }
    comparison = compare(tables(**sets))
    pairs = [("A", "B"), ("A", "C"), ("B", "C")]
    assert [(one.first, one.second) for one in comparison.differences[:3]] == pairs
    main, classes = comparison.differences[:3], comparison.differences[3:]
    for family in (main, classes):
        assert [one.corrected_p for one in family] == pytest.approx(holm([one.p for one in family]), nan_ok=True)
    assert max(one.corrected_p / one.p for one in main) == pytest.approx(3)
    assert all("after correction for 3 comparisons" in sentence for sentence in sentences(comparison))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"protocol": "nnmamba"},
            r"has the protocol nnmamba, but .*A/metrics.json has nnunet; evaluate all of them alike",
        ),
        ({"values": {"spleen": BASE}}, r"has classes spleen, but .*A/metrics.json has liver"),
        (
            {"values": {"liver": BASE[:38]}},
            r"the cases are not the same: .*B/metrics.json lacks case_38, case_39; predict",
        ),
        ({"n_ref": 1001}, r"B/metrics.json: its references of case_00, .* and 30 more are not those of .*A/metr"),
        ({"metric": "iou"}, r"B/metrics.json: holds no dice, only iou; evaluate with this metric"),
    ],
)
def test_what_cannot_be_compared(tmp_path, change, message):
    first = read_case_metrics(_write(tmp_path / "A", {"liver": BASE}))
    second = read_case_metrics(_write(tmp_path / "B", **({"values": {"liver": BASE}} | change)))
    with pytest.raises(UserError, match=message):
        compare({"A": first, "B": second})


def test_references_in_different_folders_are_warned_of(tmp_path, caplog):
    first = read_case_metrics(_write(tmp_path / "A", {"liver": BASE}))
    second = read_case_metrics(_write(tmp_path / "B", {"liver": BASE}, references="others"))
    compare({"A": first, "B": second})
    assert "the references were in different folders; see that they are the same: " in caplog.text


def test_sets_need_only_the_metric_in_common(tmp_path):
    first = read_case_metrics(_write(tmp_path / "A", {"liver": BASE}))
    content = json.loads((tmp_path / "A" / "metrics.json").read_text())
    del content["metrics"]["reference_ml"]
    for case in content["cases"]:
        del case["classes"]["liver"]["reference_ml"]
    (tmp_path / "B.json").write_text(json.dumps(content))
    assert compare({"A": first, "B": read_case_metrics(tmp_path / "B.json")}).differences[0].tied == 40


def test_numbers_that_only_describe(tables):
    with pytest.raises(UserError, match="--metric reference_ml: only describes"):
        compare(tables(A={"liver": BASE}, B={"liver": BASE}), "reference_ml")


def test_command(tmp_path, umamba_seg):
    shift = RNG.normal(0.02, 0.01, 40)
    _write(tmp_path / "a" / "validation", {"liver": BASE, "spleen": BASE})
    _write(tmp_path / "b" / "validation", {"liver": BASE + shift, "spleen": np.where(shift > 0.02, BASE, np.nan)})
    folders = (tmp_path / "a" / "validation", tmp_path / "b" / "validation")
    done = umamba_seg("compare", *folders, "-o", tmp_path / "out").succeeded()
    assert "b/validation is better than a/validation in dice (mean over classes) by" in done.out
    assert "not between trainings" in done.out
    assert "`method` in compare.json" in done.out
    assert "percentile bootstrap" not in done.out
    assert re.search(r"b/validation − a/validation +spleen +0.0000 .* nan +nan +–\n", done.out)
    content = json.loads((tmp_path / "out" / "compare.json").read_text())
    assert content["names"] == ["a/validation", "b/validation"]
    assert content["differences"][2]["p"] is None  # all tied
    rows = list(csv.DictReader((tmp_path / "out" / "compare.csv").read_text().splitlines()))
    assert len(rows) == 120
    liver = [row for row in rows if row["class"] == "liver"]
    assert [float(row["difference"]) for row in liver] == pytest.approx(shift)
    assert [float(row["first_dice"]) for row in liver] == pytest.approx(BASE)
    assert (tmp_path / "out" / "compare.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["compare.csv", "compare.json", "compare.png"]

    again = umamba_seg("compare", *folders, "-o", tmp_path / "out", "--names", "old", "new", "--json").succeeded()
    assert again.result["sentences"][0].startswith("new is better than old in dice")
    assert again.result == json.loads((tmp_path / "out" / "compare.json").read_text()) | {
        "written": [str(tmp_path / "out" / f"compare.{ending}") for ending in ("json", "csv", "png")]
    }


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """Folders of references, of segmentations that are near and of some that are far, without metrics.json."""
    monkeypatch.setattr("umamba_seg.settings.workers", lambda requested: 1)
    description = {"channel_names": {"0": "grey"}, "labels": {"background": 0, "cell": 1}, "file_ending": ".png"}
    reference = np.zeros((20, 20), np.uint8)
    reference[4:14, 4:14] = 1
    folders = []
    for name, shift in (("references", 0), ("near", 1), ("far", 3)):
        folders.append(tmp_path / name)
        folders[-1].mkdir()
        for number in range(6):
            write_picture(folders[-1] / f"{number}.png", np.roll(reference, shift if number else 0, axis=1))
        (folders[-1] / "dataset.json").write_text(json.dumps(description))
    return folders


def test_command_evaluates_what_has_no_metrics(pictures, umamba_seg, tmp_path):
    references, near, far = pictures
    done = umamba_seg("compare", near, far, "-r", references, "-o", tmp_path, "--json")
    (found,) = done.succeeded().result["differences"]
    assert found["mean"] == pytest.approx(-0.2 * 5 / 6)
    assert found["tied"] == 1
    assert "near holds no metrics.json: evaluating it" in done.err
    again = umamba_seg("compare", near, far, "-r", references, "-o", tmp_path)
    assert "evaluating it" not in again.succeeded().err


def _touch(path, seconds):
    """Written so long after metrics.json."""
    moment = (path.parent.parent / "near" / "metrics.json").stat().st_mtime + seconds
    os.utime(path, (moment, moment))


@pytest.mark.parametrize("place", ["near", "references"])
def test_numbers_older_than_a_file_are_measured_anew(pictures, umamba_seg, tmp_path, place):
    references, near, far = pictures
    for folder in (near, far):
        umamba_seg("evaluate", references, folder, "--metrics", "dice,nsd@2mm", "-np", 1).succeeded()
    changed = tmp_path / place / "3.png"
    write_picture(changed, np.roll(np.eye(20, dtype=np.uint8), 2, axis=0))
    _touch(changed, 5)
    refused = umamba_seg("compare", near, far)
    assert refused.code == 2
    assert f"{place}/3.png: newer than metrics.json; evaluate again, or give -r REFERENCES" in refused.err
    done = umamba_seg("compare", near, far, "-r", references, "-o", tmp_path).succeeded()
    assert f"near was evaluated before {changed} was written: evaluating it" in done.err
    found = read_case_metrics(near)
    assert found.values["3"]["cell"]["dice"] < 0.5
    assert set(found.metrics) == {"dice", "nsd@2mm"}


def test_numbers_without_the_metric_get_it(pictures, umamba_seg, tmp_path):
    references, near, far = pictures
    for folder in (near, far):
        umamba_seg("evaluate", references, folder, "--metrics", "dice", "-np", 1).succeeded()
    words = ("--metric", "hd95", "-o", tmp_path, "--json")
    done = umamba_seg("compare", near, far, "-r", references, *words).succeeded()
    assert done.result["differences"][0]["mean"] == pytest.approx(2 * 5 / 6)
    assert "near was evaluated without hd95: evaluating it" in done.err
    assert set(read_case_metrics(near).metrics) == {"dice", "hd95"}


def test_numbers_of_other_references_are_measured_anew(pictures, umamba_seg, tmp_path):
    references, near, far = pictures
    umamba_seg("evaluate", far, near, "-np", 1).succeeded()
    umamba_seg("evaluate", references, far, "-np", 1).succeeded()
    done = umamba_seg("compare", near, far, "-r", references, "-o", tmp_path, "--json").succeeded()
    assert f"near was evaluated with other references ({far}): evaluating it" in done.err
    assert done.result["differences"][0]["mean"] == pytest.approx(-0.2 * 5 / 6)


def test_the_protocol_and_the_cases_left_out_stay(pictures, umamba_seg, tmp_path):
    references, near, far = pictures
    for folder in (near, far):
        (folder / "5.png").unlink()
        umamba_seg("evaluate", references, folder, "--chill", "--protocol", "mambaunet", "-np", 1).succeeded()
    _touch(near / "3.png", 5)
    done = umamba_seg("compare", near, far, "-r", references, "-o", tmp_path, "--json").succeeded()
    assert (done.result["protocol"], done.result["cases"]) == ("mambaunet", 5)
    assert "near was evaluated before" in done.err


def test_a_broken_file_is_written_anew(pictures, umamba_seg, tmp_path):
    references, near, far = pictures
    (near / "metrics.json").write_text("{}")
    done = umamba_seg("compare", near, far, "-r", references, "-o", tmp_path).succeeded()
    assert "near holds a metrics.json that cannot be read (is no metrics.json of format 1" in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["a", "nowhere"], "nowhere: no such folder"),
        (["a", "b", "-r", "nowhere"], "nowhere: no such folder"),
        (["a"], "one folder of segmentations is not enough; name two or more, and their references with -r"),
        (["a", "empty"], "empty: holds no metrics.json, and no references are named; name them with -r REFERENCES"),
        (["empty", "a", "b"], "empty: holds no metrics.json, and no references are named"),
        (["a", "b", "--metric", "iou"], "a/metrics.json: holds no iou, only dice"),
        (["a", "a"], "a folder is named twice"),
        (["a", "b", "--names", "x"], "--names x: 1 names for 2 folders, which must differ"),
        (["a", "b", "--names", "x", "x"], "--names x x: 2 names for 2 folders, which must differ"),
    ],
)
def test_commands_that_are_refused(tmp_path, umamba_seg, words, message, monkeypatch):
    for name in "ab":
        _write(tmp_path / name, {"liver": BASE})
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path)
    done = umamba_seg("compare", *words)
    assert done.code == 2
    assert message in done.err
    assert not (tmp_path / "comparison").exists()
