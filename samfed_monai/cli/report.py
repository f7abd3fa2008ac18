"""``samfed report RUN [RUN ...]``: writes the report of a run, or compares several."""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.cli.arguments import add_command
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.validators import require
from samfed_monai.data.datalist import DataList

if TYPE_CHECKING:
    from samfed_monai.reports.html import Report


def add_report_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed report RUN [RUN ...]``; ``args.run(args)`` runs it."""
    parser = add_command(subparsers, "report", run=report)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--datalist", type=Path, help="data list for the overlays (default: as the run recorded it)")
    parser.add_argument("--data-root", type=Path, help="folder of the images (default: as the run recorded it)")
    parser.add_argument("--no-overlays", action="store_true", help="leave out test images and their ids")
    parser.add_argument("--output-dir", type=Path, help="folder of a comparison (default: beside the first run)")
    parser.add_argument("--title", help="heading of a comparison")
    about = "for a run in progress: rewrite its report after every round until it ends; an open page reloads itself"
    parser.add_argument("--watch", action="store_true", help=about)


def report(args: argparse.Namespace) -> None:
    """Writes the report or the comparison, and prints its path."""
    _check_options(args)
    if len(args.runs) == 1:
        from samfed_monai.reports.html import Report

        options = {"datalist": args.datalist, "data_root": args.data_root, "overlays": not args.no_overlays}
        writer = Report(args.runs[0], **options, unfinished=args.watch)
        if args.watch:
            watch(writer)
        else:
            sys.stdout.write(f"{writer.write()}\n")
        return
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.compare_forms import TITLE, to_text, write_comparison

    output_dir = args.output_dir or args.runs[0].resolve().parent / "comparison"
    path = write_comparison(output_dir, args.runs, title=args.title or TITLE)
    sys.stdout.write(f"{to_text(comparison_table(args.runs))}\n{path}\n")


def watch(report: Report, seconds: float = 2.0) -> None:
    """Writes a run's report after every stored round and at the end of the run; Ctrl-C stops it.

    Args:
        report: report of the run, which may not have started, or may be stopped and resumed.
        seconds: interval between checks of the run's folder.

    Raises:
        Refused: there is no such folder.
    """
    from samfed_monai.core.run_log import round_folders
    from samfed_monai.core.text import counted

    folder, written = report.run_folder, 0
    if not folder.is_dir():
        raise refused(folder, "no such folder", "the folder of a run in progress")
    with suppress(KeyboardInterrupt):
        while not (folder / "results.json").is_file():
            if (rounds := len(round_folders(folder / "rounds"))) != written:  # may be fewer: a run may be restarted
                written = rounds
                if rounds:
                    sys.stdout.write(f"{counted(rounds, 'round')}: {report.write()}\n")
                    sys.stdout.flush()
            time.sleep(seconds)
        sys.stdout.write(f"finished: {report.write()}\n")


def _check_options(args: argparse.Namespace) -> None:
    one = len(args.runs) == 1
    with_report = "it with the report of one run, which is in the run's folder" if one else "it with a comparison"
    names = ("output_dir", "title") if one else ("datalist", "data_root", "no_overlays", "watch")
    of_overlays = dict.fromkeys(("datalist", "data_root") if args.no_overlays else (), "it with --no-overlays")
    unused = of_overlays | dict.fromkeys(names, with_report)
    options = {f"--{name.replace('_', '-')}": found for name, found in unused.items() if getattr(args, name)}
    require(Problem(option, found, "an option of this report", "leave it out") for option, found in options.items())
    places = {"--datalist": args.datalist, "--data-root": args.data_root}
    if args.datalist and args.datalist.exists():
        DataList.load(args.datalist)
    missing = [(option, path) for option, path in places.items() if path and not path.exists()]
    require(Problem(option, f"{path}, which does not exist", "that of the run") for option, path in missing)
