"""Step 3: raw data set + plans -> cropped, resampled, normalised cases, by nnU-Net's preprocessor.

Complete data of an earlier run is used again: its folder is named after what shapes it, and a stamp beside it lists the
raw files that it was made from.
"""

from __future__ import annotations

import filecmp
import hashlib
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from umamba_seg.datasets.raw import RawDataset
from umamba_seg.errors import UserError
from umamba_seg.files import draft_of, make_folder, read_json, write_json
from umamba_seg.locks import only_one
from umamba_seg.log import interactive, logger, quiet
from umamba_seg.plan.safety import inherited
from umamba_seg.text import shorten

_CASE_FILES = (".b2nd", "_seg.b2nd", ".pkl")  # what nnU-Net writes for a case


def _raw_files(dataset: RawDataset) -> dict[str, list[int]]:
    """Size and modification time of every raw file, by its path below the data set's folder."""
    files = [path for case in dataset.cases for path in (*case.images, case.label) if path is not None]
    return {os.path.relpath(path, dataset.folder): [path.stat().st_size, path.stat().st_mtime_ns] for path in files}


def preprocess(dataset: RawDataset, plans: dict, configurations: list[str], preprocessed: Path, processes: int) -> None:
    """Preprocess the configurations of ``plans`` and copy the reference segmentations for the validation.

    Args:
        dataset: The raw data set.
        plans: As written by :func:`umamba_seg.plan.planner.plan_dataset`.
        configurations: Names in the plans.
        preprocessed: ``nnUNet_preprocessed/DatasetNNN_Name``; nnU-Net's folders must have been exported.
        processes: Worker processes.

    Raises:
        UserError: Another process preprocesses the same.
    """
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    manager = PlansManager(plans)
    for name in configurations:
        configuration = manager.get_configuration(name)
        data, stamp = configuration.data_identifier, stamp_of(preprocessed, plans, name)
        with only_one(preprocessed / f".{data}.lock", "preprocessing this data set"):
            if is_preprocessed(dataset, plans, name, preprocessed):
                logger.info("%s: preprocessed data is there already (%s)", name, data)
                continue
            stamp.unlink(missing_ok=True)
            raw_files = _raw_files(dataset)
            with quiet():
                preprocessor = configuration.preprocessor_class(verbose=False)
                preprocessor.show_progress_bar = interactive()
                preprocessor.run(preprocessed.name, name, plans["plans_name"], processes)
            write_json(stamp, raw_files)

    references = make_folder(preprocessed / "gt_segmentations")
    for case in dataset.cases:
        if case.label is not None:
            _copy(case.label, references / f"{case.identifier}{dataset.file_ending}")


def _copy(label: Path, reference: Path) -> None:
    """One that is the same stays as it is; another is newer than all that was measured by the one before."""
    if not reference.is_file() or not filecmp.cmp(label, reference, shallow=False):
        with draft_of(reference) as part:
            shutil.copyfile(label, part)


def stamp_of(preprocessed: Path, plans: dict, configuration: str) -> Path:
    """The file that lists what a configuration's data was made from, and is written last.

    Raises:
        UserError: The plans do not hold the configuration.
    """
    return preprocessed / f"{_identifier(plans, configuration)}.stamp"


def origin_of(preprocessed: Path, plans: dict, configuration: str) -> str | None:
    """A hash of the sizes and times of the raw files that a configuration's data was made from.

    None where nnU-Net has preprocessed it, which does not note them.

    Raises:
        UserError: The plans do not hold the configuration.
    """
    stamp = stamp_of(preprocessed, plans, configuration)
    return hashlib.sha256(stamp.read_bytes()).hexdigest() if stamp.is_file() else None


def _identifier(plans: dict, configuration: str) -> str:
    where = f"plans {plans['plans_name']}, {configuration}"
    return inherited(plans["configurations"], configuration, where)["data_identifier"]


def is_preprocessed(dataset: RawDataset, plans: dict, configuration: str, preprocessed: Path) -> bool:
    """Whether the data of all cases is there, made from the raw files as they are now.

    Raises:
        UserError: The plans do not hold the configuration.
    """
    stamp = stamp_of(preprocessed, plans, configuration)
    if not stamp.is_file() or read_json(stamp) != _raw_files(dataset):
        return False
    return not unprepared(preprocessed, plans, configuration, [case.identifier for case in dataset.cases])


def unprepared(preprocessed: Path, plans: dict, configuration: str, cases: Iterable[str]) -> list[str]:
    """The cases of which a configuration has no preprocessed data.

    Raises:
        UserError: The plans do not hold the configuration.
    """
    folder = preprocessed / _identifier(plans, configuration)
    return [case for case in cases if not all((folder / f"{case}{end}").is_file() for end in _CASE_FILES)]


def require_preprocessed(preprocessed: Path, plans: dict, configuration: str, cases: Iterable[str]) -> None:
    """Refuse to train on cases that are not there; nnU-Net would find out when it draws them.

    Raises:
        UserError: Names the cases.
    """
    if missing := unprepared(preprocessed, plans, configuration, cases):
        raise UserError(
            preprocessed / plans["configurations"][configuration]["data_identifier"],
            f"holds no preprocessed data of {shorten(missing)}",
            f"run `umamba-seg plan_and_preprocess` with -c {configuration}, or correct splits_final.json",
        )
