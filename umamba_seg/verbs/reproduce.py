"""A paper's table beside ours."""

from __future__ import annotations

import argparse
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from umamba_seg import paths
from umamba_seg.errors import UserError
from umamba_seg.files import draft_of, make_folder, write_text
from umamba_seg.log import logger
from umamba_seg.verbs.arguments import (
    add_common,
    add_device,
    add_processes,
    add_root,
    device_of,
    not_negative,
    positive,
)

if TYPE_CHECKING:
    from umamba_seg.reproduce.outcome import Outcome
    from umamba_seg.reproduce.table import PaperTable


class RunsFailed(UserError):
    """Some runs of a table failed while the others were finished. The command line exits with code 3."""

    exit_code = 3


def reproduce(args: Namespace) -> dict:
    from umamba_seg.reproduce.runs import changed, jobs_of
    from umamba_seg.reproduce.table import read_table

    if args.cluster:
        from umamba_seg.scheduler import require_cluster

        require_cluster(args.cluster, args.workers)
    elif args.workers:
        raise UserError(f"--workers {args.workers}", "are of a cluster", "add --cluster, or leave it out")
    table, remarks = changed(
        read_table(args.table),
        seeds=args.seeds,
        epochs=args.epochs,
        folds=args.folds,
        only=args.only,
        with_noscan=args.with_noscan,
    )
    folders = paths.resolve(args.root).export()
    jobs = jobs_of(table, folders, epochs_given=args.epochs is not None)
    sources = _sources(args.source, table)
    device = device_of(args.device)

    from umamba_seg.reproduce.collect import collect
    from umamba_seg.reproduce.costs import costs_of
    from umamba_seg.reproduce.execute import Workshop
    from umamba_seg.reproduce.steps import Machine
    from umamba_seg.reproduce.ways import way_to

    machine = Machine(args.device, args.np)
    if args.dry_run:
        from umamba_seg.reproduce.forecast import as_text, forecast

        found = forecast(jobs, sources, machine, costs_of(table, jobs, device))
        if not args.json:
            print(as_text(found))
        return found
    absent = {job.key for job in jobs if not job.raw.is_dir() and job.key not in sources}
    workshop = Workshop(machine, args.cluster, args.workers)
    workshop.work_off([job for job in jobs if job.key not in absent], sources)
    outcome = collect(table, jobs, costs_of(table, jobs, device), remarks, workshop.failures)
    written = _write(outcome, Path(args.o or f"reproduced/{table.name}"), show=not args.json)
    for key in sorted(absent):
        logger.info("\n%s", way_to(key, table.datasets[key]))
    result = {"files": [str(path) for path in written], "absent": sorted(absent)}
    if workshop.failures:
        lines = "".join(f"\n  {job}: {message}" for job, message in workshop.failures.items())
        error = RunsFailed(
            f"table {table.name}",
            f"{len(workshop.failures)} of {len(jobs)} runs failed",
            f"mend these and run the same command again:{lines}",
        )
        error.result = result
        raise error
    return result


def _write(outcome: Outcome, folder: Path, *, show: bool) -> list[Path]:
    from umamba_seg.reproduce.render import as_csv, as_html, as_markdown, as_picture

    make_folder(folder)
    picture = as_picture(outcome)
    texts = {"table.md": as_markdown(outcome), "table.csv": as_csv(outcome), "table.html": as_html(outcome, picture)}
    for name, text in texts.items():
        write_text(folder / name, text)
    if show:
        print(texts["table.md"])
    written = [folder / name for name in texts]
    if picture is not None:
        with draft_of(folder / "table.png") as part:
            part.write_bytes(picture)
        written.append(folder / "table.png")
    logger.info("written: %s", ", ".join(map(str, written)))
    return written


def _sources(given: list[str] | None, table: PaperTable) -> dict[str, Path]:
    """Data set of the table -> folder of its release."""
    found = {}
    for text in given or ():
        key, _, folder = text.partition("=")
        if not folder or key not in table.datasets:
            remedy = f"give NAME=FOLDER with a NAME of {', '.join(table.datasets)}"
            raise UserError(f"--source {text}", f"names no data set of the table {table.name}", remedy)
        if not Path(folder).is_dir():
            raise UserError(f"--source {text}", "no such folder", "give the folder of the data set as it was published")
        found[key] = Path(folder)
    return found


def add_reproduce(verbs: argparse._SubParsersAction) -> None:
    parser = verbs.add_parser(
        "reproduce", help="run what a paper's table needs, and print it beside ours", allow_abbrev=False
    )
    parser.add_argument("table", metavar="TABLE", help="a file such as configs/papers/umamba_table3.toml, or its name")
    parser.add_argument("--dry-run", action="store_true", help="print what would be run, with time and memory")
    parser.add_argument(
        "--source",
        metavar="NAME=FOLDER",
        action="append",
        help="a data set of the table as it was published, to be converted; may be repeated",
    )
    parser.add_argument(
        "--with-noscan", action="store_true", help="add each Mamba network without its scan, and the ResEnc U-Net"
    )
    parser.add_argument(
        "--only", metavar="NETWORK", nargs="+", help="run these networks of the table, twins by their own names"
    )
    parser.add_argument("--seeds", type=not_negative, metavar="N", nargs="+", help="default: the table's")
    parser.add_argument("--folds", type=not_negative, metavar="N", nargs="+", help="default: the table's")
    parser.add_argument("--epochs", type=positive, metavar="N", help="default: the table's, or its recipe's")
    parser.add_argument("-o", metavar="FOLDER", help="for table.md, .csv, .html and .png (default: reproduced/TABLE)")
    parser.add_argument(
        "--cluster",
        metavar="WHERE",
        help="let dask's workers train and predict: local, slurm, slurm:CONFIG or a scheduler's address (tcp://...)",
    )
    parser.add_argument("--workers", type=positive, metavar="N", help="of --cluster local, or jobs of --cluster slurm")
    add_root(parser)
    add_device(parser)
    add_processes(parser)
    add_common(parser)
    parser.set_defaults(run=reproduce)
