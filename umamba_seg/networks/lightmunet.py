"""LightM-UNet (Liao et al. 2024, arXiv:2403.05246): Mamba layers in place of the encoder's convolutions, 2-D and 3-D.

The network equals that of the official repository as of its last commit, weight for weight. The release of 2024-03-17,
whose numbers the paper reports, had ordinary convolutions where this one has depthwise ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umamba_seg.networks.blocks.mamba import Mamba, TokenLayer
from umamba_seg.networks.blocks.residual import CONV

_POOL = {2: nn.MaxPool2d, 3: nn.MaxPool3d}
_LINEAR = {2: "bilinear", 3: "trilinear"}
_GROUPS = 8  # of every group norm


def _group_norm(channels: int) -> nn.GroupNorm:
    return nn.GroupNorm(_GROUPS, channels)


def _depthwise_separable(
    dims: int, in_channels: int, out_channels: int, kernel_size: int, bias: bool = False
) -> nn.Sequential:
    """A convolution of each channel by itself (same padding), then one of 1x1."""
    conv = CONV[dims]
    return nn.Sequential(
        conv(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels, bias=bias),
        conv(in_channels, out_channels, 1, bias=bias),
    )


class MambaLayer(TokenLayer):
    """Residual vision Mamba layer: Mamba with a scaled residual, then a linear map; one layer norm serves both.

    Source: arXiv:2403.05246, Sec. 2 (RVM layer). For tokens f: u = Mamba(LN(f)) + scale f, result Linear(LN(u)).

    Args:
        in_channels: Values of a token.
        out_channels: Values of a token of the result.
        scan: False leaves out Mamba(LN(f)).
    """

    def __init__(self, in_channels: int, out_channels: int, scan: bool):
        super().__init__()
        self.norm = nn.LayerNorm(in_channels)
        self.mamba = Mamba(in_channels) if scan else None
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.proj = nn.Linear(in_channels, out_channels)

    def mix(self, tokens: Tensor) -> Tensor:
        mixed = self.skip_scale * tokens
        if self.mamba is not None:
            mixed = mixed + self.mamba(self.norm(tokens))
        return self.proj(self.norm(mixed))


class MambaBlock(nn.Module):
    """Residual block of two Mamba layers: norm-act-layer-norm-act-layer, identity skip."""

    def __init__(self, channels: int, scan: bool):
        super().__init__()
        self.norm1 = _group_norm(channels)
        self.layer1 = MambaLayer(channels, channels, scan)
        self.norm2 = _group_norm(channels)
        self.layer2 = MambaLayer(channels, channels, scan)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer1(self.norm1(x).relu_())
        return x + self.layer2(self.norm2(y).relu_())


class ConvBlock(nn.Module):
    """Decoder block: norm-act-convolution, scaled skip, norm-act; the convolution is depthwise separable."""

    def __init__(self, dims: int, channels: int):
        super().__init__()
        self.norm1 = _group_norm(channels)
        self.conv = _depthwise_separable(dims, channels, channels, 3)
        self.skip_scale = nn.Parameter(torch.ones(1))
        self.norm2 = _group_norm(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(self.norm1(x).relu_()) + self.skip_scale * x
        return self.norm2(y).relu_()


class LightMUNet(nn.Module):
    """LightM-UNet. It has one output: ``deep_supervision`` is accepted, as of every network, and changes nothing.

    Args:
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        spatial_dims: 2 or 3.
        init_filters: Channels at full resolution, a multiple of 8; every level has twice those of the one before.
            The official trainers use 32.
        blocks_down: Mamba blocks of each encoder level, finest first.
        blocks_up: Convolution blocks of each decoder level, coarsest first; one level less.
        scan: False leaves out the branches with Mamba; their layers' scaled residual, norm and linear map stay.
        deep_supervision: Without effect.

    Shapes:
        (batch, input_channels, *spatial) -> (batch, num_classes, *spatial); the extents are multiples of
        ``2 ** (len(blocks_down) - 1)``, and not all equal to it.

    Raises:
        ValueError: ``init_filters`` is no multiple of 8, or the levels of encoder and decoder do not match; in
            ``forward``: the input's extent does not fit.
    """

    official_names = (
        (r"^convInit\.", "encoder.0.0."),
        (r"^down_layers\.", "encoder."),
        (r"\.conv([12])\.", r".layer\1."),
        (r"^up_samples\.", "upsample_layers."),
        (r"^up_layers\.", "decoder."),
        (r"^conv_final\.", "head."),
        (r"\.conv\.(weight|bias)$", r".\1"),
    )

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        spatial_dims: int = 3,
        init_filters: int = 32,
        blocks_down: Sequence[int] = (1, 2, 2, 4),
        blocks_up: Sequence[int] = (1, 1, 1),
        scan: bool = True,
        deep_supervision: bool = False,
    ):
        super().__init__()
        if init_filters < 1 or init_filters % _GROUPS:
            raise ValueError(f"init_filters = {init_filters}: wanted a multiple of {_GROUPS}, the groups of its norms")
        if len(blocks_up) != len(blocks_down) - 1:
            raise ValueError(
                f"blocks_down {tuple(blocks_down)} and blocks_up {tuple(blocks_up)}: wanted one level less in blocks_up"
            )
        widths = [init_filters * 2**level for level in range(len(blocks_down))]
        entries = [
            _depthwise_separable(spatial_dims, input_channels, init_filters, 3),
            *(nn.Sequential(MambaLayer(width // 2, width, scan), _POOL[spatial_dims](2)) for width in widths[1:]),
        ]
        self.encoder = nn.ModuleList(
            nn.Sequential(entry, *(MambaBlock(width, scan) for _ in range(blocks)))
            for entry, width, blocks in zip(entries, widths, blocks_down, strict=True)
        )
        decoder_widths = widths[-2::-1]
        self.upsample_layers = nn.ModuleList(
            nn.Sequential(
                CONV[spatial_dims](2 * width, width, 1, bias=False),
                nn.Upsample(scale_factor=2, mode=_LINEAR[spatial_dims], align_corners=False),
            )
            for width in decoder_widths
        )
        self.decoder = nn.ModuleList(
            nn.Sequential(*(ConvBlock(spatial_dims, width) for _ in range(blocks)))
            for width, blocks in zip(decoder_widths, blocks_up, strict=True)
        )
        self.head = nn.Sequential(
            _group_norm(init_filters),
            nn.ReLU(),
            _depthwise_separable(spatial_dims, init_filters, num_classes, 1, bias=True),
        )
        self.spatial_dims = spatial_dims
        self.total_stride = 2 ** len(blocks_up)

    def forward(self, x: Tensor) -> Tensor:
        self._check(tuple(x.shape[2:]))
        skips = []
        for level in self.encoder:
            x = level(x)
            skips.append(x)
        for upsample, level, skip in zip(self.upsample_layers, self.decoder, skips[-2::-1], strict=True):
            x = level(upsample(x) + skip)
        return self.head(x)

    def _check(self, extent: tuple[int, ...]) -> None:
        dims, step = self.spatial_dims, self.total_stride
        if len(extent) != dims or any(size % step for size in extent) or all(size == step for size in extent):
            raise ValueError(
                f"input extent {extent}: wanted {dims} multiples of {step}, and more than one voxel at 1/{step} of it"
            )
