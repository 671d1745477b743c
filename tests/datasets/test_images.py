"""Reading images: the right array and geometry, or one message; never garbage, a crash or noise on stderr."""

import gzip
import subprocess
import sys

import imagecodecs
import nibabel
import numpy as np
import pytest
import SimpleITK as sitk
import tifffile

from umamba_seg.datasets.images import read_image
from umamba_seg.errors import UserError

VOLUME = np.arange(6 * 8 * 10, dtype=np.int16).reshape(6, 8, 10)
RGB = np.random.default_rng(0).integers(0, 255, (20, 24, 3)).astype(np.uint8)

# What read_image makes of each file that trips readers: the shape of its array, or a part of the message.
ODD_NIFTI = {
    "ivadomed/rgb_test_file.nii.gz": "its voxels are RGB values",
    "nibabel/analyze.hdr": "one half of a pair .* the other half is missing",
    "nibabel/anatomical.nii": (1, 25, 41, 33),
    "nibabel/example4d.nii.gz": "has 4 axes (128×96×24×2); split it",
    "nibabel/example_nifti2.nii.gz": "is NIfTI-2",
    "nibabel/functional.nii": "has 4 axes",
    "nibabel/nifti1.hdr": "one half of a pair",
    "nibabel/nifti2.hdr": "one half of a pair",
    "nibabel/reoriented_anat_moved.nii": (1, 22, 26, 21),
    "nibabel/resampled_anat_moved.nii": (1, 3, 21, 17),
    "nibabel/row_major.dconn.nii": "is NIfTI-2 (or CIFTI",
    "nibabel/standard.nii.gz": (1, 7, 5, 4),
    "nibabel/test.mgz": "files ending in .mgz are not read",
    "nifti_reader_js/5D_zeros.nii.gz": "has 5 axes",
    "nifti_reader_js/avg152T1_LR_nifti.nii": (1, 91, 109, 91),
    "nifti_reader_js/avg152T1_LR_nifti.nii.gz": (1, 91, 109, 91),
    "nifti_reader_js/avg152T1_LR_nifti2.nii.gz": "is NIfTI-2",
    "nifti_reader_js/big.nii.gz": (1, 21, 64, 64),
    "nifti_reader_js/little.nii.gz": (1, 21, 64, 64),
    "nifti_reader_js/not-nifti.nii": "is not a NIfTI file",
    "nifti_reader_js/with_extension.nii.gz": (1, 151, 191, 161),
    "nitest_balls1/T1.nii.gz": (1, 10, 80, 80),
    "nitest_balls1/T2-interleaved.nii.gz": (1, 10, 80, 80),
    "nitest_balls1/T2.nii.gz": (1, 10, 80, 80),
    "nitest_balls1/T2_-interleaved.nii.gz": "has 4 axes",
    "nitest_balls1/T2_.nii.gz": "has 4 axes",
    "nitest_balls1/fieldmap.nii.gz": (1, 10, 80, 80),
    "rnifti/example.nii.gz": (1, 60, 96, 96),
    "rnifti/example_4d.nii.gz": "has 4 axes",
    "rnifti/example_rgb.nii.gz": "its voxels are RGB values",
}


@pytest.mark.parametrize("name", ODD_NIFTI)
def test_odd_nifti(shared_data, capfd, name):
    path, expected = shared_data("odd_nifti") / name, ODD_NIFTI[name]
    if isinstance(expected, str):
        pattern = expected.replace("(", r"\(").replace(")", r"\)")
        with pytest.raises(UserError, match=pattern):
            read_image(path)
        assert capfd.readouterr().err == ""
    else:
        image = read_image(path)
        assert capfd.readouterr().err == ""
        assert image.array.shape == expected
        by_itk = sitk.ReadImage(str(path))
        finite = np.nan_to_num(image.array[0], nan=0, posinf=0, neginf=0)  # SimpleITK's reading of these
        assert np.allclose(finite, sitk.GetArrayFromImage(by_itk), rtol=1e-6)
        assert image.spacing == by_itk.GetSpacing()
        assert image.origin == by_itk.GetOrigin()
        assert image.direction == by_itk.GetDirection()


