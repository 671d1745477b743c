"""The Mamba block (Gu and Dao 2023, arXiv:2312.00752, Sec. 3.4) on our own scan kernels, and its use on images."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from umamba_kernels import Direction, Order, mamba_inner

_MEMORY = Order()


class ScanWeights(nn.Module):
    """The weights of one selective scan and of the causal convolution before it; names as in mamba-ssm 1.x.

    Args:
        d_inner: Channels that are scanned.
        dt_rank: Rank of the steps, R.
        d_state: States per channel, N.
        d_conv: Width of the causal convolution.
        small_steps: Initialise the steps as Mamba does, softplus(dt bias) log-uniform in [1e-3, 1e-1]; else they keep
            the default of ``nn.Linear``, which gives steps of about 0.7.
    """

    def __init__(self, d_inner: int, dt_rank: int, d_state: int = 16, d_conv: int = 4, *, small_steps: bool = True):
        super().__init__()
        self.A_log = nn.Parameter(torch.arange(1.0, d_state + 1).log().repeat(d_inner, 1))
        self.D = nn.Parameter(torch.ones(d_inner))
        self.conv1d = nn.Conv1d(d_inner, d_inner, d_conv, groups=d_inner)  # holds the weights of causal_conv1d
        self.x_proj = nn.Linear(d_inner, dt_rank + 2 * d_state, bias=False)
        self.dt_proj = nn.Linear(dt_rank, d_inner)
        if small_steps:
            self._initialize_steps()

    def _initialize_steps(self, smallest: float = 1e-3, largest: float = 1e-1, floor: float = 1e-4) -> None:
        """Source: arXiv:2312.00752, Sec. 3.6."""
        dt_rank = self.dt_proj.in_features
        nn.init.uniform_(self.dt_proj.weight, -(dt_rank**-0.5), dt_rank**-0.5)
        spread = math.log(largest) - math.log(smallest)
        steps = torch.exp(torch.rand(self.dt_proj.out_features) * spread + math.log(smallest)).clamp(min=floor)
        with torch.no_grad():
            self.dt_proj.bias.copy_(steps + torch.log(-torch.expm1(-steps)))  # inverse of softplus

    def direction(self, order: Order = _MEMORY) -> Direction:
        """What the kernels take, for a scan in ``order``."""
        return Direction(
            A=-torch.exp(self.A_log),
            x_proj=self.x_proj.weight,
            dt_proj=self.dt_proj.weight,
            dt_bias=self.dt_proj.bias,
            D=self.D,
            conv_weight=self.conv1d.weight.squeeze(1),
            conv_bias=self.conv1d.bias,
            order=order,
        )


def _projections(d_model: int, d_inner: int) -> tuple[nn.Linear, nn.Linear]:
    return nn.Linear(d_model, 2 * d_inner, bias=False), nn.Linear(d_inner, d_model, bias=False)


class Mamba(ScanWeights):
    """A Mamba block: gated, with a causal convolution and the selective scan between two projections.

    Parameter names and shapes are those of mamba-ssm 1.x, so that its checkpoints load.

    Args:
        d_model: Channels of a token.
        d_state: States per channel, N.
        d_conv: Width of the causal convolution.
        expand: Inner channels per channel.
    """

    def __init__(self, d_model: int, d_state: int = 16, d_conv: int = 4, expand: int = 2):
        d_inner = expand * d_model
        super().__init__(d_inner, math.ceil(d_model / 16), d_state, d_conv)
        self.in_proj, self.out_proj = _projections(d_model, d_inner)

    def forward(self, tokens: Tensor, orders: Sequence[Order] = (_MEMORY,)) -> Tensor:
        """(batch, L, d_model) -> (batch, L, d_model); a token sees those that come before it in the order.

        With several orders the same weights scan in each of them, and the results are added up.
        """
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        y = mamba_inner(x, [self.direction(order) for order in orders], z)
        return self.out_proj(y.transpose(1, 2))


class TriMamba(nn.Module):
    """Three scans with weights of their own between shared projections: forward, backward and across slices.

    Source: Xing et al. 2024, SegMamba, arXiv:2401.13560, Sec. 2 (``bimamba_type="v3"`` in the official code): the
    three are added up, and only the forward scan gets Mamba's initialisation of the steps.

    Args:
        d_model: Channels of a token.
        slices: Runs of L / slices tokens whose tokens are interleaved by the third scan; must divide L.
    """

    def __init__(self, d_model: int, slices: int):
        super().__init__()
        d_inner, dt_rank = 2 * d_model, math.ceil(d_model / 16)
        self.in_proj, self.out_proj = _projections(d_model, d_inner)
        self.forward_scan = ScanWeights(d_inner, dt_rank)
        self.backward_scan = ScanWeights(d_inner, dt_rank, small_steps=False)
        self.slice_scan = ScanWeights(d_inner, dt_rank, small_steps=False)
        self.slices = slices

    def forward(self, tokens: Tensor) -> Tensor:
        """(batch, L, d_model) -> (batch, L, d_model).

        Raises:
            ValueError: ``slices`` does not divide L; the message names the nearest counts that do.
        """
        x, z = self.in_proj(tokens).transpose(1, 2).chunk(2, dim=1)
        directions = [
            self.forward_scan.direction(),
            self.backward_scan.direction(Order(reverse=True)),
            self.slice_scan.direction(Order(slices=self.slices)),
        ]
        return self.out_proj(mamba_inner(x, directions, z).transpose(1, 2))


class TokenLayer(nn.Module):
    """A layer that sees an image as a sequence of its voxels in row-major order; subclasses say what to do with it."""

    def mix(self, tokens: Tensor) -> Tensor:
        """(batch, L, channels) -> (batch, L, channels of the result)."""
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, *spatial) -> (batch, channels of the result, *spatial).

        Runs in float32 under autocast and answers in it: trained networks reach states of 1e6, half precision ends
        at 65504.
        """
        with torch.autocast(x.device.type, enabled=False):
            tokens = x.to(torch.promote_types(x.dtype, torch.float32)).flatten(2).transpose(1, 2)
            y = self.mix(tokens).transpose(1, 2)
            return y.reshape(*y.shape[:2], *x.shape[2:])
