"""A made-up abdominal MR data set in nnU-Net's raw format: something to try every step on without a download.

Every case is drawn from a small model of the torso in normalised patient coordinates: x from the patient's right (-1)
to the left (1), y from front to back, z from the feet up. The voxel grid is a rotated, jittered box around it, so that
intensity alone does not tell the organs apart while position and shape do. Two-dimensional cases are single slices.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from umamba_seg.datasets.pictures import write_picture
from umamba_seg.datasets.writing import dataset_name, new_dataset
from umamba_seg.errors import UserError
from umamba_seg.files import write_json

LABELS = {"background": 0, "liver": 1, "kidneys": 2, "aorta": 3}

_MAX_TILT = np.deg2rad(20)  # of the scanned box against the patient's axes
_MIN_VESSEL_RADIUS = 3.0  # voxels; the deformation may take a sixth of it
_BRIGHTEST = 1000  # what becomes white in an 8-bit file


class _Tissue(NamedTuple):
    """Signal of one tissue in two MR contrasts, relative to bright fat, and how much it varies within a case."""

    t1: float
    t2: float
    texture: float
    label: int = 0


# The order is that of painting: a later tissue covers an earlier one.
_TISSUES = {
    "air": _Tissue(0.00, 0.00, 0.00),
    "skin fat": _Tissue(0.95, 0.75, 0.04),
    "muscle": _Tissue(0.36, 0.20, 0.04),
    "inner fat": _Tissue(0.85, 0.70, 0.08),
    "bowel": _Tissue(0.30, 0.55, 0.08),
    "stomach": _Tissue(0.28, 0.85, 0.05),
    "spleen": _Tissue(0.51, 0.58, 0.04),
    "liver": _Tissue(0.62, 0.38, 0.05, LABELS["liver"]),
    "fat around the kidneys": _Tissue(0.85, 0.70, 0.08),
    "kidneys": _Tissue(0.40, 0.70, 0.04, LABELS["kidneys"]),
    "vertebrae": _Tissue(0.72, 0.50, 0.06),
    "spinal canal": _Tissue(0.20, 0.95, 0.03),
    "aorta": _Tissue(0.16, 0.12, 0.03, LABELS["aorta"]),
}


@dataclass(frozen=True)
class _Case:
    """One case: images (channel, x, y, z), labels (x, y, z) and where the grid lies (LPS millimetres, as in ITK)."""

    images: np.ndarray
    labels: np.ndarray
    spacing: np.ndarray
    direction: np.ndarray
    origin: np.ndarray


def make_dataset(
    raw: Path,
    dataset_id: int,
    name: str,
    *,
    train_cases: int,
    test_cases: int,
    shape: tuple[int, ...],
    spacing: tuple[float, ...],
    seed: int,
    channels: int = 1,
) -> Path:
    """Write ``raw/DatasetNNN_Name`` with imagesTr, labelsTr, imagesTs, labelsTs and dataset.json.

    Args:
        raw: nnU-Net's raw folder; made if missing.
        dataset_id: 1 to 999.
        name: Letters, digits and underscores.
        train_cases: Number of cases ``synth_000``, ``synth_001``, ... for training.
        test_cases: Number of cases for testing, numbered on from there.
        shape: Voxels along x, y, z of an oblique NIfTI volume, or pixels along x, y of an 8-bit grey PNG. A case has up
            to 5 % more or less.
        spacing: Millimetres between voxels, in the order of ``shape``. A case has up to 3 % more or less. A PNG stores
            none: there its ratio only shapes the body.
        seed: The same arguments give the same arrays.
        channels: Number of MR contrasts, evenly spread from T1-like to T2-like, one file each.

    Returns:
        The folder of the data set. It appears only once it is complete.

    Raises:
        UserError: The number is taken, the name is not allowed, or the grid is none or too small for every organ.
    """
    if len(shape) not in (2, 3) or len(spacing) != len(shape):
        raise UserError(
            name,
            f"shape {shape} and spacing {spacing} do not describe a grid",
            "give two or three numbers for both, in the order x, y, z",
        )
    ending, write = (".nii.gz", _write_nifti) if len(shape) == 3 else (".png", _write_png)
    with new_dataset(raw, dataset_id, name) as folder:
        for kind in ("imagesTr", "labelsTr", "imagesTs", "labelsTs"):
            (folder / kind).mkdir()
        for index, case_seed in enumerate(np.random.SeedSequence(seed).spawn(train_cases + test_cases)):
            case = _draw_case(shape, spacing, channels, np.random.default_rng(case_seed))
            if missing := set(LABELS.values()) - set(np.unique(case.labels).tolist()):
                what = f"shape {shape} is too small: label {min(missing)} is lost in case {index}"
                raise UserError(name, what, "give more voxels")
            write(case, folder, "Tr" if index < train_cases else "Ts", f"synth_{index:03d}")
        description = {
            "name": name,
            "description": "Made-up abdominal MR of nobody",
            "channel_names": {str(channel): f"MR contrast {channel + 1}" for channel in range(channels)},
            "labels": LABELS,
            "numTraining": train_cases,
            "file_ending": ending,
        }
        write_json(folder / "dataset.json", description)
    return raw / dataset_name(dataset_id, name)


def _draw_case(shape: tuple[int, ...], spacing: tuple[float, ...], channels: int, rng: np.random.Generator) -> _Case:
    """Place a voxel grid in the patient, paint the organs on it and image them."""
    nominal = np.array((*shape, 1)[:3])  # a 2-D case is a single slice
    nominal_spacing = np.array((*spacing, max(spacing))[:3])
    half = nominal * nominal_spacing / 2
    half[2] = max(half[2], 0.6 * half[:2].min())  # a thin stack shows a part of the torso, not a flattened one

    margin = np.rint(0.05 * nominal).astype(int)
    size = nominal + rng.integers(-margin, margin + 1)
    case_spacing = nominal_spacing * rng.uniform(0.97, 1.03, 3)
    axis = rng.normal(size=3)
    direction = Rotation.from_rotvec(axis / np.linalg.norm(axis) * rng.uniform(0.25, 1) * _MAX_TILT).as_matrix()
    centre = half * rng.uniform(-0.05, 0.05, 3)

    steps = (np.indices(tuple(size)).reshape(3, -1) - (size[:, None] - 1) / 2) * case_spacing[:, None]
    points = (direction @ steps + centre[:, None]).reshape(3, *size)
    thinnest = _MIN_VESSEL_RADIUS * case_spacing[:2].max() / half[:2].min()
    tissue = _paint(_deform(points / half[:, None, None, None], rng), thinnest, rng)
    labels = np.array([kind.label for kind in _TISSUES.values()], dtype=np.uint8)[tissue]
    images = _image(tissue, channels, rng)
    return _Case(images, labels, case_spacing, direction, points[:, 0, 0, 0])


def _deform(position: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Scale normalised coordinates (3, x, y, z) and bend them by a few random waves: no two patients look alike."""
    bent = position / _column(rng.uniform(0.92, 1.05, 3))
    for _ in range(4):
        phase = np.tensordot(rng.normal(scale=1.6, size=3), position, axes=1) + rng.uniform(0, 2 * np.pi)
        bent = bent + _column(rng.normal(scale=0.025, size=3)) * np.sin(phase)
    return bent


