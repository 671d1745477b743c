"""Selective scan and causal convolution with several backends behind one interface. Needs torch, nothing else."""

from umamba_kernels.causal_conv1d import causal_conv1d
from umamba_kernels.dispatch import Backend, available_backends
from umamba_kernels.order import Order
from umamba_kernels.selective_scan import selective_scan

__all__ = ["Backend", "Order", "available_backends", "causal_conv1d", "selective_scan"]
