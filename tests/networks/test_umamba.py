"""U-Mamba against the official network, and the contract that nnU-Net expects of a network."""

import pytest
import torch

from umamba_seg.errors import UserError
from umamba_seg.networks import Topology, build, find, load_official

VECTORS = ("umamba_bot_3d_iso5", "umamba_bot_2d", "umamba_enc_3d_iso5", "umamba_enc_2d_odd")


def topology_of(vector) -> Topology:
    plan = vector.meta["constructor_arguments"]["configuration"]
    widest = plan["unet_max_num_features"]
    return Topology(
        patch_size=tuple(plan["patch_size"]),
        strides=tuple(map(tuple, plan["pool_op_kernel_sizes"])),
        kernel_sizes=tuple(map(tuple, plan["conv_kernel_sizes"])),
        features=tuple(
            min(plan["UNet_base_num_features"] * 2**stage, widest) for stage in range(len(plan["conv_kernel_sizes"]))
        ),
    )


def name_of(vector) -> str:
    return "umamba_enc" if "enc" in vector.meta["name"] else "umamba_bot"


def network_of(vector) -> torch.nn.Module:
    arguments = vector.meta["constructor_arguments"]
    return build(
        name_of(vector),
        input_channels=arguments["num_input_channels"],
        num_classes=arguments["num_segmentation_heads"],
        topology=topology_of(vector),
        deep_supervision=arguments["deep_supervision"],
    )


def small(dims: int = 3, *, name: str = "umamba_bot", **arguments) -> torch.nn.Module:
    topology = Topology((16,) * dims, ((1,) * dims, (2,) * dims, (2,) * dims), ((3,) * dims,) * 3, (4, 8, 8))
    return build(name, input_channels=2, num_classes=3, topology=topology, **arguments)


@pytest.mark.parametrize("name", VECTORS)
def test_official_weights_give_official_numbers(oracle, name):
    vector = oracle(name)
    network = network_of(vector).double().eval()
    load_official(network, vector.state_dict())
    vector.assert_agrees(network)


@pytest.mark.parametrize("name", VECTORS)
def test_parameter_count_and_block_counts_are_the_official_ones(oracle, name):
    vector = oracle(name)
    assert sum(weight.numel() for weight in network_of(vector).parameters()) == vector.meta["parameter_count"]
    arguments = find(name_of(vector)).arguments(topology_of(vector))
    official = vector.meta["plans_after_construction"]
    assert arguments["n_blocks_per_stage"] == official["n_conv_per_stage_encoder"]
    assert arguments["n_blocks_per_stage_decoder"] == official["n_conv_per_stage_decoder"]


CT = Topology(
    patch_size=(40, 224, 192),
    strides=((1, 1, 1), (1, 2, 2), (2, 2, 2), (2, 2, 2), (2, 2, 2), (1, 2, 2)),
    kernel_sizes=((1, 3, 3), *((3, 3, 3),) * 5),
    features=(32, 64, 128, 256, 320, 320),
)
MR_2D = Topology(
    patch_size=(320, 320),
    strides=((1, 1), *((2, 2),) * 6),
    kernel_sizes=((3, 3),) * 7,
    features=(32, 64, 128, 256, 512, 512, 512),
)


@pytest.mark.parametrize(
    ("name", "topology", "parameters"),
    [
        ("umamba_bot", CT, 41_945_158),
        ("umamba_enc", CT, 42_842_798),
        ("umamba_bot", MR_2D, 47_533_012),
        ("umamba_enc", MR_2D, 47_015_538),
    ],
)
def test_parameter_counts_of_the_paper_s_configurations(name, topology, parameters):
    with torch.device("meta"):
        network = build(name, input_channels=1, num_classes=14, topology=topology)
    assert sum(weight.numel() for weight in network.parameters()) == parameters


def topology_2d(patch_size: tuple[int, int], stages: int) -> Topology:
    features = tuple(min(32 * 2**stage, 512) for stage in range(stages))
    return Topology(patch_size, ((1, 1), *((2, 2),) * (stages - 1)), ((3, 3),) * stages, features)


@pytest.mark.parametrize(
    ("topology", "tokens"),
    [
        (CT, ["voxels"] * 5 + ["channels"]),
        (MR_2D, ["voxels", None, "voxels", None, "channels", None, "channels"]),
        (topology_2d((384, 640), 7), ["voxels", None, "voxels", None, "voxels", None, "channels"]),
        (topology_2d((512, 512), 8), [None, "voxels", None, "voxels", None, "channels", None, "channels"]),
    ],
)
def test_tokens_of_the_encoder_s_mamba_layers(topology, tokens):
    arguments = find("umamba_enc").arguments(topology)
    assert arguments["mamba_tokens"] == tokens
    assert arguments["patch_size"] == list(topology.patch_size)


