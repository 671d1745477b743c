"""Averaged probabilities: nnU-Net's segmentations, in memory that does not grow with the classes."""

import json
import multiprocessing
import multiprocessing.pool
import pickle
import tracemalloc
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.ensembling.ensemble import ensemble_folders

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.predict import ensemble
from umamba_seg.predict.ensemble import ProbabilityFile, average, average_folders
from umamba_seg.predict.writing import read_probabilities

LABELS = {"labels": {"background": 0, "kidney": 2, "liver": 1}}
REGIONS = {"labels": {"background": 0, "whole": [1, 2, 3], "core": [2, 3]}, "regions_class_order": [1, 3]}
NAMES = {"labels": ["background", "liver", "kidney"], "regions": ["whole", "core"]}
GEOMETRY = {"spacing": (0.7, 0.8, 2.5), "origin": (-10.0, 20.0, 3.5), "direction": (0.0, 1, 0, 1, 0, 0, 0, 0, -1)}
SHAPE = (5, 6, 4)
PLANS = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}


def description(kind: str) -> dict:
    return {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz"} | {"labels": LABELS, "regions": REGIONS}[kind]


def chances(seed: int, classes: int, kind: str, shape: tuple = SHAPE) -> np.ndarray:
    values = np.random.default_rng(seed).random((classes, *shape), np.float32)
    return values if kind == "regions" else values / values.sum(0)


def write_segmentation(path: Path, array: np.ndarray) -> None:
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing(GEOMETRY["spacing"])
    image.SetOrigin(GEOMETRY["origin"])
    image.SetDirection(GEOMETRY["direction"])
    sitk.WriteImage(image, str(path))


def make_member(folder: Path, kind: str, cases: dict[str, np.ndarray], **arrays: object) -> Path:
    """As prediction leaves it: dataset.json, and for each case a segmentation and its probabilities."""
    folder.mkdir(parents=True)
    (folder / "dataset.json").write_text(json.dumps(description(kind)))
    (folder / "plans.json").write_text(json.dumps(PLANS))
    for case, probabilities in cases.items():
        np.savez_compressed(folder / f"{case}.npz", probabilities=probabilities, **arrays)
        write_segmentation(folder / f"{case}.nii.gz", np.zeros(probabilities.shape[1:]))
        properties = {"sitk_stuff": GEOMETRY, "spacing": GEOMETRY["spacing"][::-1]}
        (folder / f"{case}.pkl").write_bytes(pickle.dumps(properties))
    return folder


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(params=["labels", "regions"])
def members(request, tmp_path) -> SimpleNamespace:
    kind, classes = request.param, len(NAMES[request.param])
    folders = [
        make_member(
            tmp_path / f"member_{seed}",
            kind,
            {case: chances(10 * seed + ord(case[0]), classes, kind) for case in ("ab", "cd")},
        )
        for seed in range(3)
    ]
    return SimpleNamespace(kind=kind, folders=folders, output=tmp_path / "out", base=tmp_path)


def test_segmentations_are_nnunets(members, monkeypatch):
    threads = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: threads)  # its processes take seconds to start
    monkeypatch.setattr(ensemble, "_VOXELS", 50)  # two planes at a time, and one that is left over
    theirs = members.base / "theirs"
    ensemble_folders([str(folder) for folder in members.folders], str(theirs), num_processes=1)
    written = average_folders(members.folders, members.output)
    assert [path.name for path in written] == ["ab.nii.gz", "cd.nii.gz"]
    for path in written:
        np.testing.assert_array_equal(voxels(path), voxels(theirs / path.name))
        assert len(np.unique(voxels(path))) == 3
    assert (members.output / "dataset.json").is_file()


def test_geometry_is_that_of_the_members(members):
    average_folders(members.folders, members.output)
    image = sitk.ReadImage(str(members.output / "ab.nii.gz"))
    for key, wanted in GEOMETRY.items():
        np.testing.assert_allclose(getattr(image, f"Get{key.title()}")(), wanted, atol=1e-6)


def test_mean_is_saved_and_can_be_averaged_again(members):
    average_folders(members.folders, members.output, save_probabilities=True)
    found, _ = read_probabilities(members.output / "ab.npz")
    wanted = np.mean([read_probabilities(folder / "ab.npz")[0] for folder in members.folders], axis=0)
    assert found.dtype == np.float16
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    average_folders([members.output, members.folders[0]], members.base / "again")
    assert not list(members.output.glob(".*"))


