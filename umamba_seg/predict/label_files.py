"""Files of segmentations: read whole or refused by name, written whole or not at all."""

from __future__ import annotations

import errno
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from nnunetv2.imageio.base_reader_writer import BaseReaderWriter
from nnunetv2.imageio.reader_writer_registry import determine_reader_writer_from_dataset_json

from umamba_seg.datasets.images import read_image
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.files import move_into_place
from umamba_seg.text import times


def read_labels(path: Path) -> np.ndarray:
    """A segmentation (z, y, x) in the file's own number type; z is 1 for a picture.

    Raises:
        UserError: It cannot be read whole, or holds several values per voxel.
    """
    array = read_image(path).array
    if len(array) != 1:
        raise UserError(path, f"has {len(array)} values per voxel", "give segmentations, with one label per voxel")
    return array[0] if array.ndim == 4 else array


class LabelFiles:
    """Reads and writes segmentations with their geometry, by the reader that nnU-Net takes for a data set.

    It may print; several threads may use it.

    Args:
        dataset_json: Of the data set.
    """

    def __init__(self, dataset_json: dict):
        self._dataset_json = dataset_json
        self._reader: BaseReaderWriter | None = None

    def read(self, path: Path) -> tuple[np.ndarray, dict]:
        """A segmentation (z, y, x), and nnU-Net's properties, which hold the geometry.

        Raises:
            UserError: See :func:`read_labels`.
        """
        kind = read_labels(path).dtype  # what is broken is named by us; nnU-Net would try one reader after the other
        if self._reader is None:
            self._reader = determine_reader_writer_from_dataset_json(self._dataset_json, str(path), verbose=False)()
        array, properties = self._reader.read_seg(str(path))
        return array[0].astype(kind), properties

    def write(self, labels: np.ndarray, path: Path, properties: dict) -> None:
        """Write (z, y, x), with properties that were read, under another name first.

        nnU-Net's writer leaves a file with the spacing beside a TIFF, which comes too.

        Raises:
            OSError: It cannot be written whole.
        """
        assert self._reader is not None
        with tempfile.TemporaryDirectory(prefix=".part.", dir=path.parent) as draft:
            part = Path(draft) / path.name
            try:
                self._reader.write_seg(labels, str(part), properties)
                read_labels(part)  # of a full disk SimpleITK says nothing when it writes NIfTI
            except (RuntimeError, UserError) as error:
                raise OSError(errno.ENOSPC, "cannot be written whole; is the disk full?", str(path)) from error
            for written in sorted(Path(draft).iterdir()):
                move_into_place(written, path.parent / written.name)


def require_same_shape(shape: tuple[int, ...], path: Path, wanted: tuple[int, ...], other: Path) -> None:
    """Refuse a file whose voxels are not those of another.

    Raises:
        UserError: Names both.
    """
    if tuple(shape) != tuple(wanted):
        what = f"has the shape {times(shape)}, but {other} has {times(wanted)}"
        raise UserError(path, what, "give files of the same image")


def require_all(folder: Path, written: Sequence[Path], failures: dict[str, str]) -> None:
    """Say which cases failed.

    Raises:
        CasesFailed: Some did.
        UserError: All did.
    """
    if failures and written:
        raise CasesFailed(failures, [str(path) for path in written])
    if failures:
        raise UserError(folder, "no case could be written", "\n  ".join(["mend them:", *failures.values()]))
