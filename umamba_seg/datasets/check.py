"""Check a raw data set before anything is computed from it: every file, then what only shows across cases."""

from __future__ import annotations

import multiprocessing
from collections import defaultdict
from collections.abc import Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from functools import partial

from umamba_seg.datasets.case_checks import CaseResult, check_case, check_case_images
from umamba_seg.datasets.findings import Finding, Report
from umamba_seg.datasets.raw import Case, RawDataset, find_cases, label_cases, visible_files
from umamba_seg.datasets.splits import Split, groups_of
from umamba_seg.errors import UserError
from umamba_seg.log import progress
from umamba_seg.text import shorten

__all__ = ["Finding", "Report", "check_case_images", "check_dataset"]

_POOL_BYTES = 50 << 20
"""Workers take about a second to start; below this much compressed data one process is done by then."""


def check_dataset(
    dataset: RawDataset,
    *,
    processes: int = 1,
    group_pattern: str | None = None,
    splits: Sequence[Split] | None = None,
    problems: Sequence[UserError] = (),
) -> Report:
    """Open every case of a data set, imagesTs included, and look for what would spoil training or its evaluation.

    Args:
        dataset: What :func:`umamba_seg.datasets.raw.load_raw_dataset` returned.
        processes: Number of worker processes for large data sets.
        group_pattern: Finds the patient in a case's name (see :func:`umamba_seg.datasets.splits.groups_of`). The
            default is the entry ``group_pattern`` of dataset.json; without either every case is its own patient.
        splits: The cross-validation splits to check for cases that do not exist and patients on both sides.
        problems: What :func:`umamba_seg.datasets.raw.load_raw_dataset` complained of.

    Returns:
        All findings, errors first. Nothing is raised for them: see :meth:`Report.raise_if_errors`.
    """
    findings = [Finding.of(problem) for problem in problems]
    tests = _test_cases(dataset, findings)
    results = _check_cases((*dataset.cases, *tests), dataset, processes)
    trained, tested = results[: len(dataset.cases)], results[len(dataset.cases) :]
    findings += _check_pairs(dataset)
    findings += _check_hidden(dataset)
    findings += [finding for result in results for finding in result.findings]
    findings += _check_duplicates(dataset.cases, trained, tests, tested)
    findings += _check_label_use(dataset, trained)
    findings += _check_patients(dataset, tests, group_pattern, splits or ())
    prefix = f"{dataset.folder}/"
    relative = [replace(finding, where=finding.where.removeprefix(prefix)) for finding in findings]
    return Report(dataset.folder, len(results), tuple(sorted(relative, key=lambda finding: finding.severity)))


def _test_cases(dataset: RawDataset, findings: list[Finding]) -> tuple[Case, ...]:
    """The cases in imagesTs, with their labels where labelsTs has them."""
    folder = dataset.folder / "imagesTs"
    if not folder.is_dir() or not any(folder.iterdir()):
        return ()
    try:
        files = find_cases(folder, dataset.file_ending, dataset.channels)
    except UserError as error:
        findings.append(Finding.of(error))
        return ()
    return label_cases(files, dataset.folder / "labelsTs", dataset.file_ending)


def _check_cases(cases: Sequence[Case], dataset: RawDataset, processes: int) -> list[CaseResult]:
    check = partial(check_case, labels=dataset.labels, channels=dataset.channels)
    size = sum(path.stat().st_size for case in cases for path in case.images if path.exists())
    if processes == 1 or size < _POOL_BYTES:
        return list(progress(map(check, cases), "checking", len(cases)))
    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        return list(progress(pool.map(check, cases), "checking", len(cases)))


def _check_pairs(dataset: RawDataset) -> list[Finding]:
    """Images without a label, and labels without an image."""
    what, remedy = "has images but no label file", "add the label to labelsTr, or remove the case"
    findings = [Finding("error", case.identifier, what, remedy) for case in dataset.cases if case.label is None]
    if "dataset" in dataset.json:
        return findings
    known = {f"{case.identifier}{dataset.file_ending}" for case in dataset.cases}
    labels = dataset.folder / "labelsTr"
    names = visible_files(labels) if labels.is_dir() else []
    orphans = [name for name in names if name.endswith(dataset.file_ending) and name not in known]
    what, remedy = "has no image in imagesTr", "add the image, or remove the label"
    return findings + [Finding("error", str(labels / name), what, remedy) for name in orphans]


