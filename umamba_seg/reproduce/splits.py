"""The identity of a split, so that a table can say on which one its numbers stand."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

from umamba_seg.datasets.splits import Split


def split_hash(splits: Sequence[Split]) -> str:
    """SHA-256 of which cases each fold trains on and holds out, whatever their order in the file."""
    folds = [{side: sorted(split[side]) for side in ("train", "val")} for split in splits]
    return hashlib.sha256(json.dumps(folds, separators=(",", ":")).encode()).hexdigest()
