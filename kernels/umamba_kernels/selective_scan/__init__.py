"""The selective scan of S6."""

from umamba_kernels.selective_scan.interface import selective_scan

__all__ = ["selective_scan"]
