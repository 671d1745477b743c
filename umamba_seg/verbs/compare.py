"""Compare sets of segmentations of the same cases."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import add_common


def compare(args: Namespace) -> dict:
    folders, references = [Path(folder) for folder in args.folders], Path(args.r) if args.r else None
    for folder in (*folders, *([references] if references else [])):
        if not folder.is_dir():
            raise UserError(folder, "no such folder", "name folders of segmentations, and their references with -r")
    if len(folders) < 2:
        what = "one folder of segmentations is not enough"
        raise UserError("compare", what, "name two or more, and their references with -r")
    names = _names(folders, args.names)

    from umamba_seg.evaluate import compare as comparing

    tables = {
        name: comparing.metrics_of(folder, args.metric, references) for name, folder in zip(names, folders, strict=True)
    }
    comparison = comparing.compare(tables, args.metric)
    written = comparing.write_comparison(comparison, Path(args.o))
    if not args.json:
        print(comparing.comparison_table(comparison))
    logger.info("written: %s", ", ".join(map(str, written)))
    return comparing.content_of(comparison) | {"written": [str(path) for path in written]}


def _names(folders: Sequence[Path], given: Sequence[str] | None) -> list[str]:
    """What the folders are called: as few of the last parts of their paths as tell them apart."""
    if given is not None:
        if len(given) != len(folders) or len(set(given)) < len(given):
            what = f"{len(given)} names for {len(folders)} folders, which must differ"
            raise UserError(f"--names {' '.join(given)}", what, "give each folder of segmentations a name of its own")
        return list(given)
    parts = [folder.resolve().parts for folder in folders]
    for count in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[-count:]) for part in parts]
        if len(set(names)) == len(names):
            return names
    raise UserError("compare", "a folder is named twice", "name different folders")


def add_compare(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "compare",
        help="tell whether segmentations are better than others by more than the noise between cases",
        allow_abbrev=False,
    )
    parser.add_argument(
        "folders",
        nargs="+",
        metavar="FOLDER",
        help="two or more folders of segmentations of the same cases; their metrics.json are compared",
    )
    parser.add_argument(
        "-r",
        metavar="REFERENCES",
        help="folder of references: segmentations are evaluated first where metrics.json is missing, is of other "
        "references, lacks the metric, or is older than a segmentation or reference",
    )
    parser.add_argument("--metric", metavar="NAME", default="dice", help="what is compared (default: dice)")
    parser.add_argument("--names", metavar="NAME", nargs="+", help="of the folders of segmentations, in their order")
    parser.add_argument(
        "-o",
        metavar="FOLDER",
        default="comparison",
        help="for compare.json, compare.csv and compare.png (default: %(default)s)",
    )
    add_common(parser)
    parser.set_defaults(run=compare)
