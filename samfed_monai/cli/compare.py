"""``samfed compare``: variants x seeds on one data list, one table with mean and spread."""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import shlex
import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import absolute, add_bundle, add_data, add_device, take_overrides
from samfed_monai.config.overrides import normal_ids, overrides_of, samfed_value
from samfed_monai.core.device import usable_cores
from samfed_monai.core.errors import ExitCode, Problem, Problems, Refused, did_you_mean
from samfed_monai.core.io import read_json

if TYPE_CHECKING:
    from samfed_monai.cli.run_many import Run
    from samfed_monai.data import DataList

logger = logging.getLogger(__name__)

ROW_KEYS = ("variant", "title", "note", "setting", "as", "overrides")
ROLES = ("dp_only", "oracle")
FILE_KEYS = ("title", "setting", "overrides", "rows")
PER_COMPARISON = ("bundle_root", "datalist", "data_root", "output_dir", "cache_dir", "rounds", "seed", "variant")
"""Ids that a row cannot set: the comparison gives them to all of its rows alike, or the row has a key for it."""

RESERVED = ("cache", "figures", "teacher")
"""Names of folders that a comparison writes, and of the row that it makes itself."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]*")


@dataclass(frozen=True)
class NamedRow:
    """One row of a comparison before it has run.

    Args:
        name: unique; the folder of its runs.
        variant: which variant it runs.
        overrides: ids of ``federate.json`` and ``train.json``, and values, on top of the command line's.
        title: what tables call it; empty for the variant's own title.
        note: a sentence below the table.
        setting: rows of one setting share ``dp_only`` and ``oracle``; empty for the setting of the variants.
        sweep: title of the file that the row is from.
        role: ``dp_only`` or ``oracle`` (``as`` in the file) for a row that is its setting's floor or ceiling though
            its variant has another name; empty for any other.
    """

    name: str
    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    note: str = ""
    setting: str = ""
    sweep: str = ""
    role: str = ""

    def about(self, place: int) -> dict[str, Any]:
        """What a run's ``compare.json`` says of its row, for reports."""
        texts = {name: getattr(self, name) for name in ("title", "note", "setting", "sweep")}
        made = {"row": self.name, "variant": self.variant, "place": place, "overrides": dict(self.overrides)}
        texts["as"] = self.role
        return {**made, **{name: text for name, text in texts.items() if text}}


def read_rows(path: str | Path) -> list[NamedRow]:
    """Rows of a file, in its order.

    Overrides at the top of the file belong to all of its rows. Keys that begin with ``_`` are notes to the reader.
    Whether a variant exists and an id is spelt right is the bundle's check, which ``samfed compare`` makes of each row.

    Args:
        path: a JSON file.

    Raises:
        Refused: it is not such a file; every departure is listed.

    Example::

        {"title": "Agreement rule",
         "rows": {"samfed": {"variant": "samfed"},
                  "average": {"variant": "samfed", "note": "the mean of the two probabilities",
                              "overrides": {"agreement#rule": "average"}}}}
    """
    where, problems = Path(path).name, Problems()
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("rows"), dict) or not content["rows"]:
        hint = 'for instance {"rows": {"average": {"variant": "samfed", "overrides": {}}}}'
        problems.add(where, found=type(content).__name__, expected="an object with `rows`, by name", hint=hint)
        raise Refused(problems)
    _check(content, FILE_KEYS, where, problems)
    shared = _overrides(content, where, problems)
    rows = []
    for name, row in content["rows"].items():
        here = f"{where} -> rows#{name}"
        if not _NAME.fullmatch(name) or name in RESERVED:
            expected = f"a name of letters, digits and `_.+-`, none of {', '.join(RESERVED)}"
            problems.add(here, found=repr(name), expected=expected, hint="it becomes a folder")
        if not isinstance(row, dict):
            problems.add(here, found=type(row).__name__, expected="an object with `variant`")
            continue
        _check(row, ROW_KEYS, here, problems)
        if "variant" not in row:
            problems.add(f"{here}#variant", found="no such key", expected="name of a variant, for instance samfed")
        texts = {key: row[key] for key in ("title", "note", "setting") if isinstance(row.get(key), str)}
        texts = {**({"setting": content["setting"]} if isinstance(content.get("setting"), str) else {}), **texts}
        if row.get("as", ROLES[0]) not in ROLES:
            problems.add(f"{here}#as", found=repr(row["as"]), expected=" or ".join(ROLES))
        overrides = {**shared, **_overrides(row, here, problems)}
        sweep, role = str(content.get("title", "")), str(row.get("as", ""))
        rows.append(NamedRow(name, str(row.get("variant", "")), overrides, sweep=sweep, role=role, **texts))
    problems.refuse_if_any()
    return rows


