"""Broken images among good ones: the good ones are segmented, each broken one is named with its cause, exit code 3."""

import gzip
import json
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import SimpleITK as sitk

from umamba_seg.datasets.images import read_image

# What is said of each file that trips readers. 5D_small.nii corrupts the heap of SimpleITK's reader.
ODD = {
    "nifti_reader_js/5D_small.nii": "has 5 axes (1×2×3×1×3)",
    "nifti_reader_js/5D_zeros.nii.gz": "has 5 axes",
    "nifti_reader_js/not-nifti.nii": "is not a NIfTI file",
    "nifti_reader_js/avg152T1_LR_nifti2.nii.gz": "is NIfTI-2",
    "nibabel/example4d.nii.gz": "has 4 axes (128×96×24×2)",
    "nibabel/row_major.dconn.nii": "is NIfTI-2 (or CIFTI",
    "nibabel/test.mgz": "is an MGH file, although its name says NIfTI; convert it",
    "nitest_balls1/T1.dcm": "is a DICOM file, although its name says NIfTI; put the files of the series into a folder",
    "rnifti/example_rgb.nii.gz": "its voxels are RGB values",
}


@pytest.fixture
def image(trained) -> sitk.Image:
    (source,) = (trained.raw / "imagesTs").glob("*5_0000.nii.gz")
    return sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkInt16)


