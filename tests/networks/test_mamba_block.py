"""The Mamba block, and SegMamba's three directions on the same op, against what the official code computes."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from umamba_kernels import Direction, Order, mamba_inner
from umamba_seg.networks.blocks.mamba import Mamba


class ThreeDirections(nn.Module):
    """SegMamba's block (arXiv:2401.13560) on an official state dict: forward, reverse and by slices."""

    def __init__(self, state: dict[str, torch.Tensor], slices: int):
        super().__init__()
        self.state, self.orders = state, {"": Order(), "_b": Order(reverse=True), "_s": Order(slices=slices)}

    def forward(self, tokens: torch.Tensor) -> tuple[torch.Tensor]:
        x, z = nn.functional.linear(tokens, self.state["in_proj.weight"]).transpose(1, 2).chunk(2, 1)
        directions = [self.direction(suffix, order) for suffix, order in self.orders.items()]
        out = mamba_inner(x, directions, z).transpose(1, 2)
        return (nn.functional.linear(out, self.state["out_proj.weight"]),)

    def direction(self, suffix: str, order: Order) -> Direction:
        state = self.state
        return Direction(
            A=-state[f"A{suffix}_log"].exp(),
            x_proj=state[f"x_proj{suffix}.weight"],
            dt_proj=state[f"dt_proj{suffix}.weight"],
            dt_bias=state[f"dt_proj{suffix}.bias"],
            D=state[f"D{suffix}"],
            conv_weight=state[f"conv1d{suffix}.weight"].squeeze(1),
            conv_bias=state[f"conv1d{suffix}.bias"],
            order=order,
        )


def assert_exact(errors: dict[str, float]) -> None:
    assert errors["out0"] < 1e-9
    assert errors["grad_in"] < 1e-7


def test_mamba_block_equals_the_official_one(oracle):
    reference = oracle("block_mamba_v1")
    block = Mamba(20).double()
    block.load_state_dict(reference.state_dict())
    assert_exact(reference.errors(lambda x: (block(x),)))


def test_three_directions_equal_the_official_ones(oracle):
    reference = oracle("block_mamba_v3")
    slices = reference.meta["constructor_arguments"]["nslices"]
    assert_exact(reference.errors(ThreeDirections(reference.state_dict(), slices)))


@pytest.mark.parametrize("states", [16, 8])
def test_parameters_are_counted_as_in_the_specification(states):
    d, rank = 64, 4
    count = sum(x.numel() for x in Mamba(d, d_state=states).parameters())
    assert count == 6 * d**2 + 2 * d * (7 + 2 * rank + 3 * states)
