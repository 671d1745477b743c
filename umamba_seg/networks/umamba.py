"""U-Mamba (Ma, Li and Wang 2024, arXiv:2401.04722): a residual U-Net with Mamba layers, 2-D and 3-D.

U-Mamba_Bot has one Mamba layer at the bottleneck, U-Mamba_Enc one after (nearly) every encoder stage; which, stands in
the catalog. The networks equal those of the official repository as of 2024-03-27, weight for weight.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba_seg.networks.blocks.mamba import Mamba, TokenLayer
from umamba_seg.networks.blocks.residual import CONV, residual_stage, unbounded

Extents = Sequence[Sequence[int]]


class MambaLayer(TokenLayer):
    """Layer norm and Mamba over the voxels of an image; the result replaces the image (no residual).

    Source: arXiv:2401.04722, Fig. 1; there is no skip around the block in the official code.

    Args:
        d_model: Values of a token.
    """

    def __init__(self, d_model: int):
        super().__init__()
        self.norm = nn.LayerNorm(d_model)
        self.mamba = Mamba(d_model)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.mamba(self.norm(tokens))


class ChannelMambaLayer(MambaLayer):
    """The same with a channel's image as a token: ``d_model`` voxels, so that the weights fit one extent only."""

    def mix(self, tokens: Tensor) -> Tensor:
        return super().mix(tokens.transpose(1, 2)).transpose(1, 2)


class Encoder(nn.Module):
    """A stem at full resolution and one residual stage per entry of ``strides``, some with a Mamba layer behind it.

    Args:
        mamba_layers: By the number of their stage.
    """

    def __init__(
        self,
        input_channels: int,
        features: Sequence[int],
        kernel_sizes: Extents,
        strides: Extents,
        blocks: Sequence[int],
        mamba_layers: dict[int, MambaLayer],
    ):
        super().__init__()
        self.stem = residual_stage(input_channels, features[0], kernel_sizes[0], strides[0], blocks[0])
        inputs = (features[0], *features[:-1])
        stages = zip(inputs, features, kernel_sizes, strides, blocks, strict=True)
        self.stages = nn.Sequential(*(residual_stage(*stage) for stage in stages))
        self.mamba_layers = nn.ModuleDict({str(stage): layer for stage, layer in mamba_layers.items()})

    def forward(self, x: Tensor) -> list[Tensor]:
        """The output of every stage, finest first."""
        x = self.stem(x)
        outputs = []
        for i, stage in enumerate(self.stages):
            x = stage(x)
            if str(i) in self.mamba_layers:
                x = self.mamba_layers[str(i)](x)
            outputs.append(x)
        return outputs


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by ``stride``, then a 1x1 convolution."""

    def __init__(self, in_channels: int, out_channels: int, stride: Sequence[int]):
        super().__init__()
        self.scale = [float(step) for step in stride]
        self.conv = CONV[len(stride)](in_channels, out_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return unbounded(self.conv, F.interpolate(x, scale_factor=self.scale, mode="nearest"))


class Decoder(nn.Module):
    """From the bottleneck up; a head of 1x1 convolutions after every stage.

    Args:
        features, kernel_sizes, strides: As of the encoder, finest first.
        num_classes: Channels of the logits.
        blocks: Blocks per stage, coarsest first.
        full_resolution_skip: Whether the last stage sees the encoder's full-resolution features. The official 2-D
            network leaves them out, the 3-D one does not.
        deep_supervision: Return the logits of every stage.
    """

    def __init__(
        self,
        features: Sequence[int],
        kernel_sizes: Extents,
        strides: Extents,
        num_classes: int,
        blocks: Sequence[int],
        full_resolution_skip: bool,
        deep_supervision: bool,
    ):
        super().__init__()
        self.deep_supervision = deep_supervision
        self.full_resolution_skip = full_resolution_skip
        upsample, stages, heads = [], [], []
        for level, n_blocks in zip(reversed(range(len(features) - 1)), blocks, strict=True):
            width, kernel_size = features[level], kernel_sizes[level]
            inputs = 2 * width if level > 0 or full_resolution_skip else width
            upsample.append(Upsample(features[level + 1], width, strides[level + 1]))
            stages.append(residual_stage(inputs, width, kernel_size, [1] * len(kernel_size), n_blocks))
            heads.append(CONV[len(kernel_size)](width, num_classes, 1))
        self.upsample_layers = nn.ModuleList(upsample)
        self.stages = nn.ModuleList(stages)
        self.seg_layers = nn.ModuleList(heads)

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Bottleneck and skips (finest first) -> logits, or a list of logits, finest first."""
        logits = []
        finest = len(self.stages) - 1
        for i, (upsample, stage, head) in enumerate(
            zip(self.upsample_layers, self.stages, self.seg_layers, strict=True)
        ):
            x = upsample(x)
            if i < finest or self.full_resolution_skip:
                x = torch.cat((x, skips[finest - i]), dim=1)
            x = stage(x)
            if self.deep_supervision or i == finest:
                logits.append(unbounded(head, x))
        return logits[::-1] if self.deep_supervision else logits[0]


