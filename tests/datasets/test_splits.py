"""Splits: nnU-Net's own without groups, whole groups with a pattern, and each refusal."""

import json

import pytest
from nnunetv2.utilities.crossval_split import generate_crossval_split

from umamba_seg.datasets.splits import groups_of, load_splits, make_splits
from umamba_seg.errors import UserError

PATIENTS = [f"p{patient}_{slice_}" for patient in range(7) for slice_ in range(patient + 1)]


@pytest.mark.parametrize("count", [5, 7, 23, 200])
def test_without_groups_it_is_the_split_of_nnunet(count):
    names = [f"case_{number}" for number in range(count)]
    assert make_splits(names[::-1]) == generate_crossval_split(sorted(names))


def test_groups_stay_together_and_folds_are_balanced():
    splits = make_splits(PATIENTS, group_pattern=r"^p\d")
    assert len(splits) == 5
    held_out = [{groups_of([name], r"^p\d")[name] for name in split["val"]} for split in splits]
    assert sorted(group for groups in held_out for group in groups) == [f"p{patient}" for patient in range(7)]
    for split, groups in zip(splits, held_out, strict=True):
        assert not groups & {groups_of([name], r"^p\d")[name] for name in split["train"]}
        assert sorted(split["train"] + split["val"]) == sorted(PATIENTS)
    assert sorted(len(split["val"]) for split in splits) == [5, 5, 5, 6, 7]
    assert splits == make_splits(PATIENTS[::-1], group_pattern=r"^p\d")


def test_fewer_groups_than_folds(caplog):
    caplog.set_level("INFO", "umamba_seg")
    splits = make_splits(PATIENTS[:6], group_pattern=r"^p\d")
    assert len(splits) == 3
    assert "3 folds instead of 5: there are only that many groups" in caplog.text
    assert len(make_splits(["a", "b"])) == 2


def test_held_out_groups():
    (split,) = make_splits(PATIENTS, group_pattern=r"^p(\d)", val_groups=["1", "2"])
    assert split["val"] == ["p1_0", "p1_1", "p2_0", "p2_1", "p2_2"]
    assert len(split["train"]) == len(PATIENTS) - 5
    (split,) = make_splits(["a", "b", "c"], val_groups=["b"])
    assert split == {"train": ["a", "c"], "val": ["b"]}


@pytest.mark.parametrize(
    ("names", "options", "message"),
    [
        ([], {}, r"too few cases \(0\) to split"),
        (["p1_a", "p1_b"], {"group_pattern": "^p."}, r"too few groups \(1\) to split"),
        (["a", "b"], {"folds": 1}, "1 is too few; give 2 or more"),
        (["a", "b"], {"group_pattern": "("}, "is not a regular expression"),
        (["p1", "x", "y"], {"group_pattern": r"p\d"}, "finds no group in 2 of 3 cases: x, y"),
        (["a", "b"], {"group_pattern": "(z*)"}, "finds no group in 2 of 2 cases"),
        (["a", "ab"], {"group_pattern": "a(b)?"}, "finds no group in 1 of 2 cases: a"),
        (["a", "b"], {"val_groups": ["b", "z"]}, "no such groups: z; choose from a, b"),
        (["a", "b"], {"val_groups": ["a", "b"]}, "nothing is left to train on"),
        (["a", "b"], {"val_groups": []}, "no validation group was given"),
    ],
)
def test_refusals(names, options, message):
    with pytest.raises(UserError, match=message):
        make_splits(names, **options)


def test_group_of():
    assert groups_of(["SC-HF-I-01_0048"], "^[^_]+") == {"SC-HF-I-01_0048": "SC-HF-I-01"}
    assert groups_of(["site3_patient17_2"], r"patient(\d+)") == {"site3_patient17_2": "17"}
    assert groups_of(["anything"], None) == {"anything": "anything"}


def test_load_splits(tmp_path):
    splits = make_splits(PATIENTS)
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    assert load_splits(tmp_path / "splits_final.json") == splits


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{}", "is not a list of folds"),
        ("[]", "is not a list of folds"),
        ("[1]", 'fold 0 has no list of case names "train"'),
        ('[{"train": ["a"], "val": []}]', 'fold 0 has no list of case names "val"'),
        ('[{"train": ["a"], "val": ["b"]}, {"train": ["a", 1], "val": ["b"]}]', 'fold 1 has no list .* "train"'),
        ("[", "not JSON"),
    ],
)
def test_load_splits_refusals(tmp_path, content, message):
    (tmp_path / "splits_final.json").write_text(content)
    with pytest.raises(UserError, match=message):
        load_splits(tmp_path / "splits_final.json")


def test_one_case_has_no_folds():
    assert make_splits(["a"]) == []
