"""Figures of finished runs in one file to keep with a document: the page can be written again where no run is."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import write_text
from samfed_monai.reports.run_data import RunData
from samfed_monai.results.schema import validate_results

SUFFIX = ".jsonl"
_KEYS = frozenset({"about", "results"})
_ABOUT = ("row", "variant", "title", "note", "setting", "sweep", "place", "as", "overrides")


def read_record(path: str | Path) -> list[RunData]:
    """Runs of a record, in its order.

    A record is a file of lines, one JSON object a run: ``results`` is its ``results.json`` without the command line,
    which names places of one machine, and ``about`` what ``samfed compare`` knew of its row.

    Args:
        path: a file that :func:`add_to_record` wrote.

    Raises:
        Refused: no such file, a line that is no such object, or results that do not follow the schema; all at once.
    """
    path, problems = Path(path), Problems()
    if not path.is_file():
        mend = "it is written by `samfed compare --record`"
        problems.add(str(path), found="no such file", expected="a record of runs", mend=mend)
        raise Refused(problems)
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
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
        departures = validate_results(content["results"], where=where)
        problems.extend(departures)
        if not departures:
            run = RunData(Path(), content["results"], about=content["about"])
            runs.append(replace(run, folder=path / run.row / f"seed-{run.seed}"))
    problems.refuse_if_any()
    return runs


def add_to_record(path: str | Path, folders: Iterable[str | Path]) -> None:
    """Writes finished runs into a record; a row and seed that is there already is replaced, all others stay.

    Args:
        path: the record; made where there is none.
        folders: run folders.

    Raises:
        Refused: a run is unfinished, or it is of another data list than those in the record; the record is as it was.
    """
    new = [RunData.read(folder) for folder in folders]
    kept = read_record(path) if Path(path).is_file() else []
    for run in new:
        _require_list_of(kept, path, _datalist(run), where=str(run.folder))
    by_row = {(run.row, run.seed): run for run in [*kept, *new]}
    write_text(path, "".join(f"{_line(by_row[key])}\n" for key in sorted(by_row)))


def require_same_list(path: str | Path, datalist: str, *, where: str) -> None:
    """Lets a record be of one data list only: rows of two lists cannot be compared.

    Args:
        path: the record; one that does not exist takes any list.
        datalist: SHA-256 of the list whose runs are to be added.
        where: the place that a refusal names.

    Raises:
        Refused: the record is of another list, or cannot be read.
    """
    if Path(path).is_file():
        _require_list_of(read_record(path), path, datalist, where=where)


def _require_list_of(kept: Iterable[RunData], path: str | Path, datalist: str | None, *, where: str) -> None:
    for held in {_datalist(run) for run in kept} - {datalist}:
        mend = "give this list's runs a record of their own"
        raise Refused([Problem(where, found=f"data list {datalist}", expected=f"{held} as in {path}", mend=mend)])


def _datalist(run: RunData) -> str | None:
    return run.results["hashes"].get("datalist")


def _line(run: RunData) -> str:
    about = {key: run.about[key] for key in _ABOUT if key in run.about}
    if run.asked:
        about["asked"] = run.asked
    content = {
        "about": about,
        "results": {**run.results, "command": None},
    }
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"))
