"""Decisions and segmentations are those of nnU-Net, and its pickles are not needed."""

import json
import math
import multiprocessing
import multiprocessing.pool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
from nnunetv2.postprocessing.remove_connected_components import determine_postprocessing

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.select.postprocessing import (
    Decision,
    Postprocessing,
    apply_to_folder,
    decisions_table,
    determine,
    keep_largest,
    write_decisions,
)

PLAIN = {"background": 0, "liver": 1, "kidney": 2, "spleen": 3}
REGIONS = {"background": 0, "whole": [1, 2, 3], "core": [2, 3], "enhancing": [3]}
DATA_SETS = {
    "labels": {"labels": PLAIN},
    "one label": {"labels": {"background": 0, "liver": 1}},
    "ignore": {"labels": PLAIN | {"ignore": 4}},
    "regions": {"labels": REGIONS, "regions_class_order": [1, 2, 3]},
    "regions and ignore": {"labels": REGIONS | {"ignore": 4}, "regions_class_order": [1, 2, 3]},
}
NNUNET_PLANS = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}


def description(kind: str) -> dict:
    return {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 1} | DATA_SETS[kind]


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing((0.7, 0.8, 2.5))
    image.SetOrigin((-10, 20, 3.5))
    image.SetDirection((0, 1, 0, 1, 0, 0, 0, 0, -1))
    sitk.WriteImage(image, str(path))


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


def make_cases(folder: Path, dataset_json: dict, seed: int, cases: int = 5) -> None:
    """Boxes of every label, scattered or (odd seeds) in one place, and predictions that put small boxes anywhere."""
    rng = np.random.default_rng(seed)
    ignore = dataset_json["labels"].get("ignore")
    top = Labels.from_json(dataset_json, Path("dataset.json")).values[-1] - (ignore is not None)

    def box(array: np.ndarray, size: int, value: int, *, central: bool = False) -> None:
        start = [int(rng.integers(0, extent - size)) for extent in array.shape]
        if central:
            start = [(extent - size) // 2 + int(rng.integers(-1, 2)) for extent in array.shape]
        array[tuple(slice(first, first + size) for first in start)] = value

    for number in range(cases):
        reference = np.zeros((10, 14, 12), np.uint8)
        for value in range(1, top + 1):
            for _ in range(rng.integers(0, 3)):
                box(reference, 4, value, central=seed % 2 == 1)
        prediction = reference.copy()
        for _ in range(rng.integers(0, 4)):
            box(prediction, int(rng.integers(1, 4)), int(rng.integers(0, top + 1)))
        if ignore is not None:
            box(reference, 5, ignore)
        write(reference, folder / "references" / f"case_{number}.nii.gz")
        write(prediction, folder / "predictions" / f"case_{number}.nii.gz")
    (folder / "predictions" / "dataset.json").write_text(json.dumps(dataset_json))


@pytest.fixture
def nnunet_in_this_process(monkeypatch):
    """Its worker processes take seconds to start, and it starts some for every step."""
    threads = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: threads)


# An empty class has no mean, of which numpy warns nnU-Net.
@pytest.mark.filterwarnings("ignore:Mean of empty slice:RuntimeWarning")
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("kind", DATA_SETS)
def test_decisions_and_segmentations_are_nnunets(tmp_path, nnunet_in_this_process, kind, seed):
    dataset_json = description(kind)
    make_cases(tmp_path, dataset_json, seed)
    references, predictions = tmp_path / "references", tmp_path / "predictions"
    decisions = determine(references, predictions, dataset_json, workers=2)
    ours = write_decisions(decisions, dataset_json, tmp_path / "postprocessing.json")

    _, theirs = determine_postprocessing(str(predictions), str(references), NNUNET_PLANS, dataset_json, 1)

    def values(step) -> set[int]:
        return {int(value) for entry in np.atleast_1d(np.array(step, object)) for value in np.atleast_1d(entry)}

    wanted = [values(step["labels_or_regions"]) for step in theirs]
    found = [{v for name in step for v in np.atleast_1d(ours.labels.foreground[name])} for step in ours.steps]
    assert found == wanted
    for path in apply_to_folder(ours, predictions, tmp_path / "out", workers=1):
        np.testing.assert_array_equal(voxels(path), voxels(predictions / "postprocessed" / path.name))
    summary = json.loads((predictions / "postprocessed" / "summary.json").read_text())["mean"]
    last = {name: decision.before[name] for decision in decisions for name in decision.step}
    last |= {name: decision.after[name] for decision in decisions if decision.taken for name in decision.step}
    if not ours.labels.has_regions:  # of regions the others change too
        by_value = {str(value): last[name] for name, value in ours.labels.foreground.items()}
        np.testing.assert_equal(by_value, {key: metrics["Dice"] for key, metrics in summary.items()})


