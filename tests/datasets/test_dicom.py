"""DICOM series: read as SimpleITK reads them, or refused by name; never garbage, a crash or noise on stderr."""

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import imagecodecs
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom import uid

from umamba_seg.datasets.case_checks import check_case_images
from umamba_seg.datasets.dicom import find_series, holds_dicom, list_series, read_series
from umamba_seg.datasets.images import read_image
from umamba_seg.errors import UserError

VOLUME = np.random.default_rng(0).integers(-1000, 3000, (6, 9, 11)).astype(np.int16)
OBLIQUE = (0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0)


def by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    (series,) = reader.GetGDCMSeriesIDs(str(folder))
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder), series))
    return reader.Execute()


def assert_as_simpleitk(folder: Path) -> np.ndarray:
    """Voxels are equal up to float32; so is geometry up to the last digits of doubles. The voxels."""
    image, expected = read_image(folder), by_simpleitk(folder)
    wanted = sitk.GetArrayFromImage(expected)
    assert image.array.dtype in (wanted.dtype, np.float32)
    assert np.array_equal(image.array[0], wanted.astype(image.array.dtype))
    for name in ("Spacing", "Origin", "Direction"):
        found = getattr(image, name.lower())
        assert found == pytest.approx(getattr(expected, f"Get{name}")(), rel=1e-12, abs=1e-12)
    return image.array[0]


def entries(**values):
    """A change of a slice that sets elements."""

    def change(one, number):
        for keyword, value in values.items():
            setattr(one, keyword, value)

    return change


def of_slice(place: int, change):
    """A change of one slice only."""
    return lambda one, number: change(one, number) if number == place else None


@pytest.mark.parametrize("name", ["PX0000_t2w", "PX0000_adc", "PX0000_hbv"])
def test_real_series_are_read_as_simpleitk_does(shared_data, capfd, name):
    voxels = assert_as_simpleitk(shared_data("prostatex") / "dicom" / name)
    assert len(voxels) == 19
    assert capfd.readouterr().err == ""


def test_real_series_are_the_images_that_were_made_of_them(shared_data):
    folder = shared_data("prostatex")
    image = read_series(folder / "dicom" / "PX0000_t2w")
    converted = read_image(folder / "mha" / "ProstateX-0000_07-07-2011_t2w.mha")
    assert np.array_equal(image.array, converted.array)
    for name in ("spacing", "origin", "direction"):
        assert getattr(image, name) == pytest.approx(getattr(converted, name), abs=1e-5)


def test_missing_slice_of_a_real_series_is_named(shared_data):
    message = (
        r"hbv_missing_slice: between the slices at -15.88 mm \(1-07.dcm\) and at -9.88 mm \(1-05.dcm\) along the "
        r"slice normal: 1 of 19 slices is missing; ask for the series again"
    )
    with pytest.raises(UserError, match=message):
        read_series(shared_data("prostatex") / "dicom" / "PX0000_hbv_missing_slice")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("dcmqi/ct-3slice", None),
        ("dcmqi/24x38x3/image", None),
        ("rt_utils/oriented_data", "1.6e-08"),
        ("rt_utils/mock_data", None),
        (
            "pydicom/dicomdirtests/77654033/CT2",
            "at -99.48 mm .17106. and at 103.02 mm .17136. .* 161 of 165 slices are",
        ),
        ("rt_utils/one_slice_data", "0.dcm: is a single slice of the thickness None; get the other slices"),
        ("rt_utils/empty", r"holds no images: dummy_rt.dcm \(RT Structure Set Storage\)"),
        ("dcmqi", r"sparse-labelmap-ppv5.dcm \(Label Map Segmentation Storage\)"),
        ("highdicom", r"holds 3 series: without description \(1 files, such as ct_image.dcm\), CHEST"),
    ],
)
def test_odd_real_series(shared_data, name, expected):
    folder = shared_data("dicom_misc") / name
    if expected is None:
        assert_as_simpleitk(folder)
    elif expected == "1.6e-08":  # directions of seven digits, which ITK straightens in another way
        assert read_series(folder).direction == pytest.approx(by_simpleitk(folder).GetDirection(), abs=2e-8)
    else:
        with pytest.raises(UserError, match=expected):
            read_series(folder)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("odd_nifti/nitest_balls1/T1.dcm", None),
        ("dicom_misc/dcmqi/23x38x3/multiframe/mf.dcm", None),
        ("dicom_misc/pydicom/CT_small.dcm", None),
        ("odd_nifti/nitest_balls1/T2_.dcm", "holds 20 slices at 10 places: frame 1 of T2_.dcm and frame 2 of T2_.dcm"),
        ("dicom_misc/dcmqi/liver.dcm", r"holds no images: liver.dcm \(Segmentation Storage\); give the folder of the"),
        ("dicom_misc/highdicom/dx_image.dcm", r"dx_image.dcm: its grey values are inverted \(MONOCHROME1\)"),
        ("dicom_misc/highdicom/sm_image_control.dcm", r"sm_image_control.dcm: is a colour image \(RGB\)"),
    ],
)
def test_real_files_alone(shared_data, tmp_path, name, expected):
    """Multi-frame files are series of their own; scalings by a frame are applied."""
    collection, _, rest = name.partition("/")
    path = shared_data(collection) / rest
    shutil.copy(path, tmp_path)
    if expected:
        with pytest.raises(UserError, match=expected):
            read_series(tmp_path)
        return
    image, wanted = read_series(tmp_path), sitk.ReadImage(str(path))
    assert np.allclose(image.array[0], sitk.GetArrayFromImage(wanted), rtol=1e-6)
    assert image.spacing == pytest.approx(wanted.GetSpacing())
    assert image.origin == pytest.approx(wanted.GetOrigin())
    assert image.direction == pytest.approx(wanted.GetDirection(), abs=1e-9)