@pytest.mark.parametrize("saved", ["float16", "uint8"])
def test_our_files_with_names_and_geometry(tmp_path, saved):
    for kind, names in NAMES.items():
        exact = [chances(seed, len(names), kind) for seed in (1, 2)]
        stored = [
            np.rint(255 * values).astype("uint8") if saved == "uint8" else values.astype(saved) for values in exact
        ]
        folders = [
            make_member(tmp_path / kind / str(number), kind, {"a": values}, names=names, **GEOMETRY)
            for number, values in enumerate(stored)
        ]
        output = tmp_path / kind / "out"
        average_folders(folders, output, save_probabilities=True)
        mean = np.mean([values / (255 if saved == "uint8" else 1) for values in stored], axis=0, dtype=np.float32)
        np.testing.assert_allclose(read_probabilities(output / "a.npz")[0], mean, atol=1e-3)
        assert read_probabilities(output / "a.npz")[1] == names
        with np.load(output / "a.npz") as archive:
            np.testing.assert_array_equal(archive["direction"], GEOMETRY["direction"])
        if kind == "labels":
            sure = np.sort(mean, axis=0)[-1] - np.sort(mean, axis=0)[-2] > 1e-5
            np.testing.assert_array_equal(voxels(output / "a.nii.gz")[sure], mean.argmax(0)[sure])
        else:
            wanted = np.where(mean[1] > 0.5, 3, np.where(mean[0] > 0.5, 1, 0))
            sure = (abs(mean - 0.5) > 1e-5).all(0)
            np.testing.assert_array_equal(voxels(output / "a.nii.gz")[sure], wanted[sure])


def test_a_tie_goes_to_the_first_class(tmp_path):
    even = np.full((3, *SHAPE), 1 / 3, np.float32)
    folders = [make_member(tmp_path / name, "labels", {"a": even}) for name in "xy"]
    average_folders(folders, tmp_path / "out")
    assert not voxels(tmp_path / "out" / "a.nii.gz").any()


def test_one_region_whose_axes_were_swapped(tmp_path):
    """nnU-Net saves it in Fortran order then."""
    values = np.random.default_rng(0).random((1, 4, 6, 5), np.float32)
    np.savez_compressed(tmp_path / "a.npz", probabilities=values.transpose(0, 3, 2, 1))
    labels = Labels({"whole": (1, 2)}, None, (1,))
    with ProbabilityFile(tmp_path / "a.npz") as file:
        found = average([file], labels)
    np.testing.assert_array_equal(found, values[0].transpose(2, 1, 0) > 0.5)


def test_memory_does_not_grow_with_the_classes(tmp_path, monkeypatch):
    monkeypatch.setattr(ensemble, "_VOXELS", 2**14)
    peaks = []
    for classes in (3, 48):
        labels = Labels({f"label {value}": value for value in range(1, classes)}, None, None)
        values = np.zeros((classes, 128, 64, 64), np.float32)  # long beside a plane, of which all classes are held
        values[::2] = 1 / classes
        np.savez_compressed(tmp_path / "a.npz", probabilities=values)
        tracemalloc.start()
        with ProbabilityFile(tmp_path / "a.npz") as first, ProbabilityFile(tmp_path / "a.npz") as second:
            average([first, second], labels)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.1 * peaks[0]
    assert peaks[1] < 2 * 128 * 64**2 * 5, "a few volumes: labels, their probability, and some planes"


# ----------------------------------------------------------------------------------------------------- what is refused


def spoil_name(folder: Path) -> None:
    values = read_probabilities(folder / "ab.npz")[0]
    np.savez_compressed(folder / "ab.npz", probabilities=values, names=[f"other {n}" for n in range(len(values))])


def spoil_classes(folder: Path) -> None:
    np.savez_compressed(folder / "ab.npz", probabilities=np.zeros((7, *SHAPE), np.float32))


def spoil_shape(folder: Path) -> None:
    values = read_probabilities(folder / "ab.npz")[0]
    np.savez_compressed(folder / "ab.npz", probabilities=values[:, :-1])


def spoil_end(folder: Path) -> None:
    path = folder / "ab.npz"
    path.write_bytes(path.read_bytes()[:-60])


def spoil_middle(folder: Path) -> None:
    path = folder / "ab.npz"
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.write_bytes(content)


def spoil_member(folder: Path) -> None:
    np.savez_compressed(folder / "ab.npz", softmax=np.zeros(SHAPE))


def spoil_kind(folder: Path) -> None:
    np.savez_compressed(folder / "ab.npz", probabilities=np.zeros((3, *SHAPE), np.int32))