def test_the_random_cases_try_both_answers(tmp_path):
    answers = set()
    for kind in ("labels", "regions"):
        for seed in range(4):
            make_cases(tmp_path / f"{kind}{seed}", description(kind), seed)
            folder = tmp_path / f"{kind}{seed}"
            decisions = determine(folder / "references", folder / "predictions", description(kind), workers=2)
            answers |= {(len(one.step), one.taken) for one in decisions}
    assert answers == {(1, True), (1, False), (3, True), (3, False)}


def decision(before: list[float], after: list[float]) -> Decision:
    names = [f"class {number}" for number in range(len(before))]
    return Decision(tuple(names), dict(zip(names, before, strict=True)), dict(zip(names, after, strict=True)))


@pytest.mark.parametrize(
    ("before", "after", "taken"),
    [
        ([0.5, 0.5], [0.6, 0.5], True),
        ([0.5, 0.5], [0.9, 0.49], False),  # one class is harmed
        ([0.5, 0.5], [0.5, 0.5], False),  # nothing is gained
        ([0.5, math.nan], [0.9, math.nan], False),  # no mean
        ([0.5], [0.6], True),
        ([math.nan], [math.nan], False),
    ],
)
def test_rule(before, after, taken):
    assert decision(before, after).taken is taken


def test_a_mean_that_does_not_exist_is_null_in_the_file(tmp_path):
    path = tmp_path / "postprocessing.json"
    lost = Decision(("liver",), {"liver": 0.0}, {"liver": math.nan})  # all of it was in no reference
    written = write_decisions([lost], description("one label"), path)
    assert "NaN" not in path.read_text()
    [reason] = json.loads(path.read_text())["decisions"]
    assert reason == {
        "classes": ["liver"],
        "taken": False,
        "dice_before": {"liver": 0.0},
        "dice_after": {"liver": None},
    }
    assert Postprocessing.read(path) == written


def test_table_says_what_was_tried():
    lines = decisions_table([decision([0.5, 0.7], [0.6, 0.8]), decision([0.25], [0.125])]).splitlines()
    assert lines[2].split() == ["all", "foreground", "0.6000", "0.7000", "yes"]
    assert lines[3].split() == ["class", "0", "0.2500", "0.1250", "no"]


def test_largest_component_of_several_labels_together():
    image = np.zeros((1, 4, 9), np.uint8)
    image[0, 0, :2], image[0, 1, 2] = 1, 2  # touch at a corner: three voxels
    image[0, 0, 5:7] = 1
    image[0, 3, :] = 3
    kept = keep_largest(image, [1, (1, 2)])
    assert kept[0].tolist() == [[1, 1, 0, 0, 0, 0, 0, 0, 0], [0, 0, 2, 0, 0, 0, 0, 0, 0], [0] * 9, [3] * 9]
    assert image[0, 0, 5] == 1, "the input is not changed"
    assert not keep_largest(np.zeros((2, 3, 4), np.uint8), [1]).any()


def test_components_of_equal_size_are_all_kept():
    image = np.array([[[1, 0, 1, 0, 2]]], np.uint8)
    np.testing.assert_array_equal(keep_largest(image, [1]), image)


