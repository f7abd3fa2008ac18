"""``python -m study``: records of finished comparisons, and the pages that are written from them."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from samfed_monai.core.errors import ExitCode, Problem, Refused, SamFedError, message_and_code


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``record``, ``page`` and ``ablation``; ``args.run(args)`` carries one of them out."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    recorded = commands.add_parser("record", help="keep the figures of a comparison's finished runs in one file")
    recorded.add_argument("folder", type=Path, metavar="DIR", help="the --output-dir of `samfed compare`")
    recorded.add_argument(
        "--to",
        metavar="FILE.jsonl",
        type=Path,
        required=True,
        help="the record; made where there is none, else runs of other rows and seeds stay in it",
    )
    recorded.set_defaults(run=record)

    paged = commands.add_parser("page", help="write a page of comparisons, and their figures beside it")
    _add_page_arguments(paged)
    paged.add_argument("--published", choices=("polyp", "skin"), help="show published numbers in a table beside it")
    paged.set_defaults(run=page)

    swept = commands.add_parser("ablation", help="write a page of sweeps against a default row")
    _add_page_arguments(swept)
    swept.add_argument("--default", metavar="ROW", default="samfed", help="the default row (default: samfed)")
    swept.set_defaults(run=ablation)
    return parser


def _add_page_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("page", type=Path, metavar="FILE.md", help="the page")
    parser.add_argument(
        "--section",
        metavar="TITLE=DIR|FILE.jsonl",
        action="append",
        required=True,
        help="a comparison of the page: the --output-dir of `samfed compare`, or a record; may be repeated",
    )
    parser.add_argument(
        "--section-command",
        metavar="TITLE=TEXT",
        action="append",
        default=[],
        help="command to show in that section (default: as `samfed compare` left it in DIR/comparison.json)",
    )
    parser.add_argument("--title", metavar="TEXT", help="heading of the page")
    parser.add_argument("--command", metavar="TEXT", help="command that made all runs, shown on top")
    parser.add_argument("--caveat", metavar="TEXT", action="append", default=[], help="what its reader must know")


def record(args: argparse.Namespace) -> None:
    """Adds what has finished in a comparison's folder to a record."""
    from study.record import SUFFIX, add_to_record, runs_in

    if args.to.suffix != SUFFIX:
        raise Refused([Problem("--to", found=repr(str(args.to)), expected=f"a file whose name ends in {SUFFIX}")])
    runs = runs_in(args.folder)
    add_to_record(args.to, runs)
    sys.stdout.write(f"{args.to}: {len(runs)} runs of {args.folder}\n")


def page(args: argparse.Namespace) -> None:
    """Writes a page of comparisons."""
    from study.page import TITLE, read_sections, write_page

    sections = read_sections(args.section, args.section_command)
    told = {"title": args.title or TITLE, "command": args.command, "caveats": args.caveat}
    write_page(args.page, sections, published=args.published, **told)
    sys.stdout.write(f"{args.page}\n")


def ablation(args: argparse.Namespace) -> None:
    """Writes a page of ablations."""
    from study.ablation import TITLE, write_ablation
    from study.page import read_sections

    sections = read_sections(args.section, args.section_command)
    told = {"title": args.title or TITLE, "command": args.command, "caveats": args.caveat}
    write_ablation(args.page, sections, default=args.default, **told)
    sys.stdout.write(f"{args.page}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code, as those of ``samfed``: 0 done, 2 refused with every problem listed."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except SamFedError as error:
        message, code = message_and_code(error)
        sys.stderr.write(f"{message}\n")
        return int(code)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main())
