"""Images of a case -> what the network sees: found, read, checked, cropped, resampled and normalised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from umamba_seg.datasets.case_checks import check_case_images
from umamba_seg.datasets.images import Image, read_image
from umamba_seg.datasets.raw import channel_problem, list_images
from umamba_seg.errors import UserError
from umamba_seg.text import times

_SLICE_SPACING = 999  # times the largest: what nnU-Net takes for the distance to the slice that a picture has not


@dataclass
class PreparedCase:
    """A case as the network sees it.

    Attributes:
        name: Of the case.
        files: Its images in channel order; none if it came as an array.
        data: float32 (channels, ...), the one-hot labels of the stage before included.
        properties: nnU-Net's: how to undo cropping and resampling, and the geometry of the image.
    """

    name: str
    files: tuple[Path, ...]
    data: np.ndarray
    properties: dict


def list_cases(images: Path, file_ending: str) -> tuple[dict[str, dict[int, Path]], list[str]]:
    """Find the cases in a folder: files ``CASE_0000.ending``, or DICOM series where there are any.

    Args:
        images: The folder.
        file_ending: Of the model's images.

    Returns:
        case -> {channel number: file, or folder of a series}; and the names of images that were left alone.

    Raises:
        UserError: There is none.
    """
    from umamba_seg.datasets.dicom import holds_dicom, list_series

    if images.is_dir() and holds_dicom(images):
        return list_series(images), []
    return list_images(images, file_ending)


def require_channels(name: str, files: dict[int, Path], images: Path, dataset_json: dict) -> None:
    """Refuse a case of a folder of images that lacks a channel, or has too many.

    Raises:
        UserError: Names what is missing.
    """
    channels, ending = len(dataset_json["channel_names"]), dataset_json["file_ending"]
    if any(path.is_dir() for path in files.values()):
        ending = ""
    if problem := channel_problem(name, list(files), channels, ending):
        raise UserError(images, problem, "add the missing files or remove the case")


def read_case(name: str, files: Sequence[Path], dataset_json: dict, reader: type) -> tuple[np.ndarray, dict]:
    """Read and check the images of a case.

    Args:
        name: Of the case, for messages.
        files: In channel order.
        dataset_json: Of the model.
        reader: nnU-Net's class that read the training images.

    Returns:
        (channels, z, y, x) with the values that that reader would give, and its properties.

    Raises:
        UserError: They cannot be read, do not fit each other or the model, or hold NaN or infinity.
    """
    images = check_case_images(name, files, len(dataset_json["channel_names"]))
    if reader.__name__ == "SimpleITKIO":
        return _as_simpleitkio(images)
    if any(path.is_dir() for path in files):
        what = f"is a DICOM series, but the model was trained on images that {reader.__name__} read"
        raise UserError(files[0], what, f"convert it to {dataset_json['file_ending']}")
    return reader().read_images([str(path) for path in files])


def _as_simpleitkio(images: Sequence[Image]) -> tuple[np.ndarray, dict]:
    """What nnU-Net's usual reader makes of these images, without reading them again."""
    first = images[0]
    spacing = tuple(abs(float(step)) for step in first.spacing[::-1])
    arrays = [image.array for image in images]
    if len(spacing) == 2:
        spacing = (max(spacing) * _SLICE_SPACING, *spacing)
        arrays = [array[:, None] for array in arrays]
    geometry = {"spacing": first.spacing, "origin": first.origin, "direction": first.direction}
    # The preprocessor makes a copy in float32 anyway: one image need not be there twice before.
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays, dtype=np.float32, casting="unsafe")
    return array, {"sitk_stuff": geometry, "spacing": list(spacing)}


def from_array(name: str, array: np.ndarray, spacing: Sequence[float] | None, channels: int) -> tuple[np.ndarray, dict]:
    """Check an image that is in memory.

    Args:
        name: Of the case, for messages.
        array: (channels, z, y, x), or (channels, y, x) of a picture, in the order of the reader of the model's images.
        spacing: Size of a voxel in mm, (z, y, x) or (y, x).
        channels: Of the model.

    Raises:
        UserError: The shape, the number of channels or the spacing does not fit, or it holds NaN or infinity.
    """
    if array.ndim not in (3, 4) or len(array) != channels:
        what = f"has the shape {times(array.shape)}"
        raise UserError(name, what, f"give (channels, z, y, x) or (channels, y, x) with {channels} channels")
    if spacing is None or len(spacing) != array.ndim - 1 or not all(0 < step < np.inf for step in spacing):
        raise UserError(name, f"has the spacing {spacing}", f"give {array.ndim - 1} lengths in mm, those of its axes")
    if not np.isfinite(array).all():
        raise UserError(name, "holds NaN or infinity", "replace them by the background's value")
    steps = [float(step) for step in spacing]
    if array.ndim == 3:
        return array[:, None], {"spacing": [max(steps) * _SLICE_SPACING, *steps]}
    return array, {"spacing": steps}


def read_previous(
    name: str, previous: Path | np.ndarray, shape: tuple[int, ...], values: Sequence[int], reader: type
) -> np.ndarray:
    """The segmentation of the stage before, (1, z, y, x).

    Args:
        name: Of the case, for messages.
        previous: A file, or an array (z, y, x).
        shape: Of the image.
        values: That it may hold.
        reader: nnU-Net's class that read the training images: it may turn them.

    Raises:
        UserError: It cannot be read, has another shape than the image, or holds other values.
    """
    array = _read_labels(previous, reader) if isinstance(previous, Path) else previous[None]
    array = array[:, None] if array.ndim == 3 else array
    where = previous if isinstance(previous, Path) else name
    if array.shape[1:] != tuple(shape) or len(array) != 1:
        what = f"has shape {times(array.shape[1:])}, its image {times(shape)}"
        raise UserError(where, what, "give the segmentation of this image by the stage before")
    if unknown := sorted(set(np.unique(array).tolist()) - set(values)):
        raise UserError(where, f"holds the values {unknown[:5]}, which are no labels of the model", "predict it again")
    return array.astype(np.int16)  # nnU-Net marks what is outside by -1


def _read_labels(file: Path, reader: type) -> np.ndarray:
    array = read_image(file).array  # which says what is wrong with a file
    return array if reader.__name__ == "SimpleITKIO" else reader().read_seg(str(file))[0]
