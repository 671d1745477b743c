"""A prediction -> files that are whole or not there: segmentation, probabilities, maps of uncertainty, DICOM-SEG."""

from __future__ import annotations

import errno
import gzip
import hashlib
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.lib import format as npy

from umamba_seg.datasets.images import PICTURE_ENDINGS
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import make_folder, move_into_place

if TYPE_CHECKING:
    import SimpleITK as sitk

    from umamba_seg.predict.results import Prediction

_BLOCK = 2**22  # voxels that are converted at a time
_DEFLATE = 1  # higher levels take twice as long for 3 % of smooth probabilities
_MAPS = ("entropy", "disagreement")
_LPS = np.diag((-1.0, -1.0, 1.0))  # nibabel's axes point right, front, head; SimpleITK's left, back, head
# What a damaged archive of arrays raises.
DAMAGE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error, NotImplementedError)


class Geometry(NamedTuple):
    """Where voxels lie, in SimpleITK's order x, y[, z]: their size and the first one's place in mm, and the axes."""

    spacing: Sequence[float]
    origin: Sequence[float]
    direction: Sequence[float]

    @classmethod
    def of(cls, properties: dict) -> Geometry | None:
        """That of the array that a reader of nnU-Net gave; None for formats that have none."""
        if "sitk_stuff" in properties:
            return cls(**properties["sitk_stuff"])
        if "nibabel_stuff" in properties:
            stuff = properties["nibabel_stuff"]
            return cls.of_affine(stuff.get("reoriented_affine", stuff["original_affine"]))
        return None

    @classmethod
    def of_affine(cls, affine: np.ndarray) -> Geometry:
        """That of a NIfTI file, from voxels to millimetres as nibabel gives it."""
        axes = _LPS @ affine[:3, :3]
        spacing = np.linalg.norm(axes, axis=0)
        return cls(spacing.tolist(), (_LPS @ affine[:3, 3]).tolist(), (axes / spacing).ravel().tolist())


def write_prediction(
    prediction: Prediction,
    output: Path,
    scratch: Path,
    plans: dict,
    dataset_json: dict,
    *,
    precision: str | None = None,
    announce: Callable[[list[str], str], None] = lambda *_: None,
) -> list[str]:
    """Write what a prediction holds into a folder: ``CASE.ending``, and where they are there

    * ``CASE.npz``: probabilities (see :func:`read_probabilities`),
    * ``entropy/CASE.ending``, ``disagreement/CASE.ending``: float32 maps; for pictures 255 stands for 1,
    * ``CASE.dcm``: DICOM-SEG, if the image was a DICOM series.

    All of them are written under ``scratch``, flushed to the disk, and then renamed. The segmentation comes last: once
    it has its name, the others are there.

    Args:
        prediction: Of a case that was read from files.
        output: The folder. Files of the same case are replaced.
        scratch: A hidden folder on the same disk.
        plans: Of the model; they name nnU-Net's writer.
        dataset_json: Of the model.
        precision: To save the probabilities: ``float16``, or ``uint8`` for ``round(255 p)``.
        announce: Called right before the segmentation gets its name, with the names of all files, relative to
            ``output`` and the segmentation first, and the segmentation's SHA-256.

    Returns:
        The names given to ``announce``.

    Raises:
        OSError: A file cannot be written; what is in ``output`` stays as it was.
    """
    segmentation = f"{prediction.name}{dataset_json['file_ending']}"
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        part = Path(folder)
        _write_all(prediction, part, segmentation, plans, dataset_json, precision)
        found = sorted(path.relative_to(part).as_posix() for path in part.rglob("*") if path.is_file())
        names = [segmentation, *(name for name in found if name != segmentation)]
        digest = sha256(part / segmentation)
        for name in names[1:]:
            make_folder((output / name).parent)
            move_into_place(part / name, output / name)
        announce(names, digest)
        move_into_place(part / segmentation, output / segmentation)
    return names


def _write_all(
    prediction: Prediction, part: Path, segmentation: str, plans: dict, dataset_json: dict, precision: str | None
) -> None:
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    labels = Labels.from_json(dataset_json, Path("dataset.json"))
    writer = PlansManager(plans).image_reader_writer_class()
    with _complete(part / segmentation):  # nnU-Net leaves a file with the spacing beside a .tif of three axes
        writer.write_seg(prediction.segmentation, str(part / segmentation), prediction.properties)
    if precision is not None:
        assert prediction.probabilities is not None, "they were asked for"
        names = class_names(labels)
        _write_probabilities(part / f"{prediction.name}.npz", prediction, prediction.probabilities, names, precision)
    for kind in _MAPS:
        values = getattr(prediction, kind)
        if values is not None:
            path = make_folder(part / kind) / segmentation
            with _complete(path):
                _write_map(path, values, prediction.properties, flat=type(writer).__name__ == "NaturalImage2DIO")
    if prediction.files and prediction.files[0].is_dir():
        from umamba_seg.predict.dicom_seg import write_dicom_seg

        path, by = part / f"{prediction.name}.dcm", f"umamba-seg {plans['dataset_name']}"
        write_dicom_seg(prediction.segmentation, prediction.files[0], labels, path, description=by[:64])


def class_names(labels: Labels) -> list[str]:
    """The names of the classes or regions, in the order of a network's channels."""
    if labels.has_regions:
        return list(labels.foreground)
    return ["background", *sorted(labels.foreground, key=labels.foreground.__getitem__)]


