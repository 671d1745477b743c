"""Every network by name. This file loads no torch, so that the command line can answer names at once.

A network is one file beside this one (2-D and 3-D in one class) and one entry here.
"""

from __future__ import annotations

import math

from umamba_seg.networks.spec import NetworkSpec, Topology


def _umamba_bot(topology: Topology) -> dict:
    """U-Mamba's block counts: two per stage in the finer half, one in the coarser (official code, 2024-03-27)."""
    stages = len(topology.strides)
    two_encoder, two_decoder = math.ceil(stages / 2), math.ceil((stages - 1) / 2 + 0.5)
    return {
        "strides": [list(steps) for steps in topology.strides],
        "kernel_sizes": [list(size) for size in topology.kernel_sizes],
        "features": list(topology.features),
        "n_blocks_per_stage": [2 if stage < two_encoder else 1 for stage in range(stages)],
        "n_blocks_per_stage_decoder": [2 if stage < two_decoder else 1 for stage in range(stages - 1)],
        "full_resolution_skip": topology.dims == 3,
    }


NETWORKS = (
    NetworkSpec(
        name="umamba_bot",
        network="umamba_seg.networks.umamba.UMamba",
        arguments=_umamba_bot,
        dims=(2, 3),
        paper="Ma, Li, Wang: U-Mamba, arXiv:2401.04722 (U-Mamba_Bot)",
    ),
)
