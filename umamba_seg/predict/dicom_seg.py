"""A segmentation of a DICOM series -> a DICOM-SEG object, which PACS and viewers lay over the series."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from umamba_seg import __version__
from umamba_seg.datasets.dicom import Series, find_series
from umamba_seg.datasets.dicom_files import Slice, printable, value, without_warnings
from umamba_seg.datasets.labels import Labels
from umamba_seg.errors import UserError
from umamba_seg.files import draft_of
from umamba_seg.log import logger
from umamba_seg.text import times

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription
    from pydicom import Dataset

_SOFTWARE = "umamba-seg"
_SCHEME = "99UMAMBA"
"""Of our codes for what is segmented, as a data set's labels have none of SNOMED CT. DICOM asks for 99 in front."""
_SERIES_NUMBER = 1000
"""What is added to the number of the series, for the new one."""
_LONG_STRING = 64
"""Letters that DICOM allows in names."""

_NEEDED = ("StudyInstanceUID", "SeriesInstanceUID", "SOPClassUID", "SOPInstanceUID", "FrameOfReferenceUID", "Modality")
_COPIED = (
    *("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "PatientAge", "PatientSize", "PatientWeight"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "StudyDescription"),
    *("PatientIdentityRemoved", "DeidentificationMethod"),
)
_SEXES = ("M", "F", "O")


def write_dicom_seg(segmentation: np.ndarray, series: Path, labels: Labels, path: Path, *, description: str) -> None:
    """Write a segmentation as DICOM-SEG (binary, one segment per label value), which refers to the slices of a series.

    Segments have the numbers of the label values. Where labels are regions, a segment is named after all that its value
    is in. A segment without voxels is listed but has no frames; if all are empty, each has an empty one at the first
    slice, as there is no object without frames. Patient and study are those of the series.

    Args:
        segmentation: Label values (z, y, x) as uint8 or uint16, on the grid of
            :func:`umamba_seg.datasets.dicom.read_series`.
        series: The folder of the series.
        labels: What the values mean.
        path: The file, which is never half written.
        description: Of the new series, such as the name of the model. DICOM has room for 64 letters.

    Raises:
        UserError: The series cannot be read, lacks what such an object refers to, or has another grid; or the
            segmentation holds a value that is no label.
    """
    source = find_series(series)
    shape = (len(source.slices), *source.slices[0].shape)
    if segmentation.shape != shape:
        what = f"has {times(shape)} voxels (z, y, x), but the segmentation {times(segmentation.shape)}"
        raise UserError(series, what, "give the series that was segmented")
    names = _names(labels)
    if segmentation.max() > len(names):
        what = f"the segmentation holds the value {segmentation.max()}, which is no label"
        raise UserError(path, what, "give the labels of the model")
    with draft_of(path) as part:
        _save(segmentation, source, names, part, _long_string(description))


def _names(labels: Labels) -> list[str]:
    """A name for each label value from 1."""
    members = {name: entry if isinstance(entry, tuple) else (entry,) for name, entry in labels.foreground.items()}
    values = [value for value in labels.values if value not in (0, labels.ignore)]
    return [" + ".join(name for name, entry in members.items() if value in entry) for value in values]


def _long_string(text: str) -> str:
    """A backslash separates values in DICOM."""
    return printable(text).replace("\\", "/")[:_LONG_STRING]


def _save(segmentation: np.ndarray, series: Series, names: Sequence[str], part: Path, description: str) -> None:
    import highdicom

    slices = sorted(enumerate(series.slices), key=lambda item: item[1].frame or 0)  # as a multi-frame file has them
    if not segmentation.any():
        slices = slices[:1]
    number = str(value(series.slices[0].path, [series.slices[0].header], "SeriesNumber"))
    with without_warnings():
        found = highdicom.seg.Segmentation(
            _sources(series, [one for _, one in slices]),
            segmentation[[place for place, _ in slices]],
            highdicom.seg.SegmentationTypeValues.BINARY,
            [_segment(label, _long_string(name)) for label, name in enumerate(names, 1)],
            series_instance_uid=highdicom.UID(),
            series_number=_SERIES_NUMBER + (int(number) if number.isdecimal() and len(number) < 9 else 0),
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer=_SOFTWARE,
            manufacturer_model_name=_SOFTWARE,
            software_versions=__version__,
            device_serial_number="0",
            content_label="SEGMENTATION",
            content_description=description,
            series_description=description,
        )
        found.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, as labels may have names in any script
        found.save_as(part)


def _segment(number: int, name: str) -> SegmentDescription:
    import highdicom
    from pydicom.sr.codedict import codes

    return highdicom.seg.SegmentDescription(
        segment_number=number,
        segment_label=name,
        segmented_property_category=codes.SCT.Tissue,
        segmented_property_type=highdicom.sr.CodedConcept(f"LABEL-{number}", _SCHEME, name),
        algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=highdicom.AlgorithmIdentificationSequence(
            name=_SOFTWARE, version=__version__, family=codes.DCM.ArtificialIntelligence
        ),
    )


def _sources(series: Series, slices: Sequence[Slice]) -> list[Dataset]:
    """Headers to which the object refers: as :class:`Series` has the geometry, and without what highdicom refuses."""
    from pydicom import Dataset

    common = _common(slices[0])
    common.Rows, common.Columns = (int(size) for size in slices[0].shape)
    orientation, measures, positions = _groups(series, slices)
    if slices[0].frame is None:
        common.update(orientation)
        common.update(measures)
        headers = []
        for one, position in zip(slices, positions, strict=True):
            header = copy.deepcopy(common)  # elements that two share would change together
            header.update(position)
            header.SOPInstanceUID = _needed(one, "SOPInstanceUID")
            headers.append(header)
        return headers
    if len({one.path for one in slices}) > 1:
        what = "is spread over several multi-frame files, to which one DICOM-SEG cannot refer"
        raise UserError(series.folder, what, "export it as one file, or convert it to NIfTI")
    shared = Dataset()
    shared.PlaneOrientationSequence, shared.PixelMeasuresSequence = [orientation], [measures]
    common.SharedFunctionalGroupsSequence, common.NumberOfFrames = [shared], len(slices)
    common.PerFrameFunctionalGroupsSequence = []
    for position in positions:
        frame = Dataset()
        frame.PlanePositionSequence = [position]
        common.PerFrameFunctionalGroupsSequence.append(frame)
    return [common]


def _groups(series: Series, slices: Sequence[Slice]) -> tuple[Dataset, Dataset, list[Dataset]]:
    """Orientation, measures, and the position of each slice."""
    from pydicom import Dataset

    orientation, measures, positions = Dataset(), Dataset(), []
    orientation.ImageOrientationPatient = np.reshape(series.direction, (3, 3))[:, :2].T.ravel().tolist()
    x, y, z = series.spacing
    measures.PixelSpacing, measures.SliceThickness, measures.SpacingBetweenSlices = [y, x], z, z
    for one in slices:
        position = Dataset()
        position.ImagePositionPatient = one.position.tolist()
        positions.append(position)
    return orientation, measures, positions


def _needed(one: Slice, keyword: str) -> str:
    found = value(one.path, [one.header], keyword)
    if found is None:
        what = f"has no {keyword}, to which a DICOM-SEG must refer"
        raise UserError(one.path, what, "export the series with it, or convert the series to NIfTI")
    return str(found)


def _common(one: Slice) -> Dataset:
    """Patient, study and series. What the standard forbids is left empty."""
    from pydicom import Dataset
    from pydicom.multival import MultiValue

    header = Dataset()
    for keyword in _NEEDED:
        setattr(header, keyword, _needed(one, keyword))
    for keyword in _COPIED:
        found = value(one.path, [one.header], keyword)
        texts = [str(text) for text in (found if isinstance(found, MultiValue) else [found or ""])]
        if not all(_is_allowed(keyword, text) for text in texts):
            logger.warning("%s: its %s is none that DICOM allows, and left empty in the DICOM-SEG", one.path, keyword)
            texts = [""]
        setattr(header, keyword, texts if len(texts) > 1 else texts[0])
    return header


def _is_allowed(keyword: str, text: str) -> bool:
    from pydicom.config import RAISE
    from pydicom.datadict import dictionary_VR
    from pydicom.valuerep import DA, TM, validate_value

    kind = dictionary_VR(keyword)
    try:
        validate_value(kind, text, RAISE)
        {"DA": DA, "TM": TM}.get(kind, str)(text)
    except ValueError:
        return False
    return keyword != "PatientSex" or text in ("", *_SEXES)
