"""Where no GPU is, Triton's kernels run in its interpreter. It has to be told before the first import of triton."""

import os

import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
