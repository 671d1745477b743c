"""Bad input ends with exit code 2 and one message that names the file and the remedy, and leaves nothing behind."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from umamba_seg.datasets.synthetic import make_dataset


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """A root with the sound little data set 7."""
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.delenv(variable, raising=False)
    make_dataset(
        tmp_path / "nnUNet_raw",
        7,
        "Small",
        train_cases=3,
        test_cases=1,
        shape=(36, 32, 14),
        spacing=(2.5, 2.5, 6.0),
        seed=0,
    )
    return tmp_path


@pytest.fixture
def raw(root) -> Path:
    return root / "nnUNet_raw" / "Dataset007_Small"


@pytest.fixture
def plan(umamba_seg, root):
    """``plan()`` runs plan_and_preprocess; its input is wrong, so it has to stop before anything is written."""

    def run(*words):
        done = umamba_seg("plan_and_preprocess", "-d", 7, "--root", root, "--budget", "cpu", *words)
        assert done.code == 2
        assert "Traceback" not in done.err
        assert not (root / "nnUNet_preprocessed").exists()
        return done.err

    return run


def edit(path: Path, change) -> None:
    image = sitk.ReadImage(str(path))
    sitk.WriteImage(change(image), str(path))


def first(raw: Path, folder: str = "imagesTr") -> Path:
    return sorted((raw / folder).glob("*.nii.gz"))[0]


def test_help_of_every_verb(umamba_seg):
    for verb in (
        "convert",
        "check",
        "plan_and_preprocess",
        "plan",
        "train",
        "predict",
        "evaluate",
        "quickstart",
        "info",
    ):
        shown = umamba_seg(verb, "--help")
        assert shown.code == 0
        assert verb in shown.out


def test_info_names_versions_and_backends(umamba_seg):
    facts = umamba_seg("info", "--json").succeeded().result
    assert {"torch", "nnunetv2"} <= set(facts["versions"])
    assert facts["scan_backends"]["cpu"]["chunked"]["available"]
    assert "chunked" in umamba_seg("info").succeeded().out


def test_folders_come_from_the_root_or_the_variables(umamba_seg, root, monkeypatch):
    missing = umamba_seg("check", "-d", 7)
    assert missing.code == 2
    assert "nnUNet_raw, nnUNet_preprocessed, nnUNet_results are not set; give --root DIR" in missing.err
    for variable in ("nnUNet_raw", "nnUNet_preprocessed", "nnUNet_results"):
        monkeypatch.setenv(variable, str(root / variable))
    assert umamba_seg("check", "-d", 7).succeeded().out == umamba_seg("check", "-d", 7, "--root", root).out


def test_check_names_several_faults_at_once(umamba_seg, root, raw):
    first(raw).rename(first(raw).with_name("synth_000_0001.nii.gz"))
    (raw / "imagesTr" / "synth_001_0000.nii.gz").write_bytes(b"")
    (raw / "labelsTr" / "synth_002.nii.gz").unlink()
    done = umamba_seg("check", "-d", 7, "--root", root)
    assert done.code == 2
    for part in ("synth_000_0000.nii.gz missing", "synth_001_0000.nii.gz", "synth_002", '"numTraining": 2'):
        assert part in done.out


def test_check_as_json_and_its_exit_code(umamba_seg, root, raw):
    assert umamba_seg("check", "-d", 7, "--root", root, "--json").succeeded().result["errors"] == 0
    (raw / "imagesTr" / "._synth_000_0000.nii.gz").write_bytes(b"")
    assert "would take it for a case" in umamba_seg("check", "-d", 7, "--root", root).out
    (raw / "imagesTr" / "._synth_000_0000.nii.gz").unlink()
    first(raw, "labelsTr").unlink()
    broken = umamba_seg("check", "-d", 7, "--root", root, "--json")
    assert broken.code == 2
    assert broken.result["errors"] == 1


@pytest.mark.parametrize(("name", "message"), [("8", "no such data set"), ("eight", "neither a number")])
def test_no_such_data_set(umamba_seg, root, name, message):
    done = umamba_seg("plan_and_preprocess", "-d", name, "--root", root)
    assert done.code == 2
    assert message in done.err


def test_dataset_json_missing_or_not_json(plan, raw):
    (raw / "dataset.json").write_text("{")
    assert "dataset.json" in plan()
    (raw / "dataset.json").unlink()
    assert "dataset.json" in plan()


def test_image_without_label(plan, raw):
    first(raw, "labelsTr").unlink()
    assert "synth_000" in plan()


def test_missing_channel(plan, raw):
    description = json.loads((raw / "dataset.json").read_text())
    description["channel_names"]["1"] = "T2"
    (raw / "dataset.json").write_text(json.dumps(description))
    for path in sorted((raw / "imagesTr").glob("*_0000.nii.gz"))[1:]:
        shutil.copy(path, str(path).replace("_0000", "_0001"))
    assert "synth_000" in plan()


@pytest.mark.parametrize("kind", ["truncated", "empty", "text"])
def test_files_that_are_no_images(plan, raw, kind):
    path = first(raw)
    content = {"truncated": path.read_bytes()[:400], "empty": b"", "text": b"not an image" * 100}[kind]
    path.write_bytes(content)
    assert path.name in plan()


@pytest.mark.parametrize(
    "name",
    [
        "nifti_reader_js/not-nifti.nii",
        "nibabel/example4d.nii.gz",
        "rnifti/example_4d.nii.gz",
        "ivadomed/rgb_test_file.nii.gz",
    ],
)
def test_real_odd_files(plan, raw, shared_data, name):
    target = first(raw)
    shutil.copy(shared_data("odd_nifti") / name, target)
    assert target.name in plan()


def test_five_dimensional_file_that_breaks_simpleitk(plan, raw, shared_data):
    import gzip

    target = first(raw)
    target.write_bytes(gzip.compress((shared_data("odd_nifti") / "nifti_reader_js/5D_small.nii").read_bytes()))
    assert target.name in plan()


def test_different_geometry(plan, raw):
    def stretch(image):
        image.SetSpacing([2 * step for step in image.GetSpacing()])
        return image

    edit(first(raw, "labelsTr"), stretch)
    assert "spacing" in plan()


def test_unknown_label_value(plan, raw):
    def paint(image):
        image[0, 0, 0] = 77
        return image

    edit(first(raw, "labelsTr"), paint)
    message = plan()
    assert "77" in message
    assert "synth_000.nii.gz" in message


def test_nan_voxels(plan, raw):
    def hollow(image):
        array = sitk.GetArrayFromImage(image).astype(np.float32)
        array[2, 2, 2] = np.nan
        hollowed = sitk.GetImageFromArray(array)
        hollowed.CopyInformation(image)
        return hollowed

    edit(first(raw), hollow)
    assert "synth_000_0000.nii.gz" in plan()


def test_unknown_network_and_val_group(plan):
    assert "choose one of umamba_bot" in plan("--network", "unet")
    assert "no_one" in plan("--group-pattern", "^(.*)$", "--val-groups", "no_one")


def test_training_without_plans(umamba_seg, root):
    done = umamba_seg("train", "-d", 7, "--root", root, "-c", "3d_fullres", "-f", 0)
    assert done.code == 2
    assert "plan_and_preprocess" in done.err


@pytest.fixture
def planned(root) -> Path:
    """As if data set 7 had been planned with two folds."""
    folder = root / "nnUNet_preprocessed" / "Dataset007_Small"
    folder.mkdir(parents=True)
    configurations = {"2d": {"data_identifier": "data"}, "3d_cascade_fullres": {"inherits_from": "2d"}}
    plans = {"dataset_name": folder.name, "plans_name": "p", "configurations": configurations}
    plans["umamba_seg"] = {"training": {}}
    (folder / "p.json").write_text(json.dumps(plans))
    (folder / "splits_final.json").write_text(json.dumps([{"train": ["a"], "val": ["b"]}] * 2))
    return root


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("-c", "3d", "-f", 0), "invalid choice: '3d'"),
        (("-c", "3d_lowres", "-f", 0), "choose one of 2d"),
        (("-c", "2d", "-f", 2), "give 0 to 1, or all"),
        (("-c", "2d", "-f", 0), "holds no preprocessed data of a, b"),
        (("-c", "2d", "-f", 0, "--val"), "holds no preprocessed data of a, b"),
        (("-c", "2d", "-f", "first"), "give 0 to 1, or all"),
        (("-c", "2d", "-f", 0, "-p", "q"), "no such plans"),
    ],
)
def test_unknown_configuration_fold_or_plans(umamba_seg, planned, words, message):
    done = umamba_seg("train", "-d", 7, "--root", planned, *words)
    assert done.code == 2
    assert message in done.err
    assert not (planned / "nnUNet_results").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--epochs", 0), "not a positive whole number"),
        (("--epochs", "many"), "not a positive whole number"),
        (("--max-minutes", "inf"), "not a positive number"),
    ],
)
def test_impossible_numbers_are_refused(umamba_seg, words, message):
    done = umamba_seg("train", "-d", 7, "-c", "2d", "-f", 0, *words)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--vram-gb", 0.5), "--vram-gb 0.5: CUDA itself takes about 0.6 GiB"),
        (("--vram-gb", "much"), "'much' is not a positive number"),
        (("--vram-gb", 8, "--budget", "cpu"), "not allowed with argument"),
        (("--vram-gb", 8, "-gpu_memory_target", 8), "not allowed with argument"),
    ],
)
def test_impossible_budgets_are_refused(umamba_seg, root, raw, words, message):
    done = umamba_seg("plan_and_preprocess", "-d", 7, "--root", root, *words)
    assert done.code == 2
    assert message in done.err
    assert not (root / "nnUNet_preprocessed").exists()


def test_a_plan_for_a_gpu_is_probed_on_a_gpu(umamba_seg, root, raw, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    done = umamba_seg("plan_and_preprocess", "-d", 7, "--root", root, "--vram-gb", 8, "--probe")
    assert done.code == 2
    assert "--probe: there is no CUDA GPU here" in done.err


def test_a_plan_explains_itself(umamba_seg, trained):
    shown = umamba_seg("plan", "show", "-d", 901, "--root", trained.root).succeeded().out
    for part in ("umamba_bot for Dataset901_Tiny", "budget cpu: about a second", "3d_fullres", "room for", "tried"):
        assert part in shown
    plans = umamba_seg("plan", "show", "-d", 901, "--root", trained.root, "--json").succeeded().result
    assert plans["configurations"]["3d_fullres"]["planning"]["tried"]


def test_plans_that_do_not_say_how_they_came_about(umamba_seg, planned):
    done = umamba_seg("plan", "show", "-d", 7, "--root", planned)
    assert done.code == 2
    assert "plans p: do not say how they came about; plan again" in done.err


def test_splits_of_the_raw_and_the_preprocessed_folder_must_agree(umamba_seg, planned, raw):
    (raw / "splits_final.json").write_text(json.dumps([{"train": ["b"], "val": ["a"]}]))
    done = umamba_seg("check", "-d", 7, "--root", planned)
    assert done.code == 2
    assert "remove the one that should not count" in done.err


def test_patient_on_both_sides_is_reported(umamba_seg, root, raw):
    cases = [f"synth_00{i}" for i in range(3)]
    (raw / "splits_final.json").write_text(json.dumps([{"train": cases[:2], "val": cases[2:]}]))
    umamba_seg("check", "-d", 7, "--root", root).succeeded()
    done = umamba_seg("check", "-d", 7, "--root", root, "--group-pattern", "^(synth)")
    assert done.code == 2
    assert "synth is in training (synth_000, synth_001) and in validation (synth_002)" in done.out


@pytest.mark.parametrize("name", ["dataset", "a/b", "../up", "a__b"])
def test_plans_have_a_sound_name(plan, name):
    assert "cannot be the name of plans" in plan("-p", name)


def test_folder_that_cannot_be_written_is_named(umamba_seg, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    done = umamba_seg("quickstart", "-o", blocked)
    assert done.code == 2
    assert str(blocked) in done.err
    assert "Traceback" not in done.err


@pytest.fixture
def model(tmp_path) -> Path:
    """A model folder whose checkpoint is only a name, enough for what is refused before it is opened."""
    folder = tmp_path / "model"
    (folder / "fold_0").mkdir(parents=True)
    (folder / "fold_0" / "checkpoint_final.pth").write_bytes(b"not a checkpoint")
    description = {"channel_names": {"0": "CT"}, "labels": {"background": 0, "liver": 1}, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(description))
    plans = {"dataset_name": "Dataset007_Small", "plans_name": "p", "configurations": {}, "umamba_seg": {}}
    (folder / "plans.json").write_text(json.dumps(plans))
    return folder


def predict(umamba_seg, model: Path, images: Path, *words) -> str:
    output = model.parent / "out"
    done = umamba_seg("predict", "-i", images, "-o", output, "-m", model, *words)
    assert done.code == 2
    assert not output.exists()
    return done.err


def test_predict_needs_images_a_checkpoint_and_a_model(umamba_seg, model, raw):
    empty = model.parent / "empty"
    empty.mkdir()
    assert str(empty) in predict(umamba_seg, model, empty)
    (empty / "case_0000.nii").touch()
    assert "there: case_0000.nii" in predict(umamba_seg, model, empty)
    (model / "fold_0_old").mkdir()
    shutil.copy(model / "fold_0" / "checkpoint_final.pth", model / "fold_0_old")
    assert "choose among 0\n" in predict(umamba_seg, model, raw / "imagesTs", "-f", 1)
    (model / "fold_0" / "checkpoint_final.pth").unlink()
    assert "train a fold first" in predict(umamba_seg, model, raw / "imagesTs")
    assert "no such folder" in predict(umamba_seg, model / "nope", raw / "imagesTs")
    unnamed = umamba_seg("predict", "-i", empty, "-o", empty)
    assert unnamed.code == 2
    assert "give -m MODEL_FOLDER" in unnamed.err


def test_convert_writes_a_raw_data_set(umamba_seg, shared_data, tmp_path):
    done = umamba_seg(
        "convert", "msd", "-i", shared_data("hippocampus"), "-d", 4, "--root", tmp_path, "--json"
    ).succeeded()
    assert done.result["dataset"] == "Dataset004_Hippocampus"
    assert umamba_seg("check", "-d", 4, "--root", tmp_path, "--json").succeeded().result["cases"] == 200


def test_quickstart_settings_are_validated(umamba_seg, tmp_path):
    settings = tmp_path / "mine.toml"
    settings.write_text("[training]\nmax_minutes = -1\n")
    done = umamba_seg("quickstart", "-o", tmp_path / "q", "--config", settings)
    assert done.code == 2
    assert "training.max_minutes = -1" in done.err
    assert not (tmp_path / "q").exists()
