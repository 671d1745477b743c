"""DICOM-SEG: what was segmented, where it lies and whose it is, as highdicom and as plain pydicom find it."""

import shutil
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk

from umamba_seg.datasets.dicom import find_series, read_series
from umamba_seg.datasets.images import read_image
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.predict.dicom_seg import write_dicom_seg

VOLUME = np.random.default_rng(0).integers(0, 3000, (6, 9, 11)).astype(np.int16)
OBLIQUE = (0.8, 0.0, 0.6, 0.6, 0.0, -0.8, 0.0, 1.0, 0.0)
LABELS = Labels({"liver": 1, "tumour": 2, "spleen": 3}, None, None)


@pytest.fixture
def segmentation() -> np.ndarray:
    """Without spleen, and without anything on the first slice."""
    labels = np.random.default_rng(1).integers(0, 3, VOLUME.shape).astype(np.uint8)
    labels[0] = 0
    return labels


@pytest.fixture
def series(save_series, tmp_path) -> Path:
    return save_series(tmp_path / "ct", VOLUME, (0.7, 0.8, 3.3), (-5, 6.5, 7), OBLIQUE)


def by_highdicom(path: Path, series: Path) -> np.ndarray:
    """Label values on the slices of the series, which highdicom finds by the references."""
    found = highdicom.seg.segread(path)
    names = [one.header.SOPInstanceUID for one in find_series(series).slices]
    return found.get_pixels_by_source_instance(
        names, combine_segments=True, ignore_spatial_locations=True, assert_missing_frames_are_empty=True
    )


def by_position(path: Path, image: sitk.Image) -> np.ndarray:
    """Label values on the grid of an image, from the places of the frames alone."""
    found, labels = pydicom.dcmread(path), np.zeros(image.GetSize()[::-1], np.uint8)
    shared = found.SharedFunctionalGroupsSequence[0]
    assert shared.PixelMeasuresSequence[0].PixelSpacing == pytest.approx(image.GetSpacing()[1::-1])
    assert shared.PixelMeasuresSequence[0].SpacingBetweenSlices == pytest.approx(image.GetSpacing()[2])
    axes = np.reshape(image.GetDirection(), (3, 3))[:, :2].T.ravel()
    assert shared.PlaneOrientationSequence[0].ImageOrientationPatient == pytest.approx(axes, abs=1e-9)
    frames = found.pixel_array.reshape(-1, *labels.shape[1:])
    for group, frame in zip(found.PerFrameFunctionalGroupsSequence, frames, strict=True):
        position = [float(value) for value in group.PlanePositionSequence[0].ImagePositionPatient]
        place = image.TransformPhysicalPointToContinuousIndex(position)
        assert place == pytest.approx((0, 0, round(place[2])), abs=1e-5)
        number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        labels[round(place[2])][frame == 1] = number
    return labels


def by_simpleitk(folder: Path) -> sitk.Image:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(folder)))
    return reader.Execute()


def test_voxels_and_places(series, segmentation, tmp_path):
    path = tmp_path / "out" / "case.dcm"
    path.parent.mkdir()
    write_dicom_seg(segmentation, series, LABELS, path, description="umamba-seg Dataset007")
    assert np.array_equal(by_highdicom(path, series), segmentation)
    assert np.array_equal(by_position(path, by_simpleitk(series)), segmentation)
    assert [found.name for found in path.parent.iterdir()] == ["case.dcm"]


def test_a_real_series(shared_data, tmp_path, capfd):
    series = shared_data("prostatex") / "dicom" / "PX0000_t2w"
    labels = read_image(shared_data("prostatex") / "annotations" / "ProstateX-0000_07-07-2011.nii.gz").array[0]
    labels = np.where(read_series(series).array[0] > 600, 2, labels).astype(np.uint8)
    write_dicom_seg(labels, series, LABELS, tmp_path / "a.dcm", description="prostate")
    assert np.array_equal(by_highdicom(tmp_path / "a.dcm", series), labels)
    assert np.array_equal(by_position(tmp_path / "a.dcm", by_simpleitk(series)), labels)
    found, source = pydicom.dcmread(tmp_path / "a.dcm"), pydicom.dcmread(series / "1-01.dcm")
    for keyword in ("PatientID", "PatientName", "PatientSex", "StudyInstanceUID", "StudyDate", "FrameOfReferenceUID"):
        assert found[keyword].value == source[keyword].value
    assert capfd.readouterr().err == ""