def _check_hidden(dataset: RawDataset) -> Iterable[Finding]:
    """Hidden files that end like images (macOS leaves ``._x.nii.gz``): nnU-Net takes them for cases."""
    if "dataset" in dataset.json:
        return
    for path in sorted((dataset.folder / "imagesTr").glob(f".*{dataset.file_ending}")):
        yield Finding("error", str(path), "is hidden, and nnU-Net would take it for a case", "delete it")


def _check_duplicates(
    cases: Sequence[Case], trained: Sequence[CaseResult], tests: Sequence[Case], tested: Sequence[CaseResult]
) -> list[Finding]:
    """The same voxels under two names; across imagesTr and imagesTs that spoils the test."""
    same: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, (members, results) in enumerate(((cases, trained), (tests, tested))):
        for case, result in zip(members, results, strict=True):
            if result.digest:
                same[result.digest][side].append(case.identifier)
    findings = []
    for in_training, in_test in same.values():
        if in_training and in_test:
            what = f"the same images are in imagesTr ({shorten(in_training)}) and in imagesTs ({shorten(in_test)})"
            findings.append(Finding("error", in_training[0], what, "remove them from one of the two"))
        elif len(in_training) + len(in_test) > 1:
            names = in_training or in_test
            findings.append(Finding("warning", names[0], f"{shorten(names)} hold the same images", "keep one of them"))
    return findings


def _check_label_use(dataset: RawDataset, results: Sequence[CaseResult]) -> list[Finding]:
    """Labels that occur in no case. Silent if any label file could not be read."""
    values = [result.label_values for result in results]
    if None in values:
        return []
    present = frozenset().union(*(found for found in values if found))
    unused = [
        name
        for name, value in dataset.labels.foreground.items()
        if present.isdisjoint(value if isinstance(value, tuple) else (value,))
    ]
    if len(unused) == len(dataset.labels.foreground):
        what = f"no training case holds any of the labels {', '.join(unused)}"
        return [Finding("error", "labelsTr", what, "give label files that mark something")]
    return [
        Finding("warning", "dataset.json", f'the label "{name}" occurs in no training case', "remove it, or add cases")
        for name in unused
    ]


def _check_patients(
    dataset: RawDataset, tests: Sequence[Case], pattern: str | None, splits: Sequence[Split]
) -> list[Finding]:
    """Patients in training and test, or on both sides of a fold."""
    names = [case.identifier for case in dataset.cases]
    try:
        pattern = pattern or dataset.group_pattern
        groups = groups_of(names, pattern)
        test_groups = groups_of([case.identifier for case in tests], pattern)
    except UserError as error:
        return [Finding.of(error)]
    findings = []
    shared = sorted(set(groups.values()) & set(test_groups.values()))
    if shared:
        kind = "cases" if pattern is None else "patients"
        what = f"{kind} both in imagesTr and in imagesTs ({len(shared)}): {shorten(shared)}"
        findings.append(Finding("warning", "imagesTs", what, "keep the test apart, or rename what is not the same"))
    for fold, split in enumerate(splits):
        findings += _check_fold(fold, split, groups)
    return findings


def _check_fold(fold: int, split: Split, groups: dict[str, str]) -> Iterable[Finding]:
    where = f"splits_final.json, fold {fold}"
    unknown = [name for name in (*split["train"], *split["val"]) if name not in groups]
    if unknown:
        what = f"names cases that do not exist ({len(unknown)}): {shorten(unknown)}"
        yield Finding("error", where, what, "correct or remove the file of splits")
    sides: dict[str, tuple[list[str], list[str]]] = defaultdict(lambda: ([], []))
    for side, key in enumerate(("train", "val")):
        for name in split[key]:
            if name in groups:
                sides[groups[name]][side].append(name)
    for patient, (train, val) in sorted(sides.items()):
        if train and val:
            what = f"{patient} is in training ({shorten(train, 3)}) and in validation ({shorten(val, 3)})"
            by_patient = "split by patient: remove the file, and plan with --group-pattern"
            yield Finding("error", where, what, "name it once" if train == val == [patient] else by_patient)