def test_steps_come_one_after_the_other():
    image = np.array([[[1, 1, 1, 0, 2, 2, 0, 1]]], np.uint8)
    labels = Labels({"liver": 1, "kidney": 2}, None, None)
    assert Postprocessing((("liver", "kidney"), ("kidney",)), labels).apply(image).tolist() == [[[1, 1, 1] + [0] * 5]]
    assert Postprocessing((("liver",),), labels).apply(image).tolist() == [[[1, 1, 1, 0, 2, 2, 0, 0]]]
    assert Postprocessing((), labels).apply(image).tolist() == image.tolist()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": PLAIN}, '"keep_largest_component" is None, no list of lists'),
        ({"labels": PLAIN, "keep_largest_component": ["liver"]}, r"is \['liver'\], no list of lists"),
        ({"labels": PLAIN, "keep_largest_component": [[]]}, "no list of lists"),
        ({"labels": PLAIN, "keep_largest_component": [["heart"]]}, "names 'heart', which its \"labels\" do not have"),
        ({"labels": PLAIN, "keep_largest_component": [[["liver"]]]}, r"names \['liver'\], which"),
        ({"labels": PLAIN, "keep_largest_component": [["background"]]}, "names 'background', which"),
        ({"keep_largest_component": []}, '"labels" is missing'),
        ([], "holds a JSON list"),
    ],
)
def test_file_is_checked(tmp_path, content, message):
    (tmp_path / "postprocessing.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=message):
        Postprocessing.read(tmp_path / "postprocessing.json")


def test_pickle_is_refused(tmp_path):
    import pickle

    (tmp_path / "postprocessing.pkl").write_bytes(pickle.dumps(([print], [{}])))
    with pytest.raises(UserError, match="not JSON"):
        Postprocessing.read(tmp_path / "postprocessing.pkl")


@pytest.fixture
def prepared(tmp_path) -> SimpleNamespace:
    make_cases(tmp_path, description("labels"), seed=0, cases=3)
    file = tmp_path / "postprocessing.json"
    file.write_text(json.dumps({"labels": PLAIN, "keep_largest_component": [["liver"]]}))
    return SimpleNamespace(folder=tmp_path / "predictions", file=file, output=tmp_path / "out", base=tmp_path)


def test_verb_keeps_the_geometry_and_all_cases(umamba_seg, prepared):
    words = ("postprocess", "-i", prepared.folder, "-o", prepared.output, "-pp", prepared.file)
    result = umamba_seg(*words, "--json").succeeded().result
    assert len(result["segmentations"]) == 3
    assert result["keep_largest_component"] == [["liver"]]
    for path in prepared.folder.glob("*.nii.gz"):
        before, after = sitk.ReadImage(str(path)), sitk.ReadImage(str(prepared.output / path.name))
        assert after.GetDirection() == before.GetDirection()
        assert after.GetOrigin() == before.GetOrigin()
        assert after.GetSpacing() == before.GetSpacing()
        np.testing.assert_array_equal(sitk.GetArrayFromImage(after), keep_largest(sitk.GetArrayFromImage(before), [1]))
    assert (prepared.output / "dataset.json").is_file()
    assert not list(prepared.output.glob(".*"))


def test_verb_finds_the_file_of_a_model(umamba_seg, prepared):
    model = prepared.base / "model"
    words = ("postprocess", "-i", prepared.folder, "-o", prepared.output, "-m", model)
    model.mkdir()
    refused = umamba_seg(*words)
    assert refused.code == 2
    assert "no crossval_results_folds_*/postprocessing.json" in refused.err
    for folds in ("0", "0_1_2_3_4"):
        (model / f"crossval_results_folds_{folds}").mkdir()
        content = prepared.file.read_text()
        (model / f"crossval_results_folds_{folds}" / "postprocessing.json").write_text(content)
        if folds == "0":
            umamba_seg(*words).succeeded()
    refused = umamba_seg(*words)
    assert refused.code == 2
    assert "several" in refused.err
    assert "-pp" in refused.err


def test_one_broken_segmentation_does_not_stop_the_others(prepared):
    broken = prepared.folder / "case_1.nii.gz"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(CasesFailed, match=r"case_1\.nii\.gz") as caught:
        apply_to_folder(Postprocessing.read(prepared.file), prepared.folder, prepared.output, workers=2)
    assert set(caught.value.failures) == {"case_1"}
    assert sorted(path.name for path in prepared.output.glob("*.nii.gz")) == ["case_0.nii.gz", "case_2.nii.gz"]


def test_other_labels_and_folders_are_refused(prepared):
    postprocessing = Postprocessing.read(prepared.file)
    with pytest.raises(UserError, match="is the folder of the segmentations themselves"):
        apply_to_folder(postprocessing, prepared.folder, prepared.folder / ".", workers=1)
    swapped = description("labels") | {"labels": PLAIN | {"liver": 2, "kidney": 1}}
    (prepared.folder / "dataset.json").write_text(json.dumps(swapped))
    with pytest.raises(UserError, match="its labels are not those of the postprocessing: liver, kidney"):
        apply_to_folder(postprocessing, prepared.folder, prepared.output, workers=1)


def test_shapes_that_differ_are_named(prepared):
    write(np.ones((2, 3, 4)), prepared.folder / "case_2.nii.gz")
    with pytest.raises(UserError, match=r"case_2\.nii\.gz: has the shape 2×3×4, but .*references.* has 10×14×12"):
        determine(prepared.base / "references", prepared.folder, description("labels"), workers=2)
