"""LightM-UNet against the official network, and what it refuses."""

import pytest
import torch

from umamba_seg.networks import build, load_official

FORMATS = {2: torch.channels_last, 3: torch.channels_last_3d}


def small(dims: int = 3, *, name: str = "lightmunet", **arguments) -> torch.nn.Module:
    """Three levels, for extents that are multiples of 4."""
    arguments = {"init_filters": 8, "blocks_down": (1, 2, 1), "blocks_up": (2, 1)} | arguments
    return build(name, input_channels=2, num_classes=3, spatial_dims=dims, **arguments).eval()


def image(dims: int) -> torch.Tensor:
    return torch.randn(2, 2, *(4, 12, 8)[-dims:])


def test_official_weights_give_official_numbers(oracle):
    vector = oracle("lightmunet_3d")
    arguments = vector.meta["constructor_arguments"]
    network = build(
        "lightmunet",
        input_channels=arguments["in_channels"],
        num_classes=arguments["out_channels"],
        spatial_dims=arguments["spatial_dims"],
        init_filters=arguments["init_filters"],
    ).double()
    load_official(network.eval(), vector.state_dict())
    vector.assert_agrees(network)


@pytest.mark.parametrize(("dims", "classes", "count"), [(3, 3, 5_015_766), (2, 2, 5_011_683)])
def test_parameter_count_is_the_official_one(dims, classes, count):
    with torch.device("meta"):
        network = build("lightmunet", input_channels=1, num_classes=classes, spatial_dims=dims)
    assert sum(weight.numel() for weight in network.parameters()) == count


@pytest.mark.parametrize("dims", [2, 3])
def test_levels_are_free_and_extents_may_differ(dims):
    x = image(dims)
    assert small(dims)(x).shape == (2, 3, *x.shape[2:])


@pytest.mark.parametrize("dims", [2, 3])
def test_channels_last_in_memory_gives_the_same(dims):
    network, x = small(dims).double(), image(dims).double()
    expected = network(x)
    network.to(memory_format=FORMATS[dims])
    torch.testing.assert_close(network(x.to(memory_format=FORMATS[dims])), expected)


@pytest.mark.parametrize("dims", [2, 3])
def test_without_the_scan_the_rest_is_the_same_network(dims):
    network, twin = small(dims).double(), small(dims, name="lightmunet_noscan").double()
    state = network.state_dict()
    twin.load_state_dict({name: value for name, value in state.items() if ".mamba." not in name})
    for name, weight in network.named_parameters():
        if name.endswith("mamba.out_proj.weight"):
            torch.nn.init.zeros_(weight)
    x = image(dims).double()
    torch.testing.assert_close(twin(x), network(x))


@pytest.mark.parametrize("extent", [(4, 8, 10), (4, 4, 4), (8, 8)])
def test_extent_that_does_not_fit_is_refused(extent):
    with pytest.raises(ValueError, match=r"3 multiples of 4, and more than one voxel at 1/4"):
        small()(torch.zeros(1, 2, *extent))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"init_filters": 12}, "init_filters = 12: wanted a multiple of 8"),
        ({"blocks_up": (1, 1, 1)}, "one level less in blocks_up"),
    ],
)
def test_arguments_that_cannot_be_built_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        small(**arguments)
