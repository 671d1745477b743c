"""The causal depthwise convolution before the selective scan."""

from umamba_kernels.causal_conv1d.interface import causal_conv1d

__all__ = ["causal_conv1d"]