def write_broken(folder: Path, image: sitk.Image) -> dict[str, str]:
    """One file for each way to be broken: case -> what is said of it."""
    voxels = sitk.GetArrayFromImage(image)

    def path(case: str, channel: int = 0) -> str:
        return str(folder / f"{case}_{channel:04d}.nii.gz")

    def save(case: str, array: np.ndarray) -> None:
        nibabel.Nifti1Image(array, np.eye(4)).to_filename(path(case))

    sitk.WriteImage(image, path("good_a"))
    sitk.WriteImage(image, path("good_b"))
    content = Path(path("good_a")).read_bytes()
    Path(path("truncated")).write_bytes(content[: len(content) // 2])
    Path(path("zero_bytes")).write_bytes(b"")
    Path(path("short")).write_bytes(gzip.compress(gzip.decompress(content)[:-100]))
    Path(path("text")).write_bytes(b"hello" * 100)
    Path(path("page")).write_bytes(b"<!DOCTYPE html><p>Log in to download this file" * 10)
    Path(path("dicom")).write_bytes(b"\0" * 128 + b"DICM" + content)
    Path(path("mgh")).write_bytes(gzip.compress(b"\0\0\0\1" + content))
    Path(path("uncompressed")).write_bytes(gzip.decompress(content))
    Path(path("dangling")).symlink_to(folder / "nowhere")
    save("four_axes", np.zeros((8, 9, 7, 2), np.int16))
    save("colours", np.zeros((8, 9, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")]))
    save("not_finite", np.where(voxels == voxels.max(), np.nan, voxels).astype(np.float32))
    header = bytearray(gzip.decompress(content))
    header[76:92] = np.array([1, np.nan, 2.5, 6], "<f4").tobytes()  # pixdim
    Path(path("header")).write_bytes(gzip.compress(header))
    sitk.WriteImage(image, path("too_many"))
    sitk.WriteImage(image, path("too_many", 1))
    sitk.WriteImage(image, path("too_late", 1))
    return {
        "truncated": "its compressed data is damaged or cut short",
        "zero_bytes": "is empty (0 bytes)",
        "short": "bytes of voxels that its header announces",
        "text": "damaged, or not compressed with gzip although its name ends in .gz",
        "page": "is a web page or XML, although its name says NIfTI",
        "dicom": "is a DICOM file, although its name says NIfTI; put the files of the series into a folder",
        "mgh": "is an MGH file, although its name says NIfTI; convert it",
        "uncompressed": "damaged, or not compressed with gzip although its name ends in .gz",
        "dangling": "no such file",
        "four_axes": "has 4 axes (8×9×7×2); split it",
        "colours": "its voxels are RGB values",
        "not_finite": "holds NaN or infinity in ",
        "header": "its header gives the voxel spacing nan×2.5×6 mm",
        "too_many": "too_many has 2 channel files instead of 1",
        "too_late": "too_late_0000.nii.gz missing",
    }


def copy_odd(source: Path, folder: Path) -> dict[str, str]:
    """Real files that trip readers, as gzipped NIfTI by their names; those that are gzipped already, as they are."""
    expected = {}
    for number, (name, message) in enumerate(ODD.items()):
        content = (source / name).read_bytes()
        if name.endswith(".nii"):
            content = gzip.compress(content)
        (folder / f"odd{number}_0000.nii.gz").write_bytes(content)
        expected[f"odd{number}"] = message
    return expected


def assert_named(output: Path, stderr: str, expected: dict[str, str], good: set[str]) -> None:
    """Each broken case is named with its cause on stderr and in the manifest; only the good ones are written."""
    assert {path.name for path in output.glob("*.nii.gz")} == {f"{case}.nii.gz" for case in good}
    assert not [path.name for path in output.iterdir() if path.name.startswith(".")]
    cases = json.loads((output / "manifest.json").read_text())["cases"]
    assert set(cases) == {*expected, *good}
    for case in good:
        assert cases[case]["status"] == "done"
    for case, message in expected.items():
        assert cases[case]["status"] == "failed"
        assert message in cases[case]["cause"], case
        assert case in cases[case]["cause"]
        assert cases[case]["cause"] in stderr


def test_broken_files_among_good_ones(trained, image, umamba_seg, tmp_path):
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    expected = write_broken(images, image)
    done = umamba_seg("predict", "-i", images, "-o", output, "-m", trained.model, "-device", "cpu")
    assert done.code == 3, done.err
    assert "15 of 17 cases failed: the others were finished" in done.err
    assert_named(output, done.err, expected, {"good_a", "good_b"})
    a, b = (sitk.ReadImage(str(output / f"{case}.nii.gz")) for case in ("good_a", "good_b"))
    assert a.GetSize() == image.GetSize()
    assert np.array_equal(sitk.GetArrayFromImage(a), sitk.GetArrayFromImage(b))


@pytest.mark.slow
def test_odd_files_among_good_ones(trained, image, shared_data, tmp_path):
    """In a process of its own, as a reader that crashes must not take the tests along."""
    images, output = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    expected = copy_odd(shared_data("odd_nifti"), images)
    sitk.WriteImage(image, str(images / "good_0000.nii.gz"))
    command = [Path(sys.executable).with_name("umamba-seg"), "predict", "-i", images, "-o", output, "-m", trained.model]
    done = subprocess.run([*command, "-device", "cpu"], capture_output=True, text=True, check=False)
    assert done.returncode == 3, done.stderr
    assert_named(output, done.stderr, expected, {"good"})


def test_broken_series_among_good_ones(trained, image, umamba_seg, save_series, tmp_path):
    images, voxels = tmp_path / "images", sitk.GetArrayFromImage(image)
    geometry = (image.GetSpacing(), image.GetOrigin(), image.GetDirection())
    for case in ("good_a", "good_b_0000", "truncated", "zero_bytes", "mixed"):
        save_series(images / case, voxels, *geometry)
    save_series(images / "gap", voxels, *geometry, change=lambda one, number: number != 5)
    save_series(images / "mixed", voxels[:1], *geometry).joinpath("a0.dcm").rename(images / "mixed" / "other.dcm")
    for channel in range(2):
        save_series(images / f"too_many_{channel:04d}", voxels, *geometry)
    truncated, empty = images / "truncated" / "a0.dcm", images / "zero_bytes" / "h1.dcm"
    truncated.write_bytes(truncated.read_bytes()[:-50])
    empty.write_bytes(b"")
    output = tmp_path / "out"
    done = umamba_seg("predict", "-i", images, "-o", output, "-m", trained.model, "-device", "cpu")
    assert done.code == 3, done.err
    expected = {
        "gap": f": 1 of {len(voxels)} slices is missing; ask for the series again",
        "truncated": "a0.dcm: is a damaged or truncated DICOM file",
        "zero_bytes": "h1.dcm: is empty (0 bytes)",
        "mixed": "holds 2 series",
        "too_many": "too_many has 2 channel files instead of 1",
    }
    assert_named(output, done.err, expected, {"good_a", "good_b"})
    assert {path.name for path in output.glob("*.dcm")} == {"good_a.dcm", "good_b.dcm"}


def test_real_series_of_which_one_lacks_a_slice(trained, umamba_seg, shared_data, tmp_path):
    folder = shared_data("prostatex") / "dicom"
    done = umamba_seg("predict", "-i", folder, "-o", tmp_path, "-m", trained.model, "-device", "cpu")
    assert done.code == 3, done.err
    expected = {"PX0000_hbv_missing_slice": "along the slice normal: 1 of 19 slices is missing; ask for the series"}
    assert_named(tmp_path, done.err, expected, {"PX0000_t2w", "PX0000_adc", "PX0000_hbv"})
    for case in ("PX0000_t2w", "PX0000_adc", "PX0000_hbv"):
        image, segmentation = read_image(folder / case), read_image(tmp_path / f"{case}.nii.gz")
        assert segmentation.array.shape == image.array.shape
        assert segmentation.spacing == pytest.approx(image.spacing)
        assert segmentation.origin == pytest.approx(image.origin, abs=1e-4)
        assert segmentation.direction == pytest.approx(image.direction, abs=1e-6)
        assert (tmp_path / f"{case}.dcm").is_file()
