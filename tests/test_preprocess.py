"""What tells whether preprocessed data is of the raw files that are there."""

import os
import shutil

from umamba_seg import preprocess
from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.datasets.synthetic import make_dataset


def test_a_data_set_that_was_moved_is_the_same(tmp_path):
    sizes = {"train_cases": 2, "test_cases": 0, "shape": (16, 16, 8), "spacing": (2.5, 2.5, 6.0), "seed": 0}
    raw = make_dataset(tmp_path / "nnUNet_raw", 901, "Tiny", **sizes)
    before = preprocess._raw_files(load_raw_dataset(raw))
    moved = shutil.move(raw, tmp_path / raw.name)
    dataset = load_raw_dataset(moved)
    assert preprocess._raw_files(dataset) == before
    label = dataset.cases[0].label
    os.utime(label, ns=(0, label.stat().st_mtime_ns + 10**9))
    assert preprocess._raw_files(dataset) != before


def test_a_reference_is_as_new_as_its_content(tmp_path):
    label, reference = tmp_path / "label.nii.gz", tmp_path / "reference.nii.gz"
    label.write_bytes(b"as published")
    preprocess._copy(label, reference)
    os.utime(reference, ns=(0, 10**9))
    preprocess._copy(label, reference)
    assert reference.stat().st_mtime_ns == 10**9  # the same
    label.write_bytes(b"as corrected")
    os.utime(label, ns=(0, 10**8))  # unpacked with an old time
    preprocess._copy(label, reference)
    assert reference.read_bytes() == b"as corrected"
    assert reference.stat().st_mtime_ns > 10**9
