"""SegMamba (Xing et al. 2024, arXiv:2401.13560): an encoder of three-directional Mamba layers, a convolutional decoder.

The network equals that of the official repository, weight for weight; what the official code fixes for inputs of 128^3
(the slices of the third direction, the width of the first decoder features) are arguments here.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from umamba_seg.networks.blocks.mamba import TokenLayer, TriMamba

#: From the official names of the three directions, told apart by suffixes, to those of :class:`TriMamba`.
TRI_MAMBA_NAMES = (
    (r"\bA_([bs])_log\b", r"A_log_\1"),
    *(
        (rf"\b(A_log|D|conv1d|x_proj|dt_proj){suffix}\b", rf"{scan}.\1")
        for suffix, scan in (("", "forward_scan"), ("_b", "backward_scan"), ("_s", "slice_scan"))
    ),
)


def _conv_norm_relu(channels: int, kernel_size: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv3d(channels, channels, kernel_size, padding=kernel_size // 2),
        nn.InstanceNorm3d(channels),
        nn.ReLU(inplace=True),
    )


class GatedSpatialConv(nn.Module):
    """Gated spatial convolution: a 3x3x3 path and a 1x1x1 path, fused and added to the input.

    Source: arXiv:2401.13560, Sec. 2 (GSC); in the official code the two paths are added, not multiplied.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.spatial = nn.Sequential(_conv_norm_relu(channels, 3), _conv_norm_relu(channels, 3))
        self.pointwise = _conv_norm_relu(channels, 1)
        self.fuse = _conv_norm_relu(channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.fuse(self.spatial(x) + self.pointwise(x))


class MambaLayer(TokenLayer):
    """Layer norm and Mamba in three directions over the voxels of an image, added to the image.

    Source: arXiv:2401.13560, Sec. 2 (ToM).

    Args:
        channels: Values of a token.
        slices: See :class:`TriMamba`.
    """

    def __init__(self, channels: int, slices: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = TriMamba(channels, slices)

    def mix(self, tokens: Tensor) -> Tensor:
        return tokens + self.mamba(self.norm(tokens))


class Stage(nn.Module):
    """One resolution of the encoder: gated convolution and Mamba layers, with an MLP on the features that leave it.

    Args:
        downsample: What brings the features of the stage before to this resolution.
        channels: Of this stage.
        depth: Mamba layers.
        slices: See :class:`TriMamba`.
    """

    def __init__(self, downsample: nn.Module, channels: int, depth: int, slices: int):
        super().__init__()
        self.downsample = downsample
        self.gsc = GatedSpatialConv(channels)
        self.mamba_layers = nn.Sequential(*(MambaLayer(channels, slices) for _ in range(depth)))
        self.mlp = nn.Sequential(
            nn.InstanceNorm3d(channels),
            nn.Conv3d(channels, 2 * channels, 1),
            nn.GELU(),
            nn.Conv3d(2 * channels, channels, 1),
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features of the stage before -> features for the next stage, features for the decoder."""
        x = self.mamba_layers(self.gsc(self.downsample(x)))
        return x, self.mlp(x)


class Encoder(nn.Module):
    """Stages at 1/2, 1/4, ... of the input's resolution."""

    def __init__(self, input_channels: int, features: Sequence[int], depths: Sequence[int], slices: Sequence[int]):
        super().__init__()
        downsamplings = [
            nn.Sequential(nn.Conv3d(input_channels, features[0], 7, stride=2, padding=3)),
            *(
                nn.Sequential(nn.InstanceNorm3d(finer), nn.Conv3d(finer, coarser, 2, stride=2))
                for finer, coarser in pairwise(features)
            ),
        ]
        stages = zip(downsamplings, features, depths, slices, strict=True)
        self.stages = nn.ModuleList(Stage(*stage) for stage in stages)

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, finest first."""
        outputs = []
        for stage in self.stages:
            x, output = stage(x)
            outputs.append(output)
        return outputs


class ResBlock(nn.Module):
    """ResNet basic block without affine norms and biases; a 1x1x1 convolution on its skip where the channels change.

    Source: the residual block of UNETR (Hatamizadeh et al. 2021, arXiv:2103.10504), instance norm and LeakyReLU.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, padding=1, bias=False)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.conv3 = nn.Conv3d(in_channels, out_channels, 1, bias=False) if in_channels != out_channels else None
        self.norm = nn.InstanceNorm3d(out_channels)  # has no weights, so that one serves all convolutions
        self.act = nn.LeakyReLU(0.01, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv2(self.act(self.norm(self.conv1(x)))))
        return self.act(y + (x if self.conv3 is None else self.norm(self.conv3(x))))


class Upsample(nn.Module):
    """Transposed convolution to twice the extent, then a residual block on its result and the skip together."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.transposed = nn.ConvTranspose3d(in_channels, out_channels, 2, stride=2, bias=False)
        self.block = ResBlock(2 * out_channels, out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.block(torch.cat((self.transposed(x), skip), dim=1))


class SegMamba(nn.Module):
    """SegMamba, 3-D. It has one output: ``deep_supervision`` is accepted, as of every network, and changes nothing.

    Args:
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        depths: Mamba layers of each encoder stage, finest first.
        features_per_stage: Channels of each encoder stage, finest first; the first also at full resolution.
        hidden_size: Channels of the bottleneck.
        slices: Slices of the third scan in each stage, finest first. Each must divide the voxels of its stage. A slice
            is a plane orthogonal to the first axis where the count is the stage's extent along it, as the published
            counts are for an input of 128^3.
        scan: False leaves out the Mamba layers (their norm with them).
        deep_supervision: Without effect.

    Shapes:
        (batch, input_channels, D, H, W) -> (batch, num_classes, D, H, W); the extents are multiples of
        ``2 ** len(depths)``, and not all equal to it.

    Raises:
        ValueError: The arguments do not describe the same number of stages; in ``forward``: the input's extent does not
            fit, or a slice count does not divide the voxels of its stage (the message lists those that do).
    """

    official_names = (
        (r"^vit\.downsample_layers\.(\d+)\.", r"encoder.stages.\1.downsample."),
        (r"^vit\.stages\.(\d+)\.", r"encoder.stages.\1.mamba_layers."),
        (r"^vit\.gscs\.(\d+)\.proj\.", r"encoder.stages.\1.gsc.spatial.0.0."),
        (r"^vit\.gscs\.(\d+)\.proj2\.", r"encoder.stages.\1.gsc.spatial.1.0."),
        (r"^vit\.gscs\.(\d+)\.proj3\.", r"encoder.stages.\1.gsc.pointwise.0."),
        (r"^vit\.gscs\.(\d+)\.proj4\.", r"encoder.stages.\1.gsc.fuse.0."),
        (r"^vit\.mlps\.(\d+)\.fc1\.", r"encoder.stages.\1.mlp.1."),
        (r"^vit\.mlps\.(\d+)\.fc2\.", r"encoder.stages.\1.mlp.3."),
        *((rf"^encoder{level + 1}\.layer\.", f"skip_blocks.{level}.") for level in range(5)),
        *((rf"^decoder{5 - level}\.transp_conv\.", f"upsample_layers.{level}.transposed.") for level in range(4)),
        *((rf"^decoder{5 - level}\.conv_block\.", f"upsample_layers.{level}.block.") for level in range(4)),
        (r"^decoder1\.layer\.", "head.0."),
        (r"^out\.conv\.", "head.1."),
        (r"\.conv\.(weight|bias)$", r".\1"),
        *TRI_MAMBA_NAMES,
    )

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        depths: Sequence[int] = (2, 2, 2, 2),
        features_per_stage: Sequence[int] = (48, 96, 192, 384),
        hidden_size: int = 768,
        slices: Sequence[int] = (64, 32, 16, 8),
        scan: bool = True,
        deep_supervision: bool = False,
    ):
        super().__init__()
        if not len(depths) == len(features_per_stage) == len(slices):
            raise ValueError(
                f"depths {tuple(depths)}, features_per_stage {tuple(features_per_stage)} and slices {tuple(slices)}: "
                "wanted one entry per stage in each"
            )
        depths = depths if scan else [0] * len(depths)
        self.encoder = Encoder(input_channels, features_per_stage, depths, slices)
        # The last skip block is the bottleneck.
        widths = (*features_per_stage, hidden_size)
        self.skip_blocks = nn.ModuleList(ResBlock(*pair) for pair in pairwise((input_channels, *widths)))
        self.upsample_layers = nn.ModuleList(Upsample(coarse, fine) for coarse, fine in pairwise(reversed(widths)))
        self.head = nn.Sequential(ResBlock(widths[0], widths[0]), nn.Conv3d(widths[0], num_classes, 1))
        self.total_stride = 2 ** len(depths)
        # Of the stages that have Mamba layers.
        self.slices = {stage: count for stage, count in enumerate(slices) if depths[stage]}

    def forward(self, x: Tensor) -> Tensor:
        self._check(tuple(x.shape[2:]))
        levels = (x, *self.encoder(x))
        *skips, x = (block(level) for block, level in zip(self.skip_blocks, levels, strict=True))
        for upsample, skip in zip(self.upsample_layers, reversed(skips), strict=True):
            x = upsample(x, skip)
        return self.head(x)

    def _check(self, extent: tuple[int, ...]) -> None:
        """Refuse an input that some stage cannot take, before any of them has worked on it."""
        step = self.total_stride
        if len(extent) != 3 or any(size % step for size in extent) or all(size == step for size in extent):
            raise ValueError(
                f"input extent {extent}: wanted three multiples of {step}, and more than one voxel at 1/{step} of it"
            )
        for stage, count in self.slices.items():
            tokens = math.prod(extent) // 8 ** (stage + 1)
            if count < 1 or tokens % count:
                fitting = ", ".join(str(n) for n in range(1, tokens + 1) if tokens % n == 0)
                raise ValueError(
                    f"stage {stage}: slices = {count} does not divide the {tokens} tokens of an input of extent "
                    f"{extent}; counts that do: {fitting}"
                )
