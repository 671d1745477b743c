"""The sequence ops of Mamba networks with several backends behind one interface. Needs torch; Triton on GPUs."""

from umamba_kernels.causal_conv1d import causal_conv1d
from umamba_kernels.dispatch import Backend, available_backends
from umamba_kernels.mamba_inner import Direction, mamba_inner
from umamba_kernels.order import Order
from umamba_kernels.selective_scan import selective_scan
from umamba_kernels.tracing import dry_run, implementation

__all__ = [
    "Backend",
    "Direction",
    "Order",
    "available_backends",
    "causal_conv1d",
    "dry_run",
    "implementation",
    "mamba_inner",
    "selective_scan",
]
