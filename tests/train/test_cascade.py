"""The second stage of a cascade: what the first leaves for it, its batches, and a training that is killed."""

import json
import shutil
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from batchgeneratorsv2.transforms.nnunet.seg_to_onehot import MoveSegAsOneHotToDataTransform
from batchgeneratorsv2.transforms.spatial.mirroring import MirrorTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.remove_label import RemoveLabelTansform
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from umamba_seg.datasets.raw import load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.evaluate.folder import CaseScores
from umamba_seg.paths import resolve
from umamba_seg.preprocess import preprocess
from umamba_seg.train import run as train_run
from umamba_seg.train import validation
from umamba_seg.train.cascade import discard, makers, publish, require_previous_stage
from umamba_seg.train.checkpoints import read_checkpoint
from umamba_seg.train.data import Loader, Samples
from umamba_seg.train.distributed import Group
from umamba_seg.train.mirroring import with_swaps
from umamba_seg.train.pretrained import Source

SECOND = "3d_cascade_fullres"
PLANS = {
    "dataset_name": "Dataset001_Kind",
    "plans_name": "p",
    "configurations": {
        "3d_lowres": {"data_identifier": "low", "next_stage": SECOND},
        "3d_fullres": {"data_identifier": "full"},
        SECOND: {"data_identifier": "full", "previous_stage": "3d_lowres"},
    },
}

# ------------------------------------------------------------------------------------------ what the first stage leaves


@pytest.fixture
def preprocessed(tmp_path) -> Path:
    """Two folds of three cases: nobody holds out the last."""
    splits = [{"train": ["b", "c"], "val": ["a"]}, {"train": ["a", "c"], "val": ["b"]}]
    (tmp_path / "splits_final.json").write_text(json.dumps(splits))
    return tmp_path


