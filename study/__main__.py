"""``python -m study``: records of finished comparisons, and pages from these records."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import ExitCode, Problem, Problems, Refused, SamFedError, reported
from samfed_monai.core.validators import one_of, require


def build_parser() -> argparse.ArgumentParser:
    """Builds the parser of all commands; ``args.run(args)`` runs the selected one."""
    parser = argparse.ArgumentParser(prog="python -m study", description=__doc__, allow_abbrev=False)
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    recorded = commands.add_parser("record", help="store the numbers of a comparison's finished runs in one file")
    recorded.add_argument("folder", type=Path, metavar="DIR", help="the --output-dir of `samfed compare`")
    recorded.add_argument(
        "--to",
        metavar="FILE.jsonl",
        type=Path,
        required=True,
        help="the record; created if missing; runs of other rows and seeds are kept",
    )
    recorded.set_defaults(run=record)

    paged = commands.add_parser("page", help="write a page of comparisons, and its figures next to it")
    _add_page_arguments(paged)
    paged.set_defaults(run=page)

    swept = commands.add_parser("ablation", help="write a page of sweeps against a default row")
    _add_page_arguments(swept)
    help = "the reference row (default: samfed), and rows that replace it in sweeps that include one of them"
    swept.add_argument("--default", metavar="ROW[,ROW...]", default="samfed", help=help)
    swept.set_defaults(run=ablation)

    systems = commands.add_parser("related", help="write the page of the related systems, and its figures next to it")
    systems.add_argument("page", type=Path, metavar="FILE.md", help="the page")
    _add_related_arguments(systems)
    systems.add_argument(
        "--part-command",
        metavar="PART=TEXT",
        action="append",
        default=[],
        help="command to show above the table of a part",
    )
    _add_texts(systems)
    systems.set_defaults(run=related)

    listing = commands.add_parser("methods", help="write the page of methods, with the results of each")
    listing.add_argument("page", type=Path, metavar="FILE.md", help="the page")
    listing.add_argument("--records", type=Path, metavar="DIR", required=True, help="folder of related-<part>.jsonl")
    listing.set_defaults(run=methods)

    optioned = commands.add_parser("options", help="update the tables of options of a page")
    optioned.add_argument("page", type=Path, metavar="FILE.md", help="the page")
    optioned.set_defaults(run=options)

    splitted = commands.add_parser("kvasir", help="write the list of images and sites of Kvasir-SEG")
    splitted.add_argument("folder", type=Path, metavar="DIR", help="Kvasir-SEG, with its folder images")
    splitted.add_argument(
        "--to", type=Path, metavar="FILE.json", required=True, help="output, for samfed prepare list --split"
    )
    splitted.set_defaults(run=kvasir)

    judged = commands.add_parser("quality-measure", help="record all estimates of Dice with the true Dice")
    judged.add_argument("bundle", help="bundle of the model")
    judged.add_argument("--model", metavar="MODEL", help="run or weights (default: the bundle's own)")
    judged.add_argument("--datalist", type=Path, metavar="LIST.json", required=True, help="the list")
    judged.add_argument("--data-root", type=Path, metavar="DIR", required=True, help="folder of its images")
    judged.add_argument("--split", choices=("validation", "test"), required=True, help="split of the images")
    judged.add_argument("--sites", metavar="A,B", default="", help="sites (default: all)")
    judged.add_argument("--limit", type=int, metavar="N", help="maximum number of images per site, chosen by hash")
    judged.add_argument("--collection", metavar="NAME", required=True, help="name of the images on the page")
    judged.add_argument("--seed", metavar="N", required=True, help="seed of the run")
    judged.add_argument(
        "--part", metavar="NAME", required=True, help="validation (for the calibration), or the name of a test part"
    )
    judged.add_argument("--to", type=Path, metavar="FILE.jsonl", required=True, help="the record")
    judged.set_defaults(run=quality_measure)

    stepped = commands.add_parser(
        "quality-rounds", help="record the rounds of a run, and print the best and the most promising one"
    )
    stepped.add_argument("folder", type=Path, metavar="RUN", help="folder of a finished run whose sites have masks")
    stepped.add_argument("--collection", metavar="NAME", required=True, help="name of the images on the page")
    stepped.add_argument("--seed", metavar="N", required=True, help="seed of the run")
    stepped.add_argument("--to", type=Path, metavar="FILE.jsonl", required=True, help="the record")
    stepped.set_defaults(run=quality_rounds)

    promised = commands.add_parser("quality", help="write the page of expected Dice, and its plot next to it")
    promised.add_argument("page", type=Path, metavar="FILE.md", help="the page")
    promised.add_argument("--record", type=Path, metavar="FILE.jsonl", required=True, help="record of quality-measure")
    promised.add_argument("--command", metavar="TEXT", required=True, help="command that made the record, shown on top")
    promised.set_defaults(run=quality)

    planned = commands.add_parser("related-plan", help="print the number of remaining runs and their core-hours")
    _add_related_arguments(planned)
    _add_only(planned)
    planned.add_argument(
        "--parts", metavar="A,B", default="polyp,labelled,weak,unseen,skin", help="parts (default: all)"
    )
    planned.set_defaults(run=related_plan)

    listed = commands.add_parser("related-rows", help="print the rows of a part that are to be run, one per line")
    listed.add_argument(
        "part", help="polyp, labelled, weak, unseen, skin, abdomen, abdomen_weak, cardiac or cardiac_unseen"
    )
    listed.add_argument("--records", type=Path, metavar="DIR", required=True, help="folder of related-<part>.jsonl")
    listed.add_argument("--seed", type=int, metavar="N", help="omit rows whose run with this seed is recorded")
    _add_only(listed)
    listed.set_defaults(run=related_rows)

    chosen = commands.add_parser("related-options", help="print options that only this row needs")
    chosen.add_argument("row", help="name of a method")
    chosen.add_argument("--local-steps", type=int, metavar="N", required=True, help="steps per site and round")
    chosen.add_argument(
        "--adapter", metavar="FILE", required=True, help="adapter of the teacher, for rows with a teacher"
    )
    chosen.set_defaults(run=related_options)

    staged = commands.add_parser("stage-volumes", help="copy a collection of volumes into folders of sites")
    staged.add_argument("source", type=Path, metavar="DIR", help="folder with a manifest.csv")
    staged.add_argument("to", type=Path, metavar="DIR", help="output, for samfed prepare nifti")
    staged.add_argument(
        "--public", metavar="SITE", required=True, help="site with a fifth of its patients in the public set"
    )
    staged.set_defaults(run=stage)
    return parser


def _add_only(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="A,B", default="", help="rows to choose from (default: all)")


def _add_related_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--records", type=Path, metavar="DIR", required=True, help="folder of related-<part>.jsonl")
    parser.add_argument(
        "--seeds", metavar="0,1,2", default="0,1,2", help="seeds of the complete table (default: 0,1,2)"
    )


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
        help="command to show in that section (default: the one in DIR/comparison.json)",
    )
    _add_texts(parser)


def _add_texts(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--title", metavar="TEXT", help="heading of the page")
    parser.add_argument("--command", metavar="TEXT", help="command that made all runs, shown on top")
    parser.add_argument(
        "--caveat", metavar="TEXT", action="append", default=[], help="a caveat to list on the page; may be repeated"
    )


def _texts(args: argparse.Namespace) -> dict[str, Any]:
    return {"title": args.title, "command": args.command, "caveats": args.caveat}


def record(args: argparse.Namespace) -> None:
    """Adds the finished runs in a comparison's folder to a record."""
    from study.record import SUFFIX, add_to_record, runs_in

    if args.to.suffix != SUFFIX:
        raise Refused([Problem("--to", found=repr(str(args.to)), expected=f"a file whose name ends in {SUFFIX}")])
    runs = runs_in(args.folder)
    add_to_record(args.to, runs)
    sys.stdout.write(f"{args.to}: {len(runs)} runs of {args.folder}\n")


