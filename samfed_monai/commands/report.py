"""``samfed report RUN [RUN ...]``: the report of a run, or the comparison of several."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from samfed_monai.core.errors import Problems


def add_report_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds the command; ``args.run(args)`` carries it out and returns an exit code."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "report",
        help="write report.html of a run, or compare several runs",
        description="One run: writes its report.html and figures. Several: writes comparison.{html,md,csv,json}. "
        "With --page a document's page, of one comparison or of several (--section).",
    )
    parser.add_argument("runs", nargs="*", type=Path, metavar="RUN", help="folder of a finished run")
    parser.add_argument("--datalist", type=Path, help="data list for the overlays (default: as the run recorded it)")
    parser.add_argument("--data-root", type=Path, help="folder of the images (default: as the run recorded it)")
    parser.add_argument("--no-overlays", action="store_true", help="leave test images and their ids out")
    parser.add_argument("--output-dir", type=Path, help="folder of a comparison (default: beside the first run)")
    parser.add_argument("--title", help="heading of a comparison")
    parser.add_argument("--command", metavar="TEXT", help="command that made the runs, shown in a comparison")
    parser.add_argument("--caveat", metavar="TEXT", action="append", default=[], help="what its reader must know")
    parser.add_argument("--published", choices=("polyp", "skin"), help="show published numbers in a table beside it")
    parser.add_argument(
        "--page", type=Path, metavar="FILE.md", help="also write the comparison as a page of a document"
    )
    parser.add_argument(
        "--section",
        metavar="TITLE=DIR",
        action="append",
        default=[],
        help="a comparison of the page instead of RUN: the --output-dir of `samfed compare`, or its --record; may be "
        "repeated",
    )
    parser.add_argument(
        "--section-command",
        metavar="TITLE=TEXT",
        action="append",
        default=[],
        help="command to show in that section (default: as `samfed compare` recorded it)",
    )
    parser.add_argument("--ablation", action="store_true", help="write the page as sweeps against a default row")
    parser.add_argument("--default", metavar="ROW", default="samfed", help="default row of --ablation")
    parser.set_defaults(run=report)
    return parser


def report(args: argparse.Namespace) -> int:
    """Writes the report, the comparison or the page, and says where it lies."""
    _refuse_what_does_not_fit(args)
    if args.section:
        return _page(args)
    if len(args.runs) == 1 and not args.page:
        from samfed_monai.reports.html import Report

        run = Report(args.runs[0], datalist=args.datalist, data_root=args.data_root, overlays=not args.no_overlays)
        sys.stdout.write(f"{run.write()}\n")
        return 0
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.compare_page import TITLE, write_comparison
    from samfed_monai.reports.compare_text import to_text

    output_dir = args.output_dir or args.runs[0].resolve().parent / "comparison"
    told = {"command": args.command, "caveats": args.caveat, "title": args.title or TITLE}
    path = write_comparison(output_dir, args.runs, published=args.published, **told)
    if args.page:
        _page(args)
    sys.stdout.write(f"{to_text(comparison_table(args.runs))}\n{path}\n")
    return 0


def _page(args: argparse.Namespace) -> int:
    from samfed_monai.reports import ablation, compare_page
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.sections import Section, read_sections

    sections = read_sections(args.section, args.section_command)
    if not sections:
        sections = [Section("", comparison_table(args.runs))]
    told = {"command": args.command, "caveats": args.caveat}
    if args.ablation:
        ablation.write_ablation(args.page, sections, default=args.default, title=args.title or ablation.TITLE, **told)
    else:
        title = args.title or compare_page.TITLE
        compare_page.write_page(args.page, sections, title=title, published=args.published, **told)
    if args.section:
        sys.stdout.write(f"{args.page}\n")
    return 0


def _refuse_what_does_not_fit(args: argparse.Namespace) -> None:
    problems = Problems()
    if args.section and args.runs:
        problems.add("RUN", found=f"{len(args.runs)} beside --section", expected="runs, or sections of a page")
    if not args.section and not args.runs:
        problems.add("RUN", found="none", expected="at least one finished run", mend="name their folders")
    if (args.section or args.ablation) and not args.page:
        problems.add("--page", found="nothing", expected="the file to write", mend="for instance --page page.md")
    one = len(args.runs) == 1 and not args.page
    of_a_comparison = {name: getattr(args, name) for name in ("output_dir", "title", "command", "caveat", "published")}
    of_a_report = {"datalist": args.datalist, "data_root": args.data_root, "no_overlays": args.no_overlays}
    unfit = {
        "the report of one run": of_a_comparison if one else {},
        "a comparison or a page": {} if one else of_a_report,
        "a page of sections": {"output_dir": args.output_dir} if args.section else {},
        "a page without --section": {} if args.section else {"section_command": args.section_command},
    }
    for form, values in unfit.items():
        for name in (name for name, value in values.items() if value):
            problems.add(f"--{name.replace('_', '-')}", found=f"it with {form}", expected="no such option there")
    problems.refuse_if_any()