def spoil_objects(folder: Path) -> None:
    np.savez_compressed(folder / "ab.npz", probabilities=np.array([print], object), allow_pickle=True)


def spoil_values(folder: Path) -> None:
    values = read_probabilities(folder / "ab.npz")[0]
    values[0, 1, 2, 3] = np.nan
    np.savez_compressed(folder / "ab.npz", probabilities=values)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_name, "is of the classes other 0, other 1"),
        (spoil_classes, "has 7 classes, but dataset.json has"),
        (spoil_shape, "has the shape 4×6×4, but .*member_0.* has 5×6×4"),
        (spoil_end, "or is damaged"),
        (spoil_middle, "or is damaged"),
        (spoil_member, "holds no probabilities"),
        (spoil_kind, "holds int32 of the shape 3×5×6×4, no probabilities"),
        (spoil_objects, "no probabilities"),
        (spoil_values, "holds values that are not finite"),
    ],
)
def test_what_does_not_fit_is_named_and_the_others_are_averaged(members, spoil, message):
    spoil(members.folders[1])
    with pytest.raises(CasesFailed, match=message) as caught:
        average_folders(members.folders, members.output, save_probabilities=True)
    assert set(caught.value.failures) == {"ab"}
    assert "member_1" in caught.value.failures["ab"]
    names = {path.name for path in members.output.iterdir()}
    assert names == {"dataset.json", "cd.nii.gz", "cd.npz"}


def test_segmentation_of_another_shape_is_refused(members):
    write_segmentation(members.folders[0] / "ab.nii.gz", np.zeros((2, 3, 4)))
    with pytest.raises(CasesFailed, match=r"ab\.nii\.gz: has the shape 2×3×4"):
        average_folders(members.folders, members.output)


def test_when_no_case_is_left_it_is_said_so(members):
    for folder in members.folders:
        (folder / "cd.npz").unlink()
    spoil_end(members.folders[2])
    with pytest.raises(UserError, match=r"no case could be written; mend them:\n.*damaged"):
        average_folders(members.folders, members.output)


def test_members_must_have_the_same_cases(members):
    (members.folders[1] / "cd.npz").unlink()
    with pytest.raises(UserError, match="member_1: holds no probabilities of cd, which others have"):
        average_folders(members.folders, members.output)
    assert not members.output.exists()


def test_members_must_have_the_same_labels(members):
    path = members.folders[1] / "dataset.json"
    content = json.loads(path.read_text())
    content["labels"] = dict(reversed(content["labels"].items()))
    path.write_text(json.dumps(content))
    if members.kind == "labels":  # whose channels are in the order of their values
        average_folders(members.folders, members.output)
        return
    with pytest.raises(UserError, match=r"classes: \[\('core', .* but .*member_0"):
        average_folders(members.folders, members.output)


@pytest.mark.parametrize(
    ("folders", "output", "message"),
    [
        ([0], "out", "two or more"),
        ([0, 1, 0], "out", "name each of them once"),
        ([0, 1], "member_1", "is one of the folders"),
    ],
)
def test_folders_that_make_no_ensemble(members, folders, output, message):
    with pytest.raises(UserError, match=message):
        average_folders([members.folders[number] for number in folders], members.base / output)


def test_empty_folders_are_named(members):
    for folder in members.folders:
        for path in folder.glob("*.npz"):
            path.unlink()
    with pytest.raises(UserError, match=r"holds no probabilities .*save-probabilities"):
        average_folders(members.folders, members.output)


def test_verb_averages_folders(umamba_seg, members):
    words = ("ensemble", "-i", *members.folders, "-o", members.output, "--json")
    result = umamba_seg(*words).succeeded().result
    assert result == {"segmentations": [str(members.output / f"{case}.nii.gz") for case in ("ab", "cd")], "failed": {}}
    spoil_end(members.folders[0])
    failed = umamba_seg(*words)
    assert failed.code == 3
    assert set(failed.result["failed"]) == {"ab"}


def test_verb_wants_images_for_models(umamba_seg, tmp_path):
    refused = umamba_seg("ensemble", "-m", tmp_path / "a", tmp_path / "b", "-o", tmp_path / "out")
    assert refused.code == 2
    assert "--images" in refused.err
    refused = umamba_seg("ensemble", "-i", tmp_path / "a", "--images", tmp_path, "-o", tmp_path / "out")
    assert refused.code == 2
    assert "--images" in refused.err
