"""``samfed compare``: variants x seeds on one data list, one table with mean and spread."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.commands.arguments import absolute, add_bundle, add_data, take_overrides
from samfed_monai.commands.rows import NamedRow, all_rows, read_rows
from samfed_monai.config.overrides import normal_ids, overrides_of, samfed_value
from samfed_monai.errors import ExitCode, Problem, Problems


def add_compare_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed compare BUNDLE --variants a,b --rows FILE --seeds 0,1 ... --output-dir R``."""
    parser = subparsers.add_parser(
        "compare",
        help="run variants x seeds and put them into one table",
        description="Runs every row with every seed into OUTPUT/<row>/seed-<seed>/ and writes one table with "
        "mean and spread. A row is a variant, or a variant with overrides from a file of rows. Finished runs are kept, "
        "interrupted ones go on where they stopped; adapters and soft masks are shared.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    add_data(parser)
    parser.add_argument("--variants", metavar="A,B,C", help="names of variants, with commas")
    parser.add_argument("--rows", metavar="FILE.json", action="append", default=[], help="named rows; may be repeated")
    parser.add_argument("--seeds", metavar="0,1,2", default="0,1,2", help="seeds, with commas (default: 0,1,2)")
    parser.add_argument("--rounds", metavar="N", type=int, required=True, help="federated rounds of every run")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder of all runs and of the table")
    parser.add_argument("--cache-dir", metavar="DIR", help="what the runs share (default: OUTPUT/cache)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at the same time (default: 1)")
    parser.add_argument(
        "--record",
        metavar="FILE.jsonl",
        help="also write the figures of all runs into this file, from which `samfed report --section` writes pages "
        "without the run folders; runs of other rows and seeds that it holds stay in it",
    )
    parser.add_argument("--title", help="heading of the table")
    parser.add_argument("--published", choices=("polyp", "skin"), help="show published numbers in a table beside it")
    take_overrides(parser, "federate.json")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks all rows first, runs what is missing, and writes the table."""
    from samfed_monai.commands.run_many import Run, run_all
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.data import DataList
    from samfed_monai.federation.stages.data_check import check_data
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.compare_page import TITLE, write_comparison
    from samfed_monai.reports.compare_text import to_text
    from samfed_monai.reports.record import SUFFIX, add_to_record, require_same_list

    root = find_bundle(arguments.bundle)
    overrides = normal_ids(overrides_of(arguments.extra))
    problems = Problems()
    rows = _rows(arguments, problems)
    seeds = _seeds(arguments.seeds, problems)
    if arguments.record and not arguments.record.endswith(SUFFIX):
        problems.add("--record", found=repr(arguments.record), expected=f"a file whose name ends in {SUFFIX}")
    if arguments.jobs < 1:
        problems.add("--jobs", found=str(arguments.jobs), expected="1 or more")
    places = {"datalist": absolute(arguments.datalist), "data_root": absolute(arguments.data_root)}
    problems.extend(_problems(root, rows, {**places, **overrides}))
    problems.refuse_if_any()
    if arguments.record and Path(arguments.record).is_file():  # before anything runs
        require_same_list(arguments.record, DataList.load(arguments.datalist).hash, where=str(arguments.datalist))
    output = Path(str(absolute(arguments.output_dir)))
    cache = absolute(arguments.cache_dir) or str(output / "cache")
    common = {
        "datalist": absolute(arguments.datalist),
        "data-root": absolute(arguments.data_root),
        "rounds": str(arguments.rounds),
        "cache-dir": cache,
    }
    runs = [
        Run(
            root,
            row.variant,
            seed,
            output / row.name / f"seed-{seed}",
            common,
            words_of({**overrides, **row.overrides}) if row.overrides else tuple(arguments.extra),
            row.about(place),
        )
        for seed in seeds
        for place, row in enumerate(rows)
    ]
    if not all(run.is_done() for run in runs):  # once for all rows, which find it in the cache
        check_data(DataList.load(str(common["datalist"])), str(common["data-root"]), cache_dir=cache)
    folders = [run.folder for run in runs]
    try:
        run_all(runs, jobs=arguments.jobs, threads=max(1, (os.cpu_count() or 1) // arguments.jobs))
    finally:  # what has finished is kept, also where another run failed or the user ended it
        finished = [run.folder for run in runs if run.is_done()] if arguments.record else []
        if finished:
            add_to_record(arguments.record, finished)
    command = portable(shlex.join(["samfed", *sys.argv[1:]]))
    title = arguments.title or TITLE
    path = write_comparison(output, folders, command=command, title=title, published=arguments.published)
    sys.stdout.write(f"{to_text(comparison_table(folders))}\n{path}\n")
    return int(ExitCode.DONE)


def words_of(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """``--key=value`` words that :func:`overrides_of` reads back to the same values."""
    return tuple(f"--{key}={_spelt(value)}" for key, value in overrides.items())


def portable(command: str) -> str:
    """A command line as it can be shown to others: the folder of the data by its variable."""
    data = os.environ.get("SAMFED_DATA", "").rstrip("/")
    return command.replace(data, "$SAMFED_DATA") if data else command


def _spelt(value: Any) -> str:
    if isinstance(value, str) and samfed_value(value) == value:
        return value
    return json.dumps(value)


def _rows(arguments: argparse.Namespace, problems: Problems) -> list[NamedRow]:
    variants = _names(arguments.variants, "--variants", problems) if arguments.variants is not None else []
    rows: list[NamedRow] = []
    for path in arguments.rows:
        with problems.collected():
            rows += read_rows(path)
    if arguments.variants is None and not arguments.rows:
        problems.add("--variants", found="neither it nor --rows", expected="rows to compare")
    return all_rows(variants, rows, problems)


def _problems(root: Path, rows: Sequence[NamedRow], overrides: Mapping[str, Any]) -> list[Problem]:
    """Problems of all rows, each once; those that come with a row's own overrides are told with its name."""
    from samfed_monai.config.check import check_bundle

    plain = {
        variant: check_bundle(root, "federate", overrides={**overrides, "variant": variant})
        for variant in dict.fromkeys(row.variant for row in rows)
    }
    found = [problem for problems in plain.values() for problem in problems]
    for row in rows:
        if row.overrides:
            own = check_bundle(root, "federate", overrides={**overrides, "variant": row.variant, **row.overrides})
            told = set(plain[row.variant])
            found += [
                replace(problem, where=f"row {row.name}: {problem.where}") for problem in own if problem not in told
            ]
    return list(dict.fromkeys(found))


def _names(text: str, option: str, problems: Problems) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        problems.add(option, found=repr(text), expected="names with commas between")
    return names


def _seeds(text: str, problems: Problems) -> list[int]:
    names = _names(text, "--seeds", problems)
    for name in names:
        if not name.isdecimal():
            problems.extend([Problem("--seeds", found=repr(name), expected="whole numbers with commas between")])
    return [int(name) for name in names if name.isdecimal()]