def _paint(position: np.ndarray, thinnest: float, rng: np.random.Generator) -> np.ndarray:
    """Tissue of every voxel, (x, y, z), as an index into the tissues.

    ``position`` holds normalised coordinates (3, x, y, z); ``thinnest`` is the smallest radius, in the same units, that
    the grid resolves well.
    """
    x, y, z = position
    body = np.abs(x / 0.92) ** 2.4 + np.abs(y / 0.86) ** 2.4 + (z / 2.2) ** 2
    wall = rng.uniform(0.66, 0.8)
    inside = body < wall - 0.16
    bowel = np.zeros(x.shape, dtype=bool)
    for _ in range(7):
        centre = rng.uniform((-0.5, -0.5, -1.0), (0.6, 0.1, 0.1))
        bowel |= _ellipsoid(position, centre, (0.2, 0.16, 0.25), rng) < 1
    liver = np.minimum(
        _ellipsoid(position, (-0.36, -0.1, 0.2), (0.42, 0.44, 0.75), rng),
        _ellipsoid(position, (-0.08, -0.32, 0.3), (0.42, 0.26, 0.55), rng),
    )
    kidneys = np.minimum(_kidney(position, -1, rng), _kidney(position, 1, rng))
    spine = _tube_distance(position, (0.0, 0.42), 0.02, rng)
    aorta = _tube_distance(position, (0.08, 0.12), 0.06, rng)
    masks = {
        "skin fat": body < 1,
        "muscle": body < wall,
        "inner fat": inside,
        "bowel": inside & bowel,
        "stomach": inside & (_ellipsoid(position, (0.32, -0.25, 0.35), (0.28, 0.24, 0.5), rng) < 1),
        "spleen": inside & (_ellipsoid(position, (0.58, 0.12, 0.4), (0.18, 0.3, 0.5), rng) < 1),
        "liver": inside & (liver < 1) & (y < 0.2),  # it ends where the kidney lies against it
        "fat around the kidneys": inside & (kidneys < 1.5),
        "kidneys": (body < wall) & (kidneys < 1),
        "vertebrae": spine < 0.19,
        "spinal canal": _tube_distance(position, (0.0, 0.62), 0.01, rng) < 0.08,
        "aorta": aorta < max(thinnest, 0.1) * rng.uniform(1.0, 1.3),
    }
    tissue = np.zeros(x.shape, dtype=np.uint8)
    for name, mask in masks.items():
        tissue[mask] = list(_TISSUES).index(name)
    return tissue


