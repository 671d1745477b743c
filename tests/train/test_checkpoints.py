"""Checkpoints are read without trusting them."""

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.train.checkpoints import load_checkpoint, load_weights

WHOLE = {"network_weights": {}, "init_args": {}, "trainer_name": "x", "inference_allowed_mirroring_axes": (0,)}


class Payload:
    """Anything that is not a tensor or a plain value."""


def test_checkpoint_that_is_none_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint_final.pth: cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_checkpoint_that_would_execute_something_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save(WHOLE | {"extra": Payload()}, path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_checkpoint_of_something_else_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="it lacks network_weights"):
        load_checkpoint(path)


def test_weights_that_do_not_fit_the_plans_are_refused(tmp_path):
    with pytest.raises(UserError, match="does not fit the network of the plans"):
        load_weights(torch.nn.Linear(2, 2), WHOLE, tmp_path / "checkpoint_final.pth")