def all_rows(variants: Sequence[str], rows: Iterable[NamedRow], problems: Problems) -> list[NamedRow]:
    """Rows of ``--variants`` and of the files together; a name of two different rows is a problem.

    Args:
        variants: names of variants, which are rows without overrides.
        rows: rows of all files.
        problems: takes what is wrong.
    """
    from samfed_monai.reports.rows import VARIANTS

    found: dict[str, NamedRow] = {}
    for row in [*(NamedRow(variant, variant) for variant in variants), *rows]:
        where = f"rows -> {row.name}"
        if row.name in VARIANTS and row.variant != row.name:
            expected = f"the variant of that name, or another name than {row.name!r}"
            problems.add(where, found=f"variant {row.variant!r}", expected=expected)
        if row.name in found and row != found[row.name]:
            same = _same_run(row, found[row.name])
            if not same:
                problems.add(where, found="two rows of that name", expected="each name once", hint="rename one")
            row = row if same else found[row.name]
        found[row.name] = row
    return list(found.values())


def _same_run(row: NamedRow, other: NamedRow) -> bool:
    """Whether two rows are the same run, for instance the default row in the files of two sweeps."""
    mine, others = ((r.variant, r.overrides, r.setting, r.role) for r in (row, other))
    return mine == others


def _check(content: Mapping[str, Any], keys: Sequence[str], where: str, problems: Problems) -> None:
    for key, value in content.items():
        if key.startswith("_"):
            continue
        if key not in keys:
            expected = f"one of {', '.join(keys)}"
            problems.add(f"{where}#{key}", found="an unknown key", expected=expected, hint=did_you_mean(key, keys))
        elif key not in ("rows", "overrides", "as") and not isinstance(value, str):
            problems.add(f"{where}#{key}", found=f"{value!r} ({type(value).__name__})", expected="text")


def _overrides(content: Mapping[str, Any], where: str, problems: Problems) -> dict[str, Any]:
    given = content.get("overrides", {})
    if not isinstance(given, dict):
        expected = 'ids and values, for instance {"agreement#tau": 0.8}'
        problems.add(f"{where}#overrides", found=type(given).__name__, expected=expected)
        return {}
    overrides = normal_ids(given)
    for key in overrides.keys() & set(PER_COMPARISON):
        expected = "ids in which rows may differ"
        hint = (
            "it is given once, for all rows: on the command line" if key != "variant" else "it is the row's `variant`"
        )
        problems.add(f"{where}#overrides#{key}", found="set by a row", expected=expected, hint=hint)
    return {key: value for key, value in overrides.items() if not key.startswith("_")}


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
    from samfed_monai.cli.run_many import Run, run_all
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.data import DataList
    from samfed_monai.federation.preparation import check_data
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
    from samfed_monai.config.reads import Unread

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
            told = set(plain[row.variant])
            found += [
                replace(problem, where=f"row {row.name}: {problem.where}") for problem in own if problem not in told
            ]
    return list(dict.fromkeys(found)), partly


def _require_possible(
    runs: Iterable[Run], overrides: Mapping[str, Any], datalist: DataList, unread: Mapping[str, Collection[str]]
) -> None:
    """Refuses rows that could not run on this list, all at once: a quorum of more sites, noise that a method bars, …"""
    from samfed_monai.federation.job import check_job

    rows, found = {run.about["row"]: run for run in runs}, dict[Problem, list[str]]()
    for row, run in rows.items():
        heeded = _without(overrides, unread.get(row, ()))
        own = {**heeded, "variant": run.variant, "output_dir": str(run.folder), **run.about["overrides"]}
        for problem in check_job(run.bundle, own, datalist, build=False).problems:
            found.setdefault(problem, []).append(row)
    told = [
        problem if len(names) == len(rows) else replace(problem, where=f"row {', '.join(names)}: {problem.where}")
        for problem, names in found.items()
    ]
    if told:
        raise Refused(told)


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
