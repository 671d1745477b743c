"""The mean of probabilities that several models saved, case by case.

Files of probabilities are deflated and hold one class after the other, so they are read as streams, a few planes at a
time. What is kept of a case is its labels so far, and how probable they are: memory does not grow with the classes.
"""

from __future__ import annotations

import contextlib
import io
import shutil
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.lib import format as npy

from umamba_seg.datasets.labels import Labels
from umamba_seg.datasets.raw import read_description
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.files import draft_of, make_folder, write_json
from umamba_seg.log import logger, progress, quiet
from umamba_seg.predict.folder import predict_folder
from umamba_seg.predict.label_files import LabelFiles, require_all, require_same_shape
from umamba_seg.predict.writing import DAMAGE, class_names
from umamba_seg.text import shorten, times

if TYPE_CHECKING:
    from umamba_seg.predict.predictor import Predictor

_MEMBER = "probabilities.npy"
_VOXELS = 2**21  # read at a time, of each file
_KINDS = ("float16", "float32", "float64", "uint8")
_AGAIN = "predict the case again, and save its probabilities"


class ProbabilityFile:
    """The probabilities of a case, in our ``.npz`` or nnU-Net's, as a stream of planes, one class after the other.

    Args:
        path: The file. Close it with ``with``.

    Attributes:
        shape: (classes or regions, z, y, x).
        names: Of the classes or regions; None in files of nnU-Net.

    Raises:
        UserError: It holds no probabilities.
    """

    def __init__(self, path: Path):
        if not path.is_file():
            raise UserError(path, "no such file", _AGAIN)
        self.path = path
        with self._damage_named():
            self._archive = zipfile.ZipFile(path)
            self._stream: IO[bytes] = self._archive.open(_MEMBER)
            self.shape, self._x_first, self._kind = _read_header(self._stream)
            self.names = self._read_names()
        if self._kind.name not in _KINDS or len(self.shape) != 4 or 0 in self.shape:
            what = f"holds {self._kind} of the shape {times(self.shape)}, no probabilities (class, z, y, x)"
            raise UserError(path, what, _AGAIN)
        if self._x_first and self.shape[0] > 1:
            raise UserError(path, "does not hold one class after the other (it is in Fortran order)", _AGAIN)

    def _read_names(self) -> tuple[str, ...] | None:
        if "names.npy" not in self._archive.namelist():
            return None
        with self._archive.open("names.npy") as file:
            return tuple(map(str, npy.read_array(file, allow_pickle=False)))

    def __enter__(self) -> ProbabilityFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()
        self._archive.close()

    @contextlib.contextmanager
    def _damage_named(self) -> Iterator[None]:
        try:
            yield
        except DAMAGE as error:
            raise UserError(self.path, f"holds no probabilities, or is damaged ({error})", _AGAIN) from None

    def read(self, planes: int) -> np.ndarray:
        """The next (planes, y, x), in float32.

        Raises:
            UserError: The file is cut short or damaged, or a value is not finite.
        """
        shape = (planes, *self.shape[2:])
        with self._damage_named():
            if self._x_first:  # nnU-Net's of a single region, where the plans swap the axes
                volume = np.frombuffer(self._stream.read(), self._kind).reshape(self.shape, order="F")
                self._stream, self._x_first = io.BytesIO(volume.tobytes()), False
            wanted = int(np.prod(shape)) * self._kind.itemsize
            found = np.frombuffer(self._stream.read(wanted), self._kind).reshape(shape)
        if self._kind == np.uint8:
            return found / np.float32(255)
        if not np.isfinite(found).all():
            raise UserError(self.path, "holds values that are not finite", _AGAIN)
        return found.astype(np.float32)

    def finish(self) -> None:
        """Compare the checksum, after everything was read.

        Raises:
            UserError: The file is damaged.
        """
        with self._damage_named():
            if self._stream.read(1):
                raise ValueError("it is longer than it says")

    def others(self) -> dict[str, bytes]:
        """The other arrays of the file, names and geometry, as they are."""
        with self._damage_named():
            return {name: self._archive.read(name) for name in self._archive.namelist() if name != _MEMBER}


def _read_header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype]:
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    return read[npy.read_magic(stream)](stream)


# ---------------------------------------------------------------------------------------------------------- one case


