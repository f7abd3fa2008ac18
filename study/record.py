"""Records: the results of finished runs in one file, from which pages can be written without the run folders."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from functools import cache
from pathlib import Path

from samfed_monai.config.variants import methods
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import write_text
from samfed_monai.reports.run_data import RunData
from samfed_monai.results import validate_results

SUFFIX = ".jsonl"
_KEYS = frozenset({"about", "results"})
_ABOUT = ("row", "variant", "title", "note", "setting", "sweep", "place", "as", "overrides", "earlier")


def read_record(path: str | Path) -> list[RunData]:
    """Reads the runs of a record, in its order.

    Each line of a record is a JSON object with a run: ``results`` is its ``results.json`` without the command line,
    which has paths of one machine; ``about`` is the description of its row by ``samfed compare``, and ``earlier``, if
    the method has changed since: how it differed.

    Args:
        path: a file that :func:`add_to_record` wrote.

    Raises:
        Refused: the file is missing, a line is not such an object, or results do not follow the schema.
    """
    path, problems = Path(path), Problems()
    if not path.is_file():
        hint = "`python -m study record` writes it"
        problems.add(str(path), found="no such file", expected="a record of runs", hint=hint)
        raise Refused(problems)
    return list(_runs_of(path, path.read_text(encoding="utf-8")))


@cache  # a page reads a record several times, and checking its runs is slow
def _runs_of(path: Path, text: str) -> list[RunData]:
    problems, runs, known = Problems(), [], methods()
    for number, line in enumerate(text.splitlines(), 1):
        where = f"{path} -> line {number}"
        try:
            content = json.loads(line)
        except json.JSONDecodeError as error:
            problems.add(where, found=f"no JSON ({error})", expected="an object on each line")
            continue
        if not isinstance(content, dict) or content.keys() != _KEYS or not isinstance(content["about"], dict):
            found = f"keys {sorted(content)}" if isinstance(content, dict) else type(content).__name__
            problems.add(where, found=found, expected="an object of two objects, `about` and `results`")
            continue
        schema_problems = validate_results(content["results"], where=where)
        problems.extend(schema_problems)
        if not schema_problems:
            method = known.get(content["results"]["variant"])
            labels = {"own_labels": method is not None and method.kind == "labelled"}  # earlier runs do not record it
            run = RunData(Path(), {**labels, **content["results"]}, about=content["about"])
            runs.append(replace(run, folder=path / run.row / f"seed-{run.seed}"))
    problems.refuse_if_any()
    return runs


def runs_in(folder: str | Path) -> list[Path]:
    """Folders of the finished runs of a comparison, sorted by name.

    Runs without a ``compare.json`` are left out: ``samfed compare`` did not see them end, and their row is unknown.

    Args:
        folder: the ``--output-dir`` of ``samfed compare``, which may still be running, or have failed runs.

    Raises:
        Refused: no run has finished.
    """
    found = sorted(path.parent for path in Path(folder).glob("*/*/results.json"))
    found = [run for run in found if (run / "compare.json").is_file()]
    if not found:
        hint = "name the --output-dir of `samfed compare`"
        raise Refused([Problem(str(folder), found="no finished run", expected="a folder of runs", hint=hint)])
    return found


def add_to_record(path: str | Path, folders: Iterable[str | Path]) -> None:
    """Adds finished runs to a record; replaces runs of the same row and seed, and keeps all others.

    Args:
        path: the record; created if missing.
        folders: run folders.

    Raises:
        Refused: a run is unfinished, or has another data list than the runs in the record. The record is unchanged.
    """
    new = [RunData.read(folder) for folder in folders]
    kept = read_record(path) if Path(path).is_file() else []
    problems, hint = Problems(), "store the runs of this list in another record"
    lists = {_datalist(run): path for run in kept} or {_datalist(run): run.folder for run in new[:1]}
    for run in new:
        for datalist, where in lists.items():
            if datalist != _datalist(run):
                found, expected = f"data list {_datalist(run)}", f"{datalist} as in {where}"
                problems.add(str(run.folder), found=found, expected=expected, hint=hint)
    problems.refuse_if_any()
    by_row = {(run.row, run.seed): run for run in [*kept, *new]}
    write_text(path, "".join(f"{_line(by_row[key])}\n" for key in sorted(by_row)))


def _datalist(run: RunData) -> str | None:
    return run.results["hashes"].get("datalist")


def _line(run: RunData) -> str:
    about = {key: run.about[key] for key in _ABOUT if key in run.about}
    if run.settings_hash:
        about["asked"] = run.settings_hash
    content = {"about": about, "results": {**run.results, "command": None}}
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
