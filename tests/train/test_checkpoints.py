"""Checkpoints are read without trusting them."""

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.train.checkpoints import load_checkpoint, load_weights

WHOLE = {"network_weights": {}, "init_args": {}, "trainer_name": "x", "inference_allowed_mirroring_axes": (0,)}


class Payload:
    """Anything that is not a tensor or a plain value."""


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
        load_weights(torch.nn.Linear(2, 2), WHOLE, tmp_path / "checkpoint_final.pth")
