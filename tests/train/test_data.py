"""Batches as a function of seed and number, by this process and by workers, from cases in nnU-Net's own files."""

import os
import pickle
import random
import signal
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from batchgeneratorsv2.transforms.base.basic_transform import ImageOnlyTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from batchgeneratorsv2.transforms.utils.compose import ComposeTransforms
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.dataloading.nnunet_dataset import nnUNetDatasetBlosc2
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

from umamba_seg.errors import UserError
from umamba_seg.train import data
from umamba_seg.train.data import Loader, Samples, settle_transforms

SHAPE = (1, 40, 40, 40)
PATCH = (12, 12, 12)
LABELS = SimpleNamespace(all_labels=[1], has_ignore_label=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Three cases as nnU-Net preprocesses them. Their only voxel of foreground is in a corner."""
    folder = tmp_path_factory.mktemp("preprocessed") / "spacing"
    folder.mkdir()
    noise = np.random.default_rng(0)
    seg = np.zeros(SHAPE, np.int8)
    seg[0, 4, 4, 4] = 1
    for case in "abc":
        nnUNetDatasetBlosc2.save_case(
            noise.standard_normal(SHAPE, np.float32),
            seg,
            {"class_locations": {1: np.array([[0, 4, 4, 4]])}},
            str(folder / case),
            chunks=SHAPE,
            blocks=(1, 20, 20, 20),
        )
    return folder


@pytest.fixture
def make(folder):
    """``make(seed=1, ...)``: samples of the folder, with all of nnU-Net's augmentation."""

    def samples(**changes) -> Samples:
        folder_ = changes.pop("folder", folder)
        setting = {
            "patch_size": (20, 20, 20),
            "final_patch_size": PATCH,
            "transforms": augmentation(),
            "batch_size": 4,
            "items": range(changes.get("batch_size", 4)),
            "oversample_foreground": 0.33,
            "seed": 0,
            "stream": 0,
        }
        return Samples(nnUNetDatasetBlosc2(str(folder_)), LABELS, **(setting | changes))

    return samples


def augmentation() -> ComposeTransforms:
    return nnUNetTrainer.get_training_transforms(
        PATCH, (-0.5, 0.5), [[1, 1, 1], [0.5, 0.5, 0.5]], (0, 1, 2), do_dummy_2d_data_aug=False
    )


class Remembering(ImageOnlyTransform):
    """Shuffles its channels in place, as nnU-Net's transforms for cascades do, and draws from ``random`` as well."""

    def __init__(self):
        super().__init__()
        self.channel_idx = list(range(10))

    def _apply_to_image(self, img, **_):
        np.random.shuffle(self.channel_idx)
        return img + self.channel_idx[0] + random.random()


def seed_everything(seed: int) -> None:
    for seeder in (random.seed, np.random.seed, torch.manual_seed):
        seeder(seed)


def assert_same(ours: dict, theirs: dict) -> None:
    assert ours["keys"] == theirs["keys"]
    assert torch.equal(ours["data"], theirs["data"])
    assert [part.shape for part in ours["target"]] == [(len(ours["data"]), 1, *PATCH), (len(ours["data"]), 1, 6, 6, 6)]
    assert all(torch.equal(*parts) for parts in zip(ours["target"], theirs["target"], strict=True))


def test_a_batch_has_the_same_bits_whatever_was_made_before(make, one_thread):
    samples, others = (make(transforms=ComposeTransforms([augmentation(), Remembering()])) for _ in range(2))
    batches = [samples.batch(number) for number in range(12)]
    torch.set_num_threads(2)
    for number in (7, 3, 11, 0, 3):
        seed_everything(number)
        assert_same(others.batch(number), batches[number])
    assert [batch["keys"] for batch in batches] == [samples.cases(number) for number in range(12)]


def test_numbers_seeds_and_streams_differ(make):
    batches = [
        samples.batch(number)["data"]
        for samples, number in ((make(), 0), (make(), 1), (make(seed=1), 0), (make(stream=1), 0))
    ]
    assert len({float(batch.sum()) for batch in batches}) == len(batches)
    assert len({float(sample.sum()) for sample in batches[0]}) == 4


def test_parts_of_a_global_batch_are_the_batch(make):
    whole = make().batch(5)
    parts = [make(items=items).batch(5) for items in (range(1), range(1, 4))]
    assert torch.equal(torch.cat([part["data"] for part in parts]), whole["data"])
    assert [case for part in parts for case in part["keys"]] == whole["keys"]


def test_cases_are_drawn_uniformly_with_replacement(make):
    samples = make()
    drawn = Counter(case for number in range(1000) for case in samples.cases(number))
    assert sorted(drawn) == ["a", "b", "c"]
    assert all(abs(count - 4000 / 3) < 100 for count in drawn.values())  # three standard deviations are 89
    assert any(len(set(samples.cases(number))) == 1 for number in range(100))


@pytest.mark.parametrize(("batch_size", "share"), [(2, 0.33), (3, 0.33), (5, 0.33), (4, 0), (4, 1)])
def test_the_items_that_must_show_foreground_are_nnunets(make, batch_size, share):
    setting = SimpleNamespace(batch_size=batch_size, oversample_foreground_percent=share)
    forced = [nnUNetDataLoader._oversample_last_XX_percent(setting, item) for item in range(batch_size)]
    samples = make(
        patch_size=PATCH, transforms=ComposeTransforms([]), batch_size=batch_size, oversample_foreground=share
    )
    batch = samples.batch(0)["target"]  # by chance the corner is in one patch of a hundred
    assert [bool((sample == 1).any()) for sample in batch] == forced


def test_drawing_disturbs_nothing_else(make):
    def draw() -> tuple:
        return random.random(), np.random.random(), float(torch.rand(1))

    seed_everything(1)
    undisturbed = draw()
    seed_everything(1)
    make().batch(0)
    assert draw() == undisturbed


def test_no_transform_goes_by_the_clock():
    blur = GaussianBlurTransform(benchmark=True)
    settle_transforms(ComposeTransforms([RandomTransform(ComposeTransforms([blur]))]))
    assert not blur.benchmark


# --------------------------------------------------------------------------------------------------------- bad files


def damage(path: Path, how: str) -> None:
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    if how == "deleted":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[:-1])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "overwritten":
        path.write_bytes(content[:middle] + bytes(100) + content[middle + 100 :])
    elif how == "of another kind":
        path.write_bytes(pickle.dumps({"spacing": 1}))