def test_every_odd_nifti_is_listed(shared_data):
    folder = shared_data("odd_nifti")
    found = {
        str(path.relative_to(folder)) for end in ("nii", "nii.gz", "hdr", "mgz") for path in folder.rglob(f"*.{end}")
    }
    assert found == {*ODD_NIFTI, "nifti_reader_js/5D_small.nii"}


def test_file_that_corrupts_the_heap_of_simpleitk_never_reaches_it(shared_data):
    code = (
        "import sys; from pathlib import Path\n"
        "from umamba_seg.datasets.images import read_image\n"
        "from umamba_seg.errors import UserError\n"
        "try: read_image(Path(sys.argv[1]))\n"
        "except UserError as error: print(error)\n"
        "assert 'SimpleITK' not in sys.modules\n"
    )
    path = shared_data("odd_nifti") / "nifti_reader_js" / "5D_small.nii"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "has 5 axes (1×2×3×1×3); split it" in done.stdout


def test_big_and_little_endian_agree(shared_data):
    folder = shared_data("odd_nifti") / "nifti_reader_js"
    big, little = (read_image(folder / f"{name}.nii.gz") for name in ("big", "little"))
    assert np.array_equal(big.array, little.array)
    assert (big.spacing, big.origin, big.direction) == (little.spacing, little.origin, little.direction)