@pytest.mark.parametrize("direction", [np.eye(3), OBLIQUE, np.diag((1.0, -1.0, -1.0))])
def test_slices_are_sorted_by_place(save_series, tmp_path, direction):
    """Neither by file names nor by InstanceNumber, which the fixture makes misleading."""
    folder = save_series(tmp_path / "s", VOLUME, (0.7, 0.8, 3.3), (-5, 6.5, 7), direction)
    assert np.array_equal(assert_as_simpleitk(folder), VOLUME)
    names = sorted(path.name for path in folder.iterdir())
    assert [one.path.name for one in find_series(folder).slices] != names


@pytest.mark.parametrize(
    ("kind", "elements", "number_type"),
    [
        (uid.CTImageStorage, {"RescaleSlope": 1, "RescaleIntercept": -1024}, np.float32),
        (uid.MRImageStorage, {"RescaleSlope": "0.0754", "RescaleIntercept": "12.5"}, np.float32),
        (uid.PositronEmissionTomographyImageStorage, {"RescaleSlope": 0.5, "RescaleIntercept": 0}, np.float32),
        (uid.CTImageStorage, {"RescaleIntercept": 7}, np.float32),
        (uid.CTImageStorage, {"RescaleSlope": 1, "RescaleIntercept": 0}, np.int16),
        (uid.CTImageStorage, {"BitsStored": 12, "HighBit": 11}, np.int16),
    ],
)
def test_numbers_become_intensities(save_series, tmp_path, kind, elements, number_type):
    folder = save_series(tmp_path / "s", VOLUME, change=entries(SOPClassUID=kind, **elements))
    assert assert_as_simpleitk(folder).dtype == number_type


def test_every_slice_has_its_own_scaling(save_series, tmp_path):
    def change(one, number):
        one.RescaleSlope, one.RescaleIntercept = number + 1, -number

    folder = save_series(tmp_path / "s", VOLUME, change=change)
    slopes = np.arange(1, 7)[:, None, None]
    assert np.array_equal(read_series(folder).array[0], VOLUME * slopes - (slopes - 1))


def compressed(syntax: uid.UID, encode, bits: int = 16):
    def change(one, number):
        pixels = np.frombuffer(one.PixelData, "<u2").reshape(one.Rows, one.Columns)
        one.PixelData = pydicom.encaps.encapsulate([encode(pixels)])
        one["PixelData"].VR, one["PixelData"].is_undefined_length = "OB", True
        one.file_meta.TransferSyntaxUID, one.BitsStored, one.HighBit = syntax, bits, bits - 1

    return change


