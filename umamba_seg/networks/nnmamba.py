"""nnMamba (Gong et al. 2024, arXiv:2402.03526): residual 3-D networks for segmentation, classification and landmarks.

They share an encoder of convolutions and differ in where Mamba stands and in how it scans: among the residual blocks of
the segmentation networks, behind the stem of the others. The networks equal the official ones, weight for weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umamba_kernels import Order
from umamba_seg.networks.blocks.mamba import Mamba, TokenLayer
from umamba_seg.networks.blocks.residual import unbounded

_REDUCTION = 16  # of channel attention
_TOTAL_STRIDE = 16


class Scan(TokenLayer):
    """Mamba over the voxels of an image.

    Args:
        channels: Values of a token.
        d_state: States per inner channel of Mamba.
    """

    def __init__(self, channels: int, d_state: int = 16):
        super().__init__()
        self.mamba = Mamba(channels, d_state)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.mamba(tokens)


class NormalisedScan(Scan):
    """Layer norm, then Mamba over the voxels."""

    def __init__(self, channels: int):
        super().__init__(channels)
        self.norm = nn.LayerNorm(channels)

    def mix(self, tokens: Tensor) -> Tensor:
        return self.mamba(self.norm(tokens))


class ResidualScan(Scan):
    """The image and what Mamba makes of its voxels, added up."""

    def mix(self, tokens: Tensor) -> Tensor:
        return tokens + self.mamba(tokens)


class SiameseScan(Scan):
    """The image and the mean of four scans of it by one Mamba, added up.

    Source: arXiv:2402.03526, "channel-spatial siamese learning": the tokens as they are, in reverse order, with their
    channels in reverse, and both; every result is turned back.
    """

    def mix(self, tokens: Tensor) -> Tensor:
        siblings = torch.cat((tokens, tokens.flip(-1)))
        straight, flipped = self.mamba(siblings, (Order(), Order(reverse=True))).chunk(2)
        return tokens + (straight + flipped.flip(-1)) / 4


class MambaAfterConvolution(nn.Module):
    """A 1x1 convolution with batch norm and ReLU, then a scan; parameter names as in the official code.

    Args:
        channels: Channels of input and output.
        scan: A :class:`Scan`, or the identity.
    """

    def __init__(self, channels: int, scan: nn.Module):
        super().__init__()
        self.nin = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm = nn.BatchNorm3d(channels)
        self.scan = scan

    def forward(self, x: Tensor) -> Tensor:
        return self.scan(F.relu(self.norm(self.nin(x)), inplace=True))


class MambaInConvolution(MambaAfterConvolution):
    """The same, and a second 1x1 convolution with batch norm and ReLU. With a siamese scan it is the paper's MICCSS."""

    def __init__(self, channels: int, scan: nn.Module):
        super().__init__(channels, scan)
        self.nin2 = nn.Conv3d(channels, channels, 1, bias=False)
        self.norm2 = nn.BatchNorm3d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.norm2(unbounded(self.nin2, super().forward(x))), inplace=True)


def double_conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Sequential:
    """Twice a 3x3x3 convolution with batch norm and ReLU; the first one takes the steps."""
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
        nn.Conv3d(out_channels, out_channels, 3, padding=1),
        nn.BatchNorm3d(out_channels),
        nn.ReLU(inplace=True),
    )


