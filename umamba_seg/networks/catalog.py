"""Every network by name. This file loads no torch, so that the command line can answer names at once.

A network is one file beside this one (2-D and 3-D in one class) and one entry here.
"""

from __future__ import annotations

import math
from dataclasses import replace

from umamba_seg.networks.spec import FixedLevels, NetworkSpec, Topology

BASELINE = "residual_encoder_unet"
"""What every network is compared with: nnU-Net's ResEnc."""

_UMAMBA = "umamba_seg.networks.umamba.UMamba"
_UMAMBA_PAPER = "Ma, Li, Wang: U-Mamba, arXiv:2401.04722"
_NNMAMBA = "umamba_seg.networks.nnmamba"
_NNMAMBA_PAPER = "Gong et al.: nnMamba, arXiv:2402.03526"
_UNETS = "dynamic_network_architectures.architectures.unet"


def _umamba(topology: Topology, mamba_tokens: list[str | None]) -> dict:
    """U-Mamba's block counts: two per stage in the finer half, one in the coarser (official code, 2024-03-27)."""
    stages = len(topology.strides)
    two_encoder, two_decoder = math.ceil(stages / 2), math.ceil((stages - 1) / 2 + 0.5)
    arguments = {
        "strides": [list(steps) for steps in topology.strides],
        "kernel_sizes": [list(size) for size in topology.kernel_sizes],
        "features": list(topology.features),
        "n_blocks_per_stage": [2 if stage < two_encoder else 1 for stage in range(stages)],
        "n_blocks_per_stage_decoder": [2 if stage < two_decoder else 1 for stage in range(stages - 1)],
        "full_resolution_skip": topology.dims == 3,
        "mamba_tokens": mamba_tokens,
    }
    if "channels" in mamba_tokens:
        arguments["patch_size"] = list(topology.patch_size)
    return arguments


def _umamba_bot(topology: Topology) -> dict:
    return _umamba(topology, [*(None for _ in topology.strides[1:]), "voxels"])


def _umamba_enc(topology: Topology) -> dict:
    """A Mamba layer after every stage in 3-D, after the last and every second before it in 2-D.

    Where a stage has no more voxels than channels, the channels are the tokens.
    """
    tokens: list[str | None] = []
    voxels = math.prod(topology.patch_size)
    for stage, (steps, channels) in enumerate(zip(topology.strides, topology.features, strict=True)):
        voxels //= math.prod(steps)
        carries = topology.dims == 3 or (len(topology.strides) - 1 - stage) % 2 == 0
        tokens.append(("channels" if voxels <= channels else "voxels") if carries else None)
    return _umamba(topology, tokens)


def _umamba_noscan(topology: Topology) -> dict:
    return _umamba(topology, [None for _ in topology.strides])