def lossless_jpeg(pixels: np.ndarray, predictor: int = 1, bits: int = 16) -> bytes:
    return imagecodecs.jpeg8_encode(pixels, lossless=True, predictor=predictor, bitspersample=bits)


CODECS = {
    "lossless JPEG": compressed(uid.JPEGLosslessSV1, lossless_jpeg),
    "lossless JPEG, 12 bits": compressed(uid.JPEGLosslessSV1, lambda pixels: lossless_jpeg(pixels, bits=12), 12),
    "lossless JPEG, another predictor": compressed(uid.JPEGLossless, lambda pixels: lossless_jpeg(pixels, 6)),
    "JPEG-LS": compressed(uid.JPEGLSLossless, imagecodecs.jpegls_encode),
    "JPEG 2000": compressed(
        uid.JPEG2000Lossless,
        lambda pixels: imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0),
    ),
    "RLE": lambda one, number: one.compress(uid.RLELossless),
    "HTJ2K": compressed(uid.HTJ2KLossless, lambda pixels: imagecodecs.htj2k_encode(pixels, reversible=True)),
}


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("signed", [False, True])
def test_compressed_voxels(save_series, tmp_path, capfd, codec, signed):
    if signed and codec in ("lossless JPEG, 12 bits", "HTJ2K"):
        pytest.skip("the test's encoder writes unsigned numbers of so many bits")
    volume = VOLUME if signed else (VOLUME + 1000).astype(np.uint16)
    folder = save_series(tmp_path / "s", volume, change=CODECS[codec])
    assert np.array_equal(read_series(folder).array[0], volume)
    assert capfd.readouterr().err == ""
    if codec != "HTJ2K":  # which GDCM does not read
        assert_as_simpleitk(folder)


def test_twelve_bit_jpeg(save_series, tmp_path):
    change = compressed(
        uid.JPEGExtended12Bit, lambda pixels: imagecodecs.jpeg8_encode(pixels, 95, bitspersample=12), 12
    )
    folder = save_series(tmp_path / "s", (VOLUME + 1000).astype(np.uint16), change=change)
    assert_as_simpleitk(folder)


def test_other_encodings(save_series, tmp_path):
    def big_endian(one, number):
        one.file_meta.TransferSyntaxUID, one.PixelData = uid.ExplicitVRBigEndian, VOLUME[number].astype(">i2").tobytes()

    def deflated(one, number):
        one.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian

    assert np.array_equal(assert_as_simpleitk(save_series(tmp_path / "b", VOLUME, change=big_endian)), VOLUME)
    assert np.array_equal(assert_as_simpleitk(save_series(tmp_path / "d", VOLUME, change=deflated)), VOLUME)


@pytest.mark.parametrize("implicit", [False, True])
def test_files_without_preamble(save_series, tmp_path, implicit):
    """As they were before part 10 of the standard."""
    folder = tmp_path / "old"
    folder.mkdir()
    for number, path in enumerate(save_series(tmp_path / "s", VOLUME).iterdir()):
        dataset = pydicom.dcmread(path)
        del dataset.file_meta
        dataset.preamble = None
        pydicom.dcmwrite(folder / f"IM{number}", dataset, implicit_vr=implicit, little_endian=True)
    assert list_series(folder) == {"old": {0: folder}}
    assert np.array_equal(assert_as_simpleitk(folder), VOLUME)


def test_values_against_the_standard_make_no_noise(save_series, tmp_path, capfd):
    folder = save_series(tmp_path / "s", VOLUME)
    for path in folder.iterdir():  # pydicom would refuse to write it, and warns when it reads it
        path.write_bytes(path.read_bytes().replace(b"thorax", b"tho\x1b[m").replace(b"P7", b"P\\"))
    assert np.array_equal(read_series(folder).array[0], VOLUME)
    assert capfd.readouterr().err == ""


# Which change of a sound series is refused with which words.
def drop(*places):
    return lambda one, number: number not in places


def shift(axis: int, mm: float):
    def change(one, number):
        position = [float(value) for value in one.ImagePositionPatient]
        position[axis] += mm * number
        one.ImagePositionPatient = position

    return change


def move(place: int, z: float):
    return of_slice(place, entries(ImagePositionPatient=[0.0, 0.0, z]))


