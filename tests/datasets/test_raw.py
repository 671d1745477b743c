"""dataset.json and file names: what is accepted, and what each refusal says."""

import re

import pytest

from umamba_seg.datasets.raw import find_cases, load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import read_json


def test_sound_dataset(make_dataset):
    folder = make_dataset(["b", "a_01"], channels=2)
    dataset = load_raw_dataset(folder)
    assert (dataset.folder, dataset.channels, dataset.file_ending) == (folder, 2, ".nii.gz")
    assert [case.identifier for case in dataset.cases] == ["a_01", "b"]
    assert [path.name for path in dataset.cases[0].images] == ["a_01_0000.nii.gz", "a_01_0001.nii.gz"]
    assert dataset.cases[0].label == folder / "labelsTr" / "a_01.nii.gz"
    assert dataset.labels.values == (0, 1, 2)
    assert dataset.group_pattern is None


def test_missing_label_is_none(make_dataset):
    folder = make_dataset()
    (folder / "labelsTr" / "b.nii.gz").unlink()
    assert [case.label is None for case in load_raw_dataset(folder).cases] == [False, True]


def test_v1_modality_is_refused_with_its_new_name(make_dataset):
    folder = make_dataset(channel_names=None, modality={"0": "T1"})
    with pytest.raises(UserError, match='"modality", as nnU-Net v1 did; rename it to "channel_names"'):
        load_raw_dataset(folder)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ({"channel_names": None}, 'has no "channel_names".*"channel_names": {"0": "CT"}'),
        ({"channel_names": {}}, '"channel_names" is {}'),
        ({"channel_names": {"1": "CT"}}, "number the channels"),
        ({"channel_names": ["CT"]}, "number the channels"),
        ({"channel_names": {"0": 3}}, "give every channel a name"),
        ({"file_ending": None}, 'has no "file_ending"'),
        ({"file_ending": "nii.gz"}, "'nii.gz', which is none of .nii.gz, .*begins with a dot"),
        ({"numTraining": 3}, '"numTraining" is 3 but there are 2 complete training cases; write "numTraining": 2'),
        ({"numTraining": None}, '"numTraining" is None but there are 2'),
        ({"labels": None}, '"labels" is missing'),
        ({"dataset": []}, '"dataset" does not list'),
        ({"dataset": {"a": {"images": [], "label": "x"}}}, '"dataset" does not list'),
        ({"dataset": {"a": {"images": ["x.nii.gz"], "label": "y"}}}, r"lists missing files \(2\): .*x.nii.gz, .*y"),
    ],
)
def test_dataset_json_refusals(make_dataset, entries, message):
    with pytest.raises(UserError, match=message):
        load_raw_dataset(make_dataset(**entries))


def test_group_pattern_must_be_text(make_dataset):
    with pytest.raises(UserError, match='"group_pattern" is 3'):
        load_raw_dataset(make_dataset(group_pattern=3)).group_pattern  # noqa: B018


def test_listed_dataset(make_dataset, monkeypatch):
    monkeypatch.setenv("SOME_FOLDER", "imagesTr")
    table = {"case": {"images": ["$SOME_FOLDER/b_0000.nii.gz"], "label": "labelsTr/../labelsTr/b.nii.gz"}}
    folder = make_dataset(dataset=table, numTraining=1)
    (case,) = load_raw_dataset(folder).cases
    assert case.identifier == "case"
    assert case.images == (folder / "imagesTr" / "b_0000.nii.gz",)
    assert case.label == folder / "labelsTr" / "b.nii.gz"


def test_listed_dataset_lacks_a_channel(make_dataset):
    table = {"case": {"images": ["imagesTr/b_0000.nii.gz"], "label": "labelsTr/b.nii.gz"}}
    with pytest.raises(UserError, match=r"case_0001.nii.gz missing"):
        load_raw_dataset(make_dataset(channels=2, dataset=table, numTraining=1))


def test_decathlon_folder_is_told_apart(make_dataset):
    with pytest.raises(UserError, match=r"as the Decathlon .*; convert the data set with `umamba-seg convert msd`"):
        load_raw_dataset(make_dataset(file_ending=None, training=[]))


