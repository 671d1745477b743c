"""From raw images to a report through the command line, on data small enough for a minute."""

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import SimpleITK as sitk
import torch

from umamba_seg.datasets.synthetic import make_dataset
from umamba_seg.errors import UserError
from umamba_seg.train import clock
from umamba_seg.train.trainer import UMambaSegTrainer

pytestmark = pytest.mark.slow


def geometry(path: Path) -> tuple:
    image = sitk.ReadImage(str(path))
    return image.GetSize(), image.GetSpacing(), image.GetOrigin(), image.GetDirection()


def voxels(path: Path) -> np.ndarray:
    return sitk.GetArrayFromImage(sitk.ReadImage(str(path)))


@pytest.fixture(scope="module")
def predicted(trained, umamba_seg, tmp_path_factory) -> Path:
    output = tmp_path_factory.mktemp("predicted")
    umamba_seg(
        "predict", "-i", trained.raw / "imagesTs", "-o", output, "-m", trained.model, "-device", "cpu"
    ).succeeded()
    return output


def test_training_leaves_what_the_readme_names(trained):
    fold = trained.model / "fold_0"
    for name in ("checkpoint_final.pth", "checkpoint_best.pth", "progress.png", "report.html", "training.json"):
        assert (fold / name).is_file(), name
    assert not list(fold.glob("*.part"))
    assert trained.result["iterations"] == 4
    assert set(trained.result["dice"]) == {"liver", "kidneys", "aorta"}
    assert sum("pseudo Dice" in line for line in trained.log.splitlines()) == 2  # one line an epoch


@pytest.mark.parametrize("network", ["segmamba", "nnmamba_ds", "residual_encoder_unet"])
def test_networks_of_every_kind_train_and_predict(trained, umamba_seg, tmp_path, network):
    root = tmp_path / "root"  # of its own, as commands without -p want a single plan
    root.mkdir()
    (root / "nnUNet_raw").symlink_to(trained.root / "nnUNet_raw")
    data = ("-d", 901, "--root", root, "-c", "3d_fullres")
    umamba_seg("plan_and_preprocess", *data, "--budget", "cpu", "--network", network, "--no-check").succeeded()
    options = ("-p", f"{network}_cpu", "-device", "cpu")
    done = umamba_seg("train", *data, *options, "-f", 0, "--epochs", 1, "--iterations-per-epoch", 2, "--json")
    assert np.isfinite(done.succeeded().result["foreground_dice"])
    output = tmp_path / "output"
    umamba_seg("predict", *data, *options, "-i", trained.raw / "imagesTs", "-o", output).succeeded()
    for case in (trained.raw / "labelsTs").glob("*.nii.gz"):
        assert geometry(output / case.name)[0] == geometry(case)[0]


def test_checkpoint_loads_without_trusting_a_pickle(trained):
    checkpoint = torch.load(trained.model / "fold_0" / "checkpoint_final.pth", weights_only=True)
    assert checkpoint["trainer_name"] == "nnUNetTrainer"
    assert checkpoint["init_args"]["configuration"] == "3d_fullres"


def test_predictions_lie_on_the_grid_of_their_images(trained, predicted):
    cases = sorted(path.name for path in (trained.raw / "labelsTs").glob("*.nii.gz"))
    assert sorted(path.name for path in predicted.glob("*.nii.gz")) == cases
    for case in cases:
        image = trained.raw / "imagesTs" / case.replace(".nii.gz", "_0000.nii.gz")
        for found, wanted in zip(geometry(predicted / case)[1:], geometry(image)[1:], strict=True):
            np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert geometry(predicted / case)[0] == geometry(image)[0]
        assert voxels(predicted / case).dtype == np.uint8
        assert set(np.unique(voxels(predicted / case))) <= {0, 1, 2, 3}


def test_stock_nnunet_predicts_the_same(trained, predicted, tmp_path):
    command = Path(sys.executable).with_name("nnUNetv2_predict_from_modelfolder")
    words = ["-i", trained.raw / "imagesTs", "-o", tmp_path, "-m", trained.model, "-f", "0", "-device", "cpu"]
    environment = os.environ | {"nnUNet_def_n_proc": "1"}
    subprocess.run([command, *words, "-npp", "1", "-nps", "1"], check=True, env=environment, capture_output=True)
    for case in predicted.glob("*.nii.gz"):
        assert (voxels(case) == voxels(tmp_path / case.name)).mean() >= 0.999


def test_evaluation_writes_nnunets_summary(trained, predicted, umamba_seg, tmp_path):
    done = umamba_seg("evaluate", trained.raw / "labelsTs", predicted, "-o", tmp_path / "summary.json").succeeded()
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert set(summary) == {"metric_per_case", "mean", "foreground_mean"}
    assert set(summary["mean"]) == {"1", "2", "3"}
    assert "kidneys" in done.out