def without(keyword: str):
    def change(one, number):
        del one[keyword]

    return change


def smaller(one, number) -> None:
    one.Rows, one.PixelData = 5, VOLUME[0, :5].tobytes()


LOCALIZER = entries(ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])
BROKEN = {
    "one gap": (drop(2), r"s: between the slices at 3.00 mm \(h1.dcm\) and at 9.00 mm \(v3.dcm\) .* 1 of 6 slices is"),
    "two gaps": (drop(1, 4), r"at 0.00 mm .*: 1 of 6 slices is missing, between .*: 1 of 6 slices is missing; ask for"),
    "uneven": (move(2, 7.4), "lie at uneven distances, from 1.6 to 4.4 mm; export the series at one distance"),
    "near copy": (move(2, 3.5), "lie at uneven distances, from 0.5 to 5.5 mm"),
    "copy": (move(4, 6.0), r"6 slices at 5 places: \w+.dcm and \w+.dcm lie at the same"),
    "tilt": (shift(1, 0.5), r"shifted in their plane by up to 2.5 mm over 15 mm \(9.5 degrees: a tilted gantry\?\)"),
    "sizes": (
        of_slice(3, smaller),
        r"its slices have 2 sizes: 11×9 \(5, a0.dcm\), 11×5 \(1, v3.dcm\); keep the slices",
    ),
    "spacings": (
        of_slice(3, entries(PixelSpacing=[1.0, 1.01])),
        r"2 pixel spacings: 1×1 \(5, a0.dcm\), 1.01×1 \(1, v3.dcm\)",
    ),
    "directions": (
        of_slice(0, entries(ImageOrientationPatient=[0, 1, 0, 0, 0, -1])),
        r"2 directions: \(0, 1, 0, 0, 0, -1\) \(1, a0.dcm\), \(1, 0, 0, 0, 1, 0\) \(5, c4.dcm\); .*no localizer",
    ),
    "series": (
        of_slice(5, entries(SeriesInstanceUID="1.2.3")),
        r"holds 2 series: thorax \(5 files, such as a0.dcm\), thorax \(1 files, such as j5.dcm\); put the files of one",
    ),
    "localizer": (of_slice(1, LOCALIZER), r"h1.dcm: is a localizer \(scout\), no slice of a volume; remove it"),
    "all localizers": (LOCALIZER, r"s: 6 of its 6 files cannot be used; mend these: \n  \S+a0.dcm: is a localizer"),
    "no position": (
        of_slice(2, without("ImagePositionPatient")),
        "o2.dcm: has no ImagePositionPatient; get the file again",
    ),
    "no directions": (without("ImageOrientationPatient"), "6 of its 6 files cannot be used"),
    "no spacing": (of_slice(0, without("PixelSpacing")), "a0.dcm: has no PixelSpacing"),
    "no pixels": (of_slice(0, without("PixelData")), "a0.dcm: is a damaged or truncated DICOM file"),
    "no rows": (of_slice(0, without("Rows")), "a0.dcm: has no Rows"),
    "no kind": (of_slice(0, without("SamplesPerPixel")), "a0.dcm: is a damaged or truncated DICOM file"),
    "private": (entries(SOPClassUID="1.2.3"), "is an object of the class 1.2.3, which is none of DICOM's standard"),
    "flat pixels": (entries(PixelSpacing=[1, 0]), "its pixels have the size 0×1 mm"),
    "skew": (
        entries(ImageOrientationPatient=[1, 0, 0, 0.1, 1, 0]),
        r"ImageOrientationPatient \[1.0, 0.0, 0.0, 0.1, 1.0, 0.0\] is not two directions at a right angle",
    ),
    "slope": (of_slice(1, entries(RescaleSlope=0)), "h1.dcm: its RescaleSlope is 0"),
    "colour": (entries(PhotometricInterpretation="PALETTE COLOR"), r"is a colour image \(PALETTE COLOR\)"),
    "inverted": (entries(PhotometricInterpretation="MONOCHROME1"), r"grey values are inverted \(MONOCHROME1\)"),
    "table": (entries(ModalityLUTSequence=[pydicom.Dataset()]), r"given by a table \(ModalityLUTSequence\)"),
    "video": (
        of_slice(1, compressed(uid.MPEG2MPML, bytes)),
        r"h1.dcm: its voxels are stored in the transfer syntax MPEG2 .*, which is not read; export the series uncompr",
    ),
    "frames": (of_slice(0, entries(NumberOfFrames=3)), "a0.dcm: holds 3 frames but not where they lie"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_what_is_no_volume_is_refused_by_name(save_series, tmp_path, fault):
    change, message = BROKEN[fault]
    folder = save_series(tmp_path / "s", VOLUME, (1.0, 1.0, 3.0), change=change)
    with pytest.raises(UserError, match=message):
        read_series(folder)


def test_several_volumes_in_one_series_are_told_apart(save_series, tmp_path):
    folder = save_series(tmp_path / "s", VOLUME)
    first = pydicom.dcmread(folder / "a0.dcm")

    def second_echo(one, number):
        one.SeriesInstanceUID, one.StudyInstanceUID, one.EchoTime = first.SeriesInstanceUID, first.StudyInstanceUID, 80

    for path in save_series(tmp_path / "t", VOLUME, change=second_echo).iterdir():
        shutil.copy(path, folder / f"second_{path.name}")
    message = (
        "12 slices at 6 places: a0.dcm and second_a0.dcm lie at the same, which differ in EchoTime; separate the vol"
    )
    with pytest.raises(UserError, match=message):
        read_series(folder)


def test_the_same_file_twice(save_series, tmp_path):
    folder = save_series(tmp_path / "s", VOLUME)
    shutil.copy(folder / "a0.dcm", folder / "a0 (1).dcm")
    with pytest.raises(
        UserError, match=r"holds the same slice twice: a0 \(1\).dcm and a0.dcm; remove one of each pair"
    ):
        read_series(folder)


def test_places_are_rounded_by_scanners(save_series, tmp_path):
    """0.625 mm written as 0.6 and 0.7 is one distance."""

    def change(one, number):
        one.ImagePositionPatient = [0.0, 0.0, round(number * 0.625, 1)]

    image = read_series(save_series(tmp_path / "s", VOLUME, (1.0, 1.0, 0.625), change=change))
    assert image.spacing[2] == pytest.approx(0.62)


@pytest.mark.parametrize("ending", [".dcm", ""])
def test_damaged_files_are_named(save_series, tmp_path, ending):
    folder = save_series(tmp_path / "s", VOLUME)
    for path in folder.iterdir():
        path.rename(path.with_suffix(ending))
    sound = {path.stem: path.read_bytes() for path in folder.iterdir()}
    (folder / f"h1{ending}").write_bytes(b"")
    with pytest.raises(UserError, match=rf"h1{ending}: is empty \(0 bytes\)"):
        read_series(folder)
    (folder / f"h1{ending}").write_bytes(sound["h1"][:600])
    with pytest.raises(UserError, match=rf"h1{ending}: has no SeriesInstanceUID; get the file again"):
        read_series(folder)
    for name in ("h1", "o2"):
        (folder / f"{name}{ending}").write_bytes(sound[name][:-20])
    message = rf"2 of its 6 files cannot be used; .*\n.*h1{ending}: is a damaged or trunc.*\n.*o2{ending}: is a damaged"
    with pytest.raises(UserError, match=message):
        read_series(folder)


def test_stumps_without_an_ending(save_series, tmp_path):
    folder = save_series(tmp_path / "s", VOLUME)
    (folder / "IM7").write_bytes(b"\0" * 100)
    with pytest.raises(UserError, match=r"IM7: was cut short, or is empty \(100 bytes, zeros at first\); get the file"):
        read_series(folder)


def test_what_only_has_the_name_of_a_dicom_file(save_series, tmp_path):
    folder = save_series(tmp_path / "s", VOLUME)
    (folder / "x.dcm").write_bytes(b"hello" * 100)
    with pytest.raises(UserError, match=r"x\.dcm: is not a DICOM file; remove it"):
        read_series(folder)


def test_other_files_are_left_alone(save_series, tmp_path, caplog):
    folder = save_series(tmp_path / "s", VOLUME)
    for name in ("DICOMDIR", ".DS_Store", "notes.txt", "README"):
        (folder / name).write_text("hello")
    report = pydicom.dcmread(folder / "a0.dcm")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = uid.BasicTextSRStorage
    report.save_as(folder / "report.dcm")
    assert np.array_equal(read_series(folder).array[0], VOLUME)
    assert [record.getMessage().split(": ", 1)[1] for record in caplog.records] == [
        "left alone, as they are not DICOM: README, notes.txt",
        "left alone, as they are no images: report.dcm (Basic Text SR Storage)",
    ]


def test_random_damage_never_crashes(save_series, tmp_path, capfd):
    folder = save_series(tmp_path / "s", VOLUME[:3])
    path, rng = folder / "h1.dcm", np.random.default_rng(0)
    content = path.read_bytes()
    refused = 0
    for turn in range(300):
        damaged = bytearray(content)
        if turn % 2:
            del damaged[rng.integers(len(content)) :]
        else:
            for place in rng.integers(120, 1100, 6):
                damaged[place] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            read_series(folder)
        except UserError:
            refused += 1
    assert refused > 200
    assert capfd.readouterr().err == ""


def test_several_threads(save_series, tmp_path):
    """Prediction reads ahead in one."""
    folder = save_series(tmp_path / "s", VOLUME)
    with ThreadPoolExecutor(4) as threads:
        images = list(threads.map(read_series, [folder] * 12))
    assert all(np.array_equal(image.array[0], VOLUME) for image in images)


def test_finding_series(save_series, tmp_path):
    for name in ("b_0001", "b_0000", "a", "2019"):
        save_series(tmp_path / name, VOLUME[:2])
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("hello")
    assert list_series(tmp_path) == {
        "2019": {0: tmp_path / "2019"},
        "a": {0: tmp_path / "a"},
        "b": {0: tmp_path / "b_0000", 1: tmp_path / "b_0001"},
    }
    assert holds_dicom(tmp_path)
    assert list_series(tmp_path / "a") == {"a": {0: tmp_path / "a"}}
    assert list_series(tmp_path / "b_0000") == {"b": {0: tmp_path / "b_0000"}}
    assert list_series(tmp_path / "empty") == {}
    assert not holds_dicom(tmp_path / "empty")


def test_series_that_contradict_each_other(save_series, tmp_path):
    save_series(tmp_path / "a", VOLUME[:2])
    save_series(tmp_path / "a_0000", VOLUME[:2])
    with pytest.raises(UserError, match="a and a_0000 are both channel 0 of a; rename one of them"):
        list_series(tmp_path)
    save_series(tmp_path, VOLUME[:2])
    with pytest.raises(
        UserError, match=r"holds DICOM files \(a0.dcm, h1.dcm\) and folders of DICOM files; put the files"
    ):
        list_series(tmp_path)


def test_what_counts_as_dicom(tmp_path, save_volume):
    save_volume(tmp_path / "a_0000.nii.gz", VOLUME)
    assert not holds_dicom(tmp_path)
    (tmp_path / "empty.dcm").write_bytes(b"")  # a case that was cut short is one all the same
    assert holds_dicom(tmp_path)


def test_no_image_beside_series_is_lost(save_series, tmp_path, save_volume):
    save_series(tmp_path / "ct", VOLUME[:2])
    save_volume(tmp_path / "a_0000.nii.gz", VOLUME)
    with pytest.raises(UserError, match=r"holds DICOM files \(ct\) and other images \(a_0000.nii.gz\); put them into"):
        list_series(tmp_path)


def test_series_in_a_folder_below(save_series, tmp_path):
    save_series(tmp_path / "study" / "ct", VOLUME[:2])
    message = r"study: is a folder, not an image, and holds no DICOM files, but folders of them \(ct\); put the files"
    with pytest.raises(UserError, match=message):
        read_image(tmp_path / "study")


def test_channels_on_different_grids_are_refused(shared_data):
    folder = shared_data("prostatex") / "dicom"
    message = r"PX0000_adc: has shape 84×128×19 \(x first\), but PX0000_t2w has 384×384×19; resample one to the grid"
    with pytest.raises(UserError, match=message):
        check_case_images("PX0000", [folder / "PX0000_t2w", folder / "PX0000_adc"], 2)
    check_case_images("PX0000", [folder / "PX0000_hbv", folder / "PX0000_adc"], 2)