def _segmamba(topology: Topology) -> dict:
    """A slice is a plane orthogonal to the first axis, as the official counts are for a patch of 128^3."""
    return {
        "features_per_stage": list(topology.features[1:]),
        "hidden_size": 2 * topology.features[-1],
        "slices": [topology.patch_size[0] // 2**level for level in range(1, len(topology.features))],
    }


def _nnmamba(topology: Topology) -> dict:
    return {"channels": topology.features[0]}


def _lightmunet(topology: Topology) -> dict:
    return {"spatial_dims": topology.dims, "init_filters": topology.features[0]}


def _unet(topology: Topology) -> dict:
    """What nnU-Net's planners write for their own networks, apart from the number of blocks."""
    dims = topology.dims
    return {
        "n_stages": len(topology.strides),
        "features_per_stage": list(topology.features),
        "conv_op": f"torch.nn.modules.conv.Conv{dims}d",
        "kernel_sizes": [list(size) for size in topology.kernel_sizes],
        "strides": [list(steps) for steps in topology.strides],
        "conv_bias": True,
        "norm_op": f"torch.nn.modules.instancenorm.InstanceNorm{dims}d",
        "norm_op_kwargs": {"eps": 1e-05, "affine": True},
        "dropout_op": None,
        "dropout_op_kwargs": None,
        "nonlin": "torch.nn.LeakyReLU",
        "nonlin_kwargs": {"inplace": True},
    }


def _plain_conv_unet(topology: Topology) -> dict:
    stages = len(topology.strides)
    return _unet(topology) | {"n_conv_per_stage": [2] * stages, "n_conv_per_stage_decoder": [2] * (stages - 1)}


def _residual_encoder_unet(topology: Topology) -> dict:
    """Blocks of nnU-Net's ResEnc presets: 1, 3, 4, then 6 per encoder stage and one convolution in the decoder."""
    stages = len(topology.strides)
    blocks = [1, 3, 4, *[6] * stages][:stages]
    return _unet(topology) | {"n_blocks_per_stage": blocks, "n_conv_per_stage_decoder": [1] * (stages - 1)}


_NNMAMBA_LEVELS = FixedLevels(features=(32, 32, 64, 128, 256), narrowest=16)

# nnMamba ends in a ReLU, and a class whose score falls below 0 everywhere stays there: SGD at 1e-2 and AdamW at 3e-3
# silenced some within 100 iterations on hippocampus. SGD's rate is that of the official trainers
# (configs/networks/nnmamba.toml).
_NNMAMBA_RATES = {"SGD": 1e-4, "AdamW": 1e-3}

_MAMBA_NETWORKS = (
    NetworkSpec(
        name="umamba_bot",
        network=_UMAMBA,
        arguments=_umamba_bot,
        dims=(2, 3),
        paper=f"{_UMAMBA_PAPER} (U-Mamba_Bot)",
        remark="nnMamba's README gives 40.00 M and 792.87 G; its setting is unknown and the figures are not "
        "reproduced. LightM-UNet's README counts 224 times its own 1.09 M in 2-D: thop's 244.1 M for the release of "
        "January 2024, in which modules that are registered twice are counted again. Counted once: 86.15 M.",
    ),
    NetworkSpec(
        name="umamba_enc",
        network=_UMAMBA,
        arguments=_umamba_enc,
        dims=(2, 3),
        paper=f"{_UMAMBA_PAPER} (U-Mamba_Enc)",
    ),
    NetworkSpec(
        name="segmamba",
        network="umamba_seg.networks.segmamba.SegMamba",
        arguments=_segmamba,
        dims=(3,),
        paper="Xing et al.: SegMamba, arXiv:2401.13560",
        levels=FixedLevels(features=(48, 48, 96, 192, 384)),
    ),
    NetworkSpec(
        name="nnmamba",
        network=f"{_NNMAMBA}.NNMamba",
        arguments=_nnmamba,
        dims=(3,),
        paper=_NNMAMBA_PAPER,
        levels=_NNMAMBA_LEVELS,
        learning_rates=_NNMAMBA_RATES,
        remark="The README's 15.55 M and 141.14 G are what thop.profile prints for 1 -> 16 channels at 128^3: it "
        "leaves out the parameters inside Mamba, counts shared convolutions twice and calls multiply-adds FLOPs. "
        "Counted once: 15.96 M, 151.0 G multiply-adds and the scans; 145.3 G here, where two scans share a projection.",
    ),
    NetworkSpec(
        name="nnmamba_ds",
        network=f"{_NNMAMBA}.NNMambaDS",
        arguments=_nnmamba,
        dims=(3,),
        paper=f"{_NNMAMBA_PAPER} (official nnU-Net trainers)",
        levels=_NNMAMBA_LEVELS,
        learning_rates=_NNMAMBA_RATES,
    ),
    NetworkSpec(
        name="nnmamba_cls",
        network=f"{_NNMAMBA}.NNMambaClassifier",
        arguments=_nnmamba,
        dims=(3,),
        paper=f"{_NNMAMBA_PAPER} (classification)",
        levels=_NNMAMBA_LEVELS,
        task="classification",
    ),
    NetworkSpec(
        name="nnmamba_land",
        network=f"{_NNMAMBA}.NNMambaLandmark",
        arguments=_nnmamba,
        dims=(3,),
        paper=f"{_NNMAMBA_PAPER} (landmarks)",
        levels=_NNMAMBA_LEVELS,
        task="landmarks",
    ),
    NetworkSpec(
        name="lightmunet",
        network="umamba_seg.networks.lightmunet.LightMUNet",
        arguments=_lightmunet,
        dims=(2, 3),
        paper="Liao et al.: LightM-UNet, arXiv:2403.05246",
        levels=FixedLevels(features=(32, 64, 128, 256), narrowest=8),
        remark="The README's 1 M parameters, 116 times fewer than nnU-Net and 224 times fewer than U-Mamba, are "
        "thop's: it leaves out 4.28 M inside Mamba, and counts modules of the others that are registered twice "
        "again. Counted once, 2-D, 1 -> 2 channels: 5.01 M (5.38 M in the release of 2024-03-17), nnU-Net 46.3 M, "
        "U-Mamba 86.1 M.",
    ),
)


def _without_scan(spec: NetworkSpec) -> NetworkSpec:
    """The twin: Mamba and its normalisation gone, everything around them as it was."""
    umamba = spec.network == _UMAMBA
    return replace(
        spec,
        name=f"{spec.name}_noscan",
        arguments=_umamba_noscan if umamba else spec.arguments,
        constants={} if umamba else {"scan": False},
        paper=f"{spec.name} without its scan",
        remark="",
    )


def _with_twin(spec: NetworkSpec) -> tuple[NetworkSpec, NetworkSpec]:
    twin = _without_scan(spec)
    return replace(spec, twin=twin.name), twin


NETWORKS = (
    *(entry for spec in _MAMBA_NETWORKS for entry in _with_twin(spec)),
    NetworkSpec(
        name="plain_conv_unet",
        network=f"{_UNETS}.PlainConvUNet",
        arguments=_plain_conv_unet,
        dims=(2, 3),
        paper="Isensee et al.: nnU-Net, Nature Methods 2021",
        imports=("conv_op", "norm_op", "dropout_op", "nonlin"),
    ),
    NetworkSpec(
        name="residual_encoder_unet",
        network=f"{_UNETS}.ResidualEncoderUNet",
        arguments=_residual_encoder_unet,
        dims=(2, 3),
        paper="Isensee et al.: nnU-Net Revisited, arXiv:2404.09556",
        imports=("conv_op", "norm_op", "dropout_op", "nonlin"),
    ),
)
