"""The Mamba block, and SegMamba's with three directions, against what the official code computes."""

from __future__ import annotations

import pytest

from umamba_seg.networks import load_official
from umamba_seg.networks.blocks.mamba import Mamba, TriMamba
from umamba_seg.networks.segmamba import TRI_MAMBA_NAMES


class OfficiallyNamed(TriMamba):
    official_names = TRI_MAMBA_NAMES


def test_mamba_block_equals_the_official_one(oracle):
    reference = oracle("block_mamba_v1")
    block = Mamba(20).double()
    block.load_state_dict(reference.state_dict())
    reference.assert_agrees(block)


def test_three_directions_equal_the_official_ones(oracle):
    reference = oracle("block_mamba_v3")
    arguments = reference.meta["constructor_arguments"]
    block = OfficiallyNamed(arguments["d_model"], arguments["nslices"]).double()
    load_official(block, reference.state_dict())
    reference.assert_agrees(block)


@pytest.mark.parametrize("states", [16, 8])
def test_parameters_are_counted_as_in_the_specification(states):
    d, rank = 64, 4
    count = sum(x.numel() for x in Mamba(d, d_state=states).parameters())
    assert count == 6 * d**2 + 2 * d * (7 + 2 * rank + 3 * states)