def average(
    files: Sequence[ProbabilityFile], labels: Labels, keep: Callable[[np.ndarray], object] | None = None
) -> np.ndarray:
    """Labels of the mean probabilities: the most probable class, or the last region above one half, as in nnU-Net.

    Args:
        files: Of the same shape; they are read to their end, side by side.
        labels: What their classes stand for.
        keep: Called with the mean probabilities, some planes (float32) of one class after the other.

    Returns:
        (z, y, x), uint8, or uint16 for 255 labels and more.
    """
    classes, depth, *plane = files[0].shape
    order = labels.regions_class_order
    found = np.zeros((depth, *plane), labels.stored_as)
    best = np.zeros(found.shape, np.float32)  # of memory that is never touched, for regions
    step = max(1, _VOXELS // int(np.prod(plane)))
    with ThreadPoolExecutor(len(files)) as pool:
        for number in range(classes):
            for start in range(0, depth, step):
                rows = slice(start, min(start + step, depth))
                chances = _mean(list(pool.map(ProbabilityFile.read, files, [rows.stop - start] * len(files))))
                if keep is not None:
                    keep(chances)
                if order is not None:
                    found[rows][chances > 0.5] = order[number]
                else:
                    _take_better(number, chances, found[rows], best[rows])
    for file in files:
        file.finish()
    return found


def _mean(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Of float32 arrays, summed in nnU-Net's order; the first is used up."""
    total = parts[0]
    for part in parts[1:]:
        total += part
    total /= len(parts)
    return total


def _take_better(number: int, chances: np.ndarray, found: np.ndarray, best: np.ndarray) -> None:
    """Where a class is more probable than all before it, it is the label."""
    if number > 0:
        found[chances > best] = number
    np.maximum(chances, best, out=best)


@contextlib.contextmanager
def _written(path: Path, like: ProbabilityFile) -> Iterator[Callable[[np.ndarray], object]]:
    """Yield what takes the planes of a new file of probabilities (float16), which is there when the block ends well."""
    with draft_of(path) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for name, content in like.others().items():
            archive.writestr(name, content)
        with archive.open(_MEMBER, "w", force_zip64=True) as stream:
            npy.write_array_header_1_0(stream, {"descr": "<f2", "fortran_order": False, "shape": like.shape})
            yield lambda planes: stream.write(planes.astype("<f2").tobytes())


# ------------------------------------------------------------------------------------------------------------ folders


def average_cases(
    cases: Mapping[str, Sequence[Path]], dataset_json: dict, output: Path, *, save_probabilities: bool = False
) -> tuple[list[Path], dict[str, str]]:
    """Write the segmentation of each case's mean probabilities, and dataset.json beside them.

    Args:
        cases: case -> its files of probabilities. Beside the first there lies its segmentation, which has the geometry.
        dataset_json: Of the models.
        output: A folder, made if missing.
        save_probabilities: Write the mean probabilities too.

    Returns:
        The segmentations written; and case -> message, where files are damaged, or of other classes or another shape.
    """
    labels, ending = Labels.from_json(dataset_json, Path("dataset.json")), dataset_json["file_ending"]
    label_files = LabelFiles(dataset_json)
    write_json(make_folder(output) / "dataset.json", dataset_json)
    written: list[Path] = []
    failures: dict[str, str] = {}
    for case, paths in progress(cases.items(), "averaging"):
        target = output / f"{case}{ending}"
        try:
            with quiet(), contextlib.ExitStack() as stack:
                beside = paths[0].with_name(target.name)
                shown, properties = label_files.read(beside)
                files = [stack.enter_context(ProbabilityFile(path)) for path in paths]
                _require_alike(files, labels)
                require_same_shape(shown.shape, beside, files[0].shape[1:], paths[0])
                keep = None
                if save_probabilities:
                    keep = stack.enter_context(_written(output / f"{case}.npz", files[0]))
                label_files.write(average(files, labels, keep), target, properties)
        except UserError as error:
            failures[case] = str(error)
        else:
            written.append(target)
    return written, failures


def _require_alike(files: Sequence[ProbabilityFile], labels: Labels) -> None:
    wanted, remedy = tuple(class_names(labels)), "average models of the same classes"
    for file in files:
        if file.names is not None and file.names != wanted:
            what = f"is of the classes {shorten(file.names)}, but dataset.json has {shorten(wanted)}"
            raise UserError(file.path, what, remedy)
        if file.shape[0] != len(wanted):
            what = f"has {file.shape[0]} classes, but dataset.json has {len(wanted)} ({shorten(wanted)})"
            raise UserError(file.path, what, remedy)
        require_same_shape(file.shape[1:], file.path, files[0].shape[1:], files[0].path)


def average_folders(
    folders: Sequence[Path], output: Path, *, save_probabilities: bool = False, failed: Mapping[str, str] | None = None
) -> list[Path]:
    """Average what was predicted into several folders, with probabilities, and put dataset.json beside it.

    Args:
        folders: Each with ``CASE.npz`` and ``CASE.ending`` for the same cases, and its dataset.json.
        output: Another folder.
        save_probabilities: Write the mean probabilities too.
        failed: Cases to leave out, and why they failed before.

    Raises:
        UserError: Fewer than two folders, their cases or labels differ, or no case can be averaged.
        CasesFailed: Some cannot; the others are written.
    """
    folders = [folder.resolve() for folder in folders]
    if len(set(folders)) < 2 or len(set(folders)) < len(folders):
        raise UserError("-i", "an ensemble has two or more folders", "name each of them once")
    if output.resolve() in folders:
        raise UserError(output, "is one of the folders that are averaged", "write into another")
    dataset_json = require_same_labels([folder / "dataset.json" for folder in folders])
    cases = [{path.stem for path in folder.glob("[!.]*.npz")} - set(failed or ()) for folder in folders]
    everywhere = set.union(*cases)
    if not everywhere:
        raise UserError(folders[0], "holds no probabilities (CASE.npz)", "predict with --save-probabilities")
    for folder, there in zip(folders, cases, strict=True):
        if missing := sorted(everywhere - there):
            what = f"holds no probabilities of {shorten(missing)}, which others have"
            raise UserError(folder, what, "predict the same images with every model")
    named = {case: [folder / f"{case}.npz" for folder in folders] for case in sorted(everywhere)}
    written, failures = average_cases(named, dataset_json, output, save_probabilities=save_probabilities)
    require_all(output, written, failures | dict(failed or {}))
    return written


def require_same_labels(files: Sequence[Path]) -> dict:
    """The first of several dataset.json, whose labels are those of the others.

    Raises:
        UserError: One is missing, or differs in its labels or the ending of its files.
    """
    contents = [read_description(file) for file in files]
    wanted = _decisive(contents[0], files[0])
    for file, content in zip(files, contents, strict=True):
        for key, found in _decisive(content, file).items():
            if found != wanted[key]:
                what = f"{key}: {found}, but {files[0]} has {wanted[key]}"
                raise UserError(file, what, "average models of the same labels and files")
    return contents[0]


def _decisive(content: dict, file: Path) -> dict[str, object]:
    """What must be the same of data sets whose probabilities are averaged, the order of the classes too."""
    labels = Labels.from_json(content, file)
    classes = [(name, labels.foreground.get(name, 0)) for name in class_names(labels)]
    return {
        "classes": classes,
        "regions_class_order": labels.regions_class_order,
        "file_ending": content["file_ending"],
    }


# ------------------------------------------------------------------------------------------------------------- models


def predict_and_average(
    models: Sequence[Path],
    images: Path,
    output: Path,
    load: Callable[[Path], Predictor],
    *,
    save_probabilities: bool = False,
    resume: bool = False,
    keep: bool = False,
) -> list[Path]:
    """Predict a folder of images with every model, and average.

    What the models predict lies in ``output/.members``; it goes when all cases are done.

    Args:
        models: Model folders; of a cascade, that of its second stage.
        images: See :func:`~umamba_seg.predict.folder.predict_folder`.
        output: A folder, made if missing.
        load: Loads the predictor of a model folder.
        save_probabilities: Write the mean probabilities too.
        resume: Leave alone what an earlier run that was ended has predicted.
        keep: Leave what the models predicted.

    Returns:
        The segmentations written.

    Raises:
        UserError: Fewer than two models, or their labels differ; or no case can be predicted.
        CasesFailed: Some cannot; the others are written.
    """
    if len({model.resolve() for model in models}) < max(2, len(models)):
        raise UserError("-m", "an ensemble has two or more models", "name each of them once")
    require_same_labels([model / "dataset.json" for model in models])
    members, failures = make_folder(output) / ".members", {}
    if members.is_dir() and not resume:
        shutil.rmtree(members)
    folders = [members / f"{number}_{model.resolve().name}" for number, model in enumerate(models, 1)]
    for model, folder in zip(models, folders, strict=True):
        logger.info("predicting with %s", model)
        failures |= _predict_member(model.resolve(), images, folder, load, resume)
    written = average_folders(folders, output, save_probabilities=save_probabilities, failed=failures)
    if not keep:
        shutil.rmtree(members)
    return written


def _predict_member(
    model: Path, images: Path, folder: Path, load: Callable[[Path], Predictor], resume: bool
) -> dict[str, str]:
    """Predict with a model, after the stage before it if it is a cascade's; case -> why it failed."""
    predictor, previous, failures = load(model), None, {}
    if predictor.previous_stage is not None:
        before = model.with_name(f"{model.name.rpartition('__')[0]}__{predictor.previous_stage}")
        previous = folder.with_name(f"{folder.name}_{predictor.previous_stage}")
        failures = _predict_member(before, images, previous, load, resume)
    try:
        predict_folder(predictor, images, folder, precision="float16", previous=previous, resume=resume)
    except CasesFailed as error:
        failures = error.failures | failures
    return failures
