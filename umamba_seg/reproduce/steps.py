"""What a job still lacks, as commands of ours: files alone tell, so that any kill is gone on from.

Training and prediction are commands that a user could type; they run in processes of their own. What is measured is
measured here.
"""

from __future__ import annotations

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

from umamba_seg.datasets.raw import list_images, load_raw_dataset
from umamba_seg.errors import UserError
from umamba_seg.evaluate.case import metric_words
from umamba_seg.evaluate.protocols import choose_protocol
from umamba_seg.evaluate.results import NAME, evaluate_segmentations, read_case_metrics
from umamba_seg.files import make_folder, read_json
from umamba_seg.plan.plans import read_plans
from umamba_seg.reproduce.runs import Job, training_options
from umamba_seg.text import shorten
from umamba_seg.train import FINAL_PTH, resumable

_CHECKED = ("seed", "epochs", "iterations_per_epoch")  # of the options, what a user may give to `train` by hand


@dataclass(frozen=True)
class Step:
    """A command that brings a job forward.

    Attributes:
        what: In a word or two.
        command: Arguments of ``umamba-seg``.
    """

    what: str
    command: tuple[str, ...]

    def __str__(self) -> str:
        return shlex.join(self.command)


@dataclass(frozen=True)
class Machine:
    """What commands are told beside the job.

    Attributes:
        device: ``-device``, or None.
        processes: ``-np``, or None.
    """

    device: str | None = None
    processes: int | None = None

    def options(self, *, device: bool) -> list[str]:
        found = ["-device", self.device] if device and self.device else []
        return found + (["-np", str(self.processes)] if self.processes else [])


def convert_step(job: Job, source: Path | None) -> Step | None:
    """What makes the raw data set; None if it is there.

    Raises:
        UserError: It is neither there nor is a source given, or there is no converter.
    """
    if job.raw.is_dir():
        return None
    if source is None:
        raise UserError(job.raw, "no such data set", f"give --source {job.key}=FOLDER; see datasets.md")
    if not job.dataset.convert:
        what = "there is no converter for this data set"
        raise UserError(f"--source {job.key}", what, f"make {job.raw} as datasets.md says")
    number, name = int(job.name[7:10]), job.name[11:]
    options = (*job.dataset.convert, "-i", str(source.absolute()), "-d", str(number), "--name", name)
    return Step("convert", ("convert", *options))


def plan_step(job: Job, machine: Machine) -> Step | None:
    """What plans and preprocesses; None if that is done."""
    if _is_planned(job):
        return None
    training = job.training
    options = [*_named(job), "--network", job.network, *machine.options(device=False)]
    for option, value in (
        ("--budget", training.budget),
        ("-gpu_memory_target", training.gpu_memory_target),
        ("--vram-gb", training.vram_gb),
        ("--recipe", training.recipe),
        ("--like", job.like),
    ):
        options += [] if value is None else [option, f"{value:g}" if isinstance(value, float) else value]
    return Step("plan", ("plan_and_preprocess", *options))


def _is_planned(job: Job) -> bool:
    """Raw files that were changed count as long as a fold needs their data; later the footer tells."""
    from umamba_seg.preprocess import is_preprocessed

    if not (job.preprocessed / f"{job.plans}.json").is_file():
        return False
    if all(_is_finished(job, folder) for folder in job.fold_folders):
        return True
    if not job.raw.is_dir():  # it is yet to be converted
        return False
    plans, configuration = read_plans(job.preprocessed, job.plans), job.dataset.configuration
    return configuration in plans["configurations"] and is_preprocessed(
        load_raw_dataset(job.raw), plans, configuration, job.preprocessed
    )


def _ending(job: Job) -> str:
    return read_json(job.raw / "dataset.json")["file_ending"]


def _named(job: Job) -> list[str]:
    return ["-d", job.name, "-c", job.dataset.configuration, "-p", job.plans]


def fold_step(job: Job, fold: int | str, machine: Machine) -> Step | None:
    """What a fold lacks, of a training to its validation, which only counts where held-out cases are scored.

    Raises:
        UserError: It was trained with another seed, or another number of iterations, than the table's.
    """
    folder = job.model / f"fold_{fold}"
    _require_as_asked(job, folder)
    options, told = ("train", *_named(job), "-f", str(fold)), machine.options(device=True)
    if _is_finished(job, folder):
        return None
    if (folder / FINAL_PTH).is_file():
        return Step(f"validate fold {fold}", (*options, "--val", *told))
    if resumable(folder):
        return Step(f"go on with fold {fold}", (*options, "--c", *told))
    epochs = () if job.training.epochs is None else ("--epochs", str(job.training.epochs))
    return Step(f"train fold {fold}", (*options, "--seed", str(job.seed), *epochs, *told))


def _is_finished(job: Job, fold_folder: Path) -> bool:
    """Whether it is trained, and validated where that counts."""
    validated = job.dataset.scored == "test" or (fold_folder / "validation" / "summary.json").is_file()
    return validated and (fold_folder / FINAL_PTH).is_file()


def _require_as_asked(job: Job, fold_folder: Path) -> None:
    file = fold_folder / "run.json"
    if not file.is_file():
        return
    found = read_json(file)["training"]
    asked = training_options(job.training).overridden(seed=job.seed).model_dump()
    for name in _CHECKED:
        if asked[name] is not None and found[name] != asked[name]:
            what = f"was trained with {name} {found[name]}, and the table asks for {asked[name]}"
            raise UserError(fold_folder, what, f"move {job.model} away, or give the table another name")


