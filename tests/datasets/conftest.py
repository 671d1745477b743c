"""Small raw data sets, made in tmp_path."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

LABELS = {"background": 0, "organ": 1, "tumour": 2}


@pytest.fixture
def save_volume() -> Callable[..., Path]:
    """``save_volume(path, array, spacing=..., origin=..., direction=...)`` writes with SimpleITK (x, y, z order)."""

    def save(path: Path, array: np.ndarray, **geometry) -> Path:
        image = sitk.GetImageFromArray(array)
        for name, value in geometry.items():
            getattr(image, f"Set{name.capitalize()}")(value)
        path.parent.mkdir(parents=True, exist_ok=True)
        sitk.WriteImage(image, str(path), useCompression=True)
        return path

    return save


@pytest.fixture
def make_dataset(tmp_path: Path, save_volume: Callable[..., Path]) -> Callable[..., Path]:
    """``make_dataset(["a", "b"], channels=2, **entries)`` writes a sound data set of 6x8x10 volumes.

    ``entries`` replace those of dataset.json; None removes one.
    """

    def make(cases=("a", "b"), channels: int = 1, ending: str = ".nii.gz", **entries) -> Path:
        folder = tmp_path / "Dataset001_Test"
        folder.mkdir(exist_ok=True)
        rng = np.random.default_rng(0)
        for case in cases:
            for channel in range(channels):
                volume = rng.integers(0, 1000, (6, 8, 10)).astype(np.int16)
                save_volume(folder / "imagesTr" / f"{case}_{channel:04d}{ending}", volume, spacing=(1.0, 2.0, 3.0))
            label = np.zeros((6, 8, 10), np.uint8)
            label[2:4, 2:6, 2:8], label[3, 3, 3] = 1, 2
            save_volume(folder / "labelsTr" / f"{case}{ending}", label, spacing=(1.0, 2.0, 3.0))
        content = {
            "channel_names": {str(channel): f"channel {channel}" for channel in range(channels)},
            "labels": LABELS,
            "numTraining": len(cases),
            "file_ending": ending,
        }
        content = {key: value for key, value in (content | entries).items() if value is not None}
        (folder / "dataset.json").write_text(json.dumps(content))
        return folder

    return make