def test_what_it_says_about_itself(series, segmentation, tmp_path):
    write_dicom_seg(segmentation, series, LABELS, tmp_path / "a.dcm", description="umamba-seg Dataset007")
    found, slices = pydicom.dcmread(tmp_path / "a.dcm"), find_series(series).slices
    assert found.SegmentationType == "BINARY"
    assert found.SeriesDescription == found.ContentDescription == "umamba-seg Dataset007"
    assert (found.SeriesNumber, found.Modality, found.PatientID) == (1003, "SEG", "P7")
    assert found.SeriesInstanceUID != slices[0].header.SeriesInstanceUID
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["liver", "tumour", "spleen"]
    assert [segment.SegmentNumber for segment in found.SegmentSequence] == [1, 2, 3]
    segment = found.SegmentSequence[1]
    kind = segment.SegmentedPropertyTypeCodeSequence[0]
    assert (kind.CodeValue, kind.CodingSchemeDesignator, kind.CodeMeaning) == ("LABEL-2", "99UMAMBA", "tumour")
    assert segment.SegmentedPropertyCategoryCodeSequence[0].CodeMeaning == "Tissue"
    assert segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmName == "umamba-seg"
    assert found.SoftwareVersions == segment.SegmentationAlgorithmIdentificationSequence[0].AlgorithmVersion
    referenced = found.ReferencedSeriesSequence[0]
    assert referenced.SeriesInstanceUID == slices[0].header.SeriesInstanceUID
    instances = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert instances == [one.header.SOPInstanceUID for one in slices]


def test_names_of_labels(series, segmentation, tmp_path):
    """In any script, at most 64 letters, and no backslash, which separates values."""
    labels = Labels({"Läsion µ": 1, "a\\b": 2, "x" * 70: 3, "肝臓": 4}, 5, None)
    write_dicom_seg(segmentation, series, labels, tmp_path / "a.dcm", description="d" * 70)
    found = pydicom.dcmread(tmp_path / "a.dcm")
    names = ["Läsion µ", "a/b", "x" * 64, "肝臓"]
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == names
    assert found.SeriesDescription == "d" * 64


def test_segments_of_regions_are_label_values(series, segmentation, tmp_path):
    labels = Labels({"whole tumour": (1, 2), "core": 2}, None, (1, 2))
    write_dicom_seg(segmentation, series, labels, tmp_path / "a.dcm", description="regions")
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert [segment.SegmentLabel for segment in found.SegmentSequence] == ["whole tumour", "whole tumour + core"]
    assert np.array_equal(by_highdicom(tmp_path / "a.dcm", series), segmentation)


def test_an_empty_segmentation_has_an_empty_frame_of_each_segment(series, tmp_path):
    write_dicom_seg(np.zeros_like(VOLUME, np.uint8), series, LABELS, tmp_path / "a.dcm", description="nothing")
    found = highdicom.seg.segread(tmp_path / "a.dcm")
    assert (found.NumberOfFrames, len(found.SegmentSequence)) == (3, 3)
    assert not found.pixel_array.any()
    assert not by_position(tmp_path / "a.dcm", by_simpleitk(series)).any()


@pytest.mark.parametrize("empty", [False, True])
def test_multi_frame_sources(shared_data, tmp_path, empty):
    """Frames are referred to by their numbers."""
    folder = tmp_path / "mr"
    folder.mkdir()
    source = shared_data("odd_nifti") / "nitest_balls1" / "T1.dcm"
    shutil.copy(source, folder)
    image = read_series(folder)
    labels = np.zeros(image.array.shape[1:], np.uint8) if empty else (image.array[0] > 100).astype(np.uint8)
    write_dicom_seg(labels, folder, LABELS, tmp_path / "a.dcm", description="phantom")
    assert np.array_equal(by_position(tmp_path / "a.dcm", sitk.ReadImage(str(source))), labels)
    if not empty:
        frames = [number for number, plane in enumerate(labels, 1) if plane.any()]
        assert len(frames) > 5
        found = highdicom.seg.segread(tmp_path / "a.dcm")
        name = pydicom.dcmread(source).SOPInstanceUID
        pixels = found.get_pixels_by_source_frame(name, frames, combine_segments=True, ignore_spatial_locations=True)
        order = [one.frame for one in find_series(folder).slices]
        assert np.array_equal(pixels, labels[[order.index(frame - 1) for frame in frames]])