def sha256(path: Path) -> str:
    """Of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _complete(path: Path) -> Iterator[None]:
    """Whoever writes this file says so when the disk is full. SimpleITK says nothing for NIfTI."""
    try:
        yield
        if path.name.endswith((".nii", ".nii.gz")):
            _require_all_voxels(path)
    except (RuntimeError, OSError, EOFError, zlib.error) as error:  # SimpleITK's; tifffile's; a check's
        if getattr(error, "errno", None) is not None:
            raise
        reason = str(error).strip().splitlines()[-1]
        raise OSError(errno.ENOSPC, f"cannot be written whole ({reason}); is the disk full?", str(path)) from error


def _require_all_voxels(path: Path) -> None:
    """Read a NIfTI file to its end, in blocks, as another copy in memory would not be worth it."""
    from nibabel.nifti1 import Nifti1Header

    with gzip.open(path) if path.name.endswith(".gz") else path.open("rb") as file:
        header = Nifti1Header(file.read(348), check=False)
        left = int(np.prod(header.get_data_shape())) * header.get_data_dtype().itemsize + 4
        while block := file.read(_BLOCK):
            left -= len(block)
    if left > 0:
        raise EOFError(f"{left} bytes of voxels are missing")


def _write_probabilities(
    path: Path, prediction: Prediction, probabilities: np.ndarray, names: Sequence[str], precision: str
) -> None:
    """Deflate array by array and block by block: the probabilities may lie in a file larger than the memory."""
    kind = np.dtype(precision)
    geometry = Geometry.of(prediction.properties)
    others = {} if geometry is None else geometry._asdict()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=_DEFLATE) as archive:
        with archive.open("probabilities.npy", "w", force_zip64=True) as file:
            description = {"descr": npy.dtype_to_descr(kind), "fortran_order": False, "shape": probabilities.shape}
            npy.write_array_header_1_0(file, description)
            for block in _blocks(probabilities):
                file.write((np.rint(block * np.float32(255)) if kind == np.uint8 else block).astype(kind).tobytes())
        for name, values in (others | {"names": list(names)}).items():
            with archive.open(f"{name}.npy", "w") as file:
                npy.write_array(file, np.asarray(values), allow_pickle=False)


def _blocks(array: np.ndarray) -> Iterator[np.ndarray]:
    """The values in C order, some planes of a class at a time."""
    step = max(1, _BLOCK // (array.shape[2] * array.shape[3]))
    for volume in array:
        for first in range(0, len(volume), step):
            yield np.ascontiguousarray(volume[first : first + step])


def _write_map(path: Path, values: np.ndarray, properties: dict, *, flat: bool) -> None:
    """Write (z, y, x) of values from 0 to 1; ``flat`` for pictures of two axes."""
    if path.name.endswith(PICTURE_ENDINGS):
        shades = np.rint(values.astype(np.float32) * 255).astype(np.uint8)
        if flat:
            from skimage import io

            io.imsave(path, shades[0], check_contrast=False)
        else:
            import tifffile

            tifffile.imwrite(path, shades, photometric="minisblack", compression="zlib")  # four slices are no colours
        return
    import SimpleITK as sitk

    sitk.WriteImage(_image(values.astype(np.float32), properties), str(path), True)


def _image(array: np.ndarray, properties: dict) -> sitk.Image:
    """An array as a reader of nnU-Net gave it -> an image that lies, and is stored, as the one that was read."""
    import SimpleITK as sitk

    geometry = Geometry.of(properties)
    assert geometry is not None, "every format but pictures has one"
    image = sitk.GetImageFromArray(array[0] if len(geometry.spacing) == 2 else array)
    image.SetSpacing(geometry.spacing)
    image.SetOrigin(geometry.origin)
    image.SetDirection(geometry.direction)
    if "reoriented_affine" not in properties.get("nibabel_stuff", {}):
        return image
    stored = Geometry.of_affine(properties["nibabel_stuff"]["original_affine"])
    return sitk.DICOMOrient(image, sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(stored.direction))


def read_probabilities(path: Path) -> tuple[np.ndarray, list[str] | None]:
    """Read saved probabilities, ours or nnU-Net's.

    Args:
        path: ``CASE.npz``, an archive of arrays: ``probabilities``, and in ours ``names`` of classes or regions, and
            the image's ``spacing``, ``origin`` and ``direction`` in SimpleITK's order, where its format has them.

    Returns:
        Floats (classes or regions, z, y, x) from 0 to 1, and the names; None in nnU-Net's.

    Raises:
        UserError: The file is missing, damaged, or holds something else. Nothing in it is executed.
    """
    remedy = "give a file that --save-probabilities wrote"
    if not path.is_file():
        raise UserError(path, "no such file", remedy)
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("it is no zip archive")
        with np.load(path, allow_pickle=False) as archive:
            probabilities = archive["probabilities"]
            names = list(map(str, archive["names"])) if "names" in archive else None
    except DAMAGE as error:
        raise UserError(path, f"is damaged, or holds no probabilities ({error})", remedy) from None
    if probabilities.ndim != 4 or (probabilities.dtype != np.uint8 and probabilities.dtype.kind != "f"):
        what = f"holds {probabilities.dtype} of {probabilities.ndim} axes, no probabilities (class, z, y, x)"
        raise UserError(path, what, remedy)
    if names is not None and len(names) != len(probabilities):
        raise UserError(path, f"names {len(names)} classes but holds {len(probabilities)}", remedy)
    if probabilities.dtype == np.uint8:
        probabilities = probabilities.astype(np.float16)
        probabilities /= np.float16(255)
    return probabilities, names