def test_no_such_folder(tmp_path):
    with pytest.raises(UserError, match="no such folder"):
        load_raw_dataset(tmp_path / "nothing")
    with pytest.raises(UserError, match=r"dataset.json: no such file"):
        load_raw_dataset(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"a": 1,\n}', "not JSON: .* in line 2, column 1"),
        (b"[1]", "holds a JSON list, not an object"),
        (b"\xff\xfe", "not UTF-8"),
        (b"", "not JSON"),
    ],
)
def test_read_json_refusals(tmp_path, content, message):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_json(tmp_path / "x.json")


def test_read_json_of_a_folder(tmp_path):
    with pytest.raises(UserError, match="cannot be opened"):
        read_json(tmp_path)


def _touch(folder, *names):
    for name in names:
        (folder / name).touch()
    return folder


def test_find_cases_ignores_hidden_and_other_files(tmp_path):
    _touch(tmp_path, "b_0000.nii.gz", "a_1_0000.nii.gz", "._b_0000.nii.gz", ".DS_Store", "notes.txt")
    assert find_cases(tmp_path, ".nii.gz") == {
        "a_1": (tmp_path / "a_1_0000.nii.gz",),
        "b": (tmp_path / "b_0000.nii.gz",),
    }


@pytest.mark.parametrize(
    ("names", "channels", "message"),
    [
        ([], None, r"no images named CASE_0000.nii.gz \(there: nothing\)"),
        (["x.txt", "y.txt", "z"], None, r"\(there: .txt \(2\), no ending \(1\)\)"),
        (["a.nii.gz"], None, r"no images named CASE_0000.nii.gz \(there: a.nii.gz\); name images so"),
        (["a_0000.nii.gz", "b_000.nii.gz"], None, "b_000.nii.gz"),
        (["a_0000.nii.gz", "b_0000.nii"], None, "b_0000.nii;"),
        (["a_0000.nii.gz", "b_0000.NII.GZ", "c_0000.jpg"], None, r"\(2\): b_0000.NII.GZ, c_0000.jpg"),
        (["a_0000.nii.gz", "a_0002.nii.gz"], None, "a_0001.nii.gz missing"),
        (["a_0001.nii.gz"], None, "a_0000.nii.gz missing"),
        (["a_0000.nii.gz", "b_0000.nii.gz", "b_0001.nii.gz"], 2, "a_0001.nii.gz missing"),
        (["a_0000.nii.gz", "a_0001.nii.gz"], 1, "a has 2 channel files instead of 1"),
    ],
)
def test_find_cases_refusals(tmp_path, names, channels, message):
    with pytest.raises(UserError, match=message):
        find_cases(_touch(tmp_path, *names), ".nii.gz", channels)


def test_one_picture_may_hold_all_channels(tmp_path):
    assert len(find_cases(_touch(tmp_path, "a_0000.png"), ".png", 3)["a"]) == 1
    _touch(tmp_path, *(f"a_{channel:04d}.png" for channel in range(4)))
    with pytest.raises(UserError, match="a has 4 channel files instead of 3"):
        find_cases(tmp_path, ".png", 3)


def test_many_names_are_shortened(tmp_path):
    _touch(tmp_path, *(f"case{number:02d}.png" for number in range(15)))
    with pytest.raises(UserError, match=r"there: case00.png, .* case09.png and 5 more"):
        find_cases(tmp_path, ".png")


def test_find_cases_in_a_file(tmp_path):
    _touch(tmp_path, "x")
    with pytest.raises(UserError, match=re.escape(f"{tmp_path / 'x'}: no such folder")):
        find_cases(tmp_path / "x", ".png")


def test_complaints_can_be_collected(make_dataset):
    """A check goes on with the cases that are complete."""
    folder = make_dataset(["a", "b"], overwrite_image_reader_writer="None")
    (folder / "imagesTr" / "a_0000.nii.gz").rename(folder / "imagesTr" / "a_0001.nii.gz")
    complaints = []
    dataset = load_raw_dataset(folder, complaints.append)
    assert [case.identifier for case in dataset.cases] == ["b"]
    assert ["a_0000.nii.gz missing" in str(complaint) for complaint in complaints] == [True, False]
    assert "labels without images: a.nii.gz" in str(complaints[1])


def test_reader_that_nnunet_does_not_have_is_refused(make_dataset):
    with pytest.raises(UserError, match=r"'MyIO', which nnU-Net does not have; .* SimpleITKIO"):
        load_raw_dataset(make_dataset(overwrite_image_reader_writer="MyIO"))
