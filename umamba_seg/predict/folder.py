"""A folder of images -> a folder of segmentations: one case is read while another is segmented and a third is written.

Threads do that, no processes, and only the main thread segments. However a run ends, the cases that were finished are
whole, and its manifest tells which they are.
"""

from __future__ import annotations

import platform
import shutil
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import psutil

import umamba_seg
from umamba_seg.errors import CasesFailed, UserError
from umamba_seg.files import make_folder, move_into_place, read_json, write_json
from umamba_seg.log import interactive, logger, quiet, step_bar
from umamba_seg.plan.plans import PLANS_TABLE
from umamba_seg.predict.cases import list_cases, require_channels
from umamba_seg.predict.writing import sha256, write_prediction
from umamba_seg.text import gib, shorten
from umamba_seg.train import FINAL_PTH
from umamba_seg.train.stopping import StopRequest

if TYPE_CHECKING:
    from umamba_seg.predict.cases import PreparedCase
    from umamba_seg.predict.predictor import Predictor
    from umamba_seg.predict.results import Prediction

T = TypeVar("T")

_SCHEMA = 1  # of the manifest
_PART = ".part"


@dataclass
class Case:
    """A case on its way.

    Attributes:
        name: Of the case.
        files: Its images by channel number.
        seconds: That each stage took.
        cause: Why it failed.
        written: Its files, relative to the output folder and the segmentation first, once they are whole.
        digest: SHA-256 of the segmentation.
        place: Device and host that segmented it.
    """

    name: str
    files: dict[int, Path]
    seconds: dict[str, float] = field(default_factory=dict)
    cause: str | None = None
    written: list[str] = field(default_factory=list)
    digest: str = ""
    place: dict[str, str] = field(default_factory=dict)

    def run(self, stage: str, act: Callable[[], T]) -> T | None:
        """Do something for this case; None if it failed, for a reason that other cases need not share."""
        began = time.monotonic()
        try:
            return act()
        except UserError as error:
            self.cause = str(error)
        except MemoryError:
            self.cause = self._memory_ran_out(stage)
        except RuntimeError as error:
            from umamba_seg.plan.probe import is_out_of_memory

            if not is_out_of_memory(error):
                raise
            self.cause = self._memory_ran_out(stage)
        finally:
            self.seconds[stage] = round(time.monotonic() - began, 3)
        return None

    def _memory_ran_out(self, stage: str) -> str:
        memory = psutil.virtual_memory()
        what = f"memory ran out (stage: {stage}); {gib(memory.available)} of {gib(memory.total)} are free now"
        remedy = "close what else uses memory or the GPU, ask for no probabilities, or give -device cpu and --ram-gb"
        return str(UserError(self.name, what, remedy))

    def entry(self) -> dict:
        """Of the manifest."""
        if self.cause is not None:
            return {"status": "failed", "cause": self.cause, "seconds": self.seconds}
        return {
            "status": "done",
            "files": self.written,
            "sha256": self.digest,
            "seconds": self.seconds,
            **self.place,
        }


@dataclass(frozen=True)
class Job:
    """What is done with every case.

    Attributes:
        images: The folder of images.
        output: The folder of segmentations.
        scratch: A hidden folder in it, for what is not whole.
        precision: Of saved probabilities, or None to save none.
        uncertainty: Whether to write the maps.
        previous: Folder of the segmentations of the stage before, for the second stage of a cascade.
    """

    images: Path
    output: Path
    scratch: Path
    precision: str | None
    uncertainty: bool
    previous: Path | None

    def prepare(self, predictor: Predictor, case: Case) -> PreparedCase | None:
        return case.run("prepare", partial(self._prepare, predictor, case))

    def segment(self, predictor: Predictor, case: Case, prepared: PreparedCase) -> Prediction | None:
        case.place = {"device": str(predictor.device), "host": platform.node()}
        wanted = {"probabilities": self.precision is not None, "uncertainty": self.uncertainty}
        return case.run("segment", partial(predictor.segment, prepared, scratch=self.scratch, **wanted))

    def write(self, predictor: Predictor, case: Case, prediction: Prediction, finished: Callable[[Case], None]) -> None:
        """Write the files of a case; ``finished`` is called just before the last one gets its name."""
        began = time.monotonic()

        def announce(names: list[str], digest: str) -> None:
            case.written, case.digest = names, digest
            case.seconds["write"] = round(time.monotonic() - began, 3)
            finished(case)

        case.run(
            "write",
            partial(
                write_prediction,
                prediction,
                self.output,
                self.scratch,
                predictor.plans,
                predictor.dataset_json,
                precision=self.precision,
                announce=announce,
            ),
        )

    def _prepare(self, predictor: Predictor, case: Case) -> PreparedCase:
        require_channels(case.name, case.files, self.images, predictor.dataset_json)
        previous = None
        if self.previous is not None:
            previous = self.previous / f"{case.name}{predictor.file_ending}"
            if not previous.is_file():
                remedy = f"predict it with {predictor.previous_stage} first"
                raise UserError(previous, "no such file, which the stage before should have left", remedy)
        return predictor.prepare(tuple(case.files.values()), name=case.name, previous=previous)