@pytest.fixture
def overlapping(preprocessed) -> Path:
    """Folds 0 and 2 hold out the first."""
    folds = [*json.loads((preprocessed / "splits_final.json").read_text()), {"train": ["b", "c"], "val": ["a"]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(folds))
    return preprocessed


def test_a_case_is_segmented_by_the_folds_that_hold_it_out(overlapping):
    assert makers(overlapping, "abc") == {"a": ["0", "2"], "b": ["1"], "c": ["all"]}
    (overlapping / "splits_final.json").unlink()
    assert makers(overlapping, "ab") == {"a": ["all"], "b": ["all"]}


def finished(model: Path, fold: int | str, name: str = "checkpoint_final.safetensors") -> None:
    folder = model / f"fold_{fold}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).touch()


def test_what_is_missing_of_the_first_stage_is_named_with_its_folds(preprocessed):
    results = preprocessed / "results"
    model = results / "Dataset001_Kind" / "UMambaSegTrainer__p__3d_lowres"
    folder = model / "predicted_next_stage" / SECOND
    folder.mkdir(parents=True)
    (folder / "a.b2nd").touch()
    finished(model, 0)
    finished(model, 1, "checkpoint_final.pth")  # as a conversion leaves it
    finished(model, "all")
    for configuration in ("3d_lowres", "3d_fullres"):
        require_previous_stage(results, preprocessed, PLANS, configuration, ["a", "b", "c"])
    with pytest.raises(UserError) as caught:
        require_previous_stage(results, preprocessed, PLANS, SECOND, ["a", "b", "c"])
    assert str(caught.value) == (
        f"{folder}: holds no segmentations by 3d_lowres of b, c; run `umamba-seg train -c 3d_lowres` with -f 1, all "
        "first; its final validation leaves them (--val repeats it)"
    )
    for case in "bc":
        (folder / f"{case}.b2nd").touch()
    require_previous_stage(results, preprocessed, PLANS, SECOND, ["a", "b", "c"])


@pytest.mark.parametrize("maker", [0, 2])
def test_segmentations_of_a_fold_that_is_not_done_are_refused(overlapping, maker):
    results = overlapping / "results"
    model = results / "Dataset001_Kind" / "UMambaSegTrainer__p__3d_lowres"
    folder = model / "predicted_next_stage" / SECOND
    folder.mkdir(parents=True)
    for case in "ab":
        (folder / f"{case}.b2nd").touch()
    finished(model, 1)
    finished(model, maker, "checkpoint_latest.safetensors")
    with pytest.raises(UserError) as caught:
        require_previous_stage(results, overlapping, PLANS, SECOND, ["a", "b"])
    assert str(caught.value) == (
        f"{model}: no fold that segments a has a final checkpoint, so that nobody knows what {folder} holds of them; "
        "run `umamba-seg train -c 3d_lowres` with -f 2 to the end first"
    )
    finished(model, maker)
    require_previous_stage(results, overlapping, PLANS, SECOND, ["a", "b"])


@pytest.mark.parametrize(("fold", "gone"), [("0", "a"), ("1", "b"), ("all", "c")])
def test_a_fold_that_is_trained_anew_discards_what_it_had_segmented(overlapping, caplog, fold, gone):
    model = overlapping / "model"
    shared, unpublished = (folder / "predicted_next_stage" / SECOND for folder in (model, model / f"fold_{fold}"))
    discard(model / f"fold_{fold}", overlapping, ["a", "b", "c"])  # there is nothing yet
    assert "removed" not in caplog.text
    for folder in (shared, unpublished):
        folder.mkdir(parents=True)
        for case in "abc":
            (folder / f"{case}.b2nd").touch()
    with caplog.at_level("INFO"):
        discard(model / f"fold_{fold}", overlapping, ["a", "b", "c"] if fold == "all" else [gone])
    assert {path.stem for path in shared.iterdir()} == {*"abc"} - {gone}
    assert not unpublished.parent.exists()
    assert f"removed 1 segmentations of an earlier training of fold {fold}: {shared.parent}" in caplog.text


@pytest.mark.parametrize("goes_on", [False, True])
def test_only_a_training_from_the_beginning_discards_segmentations(preprocessed, monkeypatch, goes_on):
    file = preprocessed / "model" / "predicted_next_stage" / SECOND / "a.b2nd"
    file.parent.mkdir(parents=True)
    file.touch()
    trainer = SimpleNamespace(
        progress=0,
        output_folder=str(preprocessed / "model" / "fold_0"),
        preprocessed_dataset_folder_base=str(preprocessed),
        configuration_manager=SimpleNamespace(next_stage_names=[SECOND]),
        group=SimpleNamespace(leads=True, size=1),
        do_split=lambda: (["b", "c"], ["a"]),
        configuration_name="3d_lowres",
        on_train_start=lambda: None,
        run_training=lambda: None,
        options=None,
        device=None,
        workers=0,
        current_epoch=1,
    )
    for name in ("_describe_model", "record_start", "origin_of"):
        monkeypatch.setattr(train_run, name, lambda *_, **__: None)
    saved = SimpleNamespace(damaged=(), path=Path("checkpoint_latest.safetensors")) if goes_on else None
    train_run._train(trainer, PLANS, None, saved, None)
    assert file.exists() == goes_on


def test_a_fold_publishes_its_own_cases_and_no_others(tmp_path):
    fold, shared = tmp_path / "fold_all", tmp_path / "predicted_next_stage" / SECOND
    publish(fold, ["a"])  # there is no next stage
    assert not shared.exists()
    shared.mkdir(parents=True)
    (shared / "b.b2nd").write_text("by the fold that holds it out")
    left = fold / "predicted_next_stage" / SECOND
    left.mkdir(parents=True)
    for case in "abc":
        (left / f"{case}.b2nd").write_text("by fold all")
    publish(fold, ["a", "c", "d"])
    found = {path.stem: path.read_text() for path in shared.iterdir()}
    assert found == {"a": "by fold all", "b": "by the fold that holds it out", "c": "by fold all"}
    assert not (fold / "predicted_next_stage").exists()


@pytest.mark.parametrize(
    ("number", "case", "is_published"),
    [
        (0, "a", True),  # fold 2 holds it out too: the later write stays
        (2, "a", True),
        ("all", "a", False),  # it was trained on it
        ("all", "c", True),
    ],
)
def test_a_validation_publishes_the_cases_that_its_fold_segments(overlapping, monkeypatch, number, case, is_published):
    fold = overlapping / "model" / f"fold_{number}"

    class Left:
        def __init__(self, *_, **__):
            (fold / "predicted_next_stage" / SECOND).mkdir(parents=True)

        def run(self, cases):
            for name in cases:
                (fold / "predicted_next_stage" / SECOND / f"{name}.b2nd").touch()
            return [CaseScores(name, {}, "", ()) for name in cases]

    monkeypatch.setattr(validation, "_Share", Left)
    monkeypatch.setattr(validation, "write_summary", lambda *_: {})
    trainer = SimpleNamespace(
        preprocessed_dataset_folder_base=str(overlapping),
        output_folder=str(fold),
        dataset_json={"file_ending": ".nii.gz"},
        plain_network=torch.nn.Identity(),
        set_deep_supervision_enabled=lambda enabled: None,
        do_split=lambda: ([], [case]),
        group=Group(),
        fold=number,
    )
    assert validation.validate(trainer, save_probabilities=False) == {}
    assert (fold.parent / "predicted_next_stage" / SECOND / f"{case}.b2nd").exists() == is_published
    assert list(fold.iterdir()) == []


# ------------------------------------------------------------------------------------------------------------- batches

SHAPE = (1, 28, 28, 28)
PATCH = (12, 12, 12)
LABELS = SimpleNamespace(all_labels=[1, 2], has_ignore_label=False)


def save_previous(folder: Path, case: str, segmentation: np.ndarray) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    nnUNetDatasetBlosc2.save_seg(segmentation.astype(np.uint8), str(folder / case))


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two cases as nnU-Net preprocesses them, and beside them segmentations by a first stage that made no mistake."""
    folder = tmp_path / "full"
    folder.mkdir()
    noise = np.random.default_rng(0)
    for case in "ab":
        seg = np.zeros(SHAPE, np.int8)
        seg[0, 6:20, 4:12, 4:24], seg[0, 6:20, 15:24, 4:24] = 1, 2
        places = {label: np.argwhere(seg == label) for label in (1, 2)}
        nnUNetDatasetBlosc2.save_case(
            noise.standard_normal(SHAPE, np.float32),
            seg,
            {"class_locations": places},
            str(folder / case),
            chunks=SHAPE,
            blocks=(1, 14, 14, 14),
        )
        save_previous(previous(folder), case, seg[0])
    return folder


def previous(folder: Path) -> Path:
    return folder.parent / "predicted_next_stage" / SECOND


def samples(folder: Path, transforms=None, patch_size=(20, 20, 20)) -> Samples:
    return Samples(
        nnUNetDatasetBlosc2(str(folder), folder_with_segs_from_previous_stage=str(previous(folder))),
        LABELS,
        patch_size=patch_size,
        final_patch_size=PATCH,
        transforms=transforms or augmentation(),
        batch_size=3,
        items=range(3),
        oversample_foreground=0.33,
        seed=0,
        stream=0,
    )


def augmentation() -> ComposeTransforms:
    cascade = {"is_cascaded": True, "foreground_labels": [1, 2]}
    return nnUNetTrainer.get_training_transforms(PATCH, (-0.5, 0.5), None, (0, 1, 2), False, **cascade)


def unaltered() -> ComposeTransforms:
    return nnUNetTrainer.get_validation_transforms(None, is_cascaded=True, foreground_labels=[1, 2])


def agreement(batch: dict) -> list[bool]:
    """Whether the labels of the first stage in the input are those of the target, sample by sample."""
    wanted = torch.cat([batch["target"] == label for label in (1, 2)], dim=1)
    return [torch.equal(one, other) for one, other in zip(batch["data"][:, 1:] > 0, wanted, strict=True)]


def test_a_batch_of_a_cascade_has_the_same_bits_whatever_was_made_before(folder, one_thread):
    made, others = samples(folder), samples(folder)
    batches = [made.batch(number) for number in range(12)]
    torch.set_num_threads(2)
    for number in (7, 3, 11, 0, 3):
        batch = others.batch(number)
        assert torch.equal(batch["data"], batches[number]["data"])
        assert torch.equal(batch["target"], batches[number]["target"])
    assert batches[0]["data"].shape == (3, 1 + 2, *PATCH)
    agreeing = [same for batch in batches for same in agreement(batch)]
    assert any(agreeing)  # the segmentation of the first stage is worsened in some samples only
    assert not all(agreeing)


def test_workers_make_the_same_batches_of_a_cascade(folder):
    made = samples(folder)
    loader = Loader(made, 2, workers=1)
    for number in (2, 3):
        assert torch.equal(next(loader)["data"], made.batch(number)["data"])
    loader.close()


def test_the_first_stage_is_seen_as_it_is_in_validation(folder):
    batch = samples(folder, unaltered(), PATCH).batch(0)
    assert set(batch["data"][:, 1:].unique().tolist()) == {0, 1}
    assert all(agreement(batch))


def test_sides_that_change_places_do_so_in_the_labels_of_the_first_stage(folder):
    flips = ComposeTransforms([MirrorTransform((0, 1, 2)), RemoveLabelTansform(-1, 0)])
    swapping = with_swaps(flips, {"axis": 1, "pairs": [[1, 2]]})
    swapping.transforms.append(MoveSegAsOneHotToDataTransform(1, [1, 2]))
    plain = [samples(folder, unaltered(), PATCH).batch(number)["target"] for number in range(4)]
    swapped = [samples(folder, swapping, PATCH).batch(number) for number in range(4)]
    assert all(same for batch in swapped for same in agreement(batch))
    counts = [(int((one == 1).sum()), int((two["target"] == 1).sum())) for one, two in zip(plain, swapped, strict=True)]
    assert any(before != after for before, after in counts)


@pytest.mark.parametrize("how", ["deleted", "truncated"])
def test_a_segmentation_of_the_first_stage_that_cannot_be_read_is_named(folder, how):
    for file in previous(folder).iterdir():
        if how == "deleted":
            file.unlink()
        else:
            file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(UserError) as caught:
        samples(folder).batch(0)
    case = samples(folder).cases(0)[0]
    assert str(caught.value).startswith(f"{previous(folder) / case}.b2nd: this preprocessed file cannot be read (")
    assert caught.value.remedy == (
        "repeat the final validation of the previous stage's fold (train with --val), then go on with --c"
    )


def test_a_segmentation_on_another_grid_is_refused(folder):
    for case in "ab":
        save_previous(previous(folder), case, np.zeros((28, 28, 27)))
    with pytest.raises(UserError, match=r"b2nd: has 28×28×27 voxels, and the preprocessed image 28×28×28; repeat the"):
        samples(folder).batch(0)


# ---------------------------------------------------------------------------------------------------------- end to end


@pytest.fixture(scope="module")
def cascade(trained, tmp_path_factory) -> SimpleNamespace:
    """The tiny data set with a cascade put into its plans, split into two folds."""
    root = tmp_path_factory.mktemp("cascade")
    folders = resolve(root).export()
    shutil.copytree(trained.root / "nnUNet_preprocessed", folders.preprocessed)
    folders.raw.symlink_to(trained.root / "nnUNet_raw")
    preprocessed = folders.preprocessed / "Dataset901_Tiny"
    cases = [f"synth_{number:03d}" for number in range(5)]
    splits = [{"train": cases[2:], "val": cases[:2]}, {"train": cases[:2], "val": cases[2:]}]
    (preprocessed / "splits_final.json").write_text(json.dumps(splits))
    [file] = preprocessed.glob("umamba_bot*.json")
    plans = json.loads(file.read_text())
    full = plans["configurations"]["3d_fullres"]
    low = {"spacing": [1.5 * step for step in full["spacing"]], "data_identifier": "low", "next_stage": SECOND}
    plans["configurations"] |= {"3d_lowres": full | low, SECOND: full | {"previous_stage": "3d_lowres"}}
    file.write_text(json.dumps(plans))
    preprocess(load_raw_dataset(folders.raw / "Dataset901_Tiny"), plans, ["3d_lowres"], preprocessed, 1)
    models = {
        name: folders.results / "Dataset901_Tiny" / f"UMambaSegTrainer__{file.stem}__{name}"
        for name in ("3d_lowres", SECOND)
    }
    return SimpleNamespace(
        root=root,
        cases=cases,
        plans=plans,
        data=preprocessed / full["data_identifier"],
        models=models,
        words=("-d", 901, "--root", root, "-device", "cpu", "-f", 0),
    )


SHORT = ("--epochs", 2, "--iterations-per-epoch", 4, "--deterministic")


@pytest.mark.slow
def test_a_cascade_is_trained_killed_continued_and_validated(cascade, umamba_seg, zygote, tmp_path):
    second = ("train", *cascade.words, "-c", SECOND)
    outcome = umamba_seg(*second)
    assert outcome.code == 2
    assert "run `umamba-seg train -c 3d_lowres` with -f 0, 1 first" in outcome.err

    first = umamba_seg("train", *cascade.words, "-c", "3d_lowres", "--epochs", 1, "--iterations-per-epoch", 1)
    assert first.code == 0, first.err
    left = cascade.models["3d_lowres"] / "predicted_next_stage" / SECOND
    assert sorted(path.name for path in left.iterdir()) == [f"{case}.b2nd" for case in cascade.cases[:2]]
    both = nnUNetDatasetBlosc2(str(cascade.data), cascade.cases[:2], str(left))
    alone = nnUNetDatasetBlosc2(str(cascade.data), cascade.cases[2:])
    for case in cascade.cases[:2]:
        image, _, segmentation, _ = both.load_case(case)
        assert segmentation is not None
        assert segmentation.shape == image.shape[1:]
        assert set(np.unique(segmentation[:])) <= {0, 1, 2, 3}
    outcome = umamba_seg(*second)
    assert outcome.code == 2
    assert f"holds no segmentations by 3d_lowres of {', '.join(cascade.cases[2:])}; run" in outcome.err

    finished(cascade.models["3d_lowres"], 1)
    for case in cascade.cases[2:]:  # as if fold 1 had made no mistake
        save_previous(left, case, np.clip(alone.load_case(case)[1][0], 0, None))
    code, err = zygote.run(*second, *SHORT, "--workers", 0)
    assert code == 0, err
    folder = cascade.models[SECOND] / "fold_0"
    undisturbed = read_checkpoint(folder / "checkpoint_final.safetensors")[0]
    folder.rename(tmp_path / "undisturbed")

    run = zygote.start(
        *second, *SHORT, "--workers", 0, "--checkpoint-minutes", 1e-6, prepare={"slow": {"seconds": 0.3}}
    )
    latest = folder / "checkpoint_latest.safetensors"
    while not run.ended() and not (latest.exists() and read_checkpoint(latest)[1]["iterations"] >= 2):
        time.sleep(0.01)
    run.signal(signal.SIGKILL)
    assert run.wait() == -signal.SIGKILL, run.err
    code, err = zygote.run(*second, "--c", "--workers", 1)
    assert code == 0, err
    assert "8 iterations" not in err  # it was not done yet
    again = read_checkpoint(folder / "checkpoint_final.safetensors")[0]
    assert again.keys() == undisturbed.keys()
    assert [name for name in again if not torch.equal(again[name], undisturbed[name])] == []

    validated = umamba_seg(*second, "--val", "--json").succeeded().result
    assert validated["cases"] == {"training": 3, "validation": 2}
    assert Path(validated["report"]).is_file()
    assert not (folder / "predicted_next_stage").exists()

    cascade.data.rename(tmp_path / "hidden")
    outcome = umamba_seg("train", *cascade.words, "-c", "3d_lowres")
    (tmp_path / "hidden").rename(cascade.data)
    cases = ", ".join([*cascade.cases[2:], *cascade.cases[:2]])
    assert f"{SECOND}: its data of {cases} are not preprocessed, so that the final validation leaves no" in outcome.err


@pytest.mark.parametrize("prepared", [True, False])
def test_the_first_stage_leaves_what_nnunets_leaves(cascade, make_trainer, nnunets_validation, tmp_path, prepared):
    torch.manual_seed(0)
    trainer = make_trainer(cascade.root, cascade.plans, "3d_lowres", 0)
    if not prepared:
        trainer.plans_manager.plans["configurations"][SECOND]["data_identifier"] = "elsewhere"
    trainer.perform_actual_validation()
    ours = tmp_path / "model" / "predicted_next_stage" / SECOND
    assert ours.exists() == prepared
    if not prepared:
        return
    trainer.output_folder_base = str(tmp_path / "theirs")
    nnunets_validation(trainer)
    theirs = tmp_path / "theirs" / "predicted_next_stage" / SECOND
    for folder in (ours, theirs):
        assert sorted(path.stem for path in folder.iterdir()) == cascade.cases[:2]
    for case in cascade.cases[:2]:
        stored = [nnUNetDatasetBlosc2(str(cascade.data), [case], str(folder)) for folder in (ours, theirs)]
        found, wanted = (dataset.load_case(case)[2] for dataset in stored)
        for kind in ("dtype", "shape", "blocks", "chunks"):
            assert getattr(found, kind) == getattr(wanted, kind)
        assert len(np.unique(wanted[:])) > 1
        assert (found[:] == wanted[:]).mean() >= 0.999


def test_weights_go_neither_from_nor_to_a_second_stage(trained, tmp_path):
    source = Source.read(trained.model)
    second = source.planned | {"previous_stage": "3d_lowres"}
    with pytest.raises(
        UserError, match=r"^here: sees the result of 3d_lowres beside the images, and .* does not; train"
    ):
        source.require_same_network(second, "here")
    model = tmp_path / "model"
    shutil.copytree(trained.model, model)
    (model / "plans.json").write_text(json.dumps(source.plans | {"configurations": {"3d_fullres": second}}))
    with pytest.raises(
        UserError, match=r"second stage of a cascade, which sees the result of 3d_lowres beside the ima"
    ):
        Source.read(model)
