"""The best of several models by their validation, on folders as training leaves them."""

import errno
import json
import math
import multiprocessing
import multiprocessing.pool
import pickle
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from nnunetv2.ensembling.ensemble import ensemble_folders
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO

from umamba_seg import locks
from umamba_seg.cli import build_parser
from umamba_seg.errors import UserError
from umamba_seg.select.crossval import Candidate, Model, whole_folder
from umamba_seg.select.find_best import find_best
from umamba_seg.select.instructions import write_information

DATASET = "Dataset007_Made"
LABELS = {"labels": {"background": 0, "liver": 1, "kidney": 2}}
PLANS = {
    "dataset_name": DATASET,
    "configurations": {
        "2d": {},
        "3d_lowres": {},
        "3d_fullres": {},
        "3d_cascade_fullres": {"inherits_from": "3d_fullres", "previous_stage": "3d_lowres"},
    },
    "umamba_seg": {},
}
SHAPE = (6, 8, 10)


def description(special: dict = LABELS) -> dict:
    return {"channel_names": {"0": "CT"}, "file_ending": ".nii.gz", "numTraining": 6} | special


def write(array: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = sitk.GetImageFromArray(array.astype(np.uint8))
    image.SetSpacing((0.7, 0.8, 2.5))
    sitk.WriteImage(image, str(path))


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


class World:
    """A data set of six cases in two folds, and models whose predictions are wrong in some voxels."""

    def __init__(self, root: Path):
        self.root = root
        self.results, self.preprocessed = root / "nnUNet_results" / DATASET, root / "nnUNet_preprocessed" / DATASET
        self.cases = [f"case_{number}" for number in range(6)]
        folds = [self.cases[:3], self.cases[3:]]
        splits = [{"train": folds[1 - fold], "val": folds[fold]} for fold in range(2)]
        self.preprocessed.mkdir(parents=True)
        (self.preprocessed / "splits_final.json").write_text(json.dumps(splits))
        (self.preprocessed / "dataset.json").write_text(json.dumps(description()))
        self.folds = folds
        for case in self.cases:
            write(self.reference(case), self.preprocessed / "gt_segmentations" / f"{case}.nii.gz")

    def reference(self, case: str) -> np.ndarray:
        array = np.zeros(SHAPE, np.uint8)
        start = self.cases.index(case) % 3
        array[1:5, 2:6, start : start + 3], array[1:5, 2:6, start + 3 : start + 6] = 1, 2
        return array

    def model(
        self, plans: str, wrong: float | list[float], *, npz: bool = True, configuration: str = "3d_fullres"
    ) -> Path:
        """Add a model with so large a share of wrong voxels; the probabilities are sure where it is right."""
        share = dict(zip(self.cases, wrong if isinstance(wrong, list) else [wrong] * 6, strict=True))
        folder = self.results / f"UMambaSegTrainer__{plans}__{configuration}"
        folder.mkdir(parents=True)
        (folder / "plans.json").write_text(json.dumps(PLANS | {"plans_name": plans}))
        (folder / "dataset.json").write_text(json.dumps(description()))
        rng = np.random.default_rng(list(plans.encode()))
        for fold, cases in enumerate(self.folds):
            for case in cases:
                self.predict(folder / f"fold_{fold}" / "validation" / case, self.reference(case), share[case], npz, rng)
        return folder

    def predict(self, path: Path, truth: np.ndarray, wrong: float, npz: bool, rng: np.random.Generator) -> None:
        off = rng.random(SHAPE) < wrong
        prediction = np.where(off, (truth + 1) % 3, truth)
        write(prediction, path.with_name(f"{path.name}.nii.gz"))
        if npz:
            sure = np.where(off, 0.4, 0.9)
            chances = np.where(np.arange(3)[:, None, None, None] == prediction, sure, (1 - sure) / 2)
            np.savez_compressed(path.with_name(f"{path.name}.npz"), probabilities=chances.astype(np.float32))

    def find(self, **how) -> dict:
        return find_best(self.results, self.preprocessed, **how)


@pytest.fixture
def world(tmp_path) -> World:
    return World(tmp_path)


@pytest.fixture
def nnunet_in_this_process(monkeypatch):
    """Its worker processes take seconds to start."""
    threads = SimpleNamespace(Pool=multiprocessing.pool.ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: threads)


def test_score_is_nnunets(world, nnunet_in_this_process):
    model = world.model("a", 0.1)
    found = world.find()
    merged = model / "crossval_results_folds_0_1"
    references = world.preprocessed / "gt_segmentations"
    theirs = compute_metrics_on_folder(
        str(references), str(merged), str(world.root / "theirs.json"), SimpleITKIO(), ".nii.gz", [1, 2], num_processes=1
    )
    assert found["all_results"][model.name] == pytest.approx(theirs["foreground_mean"]["Dice"], rel=1e-12)
    ours = json.loads((merged / "summary.json").read_text())
    assert ours["metric_per_case"] == json.loads((world.root / "theirs.json").read_text())["metric_per_case"]


def test_best_model_and_its_files(world):
    good, bad = world.model("good", 0.02), world.model("bad", 0.2)
    found = world.find(ensembles=False)
    assert list(found["all_results"]) == [bad.name, good.name]
    best = found["best_model_or_ensemble"]
    assert best["name"] == good.name
    assert best["selected_model_or_models"] == [
        {
            "configuration": "3d_fullres",
            "trainer": "UMambaSegTrainer",
            "plans_identifier": "good",
            "model_folder": str(good),
        }
    ]
    for model in (good, bad):
        merged = model / "crossval_results_folds_0_1"
        assert {path.name for path in merged.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in world.cases}
        assert {"plans.json", "dataset.json", "summary.json"} <= {path.name for path in merged.iterdir()}
    summary = json.loads((merged / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == found["all_results"][bad.name]
    assert summary["metric_per_case"][0]["prediction_file"] == str(merged / "case_0.nii.gz")
    assert (good / "crossval_results_folds_0_1" / "postprocessing.json").is_file()
    assert json.loads((world.results / "inference_information.json").read_text()) == json.loads(json.dumps(found))
    assert [path.name for path in world.results.rglob(".*")] == [".find_best.lock"]


def test_ensemble_is_nnunets_and_wins(world, nnunet_in_this_process):
    models = [world.model("one", 0.2), world.model("two", 0.2), world.model("three", 0.2, npz=False)]
    found = world.find()
    name = f"ensemble___{models[0].name}___{models[1].name}___0_1"
    assert found["best_model_or_ensemble"]["name"] == name
    assert [key for key in found["all_results"] if key.startswith("ensemble")] == [name]
    reason = found["left_out"][f"ensembles with {models[2].name}"]
    assert "its validation left no .npz of any case; validate again: `umamba-seg train ... --val --npz`" in reason

    members = []
    for model in models[:2]:
        member = world.root / model.name
        member.mkdir()
        (member / "dataset.json").write_text(json.dumps(description()))
        plans = {"image_reader_writer": "SimpleITKIO", "label_manager": "LabelManager", "configurations": {}}
        (member / "plans.json").write_text(json.dumps(plans))
        for path in model.rglob("validation/*.npz"):
            shutil.copy(path, member)
            _, properties = SimpleITKIO().read_seg(str(path.with_suffix(".nii.gz")))
            (member / f"{path.stem}.pkl").write_bytes(pickle.dumps(properties))
        members.append(str(member))
    ensemble_folders(members, str(world.root / "theirs"), num_processes=1)
    for case in world.cases:
        ours = voxels(world.results / "ensembles" / name / f"{case}.nii.gz")
        np.testing.assert_array_equal(ours, voxels(world.root / "theirs" / f"{case}.nii.gz"))
    assert (world.results / "ensembles" / name / "postprocessing.json").is_file()


def test_postprocessing_of_the_best_is_applied_and_scored(world):
    world.model("model", 0.05)
    found = world.find()
    best = found["best_model_or_ensemble"]
    assert best["result_on_crossval_post_pp"] > best["result_on_crossval_pre_pp"]
    merged = Path(best["postprocessing_file"]).parent
    summary = json.loads((merged / "postprocessed" / "summary.json").read_text())
    assert summary["foreground_mean"]["Dice"] == best["result_on_crossval_post_pp"]
    assert json.loads((merged / "postprocessing.json").read_text())["keep_largest_component"]
    assert found["commands"][-1].startswith("umamba-seg postprocess")


def test_nothing_to_postprocess_is_no_command(world):
    world.model("perfect", 0)
    found = world.find()
    assert found["best_model_or_ensemble"]["result_on_crossval_post_pp"] == 1
    assert len(found["commands"]) == 1
    assert not (Path(found["best_model_or_ensemble"]["postprocessing_file"]).parent / "postprocessed").exists()


def test_differences_are_paired_and_judged(world):
    world.model("a", [0.1, 0.3] * 3, npz=False)
    world.model("b", [0.3, 0.1] * 3, npz=False)
    world.model("worse", 0.5, npz=False)
    rows = {row["name"].split("__")[1]: row for row in world.find()["comparison"]}
    assert rows["worse"]["remark"] == ""
    assert rows["worse"]["interval"][1] < 0
    assert sorted((rows["a"]["remark"], rows["b"]["remark"])) == ["best", "within the noise"]
    (best,) = (row for row in rows.values() if row["remark"] == "best")
    assert best["difference"] == 0
    assert rows["worse"]["difference"] == pytest.approx(rows["worse"]["dice"] - best["dice"])  # no case is undefined


def test_one_case_is_too_few_for_an_interval(world):
    splits = [{"train": world.cases[1:], "val": world.cases[:1]}]
    world.folds = [world.cases[:1]]
    (world.preprocessed / "splits_final.json").write_text(json.dumps(splits))
    world.model("a", 0.1)
    world.model("b", 0.2)
    rows = world.find(ensembles=False)["comparison"]
    assert [row["remark"] for row in rows] == ["best", "too few cases to tell"]
    assert rows[1]["interval"] is None


def test_folds_can_be_chosen(world):
    model = world.model("a", 0.1)
    shutil.rmtree(model / "fold_1")
    found = world.find(folds=[0])
    assert found["folds"] == [0]
    assert len(list((model / "crossval_results_folds_0").glob("*.nii.gz"))) == 3
    assert "-f 0 " in found["commands"][0] + " "
    with pytest.raises(UserError, match=r"-f 2: not in .*splits_final.json, which holds 2 folds"):
        world.find(folds=[0, 2])


def without_fold(model: Path) -> None:
    shutil.rmtree(model / "fold_1" / "validation")


def without_case(model: Path) -> None:
    (model / "fold_1" / "validation" / "case_4.nii.gz").unlink()


def with_case_twice(model: Path) -> None:
    shutil.copy(model / "fold_1" / "validation" / "case_4.nii.gz", model / "fold_0" / "validation")


def with_other_case(model: Path) -> None:
    validation = model / "fold_1" / "validation"
    shutil.copy(validation / "case_4.nii.gz", validation / "another.nii.gz")


def with_broken_case(model: Path) -> None:
    path = model / "fold_1" / "validation" / "case_4.nii.gz"
    path.write_bytes(path.read_bytes()[:50])


def with_other_shape(model: Path) -> None:
    write(np.zeros((2, 3, 4)), model / "fold_1" / "validation" / "case_4.nii.gz")


def with_other_labels(model: Path) -> None:
    labels = {"background": 0, "kidney": 1, "liver": 2}
    (model / "dataset.json").write_text(json.dumps(description({"labels": labels})))


def with_plans_of_others(model: Path) -> None:
    (model / "plans.json").write_text("{}")


def with_other_plans(model: Path) -> None:
    (model / "plans.json").write_text(json.dumps(PLANS | {"plans_name": "a", "configurations": {"2d": {}}}))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (without_fold, "validation: no such folder; train fold 1"),
        (without_case, "its validation left no .nii.gz of case_4; validate again"),
        (with_case_twice, "is of the same case"),
        (with_other_case, "was validated on another, which splits_final.json does not hold out"),
        (with_broken_case, "case_4.nii.gz: its compressed data is damaged or cut short"),
        (with_other_shape, "case_4.nii.gz: has the shape 2×3×4"),
        (with_other_labels, "classes: [('background', 0), ('kidney', 1)"),
        (with_other_plans, "there is no '3d_fullres' among 2d"),
        (with_plans_of_others, "these plans were not made by umamba-seg"),
    ],
)
def test_what_cannot_be_compared_is_left_out_with_the_reason(world, spoil, reason):
    good, spoilt = world.model("good", 0.1, npz=False), world.model("spoilt", 0.0, npz=False)
    spoil(spoilt)
    found = world.find(ensembles=False)
    assert list(found["all_results"]) == [good.name]
    assert reason in found["left_out"][spoilt.name]
    shutil.rmtree(good)
    with pytest.raises(UserError, match="no model was validated on all cases of the folds 0, 1") as caught:
        world.find()
    assert reason in str(caught.value)


def test_damaged_probabilities_cost_the_ensemble_alone(world):
    first, second = world.model("a", 0.1), world.model("b", 0.1)
    path = second / "fold_0" / "validation" / "case_0.npz"
    path.write_bytes(path.read_bytes()[:-40])
    found = world.find()
    assert list(found["all_results"]) == [first.name, second.name]
    (reason,) = found["left_out"].values()
    assert "case_0.npz" in reason
    assert not list((world.results / "ensembles").iterdir())


def test_models_can_be_chosen(world):
    world.model("a", 0.1)
    world.model("b", 0.1)
    world.model("b", 0.1, configuration="2d")
    found = world.find(plans=["b"], configurations=["3d_fullres"])
    assert list(found["all_results"]) == ["UMambaSegTrainer__b__3d_fullres"]
    with pytest.raises(UserError, match=r"-p c: no model of these was trained in .*choose among a, b"):
        world.find(plans=["b", "c"])
    with pytest.raises(UserError, match=r"-c 3d_lowres: no model .*choose among 2d, 3d_fullres"):
        world.find(configurations=["3d_lowres"])


def test_no_model_at_all_is_said(world):
    with pytest.raises(UserError, match="holds no model; train one"):
        world.find()


def test_a_folder_of_another_name_is_left_out(world):
    model = world.model("a", 0.1)
    old = shutil.copytree(model, model.with_name(f"{model.name}__old"))
    found = world.find(plans=["a"])
    assert list(found["all_results"]) == [model.name]
    assert found["left_out"] == {old.name: "not named UMambaSegTrainer__PLANS__CONFIGURATION"}
    shutil.rmtree(model)
    with pytest.raises(UserError, match=rf"holds no model; {old.name}: not named UMambaSegTrainer__PLANS__CONFIGUR"):
        world.find()


def killed_run() -> int:
    """The number of a process that is gone."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def test_what_a_killed_run_has_left_is_removed(world):
    models = [world.model("a", 0.1), world.model("b", 0.1)]
    world.find()
    gone = killed_run()
    name = f"ensemble___{models[0].name}___{models[1].name}___0_1"
    folds = models[0] / "crossval_results_folds_0_1"
    drafts = [
        world.results / "ensembles" / f".{name}.{gone}",
        folds.with_name(f".{folds.name}.{gone}"),
        folds / f".postprocessed.{gone}",
    ]
    for draft in drafts:
        draft.mkdir()
        (draft / "case_0.nii.gz").touch()
    world.find()
    assert [path.name for path in world.results.rglob(".*")] == [".find_best.lock"]


def test_where_there_are_no_locks_the_drafts_of_others_stay(world, monkeypatch):
    def none(*_) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    draft = world.model("a", 0.1) / ".crossval_results_folds_0_1.1"
    draft.mkdir()
    monkeypatch.setattr(locks.fcntl, "lockf", none)
    world.find()
    assert draft.is_dir()


def test_two_runs_do_not_work_on_the_same_results(world, held_by_another_process):
    model = world.model("a", 0.1)
    draft = model / ".crossval_results_folds_0_1.1"
    draft.mkdir()
    lock = world.results / ".find_best.lock"
    with (
        held_by_another_process(lock) as process,
        pytest.raises(UserError, match=f"process {process} on .* is comparing these models; wait for its end"),
    ):
        world.find()
    assert sorted(world.results.rglob(".*")) == sorted([draft, lock])  # the other's are not touched
    world.find()
    assert not draft.exists()


def test_postprocessing_of_other_models_stays_while_their_segmentations_do(world):
    first, second = world.model("a", 0.05), world.model("b", 0.1)
    world.find(plans=["b"])
    folder = second / "crossval_results_folds_0_1"
    determined = (folder / "postprocessing.json").read_bytes()
    assert (folder / "postprocessed" / "case_0.nii.gz").is_file()
    assert world.find(ensembles=False)["best_model_or_ensemble"]["name"] == first.name
    assert (folder / "postprocessing.json").read_bytes() == determined
    assert (folder / "postprocessed" / "case_0.nii.gz").is_file()

    write(world.reference("case_0") * 0, second / "fold_0" / "validation" / "case_0.nii.gz")
    world.find(ensembles=False)
    assert not (folder / "postprocessing.json").exists()
    assert not (folder / "postprocessed").exists()
    assert not voxels(folder / "case_0.nii.gz").any()


def test_an_outcome_of_postprocessing_goes_with_it(world):
    model = world.model("a", 0.0)
    left = model / "crossval_results_folds_0_1" / "postprocessed"
    world.find()
    left.mkdir()
    world.find()
    assert not left.exists()


def test_a_dice_that_postprocessing_has_undone_is_null(tmp_path):
    model = Model(tmp_path, "a", "3d_fullres")
    best = Candidate("a", (model,), tmp_path, {"foreground_mean": {"Dice": 0.5}})
    write_information(tmp_path, best, math.nan, [best])
    content = (tmp_path / "inference_information.json").read_text()
    assert json.loads(content)["best_model_or_ensemble"]["result_on_crossval_post_pp"] is None


def test_a_class_in_no_case_is_named(world):
    for case in world.cases:
        write(np.minimum(world.reference(case), 1), world.preprocessed / "gt_segmentations" / f"{case}.nii.gz")
    model = world.model("a", 0.0, npz=False)
    for path in model.rglob("*.nii.gz"):
        write(np.minimum(voxels(path), 1), path)
    with pytest.raises(UserError, match="no prediction holds kidney: there is no mean Dice"):
        world.find()


def test_earlier_results_are_replaced_whole_or_not_at_all(tmp_path):
    target = tmp_path / "results"
    target.mkdir()
    (target / "old").touch()
    with pytest.raises(FileNotFoundError), whole_folder(target) as draft:
        (draft / "new" / "deeper").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "old"]
    with whole_folder(target) as draft:
        (draft / "new").touch()
    assert [path.name for path in tmp_path.rglob("*")] == ["results", "new"]


def test_verb_prints_the_table_and_commands_that_are_understood(umamba_seg, world):
    world.model("a", 0.2)
    world.model("b", 0.2)
    (world.root / "nnUNet_raw" / DATASET).mkdir(parents=True)
    words = ("find_best", "-d", 7, "--root", world.root, "-np", 1)
    done = umamba_seg(*words).succeeded()
    assert "difference to the best" in done.err
    assert "largest component of" in done.err
    text = (world.results / "inference_instructions.txt").read_text()
    assert text in done.err
    commands = [line for line in text.splitlines() if line.startswith("umamba-seg")]
    assert len(commands) == 2
    for command in commands:
        arguments = build_parser().parse_args(shlex.split(command)[1:])
        assert arguments.verb in ("ensemble", "postprocess")
    single = umamba_seg(*words, "--disable_ensembling", "-p", "a", "-f", 0, "--json").succeeded().result
    assert single["folds"] == [0]
    build_parser().parse_args(shlex.split(single["commands"][0])[1:])


def test_fold_all_is_refused_with_the_reason(umamba_seg, world):
    refused = umamba_seg("find_best", "-d", 7, "--root", world.root, "-f", "all")
    assert refused.code == 2
    assert "argument -f: fold all has seen every case and holds none out; give numbers of folds" in refused.err


def test_a_cascade_is_predicted_after_its_first_stage(world):
    model = world.model("a", 0.1, configuration="3d_cascade_fullres")
    first, second, *_ = world.find()["commands"]
    assert str(model.with_name("UMambaSegTrainer__a__3d_lowres")) in first
    assert first.split("-o ")[1].split()[0] == second.split("-prev_stage_predictions ")[1].split()[0]


@pytest.mark.slow
def test_from_validation_to_segmentations(trained, umamba_seg, tmp_path):
    """Two trained models, the second with noise on its weights: the commands that are printed do what they say."""
    root = tmp_path / "root"
    root.mkdir()
    for name in ("nnUNet_raw", "nnUNet_preprocessed"):
        (root / name).symlink_to(trained.root / name)
    shutil.copytree(trained.root / "nnUNet_results", root / "nnUNet_results")
    data = ("-d", 901, "--root", root)
    umamba_seg("train", *data, "-c", "3d_fullres", "-f", 0, "--val", "--npz", "-device", "cpu").succeeded()
    model = root / "nnUNet_results" / trained.model.relative_to(trained.root / "nnUNet_results")
    noisy = shutil.copytree(model, model.with_name("UMambaSegTrainer__noisy__3d_fullres"))
    file = noisy / "fold_0" / "checkpoint_final.pth"
    checkpoint = torch.load(file, weights_only=True)
    torch.manual_seed(0)
    for value in checkpoint["network_weights"].values():
        value += 0.05 * value.std(unbiased=False) * torch.randn_like(value)
    torch.save(checkpoint, file)

    found = umamba_seg("find_best", *data, "-f", 0, "--json").succeeded().result
    assert len(found["all_results"]) == 3
    assert found["all_results"][model.name] == pytest.approx(trained.result["foreground_dice"])

    alone = umamba_seg("find_best", *data, "-f", 0, "-p", "noisy", "--json").succeeded().result
    places = {"INPUT_FOLDER": trained.raw / "imagesTs", "OUTPUT_FOLDER": tmp_path / "out", "OUTPUT_FOLDER_PP": "unused"}
    words = [places.get(word, word) for word in shlex.split(alone["commands"][0])[1:]]
    umamba_seg(*words, "--disable_tta").succeeded()
    cases = sorted(path.name for path in (trained.raw / "labelsTs").glob("*.nii.gz"))
    assert sorted(path.name for path in (tmp_path / "out").glob("*.nii.gz")) == cases

    together = ("ensemble", "-m", model, noisy, "--images", trained.raw / "imagesTs", "--disable_tta", "-f", 0)
    umamba_seg(*together, "-o", tmp_path / "kept", "--keep", "--save-probabilities").succeeded()
    members = sorted((tmp_path / "kept" / ".members").iterdir())
    assert [member.name for member in members] == [f"1_{model.name}", f"2_{noisy.name}"]
    umamba_seg("ensemble", "-i", *members, "-o", tmp_path / "averaged").succeeded()
    done = umamba_seg(*together, "-o", tmp_path / "kept", "--resume").succeeded()
    assert not (tmp_path / "kept" / ".members").exists()
    assert "(1 of" not in done.err, "nothing is predicted again"
    differ = 0
    for case in cases:
        ours = voxels(tmp_path / "kept" / case)
        np.testing.assert_array_equal(ours, voxels(tmp_path / "averaged" / case))
        differ += (ours != voxels(tmp_path / "out" / case)).sum()
        image, wanted = (
            sitk.ReadImage(str(path)) for path in (tmp_path / "kept" / case, trained.raw / "labelsTs" / case)
        )
        np.testing.assert_allclose(image.GetDirection(), wanted.GetDirection(), atol=1e-6)
        assert image.GetSize() == wanted.GetSize()
    assert differ > 0, "the models do not predict the same"