class BasicBlock(nn.Module):
    """ResNet basic block (He et al. 2015, Fig. 5 left) in 3-D, whose skip the caller computes."""

    def __init__(self, in_channels: int, out_channels: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return F.relu(self.bn2(self.conv2(y)) + skip, inplace=True)


class ResidualStage(nn.Module):
    """Basic blocks, the first of which halves the extent; one Mamba layer is added to the skips of all others.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        blocks: Number of blocks.
        mamba_layer: Makes the Mamba layer from its number of channels; None for a stage without one. The blocks share
            the layer, as they do in the official code, so that a stage of one block has none.
    """

    def __init__(
        self, in_channels: int, out_channels: int, blocks: int, mamba_layer: Callable[[int], nn.Module] | None
    ):
        super().__init__()
        self.downsample = nn.Sequential(
            nn.Conv3d(in_channels, out_channels, 1, stride=2, bias=False), nn.BatchNorm3d(out_channels)
        )
        others = (BasicBlock(out_channels, out_channels) for _ in range(1, blocks))
        self.blocks = nn.ModuleList((BasicBlock(in_channels, out_channels, stride=2), *others))
        self.mamba_layer = mamba_layer(out_channels) if mamba_layer is not None and blocks > 1 else None

    def forward(self, x: Tensor) -> Tensor:
        first, *others = self.blocks
        x = first(x, self.downsample(x))
        for block in others:
            x = block(x, x if self.mamba_layer is None else x + self.mamba_layer(x))
        return x


class Encoder(nn.Module):
    """A double convolution and three residual stages; each halves the extent, the stages double the channels.

    Args:
        input_channels: Channels of the input.
        channels: Channels of the stem.
        blocks: Residual blocks per stage.
        stem_layer: What it makes of the stem's output is added to the input of the first stage, but not to the output
            of the stem; None for nothing.
        mamba_layer: Makes the Mamba layer of a stage, see :class:`ResidualStage`.
    """

    def __init__(
        self,
        input_channels: int,
        channels: int,
        blocks: int,
        *,
        stem_layer: nn.Module | None = None,
        mamba_layer: Callable[[int], nn.Module] | None = None,
    ):
        super().__init__()
        self.stem = double_conv(input_channels, channels, stride=2)
        self.stem_layer = stem_layer
        self.stages = nn.ModuleList(
            ResidualStage(channels * 2**level, channels * 2 ** (level + 1), blocks, mamba_layer) for level in range(3)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """The outputs of the stem and of the stages: 1/2, 1/4, 1/8 and 1/16 of the extent."""
        x = self.stem(x)
        outputs = [x]
        if self.stem_layer is not None:
            x = x + self.stem_layer(x)
        for stage in self.stages:
            x = stage(x)
            outputs.append(x)
        return outputs


class ChannelAttention(nn.Module):
    """Scales every channel by a function of the means of all channels.

    Source: arXiv:2402.03526, "channel scaling"; Hu et al., Squeeze-and-excitation networks, 2018, Sec. 3.

    Raises:
        ValueError: There are fewer channels than the reduction takes together.
    """

    def __init__(self, channels: int):
        super().__init__()
        if channels < _REDUCTION:
            raise ValueError(f"{channels} channels: channel attention wants {_REDUCTION} or more")
        self.layer1 = nn.Linear(channels, channels // _REDUCTION)
        self.layer2 = nn.Linear(channels // _REDUCTION, channels)

    def forward(self, x: Tensor) -> Tensor:
        scales = torch.sigmoid(self.layer2(F.relu(self.layer1(x.mean(dim=(2, 3, 4))))))
        return x * scales[:, :, None, None, None]


def _enlarge(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2.0, mode="trilinear", align_corners=False)


class Decoder(nn.Module):
    """From the bottleneck up by trilinear interpolation, with a double convolution at every resolution.

    The last one makes the logits. It ends in a ReLU as the others do, so that no logit is negative.

    Args:
        channels: Channels of the encoder's stem.
        num_classes: Channels of the logits.
    """

    def __init__(self, channels: int, num_classes: int):
        super().__init__()
        widths = (4 * channels, 2 * channels, channels)
        # The features from below have twice the channels of the skip.
        self.stages = nn.ModuleList(double_conv(3 * width, width) for width in widths)
        self.head = double_conv(channels, num_classes)

    def features(self, x: Tensor, skips: Sequence[Tensor]) -> list[Tensor]:
        """Bottleneck and skips (finest first) -> the output of every stage, finest first: 1/2, 1/4 and 1/8."""
        outputs = []
        for stage, skip in zip(self.stages, reversed(skips), strict=True):
            x = stage(torch.cat((_enlarge(x), skip), dim=1))
            outputs.append(x)
        return outputs[::-1]

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor:
        """Bottleneck and skips (finest first) -> logits at full resolution."""
        return self.head(_enlarge(self.features(x, skips)[0]))


class SupervisedDecoder(Decoder):
    """The same with a 1x1 convolution to logits behind every stage.

    Args:
        deep_supervision: Return those logits as well.
    """

    def __init__(self, channels: int, num_classes: int, deep_supervision: bool):
        super().__init__(channels, num_classes)
        self.deep_supervision = deep_supervision
        self.heads = nn.ModuleList(nn.Conv3d(channels * 2**level, num_classes, 1) for level in range(3))

    def forward(self, x: Tensor, skips: Sequence[Tensor]) -> Tensor | list[Tensor]:
        """Bottleneck and skips (finest first) -> logits, or a list of logits, finest first."""
        features = self.features(x, skips)
        logits = self.head(_enlarge(features[0]))
        if not self.deep_supervision:
            return logits
        return [logits, *(head(x) for head, x in zip(self.heads, features, strict=True))]


_OFFICIAL_NAMES = (
    # The heads of deep supervision (ds1_cls_conv and so on) are the only weights right on the network.
    *((rf"^[^.]*{i + 1}[^.]*\.(?=(weight|bias)$)", f"decoder.heads.{i}.") for i in range(3)),
    (r"\.conv\.(\d)", r".\1"),
    (r"^in_conv\.", "encoder.stem."),
    (r"^mamba_layer_stem\.", "encoder.stem_layer."),
    # Every block but the first holds the one Mamba layer of its stage.
    (r"^(layer\d)\.\d+\.mamba_layer\.", r"\1.mamba_layer."),
    (r"\.mamba_layer\.mamba\.", ".mamba_layer.scan.mamba."),
    (r"^(layer\d)\.0\.downsample\.", r"\1.downsample."),
    (r"^(layer\d)\.(\d+)\.", r"\1.blocks.\2."),
    *((rf"^layer{i + 1}\.", f"encoder.stages.{i}.") for i in range(3)),
    *((rf"^att{i + 1}\.", f"attention.{i}.") for i in range(3)),
    *((rf"^conv{i + 5}\.", f"decoder.stages.{i}.") for i in range(3)),
    (r"^conv8\.", "decoder.head."),
)


def _require_divisible(x: Tensor) -> None:
    extent = tuple(x.shape[2:])
    if any(size % _TOTAL_STRIDE for size in extent):
        raise ValueError(f"input extent {extent} is not a multiple of {(_TOTAL_STRIDE,) * len(extent)}")


class _SegmentationNetwork(nn.Module):
    """What both networks for segmentation are: an encoder, channel attention on its skips, and a decoder."""

    official_names = _OFFICIAL_NAMES

    def __init__(self, encoder: Encoder, decoder: Decoder, channels: int):
        super().__init__()
        self.encoder = encoder
        self.attention = nn.ModuleList(ChannelAttention(channels * 2**level) for level in range(3))
        self.decoder = decoder

    def forward(self, x: Tensor) -> Tensor | list[Tensor]:
        _require_divisible(x)
        *skips, bottleneck = self.encoder(x)
        return self.decoder(bottleneck, [scale(skip) for scale, skip in zip(self.attention, skips, strict=True)])


class NNMamba(_SegmentationNetwork):
    """nnMamba for segmentation: MICCSS blocks in the encoder, scaled skips.

    Args:
        input_channels: Channels of the input.
        num_classes: Channels of the logits.
        channels: Channels at half resolution, 16 or more; they double three times.
        blocks: Residual blocks per encoder stage; all but the first have Mamba beside them.
        scan: Whether there is Mamba at all. Without it the convolutions around it stay.
        deep_supervision: Accepted, but there is a single output.

    Shapes:
        (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), no logit below 0. The three spatial extents
        must be multiples of 16.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        channels: int = 32,
        blocks: int = 3,
        scan: bool = True,
        deep_supervision: bool = False,
    ):
        def miccss(width: int) -> nn.Module:
            return MambaInConvolution(width, SiameseScan(width) if scan else nn.Identity())

        encoder = Encoder(input_channels, channels, blocks, mamba_layer=miccss)
        super().__init__(encoder, Decoder(channels, num_classes), channels)


class NNMambaDS(_SegmentationNetwork):
    """nnMamba for segmentation with deep supervision, as the official nnU-Net trainers use it.

    Its Mamba layers scan once, and the result replaces what is scanned.

    Args:
        input_channels, num_classes, channels, blocks: See :class:`NNMamba`.
        scan: Whether there is Mamba at all. Without it the convolution before it stays.
        deep_supervision: Return logits of four resolutions; ``decoder.deep_supervision`` can be flipped later.

    Shapes:
        (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), no logit below 0, or under deep supervision
        a list of those and of logits at 1/2, 1/4 and 1/8 of the extent. The three spatial extents must be multiples of
        16.
    """

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        channels: int = 32,
        blocks: int = 3,
        scan: bool = True,
        deep_supervision: bool = False,
    ):
        def mamba_layer(width: int) -> nn.Module:
            return MambaAfterConvolution(width, Scan(width) if scan else nn.Identity())

        encoder = Encoder(input_channels, channels, blocks, mamba_layer=mamba_layer)
        super().__init__(encoder, SupervisedDecoder(channels, num_classes, deep_supervision), channels)


class NNMambaLandmark(nn.Module):
    """nnMamba for landmarks, one heat map per class: Mamba behind the stem only, skips as they are.

    Args:
        input_channels, num_classes: See :class:`NNMamba`.
        channels: Channels at half resolution; they double three times.
        blocks: Residual blocks per encoder stage.
        scan: Whether there is Mamba. Without it the stem's output goes on unchanged.
        deep_supervision: Accepted, but there is a single output.

    Shapes:
        (batch, input_channels, *spatial) -> (batch, num_classes, *spatial), nothing below 0. The three spatial extents
        must be multiples of 16.
    """

    official_names = _OFFICIAL_NAMES

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        channels: int = 32,
        blocks: int = 3,
        scan: bool = True,
        deep_supervision: bool = False,
    ):
        super().__init__()
        self.encoder = Encoder(input_channels, channels, blocks, stem_layer=NormalisedScan(channels) if scan else None)
        self.decoder = Decoder(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        _require_divisible(x)
        *skips, bottleneck = self.encoder(x)
        return self.decoder(bottleneck, skips)


class NNMambaClassifier(nn.Module):
    """nnMamba for classification: Mamba behind the stem, and a perceptron on the means of the three stages.

    Args:
        input_channels: Channels of the input.
        num_classes: Number of logits; the official network has one.
        channels: Channels at half resolution, and of the perceptron; they double three times.
        blocks: Residual blocks per encoder stage.
        scan: Whether there is Mamba. Without it the convolutions around it stay.
        deep_supervision: Accepted, but there is a single output.

    Shapes:
        (batch, input_channels, *spatial) -> (batch, num_classes), for any three spatial extents.
    """

    official_names = ((r"^mamba_layer_stem\.mamba\.", "encoder.stem_layer.scan.mamba."), *_OFFICIAL_NAMES)

    def __init__(
        self,
        input_channels: int,
        num_classes: int,
        *,
        channels: int = 32,
        blocks: int = 3,
        scan: bool = True,
        deep_supervision: bool = False,
    ):
        super().__init__()
        stem_layer = MambaInConvolution(channels, ResidualScan(channels, d_state=8) if scan else nn.Identity())
        self.encoder = Encoder(input_channels, channels, blocks, stem_layer=stem_layer)
        self.mlp = nn.Sequential(
            nn.Linear((2 + 4 + 8) * channels, channels), nn.ReLU(), nn.Dropout(0.5), nn.Linear(channels, num_classes)
        )

    def forward(self, x: Tensor) -> Tensor:
        _, *stages = self.encoder(x)
        return self.mlp(torch.cat([features.mean(dim=(2, 3, 4)) for features in stages], dim=1))