@pytest.mark.parametrize("ending", [".nii.gz", ".nii", ".nrrd", ".mha"])
def test_geometry(tmp_path, save_volume, ending):
    direction = (0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 0.0, 0.0, -1.0)
    geometry = {"spacing": (1.0, 2.0, 3.0), "origin": (4.0, 5.0, 6.0), "direction": direction}
    image = read_image(save_volume(tmp_path / f"a{ending}", VOLUME, **geometry))
    assert image.array.dtype == np.int16
    assert np.array_equal(image.array, VOLUME[None])
    assert image.spacing == (1.0, 2.0, 3.0)
    assert image.origin == pytest.approx((4.0, 5.0, 6.0))
    assert image.direction == pytest.approx(direction)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((8, 9), (1, 9, 8)), ((8, 9, 1), (1, 1, 9, 8)), ((8, 9, 7, 1), (1, 7, 9, 8)), ((1, 8, 9, 1, 1), (1, 9, 8, 1))],
)
def test_axes_of_length_one_at_the_end_do_not_count(tmp_path, shape, expected):
    nibabel.Nifti1Image(np.ones(shape, np.float32), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    assert read_image(tmp_path / "a.nii.gz").array.shape == expected


def test_nan_and_infinity_are_seen(tmp_path, save_volume):
    """SimpleITK reads them as 0 from NIfTI files."""
    broken = VOLUME.astype(np.float32)
    broken[0, 0, :2] = np.nan, np.inf
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
        array = read_image(save_volume(tmp_path / f"a{ending}", broken)).array[0]
        assert np.array_equal(array, broken, equal_nan=True)


def test_truncated_files_are_noticed(tmp_path, save_volume, capfd):
    """SimpleITK reads such NIfTI files without a word and fills the rest with what is in memory."""
    noise = np.random.default_rng(0).integers(0, 1000, (6, 8, 10)).astype(np.int16)
    for ending in (".nii.gz", ".nii", ".nrrd", ".mha"):
        content = save_volume(tmp_path / f"whole{ending}", noise).read_bytes()
        for kept in (100, len(content) // 2, len(content) - 20):
            path = tmp_path / f"cut_{kept}{ending}"
            path.write_bytes(content[:kept])
            with pytest.raises(UserError, match=f"cut_{kept}{ending}: "):
                read_image(path)
    assert "WARNING" not in capfd.readouterr().err


def test_sound_compression_of_too_few_voxels(tmp_path, save_volume):
    content = save_volume(tmp_path / "a.nii", VOLUME).read_bytes()
    (tmp_path / "short.nii.gz").write_bytes(gzip.compress(content[:800]))
    with pytest.raises(UserError, match=r"holds 448 of the 960 bytes of voxels .*\(shape 10×8×6\)"):
        read_image(tmp_path / "short.nii.gz")
    (tmp_path / "header.nii").write_bytes(content[:352])
    with pytest.raises(UserError, match="header without an image"):
        read_image(tmp_path / "header.nii")


def test_damaged_mha_is_noticed(tmp_path, save_volume):
    path = save_volume(tmp_path / "a.mha", VOLUME)
    content = bytearray(path.read_bytes())
    content[-50] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(UserError, match="compressed data is damaged"):
        read_image(path)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.nii.gz", b"", r"is empty \(0 bytes\)"),
        ("a.nii.gz", b"hello" * 100, "not compressed with gzip although"),
        ("a.nii", gzip.compress(b"hello" * 100, mtime=0), "is compressed with gzip, but its name does not"),
        ("a.nii", b"hello" * 100, "is not a NIfTI file"),
        ("a.nrrd", b"hello" * 100, "SimpleITK cannot read it .*Unable to determine"),
        ("a.mha", b"hello" * 100, "SimpleITK cannot read it"),
        ("a.png", b"hello" * 100, "is not a PNG file although"),
        ("a.png", b"\x89PNG\r\n\x1a\n", "is a damaged image"),
        ("a.tif", b"hello" * 100, "is not a TIF file although"),
        ("a.tif", b"II*\0" + b"\xff" * 100, "is a damaged TIFF file"),
        ("a.dcm", b"hello", "files ending in .dcm are not read; convert it"),
        ("a", b"hello", "files ending in nothing are not read"),
    ],
)
def test_wrong_content(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / name)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UserError, match=r"a.nii.gz: no such file"):
        read_image(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="is a folder, not an image"):
        read_image(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("pixdim", [1, 1, 1, 0, 1, 1, 1, 1], "voxel spacing 1×1×0 mm"),
        ("pixdim", [1, 1, np.nan, 1, 1, 1, 1, 1], "voxel spacing 1×nan×1 mm"),
        ("dim", [3, 10, -8, 6, 1, 1, 1, 1], "gives the shape 10×-8×6"),
        ("dim", [3, 32000, 32000, 32000, 1, 1, 1, 1], "holds 960 of the 65536000000000 bytes"),
        ("datatype", 1536, r"type that is not read \(NIfTI code 1536\)"),
        ("scl_inter", np.nan, "fields scl_inter are not finite"),
        ("qoffset_x", np.inf, "fields qoffset_x are not finite"),
        ("datatype", 77, r"NIfTI code 77"),
    ],
)
def test_headers_that_make_no_sense(tmp_path, save_volume, field, value, message):
    path = save_volume(tmp_path / "a.nii", VOLUME)
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348])
    header["sform_code"], header["qform_code"], header["scl_slope"] = 0, 1, 2
    header[field] = value
    path.write_bytes(header.structarr.tobytes() + content[348:])
    with pytest.raises(UserError, match=message):
        read_image(path)


@pytest.mark.parametrize(
    ("field", "value"), [("pixdim", [0, 1, 2, 3, 0, 0, 0, 0]), ("quatern_b", 1.001), ("vox_offset", 0)]
)
def test_headers_that_are_odd_but_readable(tmp_path, save_volume, field, value):
    path = save_volume(tmp_path / "a.nii", VOLUME, spacing=(1.0, 2.0, 3.0))
    content = path.read_bytes()
    header = nibabel.Nifti1Header(content[:348])
    header["sform_code"], header[field] = 0, value
    path.write_bytes(header.structarr.tobytes() + content[348:])
    image = read_image(path)
    assert np.array_equal(image.array[0], VOLUME)
    assert image.spacing == (1.0, 2.0, 3.0)


