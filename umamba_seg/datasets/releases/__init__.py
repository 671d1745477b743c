"""Data sets as their makers publish them -> nnU-Net's raw form; ``umamba-seg convert NAME`` takes each by its name."""

from __future__ import annotations

from collections.abc import Mapping

from umamba_seg.datasets.releases import (
    acdc,
    aiib,
    amos,
    brats,
    btcv,
    cellseg,
    cxr,
    dsb2018,
    endovis,
    flare22,
    imagecas,
    isic,
    kits,
    lits,
    promise12,
)
from umamba_seg.datasets.releases.release import Release

_VOLUMES = (brats, acdc, amos, flare22, btcv, lits, kits, aiib, promise12, imagecas)
_PICTURES = (isic, cellseg, endovis, cxr, dsb2018)

RELEASES: Mapping[str, Release] = {module.RELEASE.name: module.RELEASE for module in (*_VOLUMES, *_PICTURES)}
"""Every release by its name."""