def page(args: argparse.Namespace) -> None:
    """Writes a page of comparisons."""
    from study.page import read_sections, write_page

    write_page(args.page, read_sections(args.section, args.section_command), **_texts(args))
    sys.stdout.write(f"{args.page}\n")


def ablation(args: argparse.Namespace) -> None:
    """Writes a page of ablations."""
    from study.ablation import write_ablation
    from study.page import read_sections

    sections = read_sections(args.section, args.section_command)
    write_ablation(args.page, sections, defaults=args.default.split(","), **_texts(args))
    sys.stdout.write(f"{args.page}\n")


def related(args: argparse.Namespace) -> None:
    """Writes the page of the related systems."""
    from study.page import pairs_of
    from study.related import related_page, write_related

    problems = Problems()
    commands = pairs_of(args.part_command, "--part-command", "PART=TEXT", problems)
    problems.refuse_if_any()
    _refuse_unknown(commands, "--part-command")
    text, pictures = related_page(args.records, _seeds_of(args.seeds), commands=commands, **_texts(args))
    write_related(args.page, text, pictures)
    sys.stdout.write(f"{args.page}\n")


def kvasir(args: argparse.Namespace) -> None:
    """Writes the split of Kvasir-SEG."""
    from samfed_monai.core.io import write_json
    from study.kvasir import split

    names = [path.name for path in sorted((args.folder / "images").iterdir()) if not path.name.startswith(".")]
    write_json(args.to, split(names))
    sys.stdout.write(f"{args.to}: {len(names)} images\n")


