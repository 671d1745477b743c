"""The Mamba block (Gu and Dao 2023, arXiv:2312.00752, Sec. 3.4) on our own scan kernels, and its use on images."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from umamba_kernels import Direction, mamba_inner


class Mamba(nn.Module):
    """A Mamba block: gated, with a causal convolution and the selective scan between two projections.

    Parameter names and shapes are those of mamba-ssm 1.x, so that its checkpoints load.

    Args:
        d_model: Channels of a token.
        d_state: States per channel, N.
        d_conv: Width of the causal convolution.
        expand: Inner channels per channel.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2):
        super().__init__()
        d_inner, dt_rank = expand * d_model, math.ceil(d_model / 16)
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.in_proj = nn.Linear(d_model, 2 * d_inner, bias=False)
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)  # holds the weights of causal_conv1d
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        self.out_proj = nn.Linear(d_inner, d_model, bias=False)
        self._initialize_steps()

    def _initialize_steps(self, smallest: float = 1e-3, largest: float = 1e-1, floor: float = 1e-4) -> None:
        """Let softplus(dt bias) be log-uniform in [smallest, largest] (arXiv:2312.00752, Sec. 3.6)."""
        dt_rank = self.dt_proj.in_features
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        spread = math.log(largest) - math.log(smallest)
        steps = torch.exp(torch.rand(self.dt_proj.out_features) * spread + math.log(smallest)).clamp(min=floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, L, d_model) -> (batch, L, d_model); token t sees the tokens before it."""
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        direction = Direction(
            A=-torch.exp(self.A_log),
            x_proj=self.x_proj.weight,
            dt_proj=self.dt_proj.weight,
            dt_bias=self.dt_proj.bias,
            D=self.D,
            conv_weight=self.conv1d.weight.squeeze(1),
            conv_bias=self.conv1d.bias,
        )
        return self.out_proj(mamba_inner(x, [direction], z).transpose(1, 2))


class MambaLayer(nn.Module):
    """Layer norm and Mamba over the voxels of an image; the result replaces the image (no residual).

    Source: U-Mamba, arXiv:2401.04722, Fig. 1; there is no skip around the block in the official code.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.norm = nn.LayerNorm(channels)
        self.mamba = Mamba(channels)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, *spatial) -> the same shape; tokens are voxels in row-major order.

        Runs in float32 under autocast and answers in it: trained networks reach states of 1e6, half precision ends
        at 65504.
        """
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2).transpose(1, 2)
            return self.mamba(self.norm(tokens)).transpose(1, 2).reshape(x.shape)
