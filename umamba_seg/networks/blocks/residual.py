"""Residual convolution blocks of the U-Mamba family, 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

CONV = {2: nn.Conv2d, 3: nn.Conv3d}
NORM = {2: nn.InstanceNorm2d, 3: nn.InstanceNorm3d}
_SLOPE = 0.01  # of every LeakyReLU, as in nnU-Net


def _same(kernel_size: Sequence[int]) -> tuple[int, ...]:
    return tuple(extent // 2 for extent in kernel_size)


def unbounded(conv: nn.Module, x: Tensor) -> Tensor:
    """Apply a convolution whose result no norm bounds.

    Under float16 autocast it runs in float32 and answers in it: along such convolutions an image of large values meets
    the end of float16 at 65504, in its weights' gradients first. bfloat16 has float32's range and needs no care.
    """
    device = x.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        with torch.autocast(device, enabled=False):
            return conv(x.float())
    return conv(x)


class ConvNorm(nn.Module):
    """Convolution (same padding, bias) and affine instance norm."""

    def __init__(self, channels: int, kernel_size: Sequence[int]):
        super().__init__()
        dims = len(kernel_size)
        self.conv = CONV[dims](channels, channels, tuple(kernel_size), padding=_same(kernel_size))
        self.norm = NORM[dims](channels, eps=1e-5, affine=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class BasicBlock(nn.Module):
    """ResNet basic block at constant width and resolution: conv-norm-act-conv-norm, identity skip, act.

    Source: He et al., Deep residual learning, 2015, Fig. 5 left, with instance norm and LeakyReLU as in nnU-Net.
    """

    def __init__(self, channels: int, kernel_size: Sequence[int]):
        super().__init__()
        self.conv1 = ConvNorm(channels, kernel_size)
        self.conv2 = ConvNorm(channels, kernel_size)
        self.act = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))) + x)


class ProjectedBlock(nn.Module):
    """Residual block that changes width and resolution: its skip is always a (strided) 1x1 convolution, unnormalised.

    Source: U-Mamba, arXiv:2401.04722, the official residual block.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel_size: Odd extents per axis.
        stride: Steps per axis of the first and of the skip convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int]):
        super().__init__()
        conv, norm = CONV[len(kernel_size)], NORM[len(kernel_size)]
        kernel_size, stride, padding = tuple(kernel_size), tuple(stride), _same(kernel_size)
        self.conv1 = conv(in_channels, out_channels, kernel_size, stride=stride, padding=padding)
        self.norm1 = norm(out_channels, eps=1e-5, affine=True)
        self.conv2 = conv(out_channels, out_channels, kernel_size, padding=padding)
        self.norm2 = norm(out_channels, eps=1e-5, affine=True)
        self.conv3 = conv(in_channels, out_channels, 1)
        # A 1x1 convolution with stride s sees every s-th voxel. Taking those first is the same, and it avoids a strided
        # 1x1 convolution, which crashes in oneDNN on channels-last 2-D input (torch 2.13, CPU).
        self.seen = (slice(None), slice(None), *(slice(None, None, step) for step in stride))
        self.act = nn.LeakyReLU(_SLOPE, inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.act(self.norm1(self.conv1(x)))))
        return self.act(y + unbounded(self.conv3, x[self.seen]))


def residual_stage(
    in_channels: int, out_channels: int, kernel_size: Sequence[int], stride: Sequence[int], blocks: int
) -> nn.Sequential:
    """One projected block, then ``blocks - 1`` blocks at constant width."""
    first = ProjectedBlock(in_channels, out_channels, kernel_size, stride)
    return nn.Sequential(first, *(BasicBlock(out_channels, kernel_size) for _ in range(blocks - 1)))
