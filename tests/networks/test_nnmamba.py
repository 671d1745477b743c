"""nnMamba against the official networks, and what its four networks promise beyond that."""

import re

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.networks import build, load_official
from umamba_seg.networks.blocks.mamba import Mamba
from umamba_seg.networks.nnmamba import MambaInConvolution, SiameseScan

NETWORK_OF = {"nnmamba_seg_small": "nnmamba", "nnmamba_cls": "nnmamba_cls", "nnmamba_land": "nnmamba_land"}
NAMES = ("nnmamba", "nnmamba_ds", "nnmamba_cls", "nnmamba_land")


def small(name: str, **arguments) -> torch.nn.Module:
    return build(name, input_channels=2, num_classes=3, **({"channels": 16, "blocks": 2} | arguments))


def image(*extent: int) -> torch.Tensor:
    return torch.randn(1, 2, *extent, generator=torch.Generator().manual_seed(0))


def mamba_layers(network: torch.nn.Module) -> int:
    return sum(isinstance(module, Mamba) for module in network.modules())


@pytest.mark.parametrize("name", NETWORK_OF)
def test_official_weights_give_official_numbers(oracle, name):
    vector = oracle(name)
    arguments = vector.meta["constructor_arguments"]
    network = build(
        NETWORK_OF[name],
        input_channels=arguments["in_ch"],
        num_classes=arguments["number_classes"],
        channels=arguments["channels"],
        blocks=arguments["blocks"],
    )
    network.double().eval()
    load_official(network, vector.state_dict())
    vector.assert_agrees(network)


def test_miccss_block_equals_the_official_one(oracle):
    vector = oracle("block_miccss_d16")
    block = MambaInConvolution(16, SiameseScan(16)).double().eval()
    block.load_state_dict({re.sub(r"^mamba\.", "scan.mamba.", key): x for key, x in vector.state_dict().items()})
    vector.assert_agrees(block)


@pytest.mark.parametrize(
    ("name", "input_channels", "num_classes", "parameters"),
    [
        ("nnmamba", 1, 6, 15_944_958),
        ("nnmamba", 1, 16, 15_959_598),
        ("nnmamba_ds", 4, 4, 15_859_266),
        ("nnmamba_cls", 1, 1, 12_876_321),
        ("nnmamba_land", 1, 6, 15_191_312),
    ],
)
def test_parameter_count_is_the_official_one(name, input_channels, num_classes, parameters):
    with torch.device("meta"):
        network = build(name, input_channels=input_channels, num_classes=num_classes)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


@pytest.mark.parametrize(("blocks", "layers"), [(1, 0), (2, 3), (4, 3)])
@pytest.mark.parametrize("name", ["nnmamba", "nnmamba_ds"])
def test_blocks_of_a_stage_share_one_mamba_layer(name, blocks, layers):
    network = small(name, blocks=blocks)
    calls = []
    for module in network.modules():
        if isinstance(module, Mamba):
            module.register_forward_hook(lambda *_: calls.append(1))
    network(image(32, 32, 32))
    assert mamba_layers(network) == layers
    assert len(calls) == layers * (blocks - 1)


def three_blocks(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The official state dict of a network of two blocks per stage, with the second a second time."""
    return state | {re.sub(r"^(layer\d)\.1\.", r"\1.2.", key): value for key, value in state.items()}


def test_shared_mamba_layers_must_agree_in_a_checkpoint(oracle):
    state = three_blocks(oracle("nnmamba_seg_small").state_dict())
    network = small("nnmamba", blocks=3)
    load_official(network, state)
    state["layer2.2.mamba_layer.mamba.D"] = state["layer2.2.mamba_layer.mamba.D"] + 1
    with pytest.raises(UserError, match=r"1 contradicting aliases: layer2\.2\.mamba_layer\.mamba\.D"):
        load_official(network, state)


def test_checkpoint_of_the_network_with_heads_loads(oracle):
    state = oracle("nnmamba_seg_small").state_dict()
    state = {key: value for key, value in state.items() if not re.search(r"\.(nin2|norm2)\.", key)}
    for level in range(3):
        state[f"ds{level + 1}_cls_conv.weight"] = torch.full((3, 16 * 2**level, 1, 1, 1), float(level))
        state[f"ds{level + 1}_cls_conv.bias"] = torch.zeros(3)
    network = small("nnmamba_ds")
    load_official(network, state)
    assert [head.weight.unique().item() for head in network.decoder.heads] == [0, 1, 2]


def test_deep_supervision_can_be_flipped():
    network, x = small("nnmamba_ds", deep_supervision=True), image(32, 48, 16)
    many = network(x)
    assert [tuple(out.shape) for out in many] == [(1, 3, 32 // s, 48 // s, 16 // s) for s in (1, 2, 4, 8)]
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(x), many[0])


@pytest.mark.parametrize("name", ["nnmamba", "nnmamba_ds", "nnmamba_land"])
def test_no_logit_is_negative_as_the_last_layer_is_a_relu(name):
    logits = small(name)(image(32, 32, 32))
    assert logits.shape == (1, 3, 32, 32, 32)
    assert logits.min() == 0 < logits.max()


@pytest.mark.parametrize("name", ["nnmamba", "nnmamba_ds", "nnmamba_land"])
def test_extent_that_the_levels_do_not_divide_is_refused(name):
    with pytest.raises(ValueError, match=r"\(32, 32, 40\) is not a multiple of \(16, 16, 16\)"):
        small(name)(image(32, 32, 40))


def test_classifier_takes_any_extent():
    assert small("nnmamba_cls")(image(21, 34, 17)).shape == (1, 3)


@pytest.mark.parametrize("name", ["nnmamba", "nnmamba_ds"])
def test_too_few_channels_for_the_attention_are_refused(name):
    with pytest.raises(ValueError, match="15 channels: channel attention wants 16 or more"):
        small(name, channels=15)


@pytest.mark.parametrize("name", NAMES)
def test_twin_has_everything_but_the_scan(name):
    network, twin = small(name), small(f"{name}_noscan")
    assert mamba_layers(twin) == 0
    scan = r"\.stem_layer\." if name == "nnmamba_land" else r"\.scan\."
    assert list(twin.state_dict()) == [key for key in network.state_dict() if not re.search(scan, key)]


@pytest.mark.parametrize("name", ["nnmamba", "nnmamba_cls", "nnmamba_land"])
def test_twin_is_the_network_whose_mamba_answers_zero(name):
    network, twin = small(name), small(f"{name}_noscan")
    twin.load_state_dict(network.state_dict(), strict=False)
    x = image(32, 32, 32)
    assert not torch.equal(twin.encoder(x)[-1], network.encoder(x)[-1])
    for module in network.modules():
        if isinstance(module, Mamba):
            torch.nn.init.zeros_(module.out_proj.weight)
    torch.testing.assert_close(twin.encoder(x)[-1], network.encoder(x)[-1])


def test_mamba_that_replaces_its_input_is_the_identity_in_the_twin():
    layer = small("nnmamba_ds_noscan").encoder.stages[0].mamba_layer
    x = torch.randn(1, 32, 4, 4, 4)
    torch.testing.assert_close(layer(x), layer.norm(layer.nin(x)).relu())
