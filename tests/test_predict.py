"""What prediction refuses; the whole of it is in test_pipeline.py."""

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.predict import load_checkpoint


class Payload:
    """Anything that is not a tensor or a plain value."""


def test_checkpoint_that_is_none_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"checkpoint_final.pth: cannot be read as a checkpoint"):
        load_checkpoint(path)


def test_checkpoint_that_would_execute_something_is_refused(tmp_path):
    path = tmp_path / "checkpoint_final.pth"
    torch.save({"network_weights": {}, "extra": Payload()}, path)
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        load_checkpoint(path)
