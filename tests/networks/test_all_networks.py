"""What holds for every network of the catalog."""

from __future__ import annotations

import json

import pytest
import torch
from torch import Tensor, nn

from umamba_seg.networks import Topology, all_networks, build, build_from, find
from umamba_seg.networks.blocks.mamba import ScanWeights
from umamba_seg.plan.architecture import describe

SPECS = {spec.name: spec for spec in all_networks()}
MAMBA_NETWORKS = [name for name, spec in SPECS.items() if spec.twin]
OF_FIXED_DEPTH = [name for name, spec in SPECS.items() if spec.levels]
GRID = [pytest.param(name, dims, id=f"{name}-{dims}d") for name, spec in SPECS.items() for dims in spec.dims]
HALF = [
    pytest.param(*case.values, dtype, id=f"{case.id}-{dtype}")
    for case in GRID
    for dtype in (torch.float16, torch.bfloat16)
    if not str(case.values[0]).endswith("_noscan") or (dtype == torch.float16 and case.values[1] == 3)
]
PATCH = (8, 16, 32)
OPEN_DEPTH = {  # the coarsest stage has 32 voxels or fewer, so that channels become tokens where they may
    2: Topology(PATCH[1:], ((1, 1), (2, 2), (1, 4)), ((3, 3),) * 3, (4, 8, 32)),
    3: Topology(PATCH, ((1, 1, 1), (1, 2, 2), (2, 2, 4)), ((1, 3, 3), (3, 3, 3), (3, 3, 3)), (4, 8, 64)),
}


def topology_of(name: str, dims: int) -> Topology:
    """A small one that is not cubic."""
    levels = SPECS[name].levels
    return levels.topology(PATCH[-dims:], width=0.25) if levels else OPEN_DEPTH[dims]


def network_of(name: str, dims: int, *, deep_supervision: bool = False, seed: int = 0) -> nn.Module:
    """The network as a plan builds it, with two input channels and three classes."""
    torch.manual_seed(seed)
    spec = SPECS[name]
    return build_from(
        spec.architecture(spec.planned(topology_of(name, dims))),
        input_channels=2,
        num_classes=3,
        deep_supervision=deep_supervision,
    )


def images(name: str, dims: int, batch: int = 2) -> Tensor:
    return torch.randn(batch, 2, *topology_of(name, dims).patch_size, generator=torch.Generator().manual_seed(1))


def outputs_of(result: Tensor | list[Tensor]) -> list[Tensor]:
    return result if isinstance(result, list) else [result]


def assert_trains(network: nn.Module, x: Tensor, loss_scale: float = 1.0) -> list[Tensor]:
    """A forward and backward pass in which everything is finite and every parameter takes part."""
    outputs = outputs_of(network(x))
    (loss_scale * sum(out.float().square().mean() for out in outputs)).backward()
    assert all(out.isfinite().all() for out in outputs)
    for name, weight in network.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
    return outputs


def test_names_are_unique_and_every_mamba_network_has_its_twin():
    assert len(SPECS) == len(all_networks())
    assert {SPECS[name].twin for name in MAMBA_NETWORKS} == {name for name in SPECS if name.endswith("_noscan")}
    assert {find(name).network for name in MAMBA_NETWORKS} == {
        find(SPECS[name].twin).network for name in MAMBA_NETWORKS
    }


@pytest.mark.parametrize(("name", "dims"), GRID)
def test_arguments_survive_the_plans_file(name, dims):
    planned = SPECS[name].planned(topology_of(name, dims))
    assert json.loads(json.dumps(planned)) == planned


@pytest.mark.parametrize(("name", "dims"), GRID)
def test_trains_on_a_patch_that_is_not_cubic(name, dims):
    network = network_of(name, dims, deep_supervision=True)
    x = images(name, dims, batch=3)
    outputs = assert_trains(network, x)
    if SPECS[name].task == "classification":
        assert [out.shape for out in outputs] == [(3, 3)]
        return
    described = describe(SPECS[name], topology_of(name, dims))
    extents = [
        tuple(n // s for n, s in zip(x.shape[2:], strides, strict=True)) for strides in described["output_strides"]
    ]
    assert [out.shape for out in outputs] == [(3, 3, *extent) for extent in extents]


@pytest.mark.parametrize(("name", "dims"), GRID)
def test_predicts_a_single_image_with_one_output(name, dims):
    network = network_of(name, dims).eval()
    x = images(name, dims, batch=2)
    with torch.inference_mode():
        together, alone = network(x), network(x[:1])
    torch.testing.assert_close(together[:1], alone, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:TF32 acceleration on top of oneDNN")  # of mkldnn.flags, on every CPU build
@pytest.mark.parametrize(("name", "dims", "dtype"), HALF)
def test_half_precision_stays_finite_for_inputs_of_a_thousand(name, dims, dtype):
    network = network_of(name, dims, deep_supervision=True)
    # In bfloat16, oneDNN's weight gradients of 3-D convolutions of a few voxels are wrong or NaN on some CPUs
    # (torch 2.13; a single Conv3d of 2x2x2 voxels shows it).
    with torch.backends.mkldnn.flags(enabled=False), torch.autocast("cpu", dtype):
        assert_trains(network, 1e3 * images(name, dims))


@pytest.mark.parametrize("name", [name for name in SPECS if not name.endswith("_noscan")])
def test_compiles_as_one_graph(name):
    dims = SPECS[name].dims[-1]
    network = network_of(name, dims, deep_supervision=True)
    for dropout in (module for module in network.modules() if isinstance(module, nn.Dropout)):
        dropout.eval()
    compiled = torch.compile(network, fullgraph=True, backend="aot_eager")
    x = images(name, dims)
    torch.testing.assert_close(assert_trains(compiled, x), outputs_of(network(x)), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("name", MAMBA_NETWORKS)
def test_the_twin_lacks_the_scan_and_what_normalises_for_it_and_nothing_else(name):
    dims = SPECS[name].dims[-1]
    network, twin = network_of(name, dims), network_of(SPECS[name].twin, dims)
    own, kept = dict(network.named_parameters()), dict(twin.named_parameters())
    assert {key: weight.shape for key, weight in kept.items()}.items() <= {
        key: weight.shape for key, weight in own.items()
    }.items()
    assert not any(isinstance(module, ScanWeights) for module in twin.modules())
    gone = own.keys() - kept.keys()
    scans = {key for key in gone if ".mamba." in key}
    assert scans
    assert all(key.rsplit(".", 1)[0].endswith("norm") for key in gone - scans)


@pytest.mark.parametrize(("name", "dims"), GRID)
def test_builds_without_memory(name, dims):
    with torch.device("meta"):
        network = network_of(name, dims)
    assert all(tensor.is_meta for tensor in network.state_dict().values())


@pytest.mark.parametrize("name", OF_FIXED_DEPTH)
def test_networks_of_fixed_depth_are_built_without_a_topology(name):
    with torch.device("meta"):
        network = build(name, input_channels=1, num_classes=2)
    assert sum(weight.numel() for weight in network.parameters()) > 1e5
