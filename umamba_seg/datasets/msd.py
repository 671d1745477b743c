"""Medical Segmentation Decathlon -> nnU-Net raw: one file per channel, labels by name."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from umamba_seg.datasets import nifti
from umamba_seg.datasets.images import require_content
from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.writing import dataset_name, new_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import read_json, write_json
from umamba_seg.log import logger, progress
from umamba_seg.text import shorten, times

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Header

_ENDING = ".nii.gz"
_CARRIED = ("name", "description", "reference", "licence", "license", "release")
_DATASET = "give the folder of a Decathlon task: dataset.json, imagesTr, labelsTr and imagesTs"


def convert(source: Path, raw: Path, dataset_id: int | None = None, name: str | None = None) -> Path:
    """Convert a task of the Decathlon to ``raw/DatasetNNN_Name``.

    3-D images and labels are copied byte for byte; 4-D images are split into one file per channel. What
    ``dataset.json`` does not list is left out, and named in the log.

    Args:
        source: The folder of the task, such as ``Task04_Hippocampus``.
        raw: The folder of raw data sets.
        dataset_id: Number of the new data set; the default is the one in the folder's name.
        name: Name of the new data set; the default is the one in the folder's name or else in ``dataset.json``.

    Returns:
        The folder of the new data set.

    Raises:
        UserError: Not a Decathlon task, a listed file is missing or damaged, or the number is missing or taken.
    """
    if not source.is_dir():
        raise UserError(source, "no such folder", _DATASET)
    path = source / "dataset.json"
    content = read_json(path)
    number, name = _number_and_name(source, content, dataset_id, name)
    dataset = _dataset_json(content, path)
    training = _training_pairs(content, source)
    tests = [source / _entry(item, "image", path) for item in _test_entries(content)]
    _require_files([file for pair in training for file in pair] + tests, path)
    _name_unlisted(source, {*(file for pair in training for file in pair), *tests})
    dataset["numTraining"] = len(training)
    with new_dataset(raw, number, name) as folder:
        for image, label in progress(training, "converting", len(training)):
            _convert_image(image, folder / "imagesTr", len(dataset["channel_names"]))
            _copy_label(label, folder / "labelsTr")
        for image in progress(tests, "converting tests", len(tests)):
            _convert_image(image, folder / "imagesTs", len(dataset["channel_names"]))
        write_json(folder / "dataset.json", dataset)
    channels = len(dataset["channel_names"])
    form = "copied as they are" if channels == 1 else f"split into {channels} channels"
    logger.info("%d training and %d test images %s, dataset.json rewritten", len(training), len(tests), form)
    return raw / dataset_name(number, name)


def _number_and_name(
    source: Path, content: dict[str, Any], dataset_id: int | None, name: str | None
) -> tuple[int, str]:
    match = re.fullmatch(r"Task(\d+)_(\w+)", source.resolve().name)
    if dataset_id is None:
        if not match:
            what = "its name does not give the number of the data set (as Task04_Hippocampus does)"
            raise UserError(source, what, "give the number of the new data set")
        dataset_id = int(match[1])
    return dataset_id, name or (match[2] if match else str(content.get("name", "")))


def _dataset_json(content: dict[str, Any], path: Path) -> dict[str, Any]:
    """The entries of the new ``dataset.json``, without ``numTraining``."""
    modality, names = content.get("modality"), content.get("labels")
    if not isinstance(modality, dict) or not modality or not isinstance(names, dict) or not names:
        raise UserError(path, 'has no "modality" or no "labels", which the Decathlon has', _DATASET)
    labels = {str(name): int(value) for value, name in names.items() if value.isdigit()}
    if len(labels) != len(names):
        raise UserError(path, f'"labels" is {names}', 'write values to distinct names: {"0": "background", ...}')
    dataset = {
        "channel_names": {channel: str(name) for channel, name in modality.items()},
        "labels": labels,
        "file_ending": _ENDING,
    }
    Labels.from_json(dataset, path)
    return dataset | {key: content[key] for key in _CARRIED if key in content}


def _training_pairs(content: dict[str, Any], source: Path) -> list[tuple[Path, Path]]:
    path = source / "dataset.json"
    entries = content.get("training")
    if not isinstance(entries, list) or not entries:
        raise UserError(path, 'lists no cases under "training"', _DATASET)
    pairs = [(source / _entry(item, "image", path), source / _entry(item, "label", path)) for item in entries]
    twice = sorted(name for name, count in Counter(image.name for image, _ in pairs).items() if count > 1)
    if twice:
        raise UserError(path, f"lists more than once: {shorten(twice)}", "list every case once")
    differing = [f"{image.name} with {label.name}" for image, label in pairs if image.name != label.name]
    if differing:
        raise UserError(path, f"pairs files of different names: {shorten(differing)}", "give both the same name")
    return pairs


def _test_entries(content: dict[str, Any]) -> list[Any]:
    """The Decathlon lists tests as plain paths; others list them as {"image": path}, as it lists training cases."""
    return [item if isinstance(item, dict) else {"image": item} for item in content.get("test") or []]


def _entry(item: Any, key: str, path: Path) -> str:
    name = item.get(key) if isinstance(item, dict) else None
    if not isinstance(name, str) or not name.endswith(_ENDING):
        raise UserError(path, f"lists {item!r}", f'list files ending in {_ENDING} as "image" and "label"')
    return name


def _require_files(paths: Sequence[Path], path: Path) -> None:
    missing = [str(file) for file in paths if not file.is_file()]
    if missing:
        what = f"lists missing files ({len(missing)}): {shorten(missing)}"
        raise UserError(path, what, "add them, or unlist the cases")


def _name_unlisted(source: Path, listed: set[Path]) -> None:
    for folder in ("imagesTr", "labelsTr", "imagesTs"):
        there = (source / folder).glob(f"[!.]*{_ENDING}")
        left_out = sorted(path.name for path in there if path not in listed)
        if left_out:
            logger.warning("%s/%s: dataset.json does not list %s", source, folder, shorten(left_out))


def _convert_image(path: Path, folder: Path, channels: int) -> None:
    """Copy a 3-D image, or write the channels of a 4-D one."""
    require_content(path)
    header, voxels = nifti.read(path)
    shape = nifti.spatial_shape(header)
    found = shape[3] if len(shape) > 3 else 1
    if len(shape) > 4 or found != channels:
        what = f"has shape {times(shape)}, but dataset.json names {channels} channels"
        raise UserError(path, what, 'correct the entry "modality" of dataset.json, or remove the case')
    folder.mkdir(exist_ok=True)
    case = path.name.removesuffix(_ENDING)
    if len(shape) < 4:
        shutil.copyfile(path, folder / f"{case}_0000{_ENDING}")
    else:
        _write_channels(header, voxels.reshape(shape, order="F"), folder, case)


def _write_channels(header: Nifti1Header, voxels: np.ndarray, folder: Path, case: str) -> None:
    """Write each channel of (x, y, z, channel) with the same geometry, number type and scaling: no value changes."""
    import nibabel

    scaling = header.get_slope_inter()
    for channel in range(voxels.shape[3]):
        part = nibabel.Nifti1Image(voxels[..., channel], None, header)
        part.header.set_slope_inter(*scaling)
        part.to_filename(folder / f"{case}_{channel:04d}{_ENDING}")


def _copy_label(path: Path, folder: Path) -> None:
    require_content(path)
    nifti.read(path)  # raises where the file is damaged
    folder.mkdir(exist_ok=True)
    shutil.copyfile(path, folder / path.name)