def test_several_multi_frame_files(shared_data, tmp_path):
    """They are read, but an object refers to one only."""
    folder, source = tmp_path / "mr", shared_data("odd_nifti") / "nitest_balls1" / "T1.dcm"
    folder.mkdir()
    for half in range(2):
        part = pydicom.dcmread(source)
        frames = part.PerFrameFunctionalGroupsSequence[5 * half : 5 * half + 5]
        size = len(part.PixelData) // 2
        part.PixelData = part.PixelData[size * half : size * (half + 1)]
        part.PerFrameFunctionalGroupsSequence, part.NumberOfFrames = frames, 5
        part.SOPInstanceUID = part.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.{half}"
        part.save_as(folder / f"{half}.dcm")
    image = read_series(folder)
    assert np.allclose(image.array[0], sitk.GetArrayFromImage(sitk.ReadImage(str(source))), rtol=1e-6)
    with pytest.raises(UserError, match="mr: is spread over several multi-frame files, to which one DICOM-SEG cannot"):
        write_dicom_seg(np.ones(image.array.shape[1:], np.uint8), folder, LABELS, tmp_path / "a.dcm", description="d")
    assert [path.name for path in tmp_path.iterdir()] == ["mr"]


def test_what_the_standard_forbids_is_left_empty(save_series, segmentation, tmp_path, caplog):
    def change(one, number):
        one.PatientSex, one.PatientBirthDate, one.PatientName = "W", "20201341", "Müller^Jörg"
        one.SpecificCharacterSet = "ISO_IR 100"
        del one["StudyTime"]

    with pytest.warns(UserWarning, match="Invalid value for VR DA"):
        series = save_series(tmp_path / "s", VOLUME, change=change)
    write_dicom_seg(segmentation, series, LABELS, tmp_path / "a.dcm", description="d")
    found = pydicom.dcmread(tmp_path / "a.dcm")
    assert (found.PatientSex, found.PatientBirthDate, found.StudyTime) == ("", "", "")
    assert str(found.PatientName) == "Müller^Jörg"
    ours = [record for record in caplog.records if record.name == "umamba_seg"]
    assert [record.getMessage().split(": ", 1)[1] for record in ours] == [
        "its PatientBirthDate is none that DICOM allows, and left empty in the DICOM-SEG",
        "its PatientSex is none that DICOM allows, and left empty in the DICOM-SEG",
    ]


@pytest.mark.parametrize("keyword", ["FrameOfReferenceUID", "StudyInstanceUID", "SOPInstanceUID", "Modality"])
def test_what_it_must_refer_to(save_series, segmentation, tmp_path, keyword):
    def change(one, number):
        one.file_meta.MediaStorageSOPInstanceUID, one.file_meta.MediaStorageSOPClassUID = "1.2.3", one.SOPClassUID
        del one[keyword]

    series = save_series(tmp_path / "s", VOLUME, change=change)
    with pytest.raises(UserError, match=rf"a0.dcm: has no {keyword}, to which a DICOM-SEG must refer; export"):
        write_dicom_seg(segmentation, series, LABELS, tmp_path / "a.dcm", description="d")
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_segmentations_of_something_else(series, segmentation, tmp_path):
    with pytest.raises(UserError, match=r"ct: has 6×9×11 voxels \(z, y, x\), but the segmentation 5×9×11; give the"):
        write_dicom_seg(segmentation[1:], series, LABELS, tmp_path / "a.dcm", description="d")
    segmentation[0, 0, 0] = 4
    with pytest.raises(UserError, match=r"a.dcm: the segmentation holds the value 4, which is no label; give"):
        write_dicom_seg(segmentation, series, LABELS, tmp_path / "a.dcm", description="d")
    assert not list(tmp_path.glob("*.dcm"))


def test_prediction_of_a_series_is_that_of_the_image(trained, umamba_seg, save_series, tmp_path):
    """The same voxels as NIfTI and as DICOM give the same segmentation, and that comes back as DICOM-SEG."""
    (source,) = (trained.raw / "imagesTs").glob("*5_0000.nii.gz")
    image = sitk.Cast(sitk.ReadImage(str(source)), sitk.sitkInt16)
    series = save_series(
        tmp_path / "series" / "case",
        sitk.GetArrayFromImage(image),
        image.GetSpacing(),
        image.GetOrigin(),
        image.GetDirection(),
    )
    (tmp_path / "images").mkdir()
    sitk.WriteImage(by_simpleitk(series), str(tmp_path / "images" / "case_0000.nii.gz"))
    for folder in ("images", "series"):
        words = ("-i", tmp_path / folder, "-o", tmp_path / f"{folder}_out", "-m", trained.model, "-device", "cpu")
        umamba_seg("predict", *words).succeeded()
    of_image, of_series = (read_image(tmp_path / f"{name}_out" / "case.nii.gz") for name in ("images", "series"))
    assert of_image.array.any()
    assert np.array_equal(of_image.array, of_series.array)
    assert of_series.spacing == pytest.approx(of_image.spacing)
    assert of_series.origin == pytest.approx(of_image.origin, abs=1e-4)
    assert of_series.direction == pytest.approx(of_image.direction, abs=1e-6)
    assert np.array_equal(by_highdicom(tmp_path / "series_out" / "case.dcm", series), of_series.array[0])