class UMamba(nn.Module):
    """U-Mamba: residual encoder with Mamba layers, residual decoder.

    Args:
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        strides, kernel_sizes, features: One entry per stage, finest first; strides begin with ones.
        n_blocks_per_stage: Residual blocks of each encoder stage, finest first.
        n_blocks_per_stage_decoder: Residual blocks of each decoder stage, coarsest first.
        full_resolution_skip: See :class:`Decoder`.
        mamba_tokens: What a token of the Mamba layer after each encoder stage is, ``"voxels"`` or ``"channels"``; None
            for a stage without one.
        patch_size: The only input extent of a network with channel tokens; None without them.
        deep_supervision: Return logits of all decoder stages; ``decoder.deep_supervision`` can be flipped later.

    Shapes:
        (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), or under deep supervision a list of
        ``len(strides) - 1`` logits, finest first. The spatial extent must be a multiple of the strides' product.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        strides: Extents,
        kernel_sizes: Extents,
        features: Sequence[int],
        n_blocks_per_stage: Sequence[int],
        n_blocks_per_stage_decoder: Sequence[int],
        full_resolution_skip: bool,
        mamba_tokens: Sequence[str | None],
        patch_size: Sequence[int] | None = None,
        deep_supervision: bool = False,
    ):
        super().__init__()
        layers = _mamba_layers(mamba_tokens, features, strides, patch_size)
        self.encoder = Encoder(input_channels, features, kernel_sizes, strides, n_blocks_per_stage, layers)
        self.decoder = Decoder(
            features,
            kernel_sizes,
            strides,
            num_classes,
            n_blocks_per_stage_decoder,
            full_resolution_skip,
            deep_supervision,
        )
        self.total_stride = tuple(math.prod(steps) for steps in zip(*strides, strict=True))
        self.patch_size = None if patch_size is None else tuple(patch_size)
        # The official decoder holds the encoder a second time, its constant-width blocks hold conv and norm twice, and
        # U-Mamba_Bot has its one Mamba layer outside of the encoder.
        self.official_names = (
            (r"^decoder\.encoder\.", "encoder."),
            (r"\.all_modules\.0\.", ".conv."),
            (r"\.all_modules\.1\.", ".norm."),
            (r"^mamba_layer\.", f"encoder.mamba_layers.{len(features) - 1}."),
        )

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        extent = tuple(x.shape[2:])
        if self.patch_size is not None and extent != self.patch_size:
            raise ValueError(
                f"input extent {extent}: the channels of this network are tokens of its Mamba layers, so that it "
                f"takes its patch_size {self.patch_size} only"
            )
        if any(size % step for size, step in zip(extent, self.total_stride, strict=True)):
            raise ValueError(f"input extent {extent} is not a multiple of the strides {self.total_stride}")
        *skips, bottleneck = self.encoder(x)
        return self.decoder(bottleneck, skips)

    @staticmethod
    def initialize(module: nn.Module) -> None:
        """He initialisation of one (sub)module; nnU-Net applies it to all. The Mamba layer keeps its own."""
        if isinstance(module, (nn.Conv2d, nn.Conv3d)):
            nn.init.kaiming_normal_(module.weight, a=0.01)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _mamba_layers(
    tokens: Sequence[str | None], features: Sequence[int], strides: Extents, patch_size: Sequence[int] | None
) -> dict[int, MambaLayer]:
    """The Mamba layers by stage; a channel has as many voxels as the patch at that stage."""
    layers: dict[int, MambaLayer] = {}
    extent = patch_size
    for stage, kind in enumerate(tokens):
        if extent is not None:
            extent = [size // step for size, step in zip(extent, strides[stage], strict=True)]
        if kind == "voxels":
            layers[stage] = MambaLayer(features[stage])
        elif kind == "channels" and extent is not None:
            layers[stage] = ChannelMambaLayer(math.prod(extent))
        elif kind is not None:
            raise ValueError(f"mamba_tokens {tokens}, patch_size {patch_size}: stage {stage} cannot be built")
    return layers
