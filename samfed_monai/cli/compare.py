"""``samfed compare``: variants x seeds on one data list, one table with mean and spread."""

from __future__ import annotations

import argparse
import json
import logging
import os
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import absolute, add_bundle, add_data, add_device, take_overrides
from samfed_monai.config.overrides import normal_ids, overrides_of, samfed_value
from samfed_monai.core.errors import ExitCode, Problem, Problems, Refused
from samfed_monai.core.own_process import usable_cores
from samfed_monai.federation.run_many import NamedRow, all_rows, read_rows

if TYPE_CHECKING:
    from samfed_monai.data import DataList
    from samfed_monai.federation.run_many import Run

logger = logging.getLogger(__name__)


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
    parser.add_argument("--title", help="heading of the table")
    add_device(parser)
    take_overrides(parser, "federate.json or train.json", "federate.json", "train.json")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks all rows first, runs what is missing, and writes the table."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.data import DataList
    from samfed_monai.federation.preparation import check_data
    from samfed_monai.federation.run_many import Run, run_all
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.compare_forms import TITLE, to_text, write_comparison

    root = find_bundle(arguments.bundle)
    overrides = normal_ids(overrides_of(arguments.extra))
    problems = Problems()
    rows = _rows(arguments, problems)
    seeds = _seeds(arguments.seeds, problems)
    if arguments.jobs < 1:
        problems.add("--jobs", found=str(arguments.jobs), expected="1 or more")
    places = {"datalist": absolute(arguments.datalist), "data_root": absolute(arguments.data_root)}
    found, unread = _problems(root, rows, {**places, **overrides})
    problems.extend(found)
    problems.refuse_if_any()
    for name, options in unread.items():
        logger.info("row %s reads nothing of %s", name, ", ".join(f"--{option}" for option in sorted(options)))
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
            words_of({**_without(overrides, unread.get(row.name, ())), **row.overrides})
            if row.overrides or row.name in unread
            else tuple(arguments.extra),
            row.about(place),
        )
        for seed in seeds
        for place, row in enumerate(rows)
    ]
    if waiting := [run for run in runs if not run.is_done()]:
        datalist = DataList.load(str(common["datalist"]))
        _require_possible(waiting, {**places, "rounds": arguments.rounds, **overrides}, datalist, unread)
        # once for all rows, which find it in the cache
        check_data(datalist, str(common["data-root"]), cache_dir=cache)
    folders = [run.folder for run in runs]
    run_all(runs, jobs=arguments.jobs, threads=max(1, usable_cores() // arguments.jobs))
    command = portable(shlex.join(["samfed", *sys.argv[1:]]))
    path = write_comparison(output, folders, command=command, title=arguments.title or TITLE)
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


def _without(overrides: Mapping[str, Any], unread: Collection[str]) -> dict[str, Any]:
    """Overrides of the command line without those that a row does not read."""
    return {key: value for key, value in overrides.items() if key not in unread}


def _problems(
    root: Path, rows: Sequence[NamedRow], overrides: Mapping[str, Any]
) -> tuple[list[Problem], dict[str, set[str]]]:
    """Problems of all rows, each once; those that come with a row's own overrides are shown with its name.

    Returns:
        Besides, row to the options of the command line that it does not read, but others do.
    """
    from samfed_monai.config.check import check_bundle
    from samfed_monai.config.ids import Unread

    plain = {
        variant: check_bundle(root, "federate", overrides={**overrides, "variant": variant})
        for variant in dict.fromkeys(row.variant for row in rows)
    }
    options = {
        variant: {problem.where.rpartition(" -> ")[2] for problem in problems if isinstance(problem, Unread)}
        for variant, problems in plain.items()
    }
    by_none = set.intersection(*options.values()) if options else set()
    partly = {row.name: some for row in rows if (some := options[row.variant] - by_none)}
    found = [
        problem
        for problems in plain.values()
        for problem in problems
        if not isinstance(problem, Unread) or problem.where.rpartition(" -> ")[2] in by_none
    ]
    for row in rows:
        if row.overrides:
            own = check_bundle(root, "federate", overrides={**overrides, "variant": row.variant, **row.overrides})
            known = set(plain[row.variant])
            found += [
                replace(problem, where=f"row {row.name}: {problem.where}") for problem in own if problem not in known
            ]
    return list(dict.fromkeys(found)), partly


def _require_possible(
    runs: Iterable[Run], overrides: Mapping[str, Any], datalist: DataList, unread: Mapping[str, Collection[str]]
) -> None:
    """Refuses rows that could not run on this list, all at once: a quorum of more sites, noise that a method bars, …"""
    from samfed_monai.federation.job import check_job

    rows, found = {run.about["row"]: run for run in runs}, dict[Problem, list[str]]()
    for row, run in rows.items():
        read = _without(overrides, unread.get(row, ()))
        own = {**read, "variant": run.variant, "output_dir": str(run.folder), **run.about["overrides"]}
        for problem in check_job(run.bundle, own, datalist, build=False).problems:
            found.setdefault(problem, []).append(row)
    problems = [
        problem if len(names) == len(rows) else replace(problem, where=f"row {', '.join(names)}: {problem.where}")
        for problem, names in found.items()
    ]
    if problems:
        raise Refused(problems)


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