@pytest.fixture
def copied(folder, tmp_path) -> Path:
    """The case ``a`` alone, to be damaged."""
    for suffix in (".b2nd", "_seg.b2nd", ".pkl"):
        (tmp_path / f"a{suffix}").write_bytes((folder / f"a{suffix}").read_bytes())
    return tmp_path


@pytest.mark.parametrize(
    ("name", "how", "why"),
    [
        *((name, how, "") for name in ("a.b2nd", "a_seg.b2nd", "a.pkl") for how in ("truncated", "empty")),
        ("a_seg.b2nd", "deleted", "FileNotFoundError"),
        ("a.pkl", "deleted", "FileNotFoundError"),
        ("a.b2nd", "overwritten", "RuntimeError"),  # opens well; found out where it is cropped
        ("a.pkl", "of another kind", "it lacks class_locations"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(make, copied, name, how, why):
    samples = make(folder=copied)
    damage(copied / name, how)
    with pytest.raises(UserError) as caught:
        samples.batch(0)
    message = str(caught.value)
    assert message.startswith(f"{copied / name}: this preprocessed file cannot be read (")
    assert why in message
    assert message.endswith(f"; delete {copied}.stamp, run plan_and_preprocess again, then go on with --c")


def test_a_bug_in_a_transform_is_no_bad_file(make):
    class Wrong(ImageOnlyTransform):
        def _apply_to_image(self, img, **_):
            raise RuntimeError("a bug")

    with pytest.raises(RuntimeError, match=r"^a bug$"):
        make(transforms=ComposeTransforms([Wrong()])).batch(0)


# ------------------------------------------------------------------------------------------------------------- loaders


def test_a_loader_without_workers_goes_on_from_any_number(make):
    samples = make()
    loader = Loader(samples, start=3)
    assert_same(next(loader), samples.batch(3))
    assert loader.number == 4
    assert loader.state() == f"batch 4 with cases {', '.join(samples.cases(4))}, made by this process"
    loader.close()
    loader.close()


def next_of(loader: Loader, count: int) -> None:
    for _ in range(count):
        next(loader)


def test_workers_make_the_same_batches_and_end_when_they_should(make, copied):
    samples = make()
    loader, failing = Loader(samples, 3, workers=2), Loader(make(folder=copied), workers=1)
    pids = [worker._process.pid for worker in loader._workers]
    next_of(loader, 2)
    for pid, signum in zip(pids, (signal.SIGINT, signal.SIGTERM), strict=True):  # sent to all processes of a job
        os.kill(pid, signum)
    for number in range(5, 13):
        assert_same(next(loader), samples.batch(number))

    damage(copied / "a_seg.b2nd", "truncated")
    with pytest.raises(UserError, match=r"a_seg.b2nd: this preprocessed file cannot be read"):
        next_of(failing, 10)  # some are made by now
    survivor = failing._workers[0]
    survivor._connection.close()  # as when this process dies
    survivor._process.join(timeout=60)
    assert survivor._process.exitcode == 0
    failing.close()

    os.kill(pids[0], signal.SIGKILL)
    with pytest.raises(UserError) as caught:
        next_of(loader, 10)
    assert str(caught.value).startswith(
        f"loader worker {pids[0]}: it was killed by SIGKILL at batch {loader.number} (cases "
        f"{', '.join(samples.cases(loader.number))}): most likely the system ran out of memory ("
    )
    assert "--workers N; 0 makes the batches in the training's own process" in caught.value.remedy
    with pytest.raises(UserError, match="killed by SIGKILL"):
        next(loader)
    assert loader.state().endswith(f"made by a worker that has ended (process {pids[0]})")
    loader.close()
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_full_shared_memory_is_named():
    class Pipe(list):
        def send(self, value):
            if isinstance(value, dict):
                raise RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: No space left on device")
            self.append(value)

    pipe = Pipe()
    data._send(pipe, {"data": torch.zeros(1)})
    assert str(pipe[0]).startswith("/dev/shm: there is no room for a worker's batch (unable to allocate")
    assert "train with --workers 0" in pipe[0].remedy
