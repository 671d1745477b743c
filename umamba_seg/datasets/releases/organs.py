"""The organs of the abdominal data sets: which value is which, and how one order becomes another."""

from __future__ import annotations

from collections.abc import Sequence

UMAMBA = (
    "liver",
    "right kidney",
    "spleen",
    "pancreas",
    "aorta",
    "inferior vena cava",
    "right adrenal gland",
    "left adrenal gland",
    "gallbladder",
    "esophagus",
    "stomach",
    "duodenum",
    "left kidney",
)
"""Of FLARE22, which U-Mamba takes for its MR data set as well."""
AMOS = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
    "duodenum",
    "bladder",
    "prostate or uterus",
)
BTCV = (
    "spleen",
    "right kidney",
    "left kidney",
    "gallbladder",
    "esophagus",
    "liver",
    "stomach",
    "aorta",
    "inferior vena cava",
    "portal vein and splenic vein",
    "pancreas",
    "right adrenal gland",
    "left adrenal gland",
)
SYNAPSE8 = (
    "aorta",
    "gallbladder",
    "left kidney",
    "right kidney",
    "liver",
    "pancreas",
    "spleen",
    "stomach",
)
"""Of the 2-D papers on the BTCV data, after TransUNet."""


def labels_entry(organs: Sequence[str]) -> dict[str, int]:
    """The entry ``labels`` of dataset.json: the organs count from 1."""
    return {"background": 0} | {organ: value for value, organ in enumerate(organs, 1)}


def translation(organs: Sequence[str], wanted: Sequence[str]) -> dict[int, int]:
    """Value among ``organs`` -> value among ``wanted``; organs that are not wanted become background."""
    values = labels_entry(wanted)
    return {0: 0} | {value: values.get(organ, 0) for value, organ in enumerate(organs, 1)}
