"""Releases as their makers lay them out, with random voxels; and the whole way from there to a trained network."""

import json
import math
import multiprocessing
from collections.abc import Callable
from multiprocessing.pool import ThreadPool
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

BRATS = "ASNR-MICCAI-BraTS2023-GLI-Challenge"
GEOMETRY = {"Spacing": (1.5, 1.25, 2.0), "Origin": (-20.0, 30.0, 5.0), "Direction": (1, 0, 0, 0, -1, 0, 0, 0, 1)}


def _brats(case: str, folder: str, suffixes: str, values: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    return {f"{folder}/{case}/{case}{suffix}.nii.gz": values if "seg" in suffix else () for suffix in suffixes.split()}


def _pairs(image: str, label: str, cases: tuple, values: int) -> dict[str, tuple[int, ...]]:
    images = {image.format(case): () for case in cases}
    return images | {label.format(case): tuple(range(values)) for case in cases}


_2023, _2021 = "-t1n -t1c -t2w -t2f", "_t1 _t1ce _t2 _flair"
LAYOUTS: dict[str, dict[str, tuple[int, ...]]] = {
    "brats": {
        **_brats("BraTS-GLI-00000-000", f"{BRATS}-TrainingData", f"{_2023} -seg", (0, 1, 2, 3)),
        **_brats("BraTS-GLI-00000-001", f"{BRATS}-TrainingData", f"{_2023} -seg", (0, 1, 2, 3)),
        **_brats("BraTS-GLI-00002-000", f"{BRATS}-TrainingData", f"{_2023} -seg", (0, 1, 2, 3)),
        **_brats("BraTS-GLI-00001-000", f"{BRATS}-ValidationData", _2023, ()),
    },
    "brats 2021": {
        **_brats("BraTS2021_00000", "TrainingData", f"{_2021} _seg", (0, 1, 2, 4)),
        **_brats("BraTS2021_00002", "TrainingData", f"{_2021} _seg", (0, 1, 2, 4)),
        **_brats("BraTS2021_00001", "ValidationData", _2021, ()),
    },
    "acdc": {
        **_pairs(
            "training/{0[0]}/{0[0]}_{0[1]}.nii.gz",
            "training/{0[0]}/{0[0]}_{0[1]}_gt.nii.gz",
            (("patient001", "frame01"), ("patient001", "frame12"), ("patient002", "frame01")),
            4,
        ),
        **_pairs("testing/patient101/{}.nii.gz", "testing/patient101/{}_gt.nii.gz", ("patient101_frame01",), 4),
        "training/patient001/patient001_4d.nii.gz": (),
    },
    "amos": {
        **_pairs("imagesTr/amos_{}.nii.gz", "labelsTr/amos_{}.nii.gz", ("0001", "0004", "0507", "0508"), 16),
        **_pairs("imagesVa/amos_{}.nii.gz", "labelsVa/amos_{}.nii.gz", ("0008", "0510"), 16),
        "imagesTs/amos_0002.nii.gz": (),
        "imagesTs/amos_0600.nii.gz": (),
    },
    "flare22": {
        **_pairs(
            "FLARE22_LabeledCase50/images/FLARE22_Tr_{}_0000.nii.gz",
            "FLARE22_LabeledCase50/labels/FLARE22_Tr_{}.nii.gz",
            ("0001", "0002"),
            14,
        ),
        **_pairs("Validation/FLARETs_{}_0000.nii.gz", "ValidationLabels/FLARETs_{}.nii.gz", ("0001",), 14),
        "UnlabeledCase/Case_00001_0000.nii.gz": (),
    },
    "btcv": {
        **_pairs("Training/img/img{}.nii.gz", "Training/label/label{}.nii.gz", ("0001", "0021"), 14),
        "Testing/img/img0061.nii.gz": (),
    },
    "lits": {
        **_pairs("Training Batch 1/volume-{}.nii", "Training Batch 1/segmentation-{}.nii", (0, 3), 3),
        **_pairs("Training Batch 2/volume-{}.nii", "Training Batch 2/segmentation-{}.nii", (128,), 3),
        "test-volume-0.nii": (),
    },
    "kits": _pairs("case_{}/imaging.nii.gz", "case_{}/segmentation.nii.gz", ("00000", "00401"), 4),
    "aiib": {
        **_pairs("Train/img/AIIB23_{}.nii.gz", "Train/gt/AIIB23_{}.nii.gz", (23, 24), 2),
        "Validation/img/AIIB23_171.nii.gz": (),
    },
    "promise12": {
        **_pairs("training_data/Case{}.mhd", "training_data/Case{}_segmentation.mhd", ("00", "01"), 2),
        "test_data/Case00.mhd": (),
        "livechallenge_test_data/Case00.mhd": (),
    },
    "imagecas": _pairs("1-200/{}.img.nii.gz", "1-200/{}.label.nii.gz", (1, 20), 2),
}
"""Release -> path -> the values of a label file; none for an image."""


def save_volume(path: Path, voxels: np.ndarray, **geometry) -> Path:
    """Write voxels (z, y, x) with SimpleITK, with :data:`GEOMETRY` where ``geometry`` does not say otherwise."""
    image = sitk.GetImageFromArray(voxels)
    for name, value in (GEOMETRY | geometry).items():
        getattr(image, f"Set{name}")(value)
    path.parent.mkdir(parents=True, exist_ok=True)
    plain = path.with_name(path.name.replace(".img.", "."))  # ITK would write a pair of .hdr and .img
    sitk.WriteImage(image, str(plain))
    return plain.rename(path)


@pytest.fixture
def save() -> Callable[..., Path]:
    return save_volume


@pytest.fixture
def layout() -> Callable[[str], dict[str, tuple[int, ...]]]:
    """``layout("kits")`` is path -> the values of a label file, or none for an image."""
    return lambda name: dict(LAYOUTS[name])


@pytest.fixture
def make_release(tmp_path: Path) -> Callable[..., Path]:
    """``make_release("kits", shape=(z, y, x))`` writes the files of a release of volumes, with all of its labels."""

    def make(name: str, shape: tuple[int, int, int] = (16, 6, 5)) -> Path:
        folder = tmp_path / "release"
        rng = np.random.default_rng(0)
        for path, values in LAYOUTS[name].items():
            voxels = rng.integers(0, 1000, shape).astype(np.int16)
            if values:
                slabs = np.take(values, np.arange(shape[0]) * len(values) // shape[0])
                voxels = np.broadcast_to(slabs[:, None, None], shape).astype(np.uint8)
            save_volume(folder / path, voxels)
        return folder

    return make


@pytest.fixture
def trains(tmp_path: Path, umamba_seg, one_thread, monkeypatch) -> Callable[..., Path]:
    """``trains("amos", source, "--modality", "mr")`` converts, checks, plans, preprocesses and trains one iteration.

    Pictures are trained in 2-D, volumes in 3-D. It returns the folder of the raw data set.
    """
    from umamba_seg.plan import planner

    root = tmp_path / "root"
    context = multiprocessing.get_context()  # nnU-Net spawns a pool of processes for every step, seconds each
    monkeypatch.setattr(context, "Pool", ThreadPool)
    monkeypatch.setattr(multiprocessing, "get_context", lambda *_: context)

    def peak(_architecture, setting, _device_type, _options):
        return 2**26 + 40 * setting.batch_size * math.prod(setting.topology.patch_size) * setting.topology.features[0]

    monkeypatch.setattr(planner, "_peak", peak)  # to trace what a patch takes lasts longer than all the rest

    def run(name: str, source: Path, *options: str) -> Path:
        here = ("--root", root, "--json")
        folder = Path(umamba_seg("convert", name, "-i", source, *options, *here).succeeded().result["folder"])
        is_2d = json.loads((folder / "dataset.json").read_text())["file_ending"] == ".png"
        dataset, configuration = ("-d", folder.name, *here), ("-c", "2d" if is_2d else "3d_fullres")
        assert umamba_seg("check", *dataset).succeeded().result["errors"] == 0
        plan = ("--budget", "cpu", "--network", "plain_conv_unet", "-np", 1)
        umamba_seg("plan_and_preprocess", *dataset, *configuration, *plan).succeeded()
        once = ("-f", 0, "--epochs", 1, "--iterations-per-epoch", 1, "--workers", 0, "-np", 1, "-device", "cpu")
        trained = umamba_seg("train", *dataset, *configuration, *once).succeeded()
        assert (Path(trained.result["model_folder"]) / "fold_0" / "checkpoint_final.pth").is_file()
        return folder

    return run
