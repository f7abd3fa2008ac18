"""``samfed compare``: runs variants x seeds on one data list, and makes a table with mean and spread."""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import shlex
import sys
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from samfed_monai.cli.arguments import absolute, add_bundle, add_command, add_data, add_device, names_in, take_overrides
from samfed_monai.config.overrides import overrides_of, samfed_value
from samfed_monai.core.errors import Problem, Problems
from samfed_monai.core.io import require_writable
from samfed_monai.core.process_setup import usable_cores
from samfed_monai.core.validators import require
from samfed_monai.federation.comparison_runs import PER_COMPARISON, NamedRow, all_rows, read_rows

logger = logging.getLogger(__name__)


def add_compare_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed compare BUNDLE --variants a,b --rows FILE --seeds 0,1 ... --output-dir R``."""
    parser = add_command(subparsers, "compare", run=run, kept="finished runs and rounds of unfinished runs are kept")
    add_bundle(parser)
    add_data(parser)
    parser.add_argument("--variants", metavar="A,B,C", type=names_in, help="variants, separated by commas")
    parser.add_argument("--rows", metavar="FILE.json", action="append", default=[], help="named rows; may be repeated")
    parser.add_argument("--seeds", metavar="0,1,2", type=names_in, default="0,1,2", help="seeds (default: 0,1,2)")
    parser.add_argument("--rounds", metavar="N", type=int, required=True, help="federated rounds of every run")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder of all runs and of the table")
    parser.add_argument("--cache-dir", metavar="DIR", help="folder that the runs share (default: OUTPUT/cache)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="number of parallel runs (default: 1)")
    parser.add_argument("--title", help="heading of the table")
    add_device(parser)
    take_overrides(parser, "federate.json or train.json", "federate.json", "train.json", unread=PER_COMPARISON)


def run(arguments: argparse.Namespace) -> None:
    """Checks all rows, executes the missing runs, and writes the table."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.options import groups_of
    from samfed_monai.config.parse import SITES, BundleConfig
    from samfed_monai.data import DataList
    from samfed_monai.data.checks import leaks
    from samfed_monai.federation.comparison_runs import Run, run_all
    from samfed_monai.federation.job import check_job
    from samfed_monai.federation.preparation import check_data
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.compare_forms import TITLE, to_text, write_comparison

    root = find_bundle(arguments.bundle)
    overrides, problems, rows = overrides_of(arguments.extra), Problems(), list[NamedRow]()
    for name in filter(overrides.__contains__, PER_COMPARISON):
        expected, hint = "an option that all runs can share", "use --variants, --seeds, --rounds and so on"
        problems.add(f"command line -> {name}", found=repr(overrides[name]), expected=expected, hint=hint)
    for path in arguments.rows:
        with problems.collected():
            rows += read_rows(path)
    if arguments.variants is None and not arguments.rows:
        problems.add("--variants", found="neither --variants nor --rows", expected="rows to compare")
    rows = all_rows(arguments.variants or [], rows, problems)
    seeds = list(dict.fromkeys(seed.lstrip("0") or seed[:1] for seed in arguments.seeds))
    problems.unless(all(map(str.isdecimal, seeds)), "--seeds", ",".join(seeds), "whole numbers, separated by commas")
    problems.unless(arguments.jobs >= 1, "--jobs", arguments.jobs, "1 or more")
    paths = {"datalist": str(absolute(arguments.datalist)), "data_root": str(absolute(arguments.data_root))}
    found, unread = _problems(root, rows, {**paths, **overrides})
    problems.extend(found)
    problems.refuse_if_any()
    overrides_of_row = {row.name: {**overrides, **row.overrides} for row in rows}
    for name, options in unread.items():
        logger.info("row %s does not use %s", name, ", ".join(f"--{option}" for option in sorted(options)))
        overrides_of_row[name] = {key: value for key, value in overrides_of_row[name].items() if key not in options}
    output = Path(str(absolute(arguments.output_dir)))
    cache, rounds = absolute(arguments.cache_dir) or str(output / "cache"), str(arguments.rounds)
    for folder in (output, cache):
        require_writable(folder)
    common = {"datalist": paths["datalist"], "data-root": paths["data_root"], "rounds": rounds, "cache-dir": cache}
    runs = list[Run]()
    for seed, (position, row) in itertools.product(seeds, enumerate(rows)):
        folder, words = output / row.name / f"seed-{seed}", to_words(overrides_of_row[row.name])
        runs.append(Run(root, row.variant, int(seed), folder, common, words, row.about(position)))
    if to_run := {run.about["row"]: run for run in runs if not run.is_done()}:
        datalist, job_problems = DataList.load(paths["datalist"]), defaultdict[Problem, list[str]](list)
        parts = dict[tuple[str, str], DataList]()
        for name, run in to_run.items():  # for instance a quorum above the number of sites, or unsupported noise
            ids = {**paths, "rounds": arguments.rounds, "variant": run.variant, "output_dir": str(run.folder)}
            for problem in check_job(root, ids | overrides_of_row[name], datalist, build=False).problems:
                job_problems[problem].append(name)
            sites = groups_of(BundleConfig.of_workflow(root, "federate", ids | overrides_of_row[name]))[SITES]
            parts |= {(part.hash, str(folder)): part for part, folder in datalist.by_root(paths["data_root"], sites)}
        require(_with_rows(job_problems, len(to_run)), leaks(datalist))
        for (_, data_root), part in parts.items():  # once for all rows, through the cache
            check_data(part, data_root, cache_dir=cache)
    folders = [run.folder for run in runs]
    run_all(runs, jobs=arguments.jobs, threads=max(1, usable_cores() // arguments.jobs))
    command = shareable(shlex.join(["samfed", *sys.argv[1:]]))
    path = write_comparison(output, folders, command=command, title=arguments.title or TITLE)
    sys.stdout.write(f"{to_text(comparison_table(folders))}\n{path}\n")


def to_words(overrides: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns ``--key=value`` words that :func:`overrides_of` parses to the same values."""
    plain = {key for key, value in overrides.items() if isinstance(value, str) and samfed_value(value) == value}
    return tuple(f"--{key}={value if key in plain else json.dumps(value)}" for key, value in overrides.items())


def shareable(command: str) -> str:
    """Replaces the data folder in a command line by ``$SAMFED_DATA``, so that it can be shown to others."""
    data = os.environ.get("SAMFED_DATA", "").rstrip("/")
    return command.replace(data, "$SAMFED_DATA") if data else command


def _problems(
    root: Path, rows: Sequence[NamedRow], overrides: Mapping[str, Any]
) -> tuple[list[Problem], dict[str, set[str]]]:
    """Checks all rows.

    Returns:
        The problems, and, by row, options of the command line that only other rows read.
    """
    from samfed_monai.config.check import check_bundle
    from samfed_monai.config.ids import UnreadOption

    found, lacking = defaultdict[Problem, list[str]](list), defaultdict[str, set[str]](set)
    overrides_by_row = {row.name: row.overrides for row in rows}
    for row in rows:
        row_overrides = {**overrides, "variant": row.variant, **row.overrides}
        for problem in check_bundle(root, "federate", overrides=row_overrides):
            found[problem].append(row.name)
    options = {each: each.where.rpartition(" -> ")[2] for each in found if isinstance(each, UnreadOption)}
    for problem, option in options.items():
        lacking[option] |= {name for name in found[problem] if option not in overrides_by_row[name]}
    partly = {option: names for option, names in lacking.items() if option in overrides and len(names) < len(rows)}
    for problem, option in options.items():
        found[problem] = [name for name in found[problem] if name not in partly.get(option, ())]
    ignored = {name: {option for option, names in partly.items() if name in names} for name in overrides_by_row}
    unread = {name: options for name, options in ignored.items() if options}
    return _with_rows({problem: names for problem, names in found.items() if names}, len(rows)), unread


def _with_rows(found: Mapping[Problem, Sequence[str]], rows: int) -> list[Problem]:
    """Returns each problem once, with the names of its rows unless all rows have it."""
    return [
        problem if len(names) == rows else replace(problem, where=f"row {', '.join(names)}: {problem.where}")
        for problem, names in found.items()
    ]
