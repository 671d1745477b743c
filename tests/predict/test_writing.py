"""What a prediction leaves on the disk: in every format on the grid of its image, and whole or not at all."""

import io
import pickle
import resource
import signal
import sys
import tracemalloc
import zipfile
from pathlib import Path
from types import SimpleNamespace

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile
from nnunetv2.utilities.plans_handling.plans_handler import PlansManager
from skimage import io as pictures

from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.predict.results import Prediction
from umamba_seg.predict.writing import class_names, read_probabilities, write_prediction

LABELS = {"background": 0, "tumour": 2, "organ": 1}
SHAPE = (4, 6, 5)


def plans(reader: str) -> dict:
    return {"dataset_name": "Dataset001_Test", "image_reader_writer": reader, "umamba_seg": {"network": "umamba_bot"}}


def description(ending: str, labels: dict | None = None) -> dict:
    return {"channel_names": {"0": "CT"}, "labels": labels or LABELS, "file_ending": ending, "numTraining": 1}


@pytest.fixture
def write(tmp_path):
    """Reads an image as nnU-Net does, and writes what a model could have made of it into ``out``."""
    out, scratch = tmp_path / "out", tmp_path / "out" / ".scratch"
    scratch.mkdir(parents=True)

    def run(image: Path, ending: str, reader: str, **how) -> SimpleNamespace:
        manager = PlansManager(plans(reader)).image_reader_writer_class()
        array, properties = manager.read_images([str(image)])
        array = array[0]
        probabilities = np.stack([array, 1 - array, 0.5 * array]).astype(np.float16)
        prediction = Prediction(
            "case", (image,), (array * 2).round().astype(np.uint8), properties, probabilities, array, array / 2
        )
        for name, value in how.pop("changed", {}).items():
            setattr(prediction, name, value)
        names = write_prediction(prediction, out, scratch, plans(reader), description(ending), **how)
        return SimpleNamespace(prediction=prediction, names=names)

    run.out = out
    return run


def oblique(path: Path, shape: tuple[int, ...] = SHAPE) -> sitk.Image:
    """An image of values from 0 to 1 whose axes are those of no patient."""
    image = sitk.GetImageFromArray(np.random.default_rng(3).random(shape).astype(np.float32))
    image.SetSpacing((0.7, 0.9, 2.5)[: len(shape)])
    image.SetOrigin((-20.0, 31.0, 7.0)[: len(shape)])
    turn = np.deg2rad(20)
    axes = np.array([[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]])
    if len(shape) == 3:
        axes = axes[:, [1, 0, 2]] * (1, -1, 1)  # neither in the order nor in the direction of the patient's axes
    image.SetDirection(axes[: len(shape), : len(shape)].ravel().tolist())
    sitk.WriteImage(image, str(path))
    return image