def predict_step(job: Job, machine: Machine) -> Step | None:
    """What segments the test cases; None if the folds' held-out cases are measured, or it is done."""
    if job.dataset.scored == "validation":
        return None
    goes_on = _is_of_these_files(job)
    if goes_on and _is_predicted(job):
        return None
    places = ("-m", str(job.model), "-i", str(job.raw / "imagesTs"), "-o", str(job.predictions))
    folds = ("-f", *map(str, job.dataset.folds))
    mirroring = () if job.dataset.mirroring else ("--disable_tta",)
    resume = ("--resume",) if goes_on else ()
    return Step("predict", ("predict", *places, *folds, *mirroring, *resume, *machine.options(device=True)))


def _is_predicted(job: Job) -> bool:
    cases = read_json(_manifest(job))["cases"]
    return set(cases) == set(_test_images(job)) and {case["status"] for case in cases.values()} == {"done"}


def _is_of_these_files(job: Job) -> bool:
    """Whether the test cases' segmentations, all or some, are of the models and images that are there now."""
    manifest = _manifest(job)
    used = [folder / FINAL_PTH for folder in job.fold_folders]
    if not manifest.is_file() or not all(path.is_file() for path in used):
        return False
    used += [path for files in _test_images(job).values() for path in files.values()]
    return manifest.stat().st_mtime_ns >= max(path.stat().st_mtime_ns for path in used)


def _manifest(job: Job) -> Path:
    return job.predictions / "manifest.json"


def _test_images(job: Job) -> dict[str, dict[int, Path]]:
    return list_images(job.raw / "imagesTs", _ending(job))[0]


def require_test_cases(job: Job) -> None:
    """Refuse to train for test cases that cannot be scored.

    Raises:
        UserError: There are none, or images and references are not of the same cases.
    """
    if job.dataset.scored == "validation":
        return
    remedy = "put the test cases of the table there, with their references, and no others"
    if not (job.raw / "imagesTs").is_dir():
        raise UserError(job.raw / "imagesTs", "no such folder, and the table scores test cases", remedy)
    ending = _ending(job)
    references = {path.name.removesuffix(ending) for path in (job.raw / "labelsTs").glob(f"[!.]*{ending}")}
    if unlike := sorted(set(_test_images(job)) ^ references):
        raise UserError(job.raw, f"imagesTs and labelsTs are not of the same cases: {shorten(unlike)}", remedy)


# ----------------------------------------------------------------------------------------------------------- measuring


def is_measured(job: Job) -> bool:
    """Whether metrics.json is there, by the table's rules, and newer than what it measures."""
    file = job.segmentations / NAME
    if not file.is_file():
        return False
    rules, found = read_json(file)["protocol"], read_case_metrics(file)
    if rules["name"] != job.dataset.protocol or found.newer_file() is not None:
        return False
    if any(path.is_file() and path.stat().st_mtime_ns > file.stat().st_mtime_ns for path in _origins(job)):
        return False
    return job.counts_cells or tuple(rules["metrics"]) == _metrics(job)


def _origins(job: Job) -> list[Path]:
    """What is written last of the segmentations, which for cells and for several folds are copied before they are
    measured."""
    if job.dataset.scored == "test":
        return [_manifest(job)]
    if len(job.dataset.folds) == 1:
        return []
    return [fold / "validation" / "summary.json" for fold in job.fold_folders]


def _metrics(job: Job) -> tuple[str, ...]:
    return choose_protocol(job.dataset.protocol, metric_words(job.dataset.metrics)).metrics


def measure(job: Job, processes: int | None) -> None:
    """Write metrics.json beside the segmentations of a job whose folds are trained.

    Raises:
        UserError: A case that was held out is missing, or cannot be measured.
    """
    if job.counts_cells:
        _count_cells(job)
        return
    if job.dataset.scored == "validation":
        _gather(job)
    evaluate_segmentations(
        job.references,
        job.segmentations,
        job.dataset.metrics,
        job.dataset.protocol,
        description=job.raw / "dataset.json",
        processes=processes,
        allow_missing=job.dataset.scored == "validation",  # references are of all cases
    )


def _gather(job: Job) -> None:
    """Put the segmentations of several folds into one folder, and see that all that were held out are there."""
    from umamba_seg.select.crossval import Model, held_out_cases, validation_files

    folds = [int(fold) for fold in job.dataset.folds]
    cases = held_out_cases(job.preprocessed / "splits_final.json", folds)
    model = Model(job.model, job.plans, job.dataset.configuration)
    files = validation_files(model, folds, cases, _ending(job))
    if len(folds) == 1:
        return
    make_folder(job.segmentations)
    for path in files.values():
        target = job.segmentations / path.name
        shutil.copyfile(path, target)


def _count_cells(job: Job) -> None:
    from umamba_seg.datasets.instances import separate_folder
    from umamba_seg.evaluate.instances import evaluate_instances

    separate_folder(job.predictions, job.segmentations, rule=job.dataset.protocol)
    evaluate_instances(job.references, job.segmentations, protocol=job.dataset.protocol)