def _column(values: np.ndarray) -> np.ndarray:
    """Three numbers in the shape that goes with coordinates (3, x, y, z)."""
    return values[:, None, None, None]


def _ellipsoid(position: np.ndarray, centre: ArrayLike, radii: ArrayLike, rng: np.random.Generator) -> np.ndarray:
    """Squared distance from the middle of a randomly moved, stretched and turned ellipsoid; 1 is its surface."""
    offset = position - _column(np.asarray(centre) + rng.uniform(-0.04, 0.04, 3))
    turned = np.tensordot(Rotation.from_rotvec(rng.uniform(-0.2, 0.2, 3)).as_matrix(), offset, axes=1)
    return ((turned / _column(np.asarray(radii) * rng.uniform(0.92, 1.1, 3))) ** 2).sum(axis=0)


def _kidney(position: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
    """Squared distance from the middle of a bean, 1 on its surface: its poles and a dent point to the spine."""
    x, y, z = position
    outwards = side * x + 0.4 * z**2
    local = np.stack([outwards, y, z])
    bean = _ellipsoid(local, (0.46, 0.32, -0.1), (0.2, 0.21, 0.6), rng)
    dent = _ellipsoid(local, (0.27, 0.27, -0.1), (0.1, 0.09, 0.22), rng)
    return np.maximum(bean, 2 - dent)


def _tube_distance(
    position: np.ndarray, middle: tuple[float, float], wander: float, rng: np.random.Generator
) -> np.ndarray:
    """Distance in the axial plane from a line along z that wanders about ``middle`` (x, y) by up to ``wander``."""
    z = position[2]
    phase = rng.uniform(0, 2 * np.pi, 2)
    x_of_z, y_of_z = (middle[axis] + wander * np.sin(2.5 * z + phase[axis]) for axis in range(2))
    return np.hypot(position[0] - x_of_z, position[1] - y_of_z)


def _image(tissue: np.ndarray, channels: int, rng: np.random.Generator) -> np.ndarray:
    """MR images (channel, x, y, z) of a tissue map (x, y, z), as 16-bit integers of roughly 0 to 1000.

    Texture, blurred borders, the smooth brightness of a surface coil, Rician noise, and a scale of its own per case.
    """
    signals = np.array([kind[:2] for kind in _TISSUES.values()])
    texture = np.array([kind.texture for kind in _TISSUES.values()])
    # Every case has its own tissue properties, so that no threshold learnt on one fits the next.
    signals = signals * rng.uniform(0.96, 1.04, signals.shape)
    grain = gaussian_filter(rng.normal(size=tissue.shape), 1.0)
    grain /= grain.std()
    place = np.stack(np.meshgrid(*(np.linspace(-1, 1, n) if n > 1 else [0.0] for n in tissue.shape), indexing="ij"))
    coil = np.exp(
        np.tensordot(rng.uniform(-0.15, 0.15, 3), place, axes=1) - rng.uniform(0, 0.25) * (place**2).mean(axis=0)
    )
    scale = rng.uniform(500, 900)
    images = []
    for channel in range(channels):
        weight = channel / max(channels - 1, 1)
        contrast = signals @ (1 - weight, weight)
        signal = contrast[tissue] + texture[tissue] * grain
        signal = gaussian_filter(signal, 0.5) * coil
        real, imaginary = rng.normal(scale=0.025, size=(2, *tissue.shape))
        images.append(scale * np.hypot(signal + real, imaginary))
    return np.rint(images).astype(np.int16)


def _write_nifti(case: _Case, folder: Path, subset: str, identifier: str) -> None:
    import SimpleITK as sitk

    def write(array: np.ndarray, path: Path) -> None:
        image = sitk.GetImageFromArray(array.transpose())  # ITK's arrays are z, y, x
        image.SetSpacing(case.spacing.tolist())
        image.SetDirection(case.direction.ravel().tolist())
        image.SetOrigin(case.origin.tolist())
        sitk.WriteImage(image, path)

    for channel, image in enumerate(case.images):
        write(image, folder / f"images{subset}" / f"{identifier}_{channel:04d}.nii.gz")
    write(case.labels, folder / f"labels{subset}" / f"{identifier}.nii.gz")


def _write_png(case: _Case, folder: Path, subset: str, identifier: str) -> None:
    for channel, image in enumerate(case.images):
        grey = (image[:, :, 0].T * (255 / _BRIGHTEST)).clip(0, 255).astype(np.uint8)
        write_picture(folder / f"images{subset}" / f"{identifier}_{channel:04d}.png", grey)
    write_picture(folder / f"labels{subset}" / f"{identifier}.png", case.labels[:, :, 0].T)