@pytest.mark.parametrize(
    ("ending", "reader", "shape"),
    [
        (".nii.gz", "SimpleITKIO", SHAPE),
        (".nrrd", "SimpleITKIO", SHAPE),
        (".mha", "SimpleITKIO", SHAPE),
        (".nii.gz", "SimpleITKIO", SHAPE[1:]),
        (".nii", "NibabelIO", SHAPE),
        (".nii.gz", "NibabelIOWithReorient", SHAPE),
    ],
)
def test_volumes_lie_where_their_image_lies(write, tmp_path, ending, reader, shape):
    path = tmp_path / f"case_0000{ending}"
    image = oblique(path, shape)
    done = write(path, ending, reader)
    assert done.names == [f"case{ending}", f"disagreement/case{ending}", f"entropy/case{ending}"]
    values = sitk.GetArrayFromImage(image)
    for name, wanted in zip(done.names, ((2 * values).round(), values / 2, values), strict=True):
        written = sitk.ReadImage(str(write.out / name))
        np.testing.assert_allclose(sitk.GetArrayFromImage(written), wanted, atol=1e-6)
        np.testing.assert_allclose(written.GetSpacing(), image.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(written.GetOrigin(), image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(written.GetDirection(), image.GetDirection(), atol=1e-6)
        assert written.GetPixelID() == (sitk.sitkUInt8 if name == done.names[0] else sitk.sitkFloat32)


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_pictures_have_maps_in_shades_of_grey(write, tmp_path, ending):
    path = tmp_path / f"case_0000{ending}"
    values = np.random.default_rng(0).integers(0, 2, (6, 5), np.uint8)
    pictures.imsave(path, values, check_contrast=False)
    done = write(path, ending, "NaturalImage2DIO")
    assert (pictures.imread(write.out / f"case{ending}") == 2 * values).all()
    entropy = pictures.imread(write.out / "entropy" / f"case{ending}")
    assert entropy.dtype == np.uint8
    assert (entropy == 255 * values).all()
    assert pictures.imread(write.out / "disagreement" / f"case{ending}").max() == 128
    assert len(done.names) == 3


def test_tiff_volumes_keep_the_file_beside_them(write, tmp_path):
    path = tmp_path / "case_0000.tif"
    values = np.random.default_rng(0).integers(0, 2, (5, 6, 4), np.uint8)
    tifffile.imwrite(path, values, photometric="minisblack")
    done = write(path, ".tif", "Tiff3DIO")
    assert done.names == ["case.tif", "case.json", "disagreement/case.tif", "entropy/case.tif"]
    assert (tifffile.imread(write.out / "case.tif") == 2 * values).all()
    assert (tifffile.imread(write.out / "entropy" / "case.tif") == 255 * values).all()


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 0), ("uint8", 0.5 / 255 + 3e-4)])
def test_probabilities_are_read_as_they_were(write, tmp_path, precision, tolerance):
    image = oblique(tmp_path / "case_0000.nii.gz")
    done = write(tmp_path / "case_0000.nii.gz", ".nii.gz", "SimpleITKIO", precision=precision)
    found, names = read_probabilities(write.out / "case.npz")
    assert names == ["background", "organ", "tumour"]
    np.testing.assert_allclose(found, done.prediction.probabilities, atol=tolerance, rtol=0)
    with np.load(write.out / "case.npz", allow_pickle=False) as archive:
        assert archive["probabilities"].dtype == precision
        np.testing.assert_allclose(archive["spacing"], image.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(archive["origin"], image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(archive["direction"], image.GetDirection(), atol=1e-6)


def test_uint8_is_the_nearest_of_255_steps(write, tmp_path):
    oblique(tmp_path / "case_0000.nii.gz")
    values = np.linspace(0, 1, 3 * 120, dtype=np.float16).reshape(3, *SHAPE)
    write(tmp_path / "case_0000.nii.gz", ".nii.gz", "SimpleITKIO", precision="uint8", changed={"probabilities": values})
    with np.load(write.out / "case.npz") as archive:
        assert (archive["probabilities"] == np.rint(values.astype(np.float64) * 255)).all()


def test_pictures_have_probabilities_without_geometry(write, tmp_path):
    pictures.imsave(tmp_path / "case_0000.png", np.eye(6, dtype=np.uint8), check_contrast=False)
    write(tmp_path / "case_0000.png", ".png", "NaturalImage2DIO", precision="float16")
    with np.load(write.out / "case.npz") as archive:
        assert sorted(archive) == ["names", "probabilities"]
        assert archive["probabilities"].shape == (3, 1, 6, 6)


def test_probabilities_on_the_disk_are_not_loaded_to_be_written(write, tmp_path):
    oblique(tmp_path / "case_0000.nii.gz")
    on_disk = np.memmap(tmp_path / "big", np.float16, "w+", shape=(3, 80, 512, 512))  # 126 MB
    changed = {"probabilities": on_disk.transpose(0, 2, 1, 3)}  # as of a model with other axes
    tracemalloc.start()
    write(tmp_path / "case_0000.nii.gz", ".nii.gz", "SimpleITKIO", precision="float16", changed=changed)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40e6
    assert read_probabilities(write.out / "case.npz")[0].shape == (3, 512, 80, 512)


def test_names_are_in_the_order_of_the_channels():
    regions = {"labels": {"background": 0, "whole": [1, 2], "core": 2}, "regions_class_order": [1, 2]}
    assert class_names(Labels.from_json(regions, Path("dataset.json"))) == ["whole", "core"]
    ignoring = {"labels": LABELS | {"ignore": 3}}
    assert class_names(Labels.from_json(ignoring, Path("dataset.json"))) == ["background", "organ", "tumour"]


def test_nnunets_own_probabilities_are_read(tmp_path):
    np.savez_compressed(tmp_path / "case.npz", probabilities=np.full((2, *SHAPE), 0.5, np.float32))
    found, names = read_probabilities(tmp_path / "case.npz")
    assert names is None
    assert found.shape == (2, *SHAPE)


def archive_of(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


SOUND = archive_of(probabilities=np.zeros((2, *SHAPE), np.float16))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (SOUND[: len(SOUND) // 2], "is damaged, or holds no probabilities"),
        (SOUND.replace(b"\0" * 64, b"\1" * 64, 1), "is damaged, or holds no probabilities"),
        (b"", "is damaged, or holds no probabilities"),
        (pickle.dumps({"probabilities": 1}), "is damaged, or holds no probabilities"),
        (archive_of(softmax=np.zeros(3)), "is damaged, or holds no probabilities"),
        (archive_of(probabilities=np.array([{}])), "is damaged, or holds no probabilities"),
        (archive_of(probabilities=np.zeros(SHAPE)), "holds float64 of 3 axes"),
        (archive_of(probabilities=np.zeros((2, *SHAPE), np.int64)), "holds int64 of 4 axes"),
        (archive_of(probabilities=np.zeros((2, *SHAPE)), names=np.array(["a"])), "names 1 classes but holds 2"),
    ],
)
def test_damaged_or_foreign_probabilities_are_refused(tmp_path, content, message):
    path = tmp_path / "case.npz"
    path.write_bytes(content)
    with pytest.raises(UserError, match=message) as refusal:
        read_probabilities(path)
    assert refusal.value.where == str(path)


def test_missing_probabilities_are_named(tmp_path):
    with pytest.raises(UserError, match="no such file; give a file that --save-probabilities wrote"):
        read_probabilities(tmp_path / "case.npz")


def test_the_segmentation_gets_its_name_last(write, tmp_path):
    oblique(tmp_path / "case_0000.nii.gz")
    seen = {}

    def announce(names: list[str], digest: str) -> None:
        seen.update(names=names, digest=digest, there=[name for name in names if (write.out / name).is_file()])

    write(tmp_path / "case_0000.nii.gz", ".nii.gz", "SimpleITKIO", precision="uint8", announce=announce)
    assert seen["names"][0] == "case.nii.gz"
    assert seen["there"] == seen["names"][1:] == ["case.npz", "disagreement/case.nii.gz", "entropy/case.nii.gz"]
    assert len(seen["digest"]) == 64
    assert (write.out / "case.nii.gz").is_file()
    assert list((write.out / ".scratch").iterdir()) == []


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha", ".png", ".tif"])
def test_a_full_disk_is_noticed_and_leaves_the_old_file(write, tmp_path, ending):
    """SimpleITK writes a part of a NIfTI file and says nothing. A limit on the size of files stands for a full disk."""
    path, picture = tmp_path / f"case_0000{ending}", ending in (".png", ".tif")
    values = np.random.default_rng(0).integers(0, 2, (200, 200) if picture else (20, 60, 60), np.uint8)
    if picture:
        pictures.imsave(path, values, check_contrast=False)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(values), str(path))
    (write.out / f"case{ending}").write_text("old")
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
    try:
        with pytest.raises(OSError, match=r"is the disk full\?|File too large"):
            write(path, ending, "NaturalImage2DIO" if picture else "SimpleITKIO")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert [path.name for path in write.out.iterdir() if path.is_file()] == [f"case{ending}"]
    assert (write.out / f"case{ending}").read_text() == "old"


def test_a_series_comes_back_as_dicom_too(write, tmp_path, monkeypatch):
    calls = []

    def write_dicom_seg(segmentation, series, labels, path, *, description):
        calls.append((segmentation.shape, series, list(labels.foreground), description))
        path.write_text("DICOM")

    monkeypatch.setitem(sys.modules, "umamba_seg.predict.dicom_seg", SimpleNamespace(write_dicom_seg=write_dicom_seg))
    oblique(tmp_path / "case_0000.nii.gz")
    done = write(tmp_path / "case_0000.nii.gz", ".nii.gz", "SimpleITKIO", changed={"files": (tmp_path,)})
    assert "case.dcm" in done.names
    assert (write.out / "case.dcm").read_text() == "DICOM"
    assert calls == [(SHAPE, tmp_path, ["tumour", "organ"], "umamba-seg Dataset001_Test")]


def test_an_archive_is_compressed(write, tmp_path):
    oblique(tmp_path / "case_0000.nii.gz")
    write(tmp_path / "case_0000.nii.gz", ".nii.gz", "SimpleITKIO", precision="float16")
    with zipfile.ZipFile(write.out / "case.npz") as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_DEFLATED}


def test_nibabel_and_simpleitk_agree_on_geometry(write, tmp_path):
    image = oblique(tmp_path / "case_0000.nii.gz")
    write(tmp_path / "case_0000.nii.gz", ".nii.gz", "NibabelIO", precision="float16")
    with np.load(write.out / "case.npz") as archive:
        np.testing.assert_allclose(archive["spacing"], image.GetSpacing(), atol=1e-6)
        np.testing.assert_allclose(archive["origin"], image.GetOrigin(), atol=1e-4)
        np.testing.assert_allclose(archive["direction"], image.GetDirection(), atol=1e-6)
    assert np.allclose(
        nibabel.load(write.out / "case.nii.gz").affine, nibabel.load(tmp_path / "case_0000.nii.gz").affine
    )