def test_a_perfect_prediction_scores_one(trained, umamba_seg, tmp_path):
    shutil.copytree(trained.raw / "labelsTs", tmp_path / "predictions")
    done = umamba_seg(
        "evaluate",
        trained.raw / "labelsTs",
        tmp_path / "predictions",
        "-djfile",
        trained.raw / "dataset.json",
        "--json",
    ).succeeded()
    assert done.result["foreground_mean"]["Dice"] == 1


def test_missing_prediction_is_named_unless_chill(trained, umamba_seg, tmp_path):
    shutil.copytree(trained.raw / "labelsTs", tmp_path / "p")
    gone = next((tmp_path / "p").glob("*.nii.gz"))
    gone.unlink()
    words = ("evaluate", trained.raw / "labelsTs", tmp_path / "p", "-djfile", trained.raw / "dataset.json")
    refused = umamba_seg(*words)
    assert refused.code == 2
    assert gone.name.removesuffix(".nii.gz") in refused.err
    umamba_seg(*words, "--chill").succeeded()


def test_one_broken_case_does_not_stop_the_others(trained, umamba_seg, tmp_path):
    shutil.copytree(trained.raw / "imagesTs", tmp_path / "images")
    broken, sound = sorted((tmp_path / "images").glob("*.nii.gz"))
    broken.write_bytes(broken.read_bytes()[:500])
    shutil.copy(sound, tmp_path / "images" / "third_0001.nii.gz")  # its first channel is missing
    shutil.copy(sound, tmp_path / "images" / "overview.nii.gz")
    words = ("-m", trained.model, "-device", "cpu", "--json")
    done = umamba_seg("predict", "-i", tmp_path / "images", "-o", tmp_path / "out", *words)
    assert done.code == 3
    assert broken.name in done.err
    assert "third_0000.nii.gz missing" in done.err
    assert set(done.result["failed"]) == {broken.name.removesuffix("_0000.nii.gz"), "third"}
    assert not list((tmp_path / "out").glob(".*"))
    case = sound.name.replace("_0000.nii.gz", ".nii.gz")
    assert [path.name for path in (tmp_path / "out").glob("*.nii.gz")] == [case]


def test_training_over_results_is_refused_and_continuing_works(trained, umamba_seg):
    words = ("train", "-d", 901, "--root", trained.root, "-c", "3d_fullres", "-f", 0, "-device", "cpu", "--json")
    before = (trained.model / "fold_0" / "checkpoint_final.pth").read_bytes()
    refused = umamba_seg(*words)
    assert refused.code == 2
    assert "--c" in refused.err
    assert (trained.model / "fold_0" / "checkpoint_final.pth").read_bytes() == before
    continued = umamba_seg("extend", *words[1:], "--epochs", 1).succeeded()
    assert continued.result["epochs"] == 3
    assert continued.result["iterations"] == 6
    validated = umamba_seg(*words, "--val", "--npz").succeeded()
    assert validated.result["dice"] == continued.result["dice"]
    assert list((trained.model / "fold_0" / "validation").glob("*.npz"))
    run = json.loads((trained.model / "fold_0" / "run.json").read_text())
    assert run["training"]["iterations_per_epoch"] == 2  # kept without being typed again
    assert [start["begins"] for start in run["starts"]] == ["the beginning", "checkpoint_final.safetensors, epoch 2"]
    assert run["starts"][1]["overrides"]["epochs"] == {"planned": 60, "run": 3}


def test_a_fold_that_is_trained_further_is_no_longer_validated(trained, umamba_seg, monkeypatch, tmp_path):
    def fail(*_):
        raise UserError("training", "broke", "mend it")

    shutil.copytree(trained.root, tmp_path, dirs_exist_ok=True)
    summary = tmp_path / trained.model.relative_to(trained.root) / "fold_0" / "validation" / "summary.json"
    assert summary.is_file()
    monkeypatch.setattr(UMambaSegTrainer, "_run_epochs", fail)
    words = ("-d", 901, "--root", tmp_path, "-c", "3d_fullres", "-f", 0, "-device", "cpu")
    broken = umamba_seg("extend", *words, "--epochs", 1)
    assert "training: broke" in broken.err
    assert not summary.is_file()


def test_preprocessed_data_is_shared_between_plans(trained, umamba_seg):
    done = umamba_seg(
        "plan_and_preprocess", "-d", 901, "--root", trained.root, "-c", "3d_fullres", "-gpu_memory_target", 4, "--json"
    ).succeeded()
    assert "preprocessed data is there already" in done.err
    plans = json.loads(Path(done.result["plans"]).read_text())
    assert plans["plans_name"] == "umamba_bot_4gb"
    ambiguous = umamba_seg("train", "-d", 901, "--root", trained.root, "-c", "3d_fullres", "-f", 0)
    assert ambiguous.code == 2
    assert "umamba_bot_4gb" in ambiguous.err
    Path(done.result["plans"]).unlink()


