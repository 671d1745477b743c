"""Real data (not part of the project: without it those tests are skipped), the command line, and a trained model."""

import contextlib
import copy
import functools
import io
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import pytest


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data("hippocampus")`` is the folder of that data set, in $UMAMBA_TEST_DATA or ../shared/data."""
    root = Path(os.environ.get("UMAMBA_TEST_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")

    def find(name: str) -> Path:
        if not (root / name).exists():
            pytest.skip(f"{name} is not in {root}")
        return root / name

    return find


@pytest.fixture(autouse=True)
def _fresh_loggers() -> None:
    """As in a new process: a command of the test before may have configured them."""
    for name in ("umamba_seg", "umamba_kernels"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [], True
        logger.setLevel(logging.NOTSET)


@pytest.fixture(scope="session")
def save_series() -> Callable[..., Path]:
    """``save_series(folder, array, spacing=..., origin=..., direction=..., change=...)`` writes a DICOM series.

    ``array`` (z, y, x) holds 16-bit numbers, and the geometry is SimpleITK's. Neither the names of the files nor
    InstanceNumber follow the slices. ``change(slice, number)`` may alter a slice; it is left out where that is False.
    """
    import numpy as np
    import pydicom
    from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

    straight = (1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0)

    def save(
        folder: Path, array, spacing=(1.0, 1.0, 1.0), origin=(0.0, 0.0, 0.0), direction=straight, change=None
    ) -> Path:
        folder.mkdir(parents=True, exist_ok=True)
        axes = np.reshape(direction, (3, 3))
        shared = pydicom.Dataset()
        shared.SOPClassUID, shared.Modality, shared.PatientID, shared.PatientName = CTImageStorage, "CT", "P7", "A^B"
        shared.StudyInstanceUID, shared.SeriesInstanceUID, shared.FrameOfReferenceUID = (generate_uid() for _ in "abc")
        shared.SeriesNumber, shared.SeriesDescription = 3, "thorax"
        for missing in ("PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID", "AccessionNumber"):
            setattr(shared, missing, "")
        shared.ImageOrientationPatient = axes[:, :2].T.ravel().tolist()
        shared.PixelSpacing, shared.SliceThickness = [spacing[1], spacing[0]], spacing[2]
        shared.Rows, shared.Columns, shared.SamplesPerPixel = *array.shape[1:], 1
        shared.PhotometricInterpretation, shared.BitsAllocated, shared.BitsStored = "MONOCHROME2", 16, 16
        shared.HighBit, shared.PixelRepresentation = 15, int(array.dtype.kind == "i")
        for number, pixels in enumerate(array):
            one = copy.deepcopy(shared)
            one.SOPInstanceUID, one.InstanceNumber = generate_uid(), (number * 5) % 7
            one.ImagePositionPatient = (np.array(origin) + axes[:, 2] * spacing[2] * number).tolist()
            one.PixelData = pixels.astype(array.dtype.newbyteorder("<")).tobytes()
            one.file_meta = pydicom.dataset.FileMetaDataset()
            one.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
            if change is None or change(one, number) is not False:
                one.save_as(folder / f"{chr(ord('a') + (number * 7) % 26)}{number}.dcm", enforce_file_format=True)
        return folder

    return save


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One thread for training steps: several pad the few channels of oneDNN's convolutions, and wait for each other."""
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def single_precision(monkeypatch) -> None:
    """nnU-Net sums logits in half precision, which loses the corners of tiles; with this, in single."""
    import torch
    from nnunetv2.inference import predict_from_raw_data

    monkeypatch.setattr(torch, "half", torch.float32)
    gaussian = functools.partial(predict_from_raw_data.compute_gaussian, dtype=torch.float32)
    gaussian.cache_clear = lambda: None
    monkeypatch.setattr(predict_from_raw_data, "compute_gaussian", gaussian)


@pytest.fixture(scope="session")
def umamba_seg() -> Callable[..., "Outcome"]:
    """``umamba_seg("check", "-d", 4, ...)`` runs the command line in this process and tells how it ended."""
    from umamba_seg.__main__ import main

    def run(*words: object) -> Outcome:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main([str(word) for word in words])
            except SystemExit as stop:  # argparse ends this way
                code = int(stop.code or 0)
        return Outcome(code, out.getvalue(), err.getvalue())

    return run


class Outcome(NamedTuple):
    """Exit code and output of a command."""

    code: int
    out: str
    err: str

    @property
    def result(self) -> dict:
        """What ``--json`` printed."""
        return json.loads(self.out)

    def succeeded(self) -> "Outcome":
        """Itself, when the command ended well."""
        assert self.code == 0, self.err
        return self


@pytest.fixture
def held_by_another_process() -> Callable[[Path], contextlib.AbstractContextManager[int]]:
    """``with held_by_another_process(file) as process:`` has another process hold the lock of a file."""

    @contextlib.contextmanager
    def hold(file: Path) -> Iterator[int]:
        script = (
            "import sys; from pathlib import Path; from umamba_seg.locks import only_one\n"
            "with only_one(Path(sys.argv[1]), 'testing'): print('held', flush=True); sys.stdin.read()"
        )
        command = [sys.executable, "-c", script, str(file)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout.readline() == "held\n"
            yield process.pid
            process.stdin.close()

    return hold


@pytest.fixture(scope="session")
def trained(tmp_path_factory, umamba_seg) -> SimpleNamespace:
    """A tiny synthetic data set with a model trained on it for a moment: ``root``, ``raw``, ``model``, ``result``."""
    from umamba_seg.datasets.synthetic import make_dataset

    root = tmp_path_factory.mktemp("trained")
    raw = make_dataset(
        root / "nnUNet_raw",
        901,
        "Tiny",
        train_cases=5,
        test_cases=2,
        shape=(36, 32, 14),
        spacing=(2.5, 2.5, 6.0),
        seed=1,
    )
    common = ("-d", 901, "--root", root, "-c", "3d_fullres", "--json")
    umamba_seg("plan_and_preprocess", *common, "--budget", "cpu").succeeded()
    done = umamba_seg(
        "train", *common, "-f", 0, "--epochs", 2, "--iterations-per-epoch", 2, "-device", "cpu"
    ).succeeded()
    return SimpleNamespace(
        root=root, raw=raw, model=Path(done.result["model_folder"]), result=done.result, log=done.err
    )