def test_sheared_grid(tmp_path):
    affine = np.eye(4)
    affine[0, 1] = 0.2
    image = nibabel.Nifti1Image(np.zeros((5, 6, 7), np.int16), affine)
    image.set_qform(None)
    image.to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="orthonormal direction cosines"):
        read_image(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("ending", [".nrrd", ".mha"])
def test_vectors_and_series(tmp_path, ending):
    sitk.WriteImage(
        sitk.GetImageFromArray(np.zeros((4, 5, 6, 3), np.uint8), isVector=True), str(tmp_path / f"v{ending}")
    )
    sitk.WriteImage(sitk.JoinSeries([sitk.Image(6, 5, 4, sitk.sitkInt16)] * 2), str(tmp_path / f"s{ending}"))
    with pytest.raises(UserError, match="its voxels hold 3 numbers each"):
        read_image(tmp_path / f"v{ending}")
    with pytest.raises(UserError, match=r"has 4 axes \(6×5×4×2\)"):
        read_image(tmp_path / f"s{ending}")


def test_complex_voxels(tmp_path):
    nibabel.Nifti1Image(np.zeros((4, 5, 6), np.complex64), np.eye(4)).to_filename(tmp_path / "a.nii.gz")
    with pytest.raises(UserError, match="its voxels are complex values"):
        read_image(tmp_path / "a.nii.gz")


def test_nii_with_two_axes(tmp_path):
    nibabel.Nifti1Image(np.zeros((4, 5), np.float32), np.eye(4)).to_filename(tmp_path / "a.nii")
    with pytest.raises(UserError, match=r"reads .nii with exactly three axes only; save it as .nii.gz"):
        read_image(tmp_path / "a.nii")


def test_pictures(tmp_path):
    (tmp_path / "rgb.png").write_bytes(imagecodecs.png_encode(RGB))
    (tmp_path / "grey16.png").write_bytes(imagecodecs.png_encode(RGB[..., 0].astype(np.uint16) * 257))
    tifffile.imwrite(tmp_path / "rgb16.tif", RGB.astype(np.uint16) * 257, photometric="rgb")
    tifffile.imwrite(tmp_path / "volume.tif", VOLUME, photometric="minisblack")
    rgb = read_image(tmp_path / "rgb.png")
    assert np.array_equal(rgb.array, np.moveaxis(RGB, -1, 0))
    assert (rgb.spacing, rgb.origin, rgb.direction) == ((1.0, 1.0), (0.0, 0.0), (1.0, 0.0, 0.0, 1.0))
    assert read_image(tmp_path / "grey16.png").array.dtype == np.uint16
    assert np.array_equal(read_image(tmp_path / "rgb16.tif").array, np.moveaxis(RGB.astype(np.uint16) * 257, -1, 0))
    assert np.array_equal(read_image(tmp_path / "volume.tif").array, VOLUME[None])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (RGB.astype(np.uint16), "is 16-bit colour, of which nnU-Net's PNG reader keeps 8 bits"),
        (RGB[..., :2].copy(), "is grey with an alpha channel"),
    ],
)
def test_png_that_nnunet_would_misread(tmp_path, pixels, message):
    (tmp_path / "a.png").write_bytes(imagecodecs.png_encode(pixels))
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "a.png")


def test_tiff_that_nnunet_would_misread(tmp_path):
    tifffile.imwrite(tmp_path / "a.tiff", RGB[..., 0])
    with pytest.raises(UserError, match=r"takes .tiff for volumes; rename it to .tif"):
        read_image(tmp_path / "a.tiff")
    tifffile.imwrite(tmp_path / "b.tif", np.zeros((2, 5, 6, 7), np.uint8), photometric="minisblack")
    with pytest.raises(UserError, match="has the axes"):
        read_image(tmp_path / "b.tif")


@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif"])
def test_truncated_pictures(tmp_path, ending):
    sitk.WriteImage(sitk.GetImageFromArray(RGB, isVector=True), str(tmp_path / f"a{ending}"))
    content = (tmp_path / f"a{ending}").read_bytes()
    (tmp_path / f"a{ending}").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="is a damaged"):
        read_image(tmp_path / f"a{ending}")
