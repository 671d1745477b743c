"""The way to a data set, as datasets.md tells it."""

from __future__ import annotations

import re
from pathlib import Path

from umamba_seg.config import configs_folder
from umamba_seg.reproduce.table import PaperDataset


def datasets_file() -> Path:
    """datasets.md: at the top of a clone, beside the packaged settings when installed."""
    top = configs_folder().parent / "datasets.md"
    return top if top.is_file() else configs_folder() / "datasets.md"


def section_of(key: str) -> str:
    """The section of a data set, without its heading; empty if there is none."""
    text = datasets_file().read_text(encoding="utf-8")
    found = re.search(rf"^## {re.escape(key)}\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL)
    return found[1].strip() if found else ""


def way_to(key: str, dataset: PaperDataset) -> str:
    """What a user who lacks a data set of a table is told."""
    then = f"put it into nnUNet_raw/{dataset.dataset}"
    if dataset.convert:
        command = " ".join(["umamba-seg convert", *dataset.convert])
        then = f"give its folder with --source {key}=FOLDER (it runs `{command}`)"
    return f"{dataset.dataset} is not there.\n\n{section_of(dataset.section)}\n\nThen {then}, and run the same command."
