"""Checkpoints are whole or not there, hold every bit, and are read without trusting them."""

import errno
import shutil
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from umamba_seg.errors import UserError
from umamba_seg.train import checkpoints
from umamba_seg.train.checkpoints import (
    load_checkpoint,
    load_optimizer,
    load_weights,
    network_tensors,
    optimizer_tensors,
    read_checkpoint,
    save_pth,
    weights_of,
    write_checkpoint,
)

WHOLE = {
    "network_weights": {},
    "init_args": {"configuration": "2d"},
    "trainer_name": "x",
    "inference_allowed_mirroring_axes": (0,),
}
TENSORS = {"a": torch.arange(1000.0), "b": torch.tensor(3.0), "c": torch.ones(2, 3, dtype=torch.bfloat16)}
STATE = {"losses": [0.1, 1 / 3], "best": None, "names": ["Ärzte"]}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint_latest.safetensors"


class Payload:
    """Anything that is not a tensor or a plain value."""


# ---------------------------------------------------------------------------------------------------------------- ours


def test_every_bit_comes_back(path):
    write_checkpoint(path, TENSORS, STATE)
    tensors, state = read_checkpoint(path)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    assert all(
        torch.equal(tensors[name], TENSORS[name]) and tensors[name].dtype == TENSORS[name].dtype for name in tensors
    )
    assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_tensors_may_share_memory_and_lie_in_any_layout(path):
    whole = torch.randn(2, 3, 4, 4, 4)
    tensors = {
        "whole": whole,
        "again": whole,
        "part": whole[1],
        "channels_last": whole.to(memory_format=torch.channels_last_3d),
    }
    write_checkpoint(path, tensors, {})
    found, _ = read_checkpoint(path)
    assert all(torch.equal(found[name], tensor) for name, tensor in tensors.items())


def test_the_one_before_is_kept_under_its_name(path):
    previous = path.with_name("checkpoint_previous.safetensors")
    for number in range(3):
        write_checkpoint(path, TENSORS, {"number": number}, previous=previous)
    assert read_checkpoint(path)[1] == {"number": 2}
    assert read_checkpoint(previous)[1] == {"number": 1}


@pytest.mark.parametrize("where", [0.001, 0.02, 0.1, 0.5, 0.9, 0.999])
def test_one_changed_byte_is_noticed(path, where):
    write_checkpoint(path, TENSORS, STATE)
    content = bytearray(path.read_bytes())
    content[int(where * len(content))] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"is damaged|is no checkpoint of this version"):
        read_checkpoint(path)


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_named(path, share):
    write_checkpoint(path, TENSORS, STATE)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match=r"checkpoint_latest.safetensors: is damaged \(.*; copy it again"):
        read_checkpoint(path)


def test_tensors_of_something_else_are_refused(path):
    checkpoints.save_file({"weight": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="is no checkpoint of this version"):
        read_checkpoint(path)


def test_a_disk_that_is_too_full_is_found_before_anything_is_written(path, monkeypatch):
    write_checkpoint(path, TENSORS, STATE)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2**20))
    with pytest.raises(UserError, match=r"cannot be written: it takes .*; free some space on this disk"):
        write_checkpoint(path, TENSORS, {"newer": True}, previous=path.with_name("previous"))
    assert read_checkpoint(path)[1] == STATE


@pytest.mark.parametrize(
    "write", [write_checkpoint, lambda path, tensors, _: save_pth(path, WHOLE | {"network_weights": tensors})]
)
def test_a_disk_that_fills_up_while_writing_costs_nothing_that_was_there(path, monkeypatch, write):
    path.write_bytes(b"whole")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(checkpoints, "move_into_place", full)
    with pytest.raises(UserError, match=r"cannot be written \(.*No space left on device\); .* are free; free some"):
        write(path, TENSORS, STATE)
    assert path.read_bytes() == b"whole"
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", [torch.optim.AdamW, lambda weights: torch.optim.SGD(weights, 0.1, momentum=0.9)])
def test_an_optimizer_goes_on_with_the_same_bits(path, kind):
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Conv3d(2, 3, 3).to(memory_format=torch.channels_last_3d)

    def step(optimizer: torch.optim.Optimizer, module: nn.Module) -> None:
        optimizer.zero_grad()
        module(torch.ones(1, 2, 4, 4, 4)).square().sum().backward()
        optimizer.step()

    one = network()
    first = kind(one.parameters())
    step(first, one)
    tensors, groups = optimizer_tensors(first)
    write_checkpoint(path, tensors | network_tensors(one.state_dict()), {"groups": groups})

    other = network()
    second = kind(other.parameters())
    read, state = read_checkpoint(path)
    other.load_state_dict(weights_of(read))
    load_optimizer(second, read, state["groups"], path)
    for optimizer, module in ((first, one), (second, other)):
        step(optimizer, module)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
    layouts = ({name: value.stride() for name, value in next(iter(o.state.values())).items()} for o in (first, second))
    assert next(layouts) == next(layouts)


def test_prediction_reads_it_too(path):
    prediction = {name: value for name, value in WHOLE.items() if name != "network_weights"}
    write_checkpoint(path, network_tensors({"weight": torch.ones(2)}) | TENSORS, {"prediction": prediction})
    found = load_checkpoint(path)
    assert found.keys() == WHOLE.keys()
    assert found["network_weights"].keys() == {"weight"}


# ---------------------------------------------------------------------------------------------------- in nnU-Net's form


@pytest.mark.parametrize(
    ("content", "message"),
    [(b"", "is empty"), (b"not a checkpoint", "is damaged"), (b"hello\n" * 100, "is damaged")],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content, message):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(content)
    with pytest.raises(UserError, match=rf"checkpoint_final.pth: {message}.*; copy it again"):
        load_checkpoint(path)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.99])
def test_truncated_checkpoint_is_refused(tmp_path, share):
    path = tmp_path / "checkpoint_final.pth"
    torch.save(WHOLE | {"network_weights": {"weight": torch.zeros(10000)}}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(UserError, match="is damaged"):
        load_checkpoint(path)


def test_checkpoint_that_would_execute_something_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save(WHOLE | {"extra": Payload()}, path)
    with pytest.raises(UserError, match="more than tensors and plain values"):
        load_checkpoint(path)


def test_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="it lacks network_weights"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_the_plans_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"does not fit the network of the plans .*Missing key.*weight"):
        load_weights(nn.Linear(2, 2), WHOLE, tmp_path / "checkpoint_final.pth")
