"""Where no GPU is, Triton's kernels run in its interpreter. It has to be told before the first import of triton."""

import os

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture
def poisoned_memory():
    """torch.empty holds NaN while algorithms are deterministic, so that a value nobody wrote is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)