def quality_measure(args: argparse.Namespace) -> None:
    """Records estimates and Dice of one model on one part of a list."""
    from study.quality import add, measured

    where = {"datalist": args.datalist, "data_root": args.data_root}
    rows = measured(args.bundle, args.model, **where, split=args.split, sites=_names_of(args.sites), limit=args.limit)
    add(args.to, {"collection": args.collection, "seed": args.seed, "part": args.part}, rows)
    sys.stdout.write(f"{args.to}: {len(rows)} images\n")


def quality_rounds(args: argparse.Namespace) -> None:
    """Records the rounds of a run, and prints which one is chosen by true and by expected Dice."""
    from study.quality import ROUNDS, add, choices, rounds_of

    rows = rounds_of(args.folder)
    add(args.to, {"collection": args.collection, "seed": args.seed, "part": ROUNDS}, rows)
    chosen = choices(rows)
    best, promising = chosen["dice"], chosen["expected"]
    sys.stdout.write(
        f"{args.folder}: best round {best['round'] + 1} (validation Dice {best['dice']:.3f}); most promising round "
        f"{promising['round'] + 1}, which loses {best['dice'] - promising['dice']:.3f}\n"
    )


def quality(args: argparse.Namespace) -> None:
    """Writes the page of expected Dice."""
    from study.quality import page as write_quality_page

    write_quality_page(args.page, args.record, command=args.command)
    sys.stdout.write(f"{args.page}\n")


def methods(args: argparse.Namespace) -> None:
    """Writes the page of methods."""
    from samfed_monai.config.variants import methods
    from samfed_monai.core.io import write_text
    from study.advice import advice
    from study.measured import measured
    from study.methods_page import methods_page

    write_text(args.page, methods_page(methods().values(), measured(args.records), advice(args.records)))
    sys.stdout.write(f"{args.page}\n")


def options(args: argparse.Namespace) -> None:
    """Updates the tables of options of a page."""
    from samfed_monai.config.bundles import packaged_bundle
    from samfed_monai.core.io import PUBLIC, write_text
    from study.options_page import options_page

    bundles = [packaged_bundle(name) for name in ("samfed_skin", "samfed_polyp")]
    write_text(args.page, options_page(args.page.read_text(encoding="utf-8"), bundles), mode=PUBLIC)
    sys.stdout.write(f"{args.page}\n")


def stage(args: argparse.Namespace) -> None:
    """Copies a collection of volumes into folders of sites."""
    from study.volumes import stage_volumes

    for folder, count in stage_volumes(args.source, args.to, public_of=args.public).items():
        sys.stdout.write(f"{folder}: {count} volumes\n")


def related_plan(args: argparse.Namespace) -> None:
    """Prints the remaining runs of the related systems and their core-hours."""
    from study.related_plan import BEST, plan_text, rows_of, rows_to_run, runs_of, share_of

    seeds, only, shares = _seeds_of(args.seeds), _names_of(args.only), []
    parts = _names_of(args.parts)
    _refuse_unknown(parts, "--parts")
    for part in parts:
        known = part != "skin" or runs_of("polyp", args.records)
        rows = rows_to_run(part, args.records, only=only) if known else []
        if part == "skin" and share_of("polyp", rows_of("polyp"), seeds, args.records).todo:
            # the best rows are not known yet
            rows += [f"number {place} of polyps" for place in range(len(rows) + 1, BEST + 1)]
        shares.append(share_of(part, rows, seeds, args.records))
    sys.stdout.write(plan_text(shares))


def related_rows(args: argparse.Namespace) -> None:
    """Prints the names of a part's rows that are to be run."""
    from study.related_plan import rows_to_run

    _refuse_unknown([args.part], "PART")
    rows = rows_to_run(args.part, args.records, only=_names_of(args.only), seed=args.seed)
    sys.stdout.write("".join(f"{row}\n" for row in rows))


def related_options(args: argparse.Namespace) -> None:
    """Prints options that only this row needs."""
    from study.related_plan import options_of

    sys.stdout.write(" ".join(options_of(args.row, local_steps=args.local_steps, adapter=args.adapter)) + "\n")


def _names_of(text: str) -> list[str]:
    return [name for part in text.split(",") if (name := part.strip())]


def _refuse_unknown(parts: Iterable[str], option: str) -> None:
    from study.related_plan import PARTS

    require(*(one_of(option, part, PARTS) for part in parts))


def _seeds_of(text: str) -> list[int]:
    try:
        return [int(seed) for seed in text.split(",")]
    except ValueError:
        problem = Problem("--seeds", found=repr(text), expected="whole numbers with commas, as 0,1,2")
        raise Refused([problem]) from None


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns an exit code as ``samfed`` does: 0 if done, 2 if refused, with all problems listed."""
    args = build_parser().parse_args(argv)
    try:
        args.run(args)
    except SamFedError as error:
        return reported(error)
    return int(ExitCode.DONE)


if __name__ == "__main__":
    sys.exit(main())