def test_time_budget_ends_training_and_takes_the_learning_rate_down(trained, umamba_seg, monkeypatch):
    ticks = itertools.count()  # a second passes whenever the clock is read, however fast the machine is
    monkeypatch.setattr(clock, "time", SimpleNamespace(monotonic=lambda: next(ticks)))
    words = ("train", "-d", 901, "--root", trained.root, "-c", "3d_fullres", "-f", 1, "-device", "cpu", "--json")
    done = umamba_seg(*words, "--max-minutes", 1.5, "--iterations-per-epoch", 3).succeeded()
    assert 80 < done.result["seconds"] <= 100
    assert done.result["epochs"] > 3
    rates = json.loads((trained.model / "fold_1" / "training.json").read_text())["logging"]["lrs"]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] < 0.5 * rates[0]


def test_regions_ignore_label_and_fold_all(umamba_seg, tmp_path):
    """Kidneys and aorta become a region with the aorta inside it; a slab of every label is not annotated."""
    raw = make_dataset(
        tmp_path / "nnUNet_raw",
        902,
        "Regions",
        train_cases=5,
        test_cases=1,
        shape=(36, 32, 14),
        spacing=(2.5, 2.5, 6),
        seed=2,
    )
    description = json.loads((raw / "dataset.json").read_text())
    description["labels"] = {"background": 0, "liver": 1, "kidneys and aorta": [2, 3], "aorta": 3, "ignore": 4}
    description["regions_class_order"] = [1, 2, 3]
    (raw / "dataset.json").write_text(json.dumps(description))
    for path in (raw / "labelsTr").glob("*.nii.gz"):
        image = sitk.ReadImage(str(path))
        image[:, :, :3] = 4
        sitk.WriteImage(image, str(path))
    common = ("-d", 902, "--root", tmp_path, "-c", "3d_fullres", "--json")
    umamba_seg("check", "-d", 902, "--root", tmp_path).succeeded()
    umamba_seg("plan_and_preprocess", *common, "--budget", "cpu").succeeded()
    done = umamba_seg(
        "train", *common, "-f", "all", "--epochs", 1, "--iterations-per-epoch", 2, "-device", "cpu"
    ).succeeded()
    assert done.result["cases"] == {"training": 5, "validation": 5}
    assert set(done.result["dice"]) == {"liver", "kidneys and aorta", "aorta"}
    predicted = umamba_seg(
        "predict", *common, "-i", raw / "imagesTs", "-o", tmp_path / "out", "-device", "cpu"
    ).succeeded()
    (segmentation,) = predicted.result["segmentations"]
    assert set(np.unique(voxels(Path(segmentation)))) <= {0, 1, 2, 3}
    assert "kidneys and aorta" in Path(done.result["report"]).read_text()


def test_pictures_with_patients_kept_apart(umamba_seg, tmp_path):
    raw = make_dataset(
        tmp_path / "nnUNet_raw", 903, "Slices", train_cases=8, test_cases=1, shape=(64, 56), spacing=(1.6, 1.6), seed=3
    )
    for folder, ending in (("imagesTr", "_0000.png"), ("labelsTr", ".png")):
        for i, path in enumerate(sorted((raw / folder).glob("*.png"))):
            path.rename(path.with_name(f"P{i // 2}_{i % 2}{ending}"))
    common = ("-d", 903, "--root", tmp_path, "-c", "2d", "--json")
    umamba_seg(
        "plan_and_preprocess", *common, "--budget", "cpu", "--group-pattern", "^([^_]+)", "--val-groups", "P1", "P3"
    ).succeeded()
    done = umamba_seg(
        "train", *common, "-f", 0, "--epochs", 1, "--iterations-per-epoch", 2, "-device", "cpu"
    ).succeeded()
    validation = Path(done.result["model_folder"]) / "fold_0" / "validation"
    assert sorted(path.name for path in validation.glob("*.png")) == ["P1_0.png", "P1_1.png", "P3_0.png", "P3_1.png"]
    beyond = umamba_seg("train", *common, "-f", 1)
    assert beyond.code == 2
    assert "not a fold" in beyond.err
    again = umamba_seg(
        "plan_and_preprocess", *common, "--budget", "cpu", "--group-pattern", "^([^_]+)", "--val-groups", "P0"
    )
    assert again.code == 2
    assert "splits_final.json" in again.err


def test_quickstart_runs_from_an_empty_folder_and_again(umamba_seg, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "tiny.toml"
    config.write_text("""
        [dataset]
        id = 900
        name = "Torso"
        train_cases = 5
        test_cases = 1
        shape = [36, 32, 14]
        spacing = [2.5, 2.5, 6.0]
        seed = 4
        [plan]
        network = "umamba_bot"
        budget = "cpu"
        configuration = "3d_fullres"
        [training]
        max_minutes = 0.1
    """)
    first = umamba_seg("quickstart", "--config", config, "--json").succeeded()
    assert Path(first.result["report"]) == Path("quickstart/report.html")
    assert Path(first.result["report"]).is_file()
    (tmp_path / "quickstart" / ".umamba-seg-quickstart").unlink()
    refused = umamba_seg("quickstart", "--config", config)
    assert refused.code == 2
    assert "no quickstart made it" in refused.err
    assert Path(first.result["report"]).is_file()
