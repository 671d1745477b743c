"""Two processes go the way of one."""

import shutil
import socket

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.train.checkpoints import read_checkpoint
from umamba_seg.train.distributed import Group

SHORT = ("--epochs", 2, "--iterations-per-epoch", 4, "--workers", 0)


def free_port() -> int:
    with socket.socket() as opened:
        opened.bind(("127.0.0.1", 0))
        return opened.getsockname()[1]


@pytest.fixture
def together(fold):
    """Train in two processes, as torchrun starts them; their exit codes and what they printed."""

    def train(*words, prepare=({}, {})) -> list[tuple[int, str]]:
        common = {
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
        }
        runs = [
            fold.train(*words, prepare=prepare[rank], env=common | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
            for rank in range(2)
        ]
        return [(run.wait(), run.err) for run in runs]

    return train


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one(fold, together, tmp_path):
    files = [tmp_path / name for name in ("one", "first", "second")]
    assert fold.train(*SHORT, prepare={"first_gradients": {"file": str(files[0])}}).wait() == 130
    (fold.folder / "checkpoint_latest.safetensors").unlink()
    together(*SHORT, prepare=[{"first_gradients": {"file": str(file)}} for file in files[1:]])
    one, *two = (torch.load(file, weights_only=True) for file in files)
    assert one["keys"] == two[0]["keys"] + two[1]["keys"]
    assert one["loss"] == pytest.approx((two[0]["loss"] + two[1]["loss"]) / 2, rel=1e-6)  # a float32 by then
    for other in two:
        assert other["norm"] == pytest.approx(one["norm"], rel=1e-5)
        for name, gradient in one["gradients"].items():
            found = other["gradients"][name]
            if gradient is None:  # the coarsest output has no weight in the loss
                assert found is None or not found.any(), name
            else:
                assert (found - gradient).norm() <= 1e-10 * (gradient.norm() + 1e-3), name


@pytest.mark.slow
def test_two_processes_train_as_one_and_one_goes_on(fold, together):
    for code, err in together(*SHORT):
        assert code == 0, err
    _, state = read_checkpoint(fold.folder / "checkpoint_final.safetensors")
    assert state["iterations"] == 8
    (fold.folder / "checkpoint_final.safetensors").unlink()
    for file in fold.folder.glob("checkpoint_*"):
        file.unlink()
    run = fold.train(*SHORT)
    assert run.wait() == 0, run.err
    _, alone = read_checkpoint(fold.folder / "checkpoint_final.safetensors")
    for key in ("train_losses", "val_losses"):
        assert state["logging"][key] == pytest.approx(alone["logging"][key], rel=0.02), key


@pytest.mark.slow
def test_two_processes_validate_as_one(trained, fold, together):
    folder = fold.model / "fold_all"
    shutil.copytree(trained.model / "fold_0", folder, ignore=shutil.ignore_patterns("validation"))
    for name in ("plans.json", "dataset.json"):
        shutil.copy(trained.model / name, fold.model)
    words, prepare = ("-f", "all", "--val", "--deterministic"), {"validate": {}}
    for code, err in together(*words, prepare=(prepare, prepare)):
        assert code == 0, err
    shared = (folder / "validation").rename(fold.root / "shared")
    run = fold.train(*words, prepare=prepare)
    assert run.wait() == 0, run.err
    files = sorted(path.name for path in shared.iterdir())
    assert files == sorted(path.name for path in (folder / "validation").iterdir())
    assert len(files) == 5 + 1
    for name in files:
        assert (shared / name).read_bytes() == (folder / "validation" / name).read_bytes()


def test_a_batch_is_shared_evenly_or_refused():
    assert Group(rank=1, size=2).share(6) == range(3, 6)
    assert Group().share(7) == range(7)
    with pytest.raises(UserError, match=r"4 processes: cannot share a batch of 6 evenly; start 1, 2, 3, 6"):
        Group(size=4).share(6)


def test_without_torchrun_there_is_one_process(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    group = Group.of_environment()
    assert group.leads
    assert group.largest(torch.device("cpu"), 1.0, 2.0) == [1.0, 2.0]
    assert group.gather("x") == ["x"]
    module = torch.nn.Linear(1, 1)
    assert group.wrap(module, torch.device("cpu")) is module


def test_torchrun_tells_who_is_who(monkeypatch):
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    group = Group.of_environment()
    assert (group.rank, group.size, group.local_rank, group.local_size, group.leads) == (5, 8, 1, 4, False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert group.device(torch.device("cuda")) == torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(UserError, match="4 processes: there are 1 GPUs on this machine; start one for each"):
        group.device(torch.device("cuda"))
    assert group.device(torch.device("cpu")) == torch.device("cpu")
