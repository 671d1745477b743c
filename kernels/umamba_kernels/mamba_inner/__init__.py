"""A Mamba block between its two outer projections."""

from umamba_kernels.mamba_inner.direction import Direction
from umamba_kernels.mamba_inner.interface import mamba_inner

__all__ = ["Direction", "mamba_inner"]