class Record:
    """The manifest, which is written anew whenever a case is finished, and what is said about it meanwhile.

    Args:
        path: The manifest.
        scratch: Folder in which it is written.
        about: Model, settings and versions.
        names: All cases.
        kept: Entries of those that need not be done again.
    """

    def __init__(self, path: Path, scratch: Path, about: dict, names: Sequence[str], kept: dict[str, dict]):
        self._path, self._scratch = path, scratch
        self._lock = threading.Lock()
        self._cases: dict[str, dict] = {name: kept.get(name, {"status": "waiting"}) for name in names}
        self._content = about | {"started": _now(), "ended": None, "cases": self._cases}
        self._bar = step_bar("predicting", len(names) - len(kept))
        self.failures: dict[str, str] = {}
        self.written: list[str] = []
        self._save()

    def finished(self, case: Case) -> None:
        """Note that a case is done or has failed. Any thread may call it."""
        with self._lock:
            self._cases[case.name] = case.entry()
            if case.cause is not None:
                self.failures[case.name] = case.cause
            else:
                self.written.append(case.written[0])
            self._save()
        self._bar.update()
        if not interactive():
            outcome = "failed" if case.cause is not None else f"{sum(case.seconds.values()):.1f} s"
            done = len(self.failures) + len(self.written)
            logger.info("%s: %s (%d of %d)", case.name, outcome, done, self._bar.total)

    def __enter__(self) -> Record:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Note that every case was tried, if it was."""
        self._bar.close()
        if kind is None:
            self._content["ended"] = _now()
            self._save()

    def _save(self) -> None:
        draft = self._scratch / self._path.name
        write_json(draft, self._content)
        move_into_place(draft, self._path)


@dataclass(frozen=True)
class Outcome:
    """What a run left.

    Attributes:
        segmentations: Written now.
        skipped: Cases that were finished before.
        manifest: The file that lists all of them.
    """

    segmentations: list[Path]
    skipped: list[str]
    manifest: Path

    def as_json(self) -> dict:
        written = [str(path) for path in self.segmentations]
        return {"segmentations": written, "failed": {}, "skipped": self.skipped, "manifest": str(self.manifest)}


Engine = Callable[["Predictor", Sequence[Case], Job, Record, StopRequest], None]
"""Takes cases through all stages. What fails for a reason of its own is recorded; anything else is raised."""


def pipeline(predictor: Predictor, cases: Sequence[Case], job: Job, record: Record, stop: StopRequest) -> None:
    """The engine for one machine: while a case is segmented, the next one is read and the last one is written.

    At most one prepared case waits, and a segmented one waits only for the one before it, so that no more than three
    are in memory. Where memory is limited, the next one is read only when this one's image is gone.

    Raises:
        Stopped: A signal came. What is being written is finished first.
    """
    prepare = partial(job.prepare, predictor)
    with ThreadPoolExecutor(1, "write") as writer, _dropping_the_rest("prepare") as reader:
        behind: Future | None = None
        for case, ahead in _in_turn(reader, prepare, cases, ahead=predictor.ram_gb is None):
            with stop.at_once():
                prepared, prediction = ahead.result(), None
                if behind is not None and behind.done():
                    behind.result()  # a disk that is full is noticed before another case is segmented
                if prepared is not None:
                    prediction = job.segment(predictor, case, prepared)
                del prepared, ahead
                if behind is not None:
                    behind.result()
            behind = writer.submit(_conclude, predictor, case, prediction, job, record)
        if behind is not None:
            with stop.at_once():
                behind.result()


@contextmanager
def _dropping_the_rest(name: str) -> Iterator[ThreadPoolExecutor]:
    """A thread; what it has not begun in the end is never done."""
    executor = ThreadPoolExecutor(1, name)
    try:
        yield executor
    finally:
        executor.shutdown(cancel_futures=True)


def _in_turn(
    executor: ThreadPoolExecutor, act: Callable[[Case], T], cases: Sequence[Case], *, ahead: bool
) -> Iterator[tuple[Case, Future[T]]]:
    """What becomes of each case; with ``ahead`` that of the next one is begun before the user of this one is."""
    waiting: deque[tuple[Case, Future[T]]] = deque()
    for case in cases:
        waiting.append((case, executor.submit(act, case)))
        if len(waiting) > ahead:
            yield waiting.popleft()
    yield from waiting


def _conclude(predictor: Predictor, case: Case, prediction: Prediction | None, job: Job, record: Record) -> None:
    if prediction is not None:
        job.write(predictor, case, prediction, record.finished)
    if case.cause is not None:
        record.finished(case)


def predict_folder(
    predictor: Predictor,
    images: Path,
    output: Path,
    *,
    checkpoint_name: str = FINAL_PTH,
    precision: str | None = None,
    uncertainty: bool = False,
    previous: Path | None = None,
    resume: bool = False,
    part: int = 0,
    parts: int = 1,
    engine: Engine = pipeline,
) -> Outcome:
    """Segment every case of a folder of images.

    Args:
        predictor: The model.
        images: Folder of images ``CASE_0000.ending``, or of DICOM series. Images of other names are left alone, with a
            warning.
        output: Folder for what :func:`~umamba_seg.predict.writing.write_prediction` writes, made if missing. The data
            set's dataset.json is put beside the segmentations, for their evaluation, and a manifest.
        checkpoint_name: That the model was loaded from, for the manifest.
        precision: Of probabilities, ``float16`` or ``uint8``; None to save none.
        uncertainty: Also write maps of entropy, and of the folds' disagreement if there are several.
        previous: Folder with a segmentation of each case by the stage before, for the second stage of a cascade.
        resume: Leave alone what an earlier run with the same model and settings finished.
        part: Which share of the sorted cases to take, from 0.
        parts: How many shares there are.
        engine: How the cases are worked off.

    Raises:
        UserError: There are no cases, none of them could be segmented, or what is to be resumed was made with another
            model or other settings.
        CasesFailed: Some cases could not be segmented; the others are written.
        Stopped: A signal ended the run.
    """
    require_part(part, parts)
    if (previous is None) != (predictor.previous_stage is None):
        raise _wrong_stage(predictor)
    found, strangers = list_cases(images, predictor.file_ending)
    if strangers:
        logger.warning("left alone, as they are not named CASE_0000%s: %s", predictor.file_ending, shorten(strangers))
    names = list(found)[part::parts]
    make_folder(output)
    manifest = output / f"{_stem(part, parts)}.json"
    about = _about(predictor, checkpoint_name, precision, uncertainty)
    kept = {}
    if resume:
        _remove_leftovers(output, manifest.stem)
        kept = _finished_before(output, names, about)
    # A network drive keeps a file that is still mapped, so that its folder cannot be removed.
    hidden = {"prefix": f".{manifest.stem}.", "suffix": _PART, "dir": output, "ignore_cleanup_errors": True}
    stopping = StopRequest("finishing what is being written", "--resume")
    with stopping as stop, tempfile.TemporaryDirectory(**hidden) as folder, quiet():
        scratch = Path(folder).absolute()
        write_json(scratch / "dataset.json", predictor.dataset_json)
        move_into_place(scratch / "dataset.json", output / "dataset.json")
        before = None if previous is None else previous.absolute()
        job = Job(images.absolute(), output.absolute(), scratch, precision, uncertainty, before)
        with Record(manifest, scratch, about, names, kept) as record:
            cases = [Case(name, found[name]) for name in names if name not in kept]
            engine(predictor, cases, job, record, stop)
    return _outcome(record, Outcome([output / name for name in sorted(record.written)], list(kept), manifest), images)


def require_part(part: int, parts: int) -> None:
    """Refuse a share that there is not.

    Raises:
        UserError: They are counted from 0.
    """
    if not 0 <= part < parts:
        what = f"of {parts} parts, the last is number {parts - 1}"
        raise UserError(f"-part_id {part}", what, "give a smaller one, or more -num_parts")


def _wrong_stage(predictor: Predictor) -> UserError:
    option, model = "-prev_stage_predictions", predictor.model_folder
    if predictor.previous_stage is None:
        return UserError(option, f"{model} is not the second stage of a cascade", "leave it out")
    what = f"{model} needs segmentations of {predictor.previous_stage} beside the images"
    return UserError(option, what, "predict with that configuration first, and name the folder")


def _stem(part: int, parts: int) -> str:
    return "manifest" if parts == 1 else f"manifest_part_{part}_of_{parts}"


def _about(predictor: Predictor, checkpoint_name: str, precision: str | None, uncertainty: bool) -> dict:
    """What does not depend on the cases."""
    flips = predictor.flips
    return {
        "schema": _SCHEMA,
        "model": {
            "folder": predictor.model_folder.absolute().name,
            "hash": predictor.model_hash,
            "folds": list(predictor.folds),
            "configuration": predictor.configuration_name,
            "network": predictor.plans[PLANS_TABLE]["network"],
            "checkpoint": checkpoint_name,
        },
        "settings": {
            "step_size": predictor.step_size,
            "mirrored_axes": sorted({axis for flip in flips for axis in flip.axes}),
            "swapped_classes": next((list(flip.exchange.classes) for flip in flips if flip.exchange), None),
            "probabilities": precision,
            "uncertainty": uncertainty,
        },
        "versions": {
            "umamba_seg": umamba_seg.__version__,
            "nnunetv2": version("nnunetv2"),
            "torch": version("torch"),
            "python": platform.python_version(),
        },
    }


def _finished_before(output: Path, names: Sequence[str], about: dict) -> dict[str, dict]:
    """The manifests' entries of those cases that are done and whose files are there as they were written.

    Raises:
        UserError: Some are of another model or other settings, or a manifest cannot be read.
    """
    kept = {}
    for path in (*output.glob("manifest.json"), *sorted(output.glob("manifest_part_*_of_*.json"))):
        earlier = read_json(path)
        if earlier.get("schema") != _SCHEMA:
            raise UserError(
                path, "was not written by this version of umamba-seg predict", "name another folder with -o"
            )
        cases = {name: entry for name, entry in earlier["cases"].items() if name in names}
        found = {name: entry for name, entry in cases.items() if _is_there(output, entry)}
        if found and (differences := _differences(earlier, about)):
            what = f"is of other results than are asked for now: {'; '.join(differences)}"
            raise UserError(path, what, "empty the folder, or name another with -o")
        kept |= found
    return kept


def _is_there(output: Path, entry: dict) -> bool:
    if entry["status"] != "done":
        return False
    files = [output / name for name in entry["files"]]
    return all(path.is_file() for path in files) and sha256(files[0]) == entry["sha256"]


def _differences(earlier: dict, now: dict) -> list[str]:
    before, after = ({"model": content["model"]["hash"][:12], **content["settings"]} for content in (earlier, now))
    return [f"{key} was {before.get(key)}, is {value}" for key, value in after.items() if before.get(key) != value]


def _remove_leftovers(output: Path, stem: str) -> None:
    """What a run that was killed left behind."""
    for folder in output.glob(f".{stem}.*{_PART}"):
        shutil.rmtree(folder)


def _outcome(record: Record, outcome: Outcome, images: Path) -> Outcome:
    """What a run left, or what it failed at."""
    failures, written = record.failures, [str(path) for path in outcome.segmentations]
    if not failures:
        return outcome
    if written or outcome.skipped:
        error = CasesFailed(failures, written, len(outcome.skipped))
    else:
        error = UserError(
            images, "none of the cases could be segmented", "\n  ".join(["mend them:", *failures.values()])
        )
    error.result = outcome.as_json() | {"failed": failures}
    raise error


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
