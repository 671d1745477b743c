"""SegMamba against the official network, and what it refuses."""

import pytest
import torch

from umamba_seg.networks import build, load_official

SMALL = {"depths": (1, 2, 1), "features_per_stage": (8, 4, 12), "hidden_size": 16, "slices": (16, 6, 3)}


def small(name: str = "segmamba", **arguments) -> torch.nn.Module:
    """Three stages, for extents that are multiples of 8."""
    return build(name, input_channels=2, num_classes=3, **(SMALL | arguments)).eval()


def test_official_weights_give_official_numbers(oracle):
    vector = oracle("segmamba_small")
    arguments = vector.meta["constructor_arguments"]
    network = build(
        "segmamba",
        input_channels=arguments["in_chans"],
        num_classes=arguments["out_chans"],
        depths=arguments["depths"],
        features_per_stage=arguments["feat_size"],
        hidden_size=arguments["hidden_size"],
    ).double()
    load_official(network.eval(), vector.state_dict())
    vector.assert_agrees(network)


def test_parameter_count_is_the_official_one():
    with torch.device("meta"):
        network = build("segmamba", input_channels=4, num_classes=4)
    assert sum(weight.numel() for weight in network.parameters()) == 67_416_196


def test_depth_and_slices_are_free_and_extents_may_differ():
    assert small()(torch.randn(2, 2, 8, 16, 24)).shape == (2, 3, 8, 16, 24)


def test_slice_count_matters_to_the_stage_that_it_is_of():
    x = torch.randn(1, 2, 8, 16, 24)
    network, other = small(), small(slices=(16, 6, 1))
    other.load_state_dict(network.state_dict())
    first, changed = (either.get_submodule("encoder")(x) for either in (network, other))
    for finer, same in zip(first[:2], changed[:2], strict=True):
        torch.testing.assert_close(finer, same)
    assert (first[2] - changed[2]).abs().max() > 1e-3


def test_without_the_scan_the_rest_is_the_same_network():
    network, twin = small(), small("segmamba_noscan", slices=(5, 7, 11))
    state = network.state_dict()
    rest = {name: value for name, value in state.items() if ".mamba_layers." not in name}
    twin.load_state_dict(rest)
    for name, weight in network.named_parameters():
        if name.endswith("mamba.out_proj.weight"):
            torch.nn.init.zeros_(weight)
    x = torch.randn(1, 2, 8, 16, 24)
    torch.testing.assert_close(twin(x), network(x))


@pytest.mark.parametrize("extent", [(8, 16, 20), (8, 8, 8), (16, 16)])
def test_extent_that_does_not_fit_is_refused(extent):
    with pytest.raises(ValueError, match=r"three multiples of 8, and more than one voxel at 1/8"):
        small()(torch.zeros(1, 2, *extent))


def test_slice_count_that_does_not_divide_is_refused_with_those_that_do():
    with pytest.raises(ValueError, match=r"stage 2: slices = 8 does not divide the 12 .* do: 1, 2, 3, 4, 6, 12$"):
        small(slices=(16, 6, 8))(torch.zeros(1, 2, 16, 16, 24))


def test_arguments_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="one entry per stage"):
        small(depths=(1, 2))
