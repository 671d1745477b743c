"""Compare sets of segmentations of the same cases."""

from __future__ import annotations

import argparse
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from umamba_seg.errors import UserError
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import add_common
from umamba_seg.verbs.evaluate import add_evaluate


def compare(args: Namespace) -> dict:
    folders = [Path(folder) for folder in args.folders]
    for folder in folders:
        if not folder.is_dir():
            raise UserError(folder, "no such folder", "name folders of segmentations, after that of their references")
    references = None if (folders[0] / "metrics.json").is_file() else folders.pop(0)
    if len(folders) < 2:
        what = f"one folder of segmentations is not enough; {references} holds no metrics.json, so it is the references"
        raise UserError("compare", what, "name two or more")
    names = _names(folders, args.names)
    for folder in folders:
        if not (folder / "metrics.json").is_file():
            _evaluate(references, folder, args.metric)

    from umamba_seg.evaluate import compare as comparing
    from umamba_seg.evaluate.results import read_case_metrics

    tables = {name: read_case_metrics(folder) for name, folder in zip(names, folders, strict=True)}
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


def _evaluate(references: Path | None, predictions: Path, metric: str) -> None:
    """As ``umamba-seg evaluate REFERENCES PREDICTIONS`` does."""
    if references is None:
        what = "holds no metrics.json, and no references are named"
        raise UserError(predictions, what, "name the references first, or run `umamba-seg evaluate`")
    logger.info("%s holds no metrics.json: evaluating it", predictions)
    parser = argparse.ArgumentParser()
    add_evaluate(parser.add_subparsers())
    options = ["--instances"] if metric.startswith("instance_") else []
    args = parser.parse_args(["evaluate", str(references), str(predictions), "--json", *options])
    args.run(args)


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
        help="references, and two or more folders of segmentations of the same cases; those without metrics.json are "
        "evaluated first. References are left out where all folders hold metrics.json",
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
