"""Folders and data set names."""

import os

import pytest

from umamba_seg.errors import UserError
from umamba_seg.paths import Folders, resolve


@pytest.fixture
def folders(tmp_path) -> Folders:
    return resolve(tmp_path)


def test_root_holds_nnunets_three_folders(tmp_path, folders):
    names = ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results")
    assert folders == Folders(*(tmp_path / name for name in names))


def test_root_wins_over_the_variables_and_export_sets_them(tmp_path, folders, monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(name, "/elsewhere")
    assert resolve(tmp_path) == folders
    folders.export()
    assert os.environ["nnUNet_results"] == str(tmp_path / "nnUNet_results")


def test_one_missing_variable_is_named(monkeypatch):
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        monkeypatch.setenv(name, "/somewhere")
    monkeypatch.delenv("nnUNet_results", raising=False)
    with pytest.raises(UserError, match="nnUNet_results is not set"):
        resolve(None)


@pytest.mark.parametrize("text", ["4", "004", "Dataset004_Heart"])
def test_data_sets_by_number_and_name(folders, text):
    (folders.raw / "Dataset004_Heart").mkdir(parents=True)
    assert folders.dataset_name(text) == "Dataset004_Heart"


def test_two_of_one_number_are_refused(folders):
    for name in ("Dataset004_Heart", "Dataset004_Liver"):
        (folders.preprocessed / name).mkdir(parents=True)
    with pytest.raises(UserError, match="means Dataset004_Heart and Dataset004_Liver"):
        folders.dataset_name("4")
