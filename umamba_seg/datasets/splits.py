"""Cross-validation splits: nnU-Net's own, or splits that keep the cases of one patient on one side.

nnU-Net's split is random over cases: two slices of one patient may lie on both sides, and validation then measures
memory. A pattern that finds the patient in a case's name prevents that.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.files import is_file_name, parse_json
from umamba_seg.log import logger
from umamba_seg.text import shorten

Split = dict[str, list[str]]
"""``{"train": [...], "val": [...]}``, lists of case identifiers."""

_SEED = 12345


def groups_of(identifiers: Iterable[str], pattern: str | None) -> dict[str, str]:
    """identifier -> group (usually the patient): what the pattern's first group, or else the whole pattern, matches.

    The pattern is searched anywhere in the identifier; begin it with ``^`` to tie it to the start. Without a pattern
    every case is its own group.

    Raises:
        UserError: The pattern is no regular expression, or matches nothing in some identifiers (they are named).
    """
    if pattern is None:
        return {identifier: identifier for identifier in identifiers}
    try:
        regex = re.compile(pattern)
    except re.error as error:
        what = f"is not a regular expression ({error})"
        raise UserError(f"group pattern {pattern!r}", what, r"write one such as ^([^_]+) or patient(\d+)") from None
    matches = {identifier: regex.search(identifier) for identifier in identifiers}
    groups = {identifier: match[min(regex.groups, 1)] for identifier, match in matches.items() if match}
    unmatched = [identifier for identifier in matches if not groups.get(identifier)]
    if unmatched:
        what = f"finds no group in {len(unmatched)} of {len(matches)} cases: {shorten(unmatched)}"
        raise UserError(f"group pattern {pattern!r}", what, "write a pattern that fits the name of every case")
    return groups


def make_splits(
    identifiers: Sequence[str],
    *,
    group_pattern: str | None = None,
    val_groups: Sequence[str] | None = None,
    folds: int = 5,
) -> list[Split]:
    """Split cases for cross-validation.

    Args:
        identifiers: The training cases, in any order.
        group_pattern: Keeps the cases of one group in one fold (see :func:`groups_of`). Without it the split is
            nnU-Net's own.
        val_groups: Makes one fold, whose validation cases are those of these groups.
        folds: Number of folds. With fewer groups than folds, every group is one fold; that is logged.

    Returns:
        One split per fold; none, with a warning, where there is but one case.

    Raises:
        UserError: Fewer than two groups or folds, an unknown group, a pattern that does not fit.
    """
    if folds < 2:
        raise UserError("folds", f"{folds} is too few", "give 2 or more")
    groups = groups_of(sorted(identifiers), group_pattern)
    members: dict[str, list[str]] = defaultdict(list)
    for identifier, group in groups.items():
        members[group].append(identifier)
    kind = "cases" if group_pattern is None else "groups"
    if val_groups is not None:
        return [_hold_out(members, val_groups)]
    if len(groups) == 1:
        logger.warning("no folds: there is one case only, which fold all can be trained on")
        return []
    if len(members) < 2:
        what = f"too few {kind} ({len(members)}) to split into training and validation"
        raise UserError("splits", what, f"add {kind}")
    if len(members) < folds:
        logger.info("%d folds instead of %d: there are only that many %s", len(members), folds, kind)
        folds = len(members)
    if group_pattern is None:
        return _nnunet_splits(list(groups), folds)
    return _group_splits(members, folds)


def load_splits(path: Path) -> list[Split]:
    """Read nnU-Net's ``splits_final.json``.

    Raises:
        UserError: It is missing or is not a list of ``{"train": [...], "val": [...]}`` with case names in both.
    """
    splits = parse_json(path)
    remedy = 'write [{"train": ["CASE", ...], "val": ["CASE", ...]}, ...], one entry per fold'
    if not isinstance(splits, list) or not splits:
        raise UserError(path, "is not a list of folds", remedy)
    for fold, split in enumerate(splits):
        for side in ("train", "val"):
            names = split.get(side) if isinstance(split, dict) else None
            if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
                raise UserError(path, f'fold {fold} has no list of case names "{side}"', remedy)
            if paths := [name for name in names if not is_file_name(name)]:
                raise UserError(path, f"fold {fold} names cases by paths: {shorten(paths)}", remedy)
    return splits


def existing_splits(raw: Path, preprocessed: Path) -> list[Split] | None:
    """nnU-Net's splits_final.json of a data set, if there is one.

    It may lie in the folder of the raw data set, from where planning copies it to the preprocessed one, which training
    reads; there it may hold more folds.

    Raises:
        UserError: The two contradict each other.
    """
    files = [folder / "splits_final.json" for folder in (raw, preprocessed)]
    found = [load_splits(path) for path in files if path.is_file()]
    if len(found) == 2 and found[1][: len(found[0])] != found[0]:
        raise UserError(files[1], f"differs from {files[0]}", "remove the one that should not count")
    return found[-1] if found else None


def settle_splits(
    existing: list[Split] | None,
    identifiers: Sequence[str],
    *,
    default_pattern: str | None,
    group_pattern: str | None,
    val_groups: Sequence[str] | None,
) -> list[Split]:
    """The splits that are there, or new ones.

    Args:
        existing: From :func:`existing_splits`.
        identifiers: The training cases.
        default_pattern: The data set's own group pattern.
        group_pattern, val_groups: What the user asks for, if anything.

    Raises:
        UserError: The user asks for other splits than those that are there.
    """
    asked = group_pattern is not None or val_groups is not None
    if existing is not None and not asked:
        return existing
    splits = make_splits(identifiers, group_pattern=group_pattern or default_pattern, val_groups=val_groups)
    if existing not in (None, splits):
        raise UserError(
            "splits_final.json",
            "is there already and differs from the split that --group-pattern and --val-groups ask for",
            "leave these options out to honour the file, or move it away to make a new split",
        )
    return splits


def _nnunet_splits(identifiers: list[str], folds: int) -> list[Split]:
    from sklearn.model_selection import KFold

    def pick(indices: Iterable[int]) -> list[str]:
        return [identifiers[index] for index in indices]

    shuffled = KFold(n_splits=folds, shuffle=True, random_state=_SEED).split(identifiers)
    return [{"train": pick(train), "val": pick(val)} for train, val in shuffled]


def _group_splits(members: dict[str, list[str]], folds: int) -> list[Split]:
    """Deal out the groups, largest first, each to the fold with the fewest cases.

    sklearn's GroupKFold does the same, but its order of equal groups depends on the processor's sort instructions.
    """
    held_out: list[list[str]] = [[] for _ in range(folds)]
    for group in sorted(members, key=lambda name: (-len(members[name]), name)):
        min(held_out, key=len).extend(members[group])
    everything = sorted(case for cases in members.values() for case in cases)
    return [_split(everything, set(val)) for val in held_out]


def _hold_out(members: dict[str, list[str]], val_groups: Sequence[str]) -> Split:
    unknown = [group for group in val_groups if group not in members]
    if unknown or not val_groups:
        what = f"no such groups: {shorten(unknown)}" if unknown else "no validation group was given"
        raise UserError("validation groups", what, f"choose from {shorten(sorted(members))}")
    if len(set(val_groups)) == len(members):
        raise UserError("validation groups", "all groups are named: nothing is left to train on", "leave some out")
    everything = sorted(case for cases in members.values() for case in cases)
    return _split(everything, {case for group in val_groups for case in members[group]})


def _split(identifiers: list[str], val: set[str]) -> Split:
    return {
        "train": [case for case in identifiers if case not in val],
        "val": [case for case in identifiers if case in val],
    }