def test_channel_tokens_tie_the_network_to_its_patch():
    network = build(
        "umamba_enc",
        input_channels=1,
        num_classes=2,
        topology=Topology((8, 8, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (4, 8, 16)),
    )
    assert network(torch.zeros(1, 1, 8, 8, 16)).shape == (1, 2, 8, 8, 16)
    with pytest.raises(ValueError, match=r"\(16, 8, 8\).*takes its patch_size \(8, 8, 16\) only"):
        network(torch.zeros(1, 1, 16, 8, 8))  # as many voxels, but elsewhere


def test_without_channel_tokens_the_encoder_takes_any_extent_that_the_strides_divide():
    network = build(
        "umamba_enc",
        input_channels=1,
        num_classes=2,
        topology=Topology((16, 16, 16), ((1, 1, 1), (2, 2, 2), (2, 2, 2)), ((3, 3, 3),) * 3, (4, 8, 8)),
    )
    assert network(torch.zeros(1, 1, 8, 24, 16)).shape == (1, 2, 8, 24, 16)


@pytest.mark.parametrize(
    ("stages", "encoder", "decoder"),
    [
        (5, [2, 2, 2, 1, 1], [2, 2, 2, 1]),
        (6, [2, 2, 2, 1, 1, 1], [2, 2, 2, 1, 1]),
        (7, [2, 2, 2, 2, 1, 1, 1], [2, 2, 2, 2, 1, 1]),
        (8, [2, 2, 2, 2, 1, 1, 1, 1], [2, 2, 2, 2, 1, 1, 1]),
    ],
)
def test_block_counts_by_depth(stages, encoder, decoder):
    strides = ((1, 1), *((2, 2),) * (stages - 1))
    arguments = find("umamba_bot").arguments(Topology((512, 512), strides, ((3, 3),) * stages, (8,) * stages))
    assert arguments["n_blocks_per_stage"] == encoder
    assert arguments["n_blocks_per_stage_decoder"] == decoder


def test_checkpoint_that_does_not_fit_is_refused_with_its_entries(oracle):
    vector = oracle(VECTORS[1])
    state = vector.state_dict()
    del state["mamba_layer.mamba.D"]
    state["surplus.weight"] = torch.zeros(1)
    state["decoder.seg_layers.0.bias"] = torch.zeros(9)
    state["decoder.encoder.stem.0.conv1.bias"] = state["decoder.encoder.stem.0.conv1.bias"] + 1
    with pytest.raises(UserError) as error:
        load_official(network_of(vector).double(), state)
    for part in (
        "mamba_layers.4.mamba.D",
        "surplus.weight",
        "seg_layers.0.bias (9,)",
        "decoder.encoder.stem.0.conv1.bias",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize("dims", [2, 3])
def test_deep_supervision_can_be_flipped(dims):
    network, x = small(dims, deep_supervision=True), torch.randn(2, 2, *(16,) * dims)
    many = network(x)
    assert [out.shape[-1] for out in many] == [16, 8]
    network.decoder.deep_supervision = False
    torch.testing.assert_close(network(x), many[0])


def test_mamba_mixes_the_whole_image():
    x = torch.randn(1, 8, 4, 4, 4, requires_grad=True)
    small().encoder.mamba_layers["2"](x)[0, 0, -1, -1, -1].backward()
    assert x.grad[0, :, 0, 0, 0].abs().max() > 0  # the last voxel sees the first


def test_half_precision_features_are_scanned_in_float32():
    layer = small().encoder.mamba_layers["2"]
    out = layer(torch.full((1, 8, 2, 2, 2), 100.0, dtype=torch.float16))
    assert out.dtype == torch.float32
    assert out.isfinite().all()


def test_extent_that_the_strides_do_not_divide_is_refused():
    with pytest.raises(ValueError, match=r"\(16, 16, 18\) is not a multiple of the strides \(4, 4, 4\)"):
        small()(torch.zeros(1, 2, 16, 16, 18))


def test_unknown_network_lists_those_there_are():
    with pytest.raises(UserError, match=r"'unet': unknown; choose one of umamba_bot"):
        find("unet")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"features": (4, 8)}, "describe"),
        ({"strides": ((2, 2), (2, 2), (2, 2))}, "begin with ones"),
        ({"patch_size": (16, 18)}, "not divisible"),
        ({"kernel_sizes": ((3,), (3,), (3,))}, "dimensions"),
    ],
)
def test_impossible_topologies_are_refused(change, message):
    good = {
        "patch_size": (16, 16),
        "strides": ((1, 1), (2, 2), (2, 2)),
        "kernel_sizes": ((3, 3),) * 3,
        "features": (4, 8, 8),
    }
    with pytest.raises(UserError, match=message):
        Topology(**(good | change))
