"""Weights and inputs of the reference vectors, by rule, and the comparison with them."""

import json
import math
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent / "reference"


class Oracle:
    """One reference vector: ``meta`` describes the official network, ``arrays`` hold samples of what it computes."""

    def __init__(self, name: str):
        self.meta = json.loads((FOLDER / f"{name}.json").read_text())
        with np.load(FOLDER / f"{name}.npz") as arrays:
            self.arrays = dict(arrays)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The official state dict in float64, aliases included."""
        aliases = self.meta["aliases"]
        return {
            key: torch.from_numpy(_filled(aliases.get(key, key), shape)).double()
            for key, shape, _ in self.meta["state_dict"]
        }

    def assert_agrees(self, network: torch.nn.Module) -> None:
        """The network, with the official weights in it, computes what the official one does."""
        errors = self.errors(network)
        assert errors.pop("grad_in") < 1e-7
        assert all(error < 1e-9 for error in errors.values())  # max() may pass over a NaN

    def errors(self, network: torch.nn.Module) -> dict[str, float]:
        """Largest difference over largest value, for every output and for the gradient of the input."""
        x = torch.from_numpy(_normal(self.meta["input_shape"], seed=0)).double().requires_grad_()
        result = network(x)
        outputs = [result] if isinstance(result, torch.Tensor) else result
        assert [list(out.shape) for out in outputs] == [out["shape"] for out in self.meta["outputs"]]
        objective = sum(
            (out * torch.from_numpy(_normal(out.shape, seed=1 + i)).double()).sum() for i, out in enumerate(outputs)
        )
        (gradient,) = torch.autograd.grad(objective, x)
        found = {f"out{i}": out for i, out in enumerate(outputs)} | {"grad_in": gradient}
        return {name: self._difference(name, value.detach()) for name, value in found.items()}

    def _difference(self, name: str, value: torch.Tensor) -> float:
        expected = self.arrays[f"{name}_sample_f64"]
        sample = value.flatten()[:: int(self.arrays[f"{name}_stride"])].numpy()
        return float(np.abs(sample - expected).max() / np.abs(expected).max())


def _normal(shape, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(tuple(shape)).astype(np.float32)


def _filled(key: str, shape: list[int]) -> np.ndarray:
    """The float32 value of an entry, a function of its name and shape."""
    n = np.random.default_rng(zlib.crc32(key.encode())).standard_normal(tuple(shape))
    if re.search(r"A(_[bs])?_log$", key):
        value = np.log(np.arange(1, shape[1] + 1))[None] + 0.1 * n
    elif re.search(r"dt_proj(_[bs])?\.bias$", key):
        value = -4.0 + 0.5 * n
    elif len(shape) <= 1:
        value = 0.1 * n if key.rsplit(".", 1)[-1] in ("bias", "beta", "running_mean") else 1.0 + 0.1 * n
    else:
        value = n / math.sqrt(math.prod(shape[1:]))
    return np.asarray(value, dtype=np.float32)  # a counter has no dimension, and would turn into a scalar


@pytest.fixture(scope="session")
def oracle():
    """``oracle("umamba_bot_2d")`` reads a reference vector."""
    return Oracle
