"""Reads and checks a run folder."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.io import canonical_hash, from_csv, read_json
from samfed_monai.core.run_log import RESTORE_RESULTS, round_folders, run_record
from samfed_monai.core.text import grouped
from samfed_monai.core.validators import require, schema_problems
from samfed_monai.data.datalist import DataList
from samfed_monai.results import BYTES, build_results, read_round, round_traffic, site_tables, validate_results

TERM = "term_"
"""Prefix of the columns with a round's means: loss terms, ``reliability`` and ``agreement``."""
_ABOUT = read_json(Path(__file__).with_name("compare.schema.json"))
"""JSON Schema of ``compare.json``."""
ROUND_ACTIVITIES = ("training", "server", "controller", "evaluation")
"""Activities whose seconds a stored round records."""


@dataclass(frozen=True)
class RoundRow:
    """One site's row of one round.

    Args:
        round: counted from 0.
        site: name.
        status: ``ok``, or why the update was not aggregated.
        reason: details on why it was not aggregated, or empty.
        values: the numeric columns: ``dice`` and the other validation scores, ``n``, ``term_supervised``, …
    """

    round: int
    site: str
    status: str = "ok"
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)

    @classmethod
    def of(cls, cells: dict[str, str]) -> RoundRow:
        """Makes a row from the table's cells; cells without a finite number are left out."""
        text = {name: cells.pop(name, "") for name in ("site", "status", "reason")}
        number, values = int(cells.pop("round")), {}
        for name, cell in cells.items():
            with suppress(TypeError, ValueError):
                values[name] = float(cell)
        values = {name: value for name, value in values.items() if math.isfinite(value)}
        return cls(number, text["site"], text["status"] or "ok", text["reason"], values)


def read_federation(path: str | Path) -> list[RoundRow]:
    """Reads the rows of a ``federation.csv`` ordered by round; none without the file, as in a run without rounds."""
    rows = _table(path, "the table of a run's rounds", RoundRow.of)
    return sorted(rows, key=lambda row: (row.round, row.site))


def series(rows: Iterable[RoundRow], name: str) -> dict[str, list[tuple[int, float]]]:
    """Returns (round, value) of one column by site, without rows that lack it."""
    return grouped((row.site, (row.round, row.values[name])) for row in rows if name in row.values)


@dataclass(frozen=True)
class RunData:
    """The data of a run for reports.

    Args:
        folder: the run folder.
        results: content of ``results.json``, matching the schema.
        run: content of ``run.json``; empty if there is none.
        rounds: rows of ``federation.csv``.
        about: content of ``compare.json``, which a comparison writes into its runs: ``row``, ``title``, ``note``, …
        planned: planned number of rounds of a running run; ``None`` for a finished one.
    """

    folder: Path
    results: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    rounds: list[RoundRow] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    planned: int | None = None

    @classmethod
    def read(cls, folder: str | Path, *, unfinished: bool = False) -> RunData:
        """Reads a run folder.

        Args:
            folder: the run folder, or its ``results.json``.
            unfinished: whether to read the stored rounds of a run without ``results.json``.

        Raises:
            Refused: there is no ``results.json``, or it does not match the schema (every violation is listed).
        """
        path = Path(folder) if Path(folder).name == "results.json" else Path(folder) / "results.json"
        folder = path.parent
        running = unfinished and not path.is_file() and bool(round_folders(folder / "rounds"))
        if not running and not path.is_file():
            hint = "name a finished run; the command that started an interrupted run resumes it"
            raise refused(str(folder), found="no results.json", expected="a finished run folder", hint=hint)
        results = results_so_far(folder) if running else read_json(path, name=str(path), hint=RESTORE_RESULTS)
        if not running and (problems := validate_results(results, where=str(path))):
            raise Refused(problems)
        run, rounds = run_record(folder), read_federation(folder / "federation.csv")
        comparison = folder / "compare.json"
        about = read_json(comparison, name=str(comparison)) if comparison.is_file() else {}
        damaged = schema_problems(about, _ABOUT, str(comparison))
        require(replace(each, hint="restore the file from a copy, or remove it") for each in damaged)
        planned = run.get("config", {}).get("rounds", results["rounds"]) if running else None
        return cls(folder, results, run, rounds, about, planned)

    @property
    def row(self) -> str:
        """The row of the run: its variant, unless a comparison gave it another name."""
        return str(self.about.get("row") or self.results["variant"])

    @property
    def sites(self) -> list[str]:
        return list(self.results["sites"])

    @property
    def seed(self) -> int:
        """The run's seed, which pairs it with the runs of other variants."""
        seeds = self.results["seeds"]
        return int(seeds.get("seed", next(iter(seeds.values()), 0)))

    @property
    def settings_hash(self) -> str:
        """Hash of all requested options of the run except the seed; "" if no comparison recorded it."""
        seal = self.about.get("seal")
        if not isinstance(seal, Mapping) or "asked" not in seal:
            return str(self.about.get("asked", ""))
        return canonical_hash({**seal, "asked": {key: value for key, value in seal["asked"].items() if key != "seed"}})

    @property
    def seconds_left(self) -> float | None:
        """Estimated seconds for the remaining rounds of a running run, at the pace so far; else ``None``."""
        if self.planned is None:
            return None
        done, spent = self.results["rounds"], sum(self.results["seconds"][name] for name in ROUND_ACTIVITIES)
        return (self.planned - done) * spent / done

    @property
    def own_models(self) -> bool:
        """Whether each site has a personal model: a network, or a part of one, that no other site has."""
        return bool(self.results.get("own_models"))

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Updates that were not aggregated: from ``results.json``, else from the rounds."""
        return self.results.get("skipped") or [
            {"round": row.round, "site": row.site, "reason": row.reason or row.status}
            for row in self.rounds
            if row.status != "ok"
        ]

    def used(self, datalist: DataList) -> bool:
        """Whether a data list is the run's by its hash, or the part of it at the server; a run may not record it."""
        return self.results["hashes"].get("datalist") in (None, datalist.hash, datalist.for_server().hash)

    def setting(self, name: str) -> str | None:
        """Returns an option of the command that made the run; ``None`` if it was not given."""
        option = "--" + name.replace("_", "[-_]")
        found = re.search(rf"(?:^|\s){option}[= ]('[^']*'|\S+)", self.results.get("command") or "")
        return found.group(1).strip("'") if found else None

    @property
    def classes(self) -> list[str]:
        """Names of several classes; empty for one."""
        average = self.results["average"]
        return list(average["test"].get("classes") or average["validation"].get("classes") or ())

    def image_scores(self, site: str, *, split: str = "test") -> list[dict[str, Any]]:
        """Returns the rows of ``evaluation/<model>/<site>/<split>/scores.csv``, ``dice`` and ``hd95`` as numbers."""
        return _site_table(self.evaluation(site, split=split) / "scores.csv", "dice", "hd95")

    def disagreement(self, site: str) -> list[dict[str, Any]]:
        """Returns the rows of ``disagreement.csv``, lowest Dice first: ``id``, ``image_sha256``, ``dice``, ``mask``.

        ``mask`` is a file, or empty. Only sites without masks have this table, on the machine with their images.
        """
        return _site_table(self.own_images(site) / "disagreement.csv", "dice")

    def student_and_teacher(self) -> dict[str, list[float]]:
        """Returns the Dice between student and teacher on each image, by site, of sites without masks."""
        return {site: [row["dice"] for row in rows] for site in self.sites if (rows := self.disagreement(site))}

    def own_images(self, site: str) -> Path:
        """Returns the folder with results on a site's unlabelled images: of the best model, or of a running run's."""
        return self.evaluation(site, split="unlabelled", model="best" if self.planned is None else "current")

    def evaluation(self, site: str, *, split: str = "test", model: str | None = None) -> Path:
        """Returns the folder of one site's evaluation."""
        return self.folder / "evaluation" / (model or self.results["selected"]) / site / split


def _site_table(path: Path, *numbers: str) -> list[dict[str, Any]]:
    """Reads the rows of a site's table, with some columns as numbers."""

    def row_of(row: dict[str, str]) -> dict[str, Any]:
        return {**row, "id": row["id"], **{name: float(row[name]) for name in numbers}}

    return _table(path, "a table of a site's images", row_of)


def _table(path: str | Path, expected: str, row_of: Callable[[dict[str, str]], Any]) -> list[Any]:
    """Reads the rows of a table; none for a missing file.

    Raises:
        Refused: the file is damaged.
    """
    if not Path(path).is_file():
        return []
    try:
        with open(path, encoding="utf-8", newline="") as stream:
            return [row_of(cells) for cells in from_csv(stream)]
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise refused(str(path), found=str(error), expected=expected, hint="restore the file from a copy") from None


def teacher_alone(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns the scores of a run's teacher like a model's test tables: ``sites``, ``average``, ``worst``, ``unseen``.

    Average and worst site are over the sites that trained, as for the run's models.

    Args:
        results: content of ``results.json``.

    Returns:
        The tables; ``None`` if the run had no teacher, or it was not scored.
    """
    teacher = results.get("teacher") or {}
    sites, unseen = (
        {site: {"test": splits["test"]} for site, splits in teacher.get(kind, {}).items() if scored(splits)}
        for kind in ("sites", "unseen")
    )
    if not sites:
        return None
    skip_empty = results.get("convention", {}).get("empty") == "skipped"
    tables = site_tables(sites, splits=["test"], skip_empty=skip_empty)
    return {**tables, "sites": {site: sites.get(site, {}) for site in results["sites"]}, "unseen": unseen}


def scored(splits: Mapping[str, Any]) -> bool:
    """Whether a site or hospital has test images with masks."""
    return bool(splits.get("test", {}).get("n"))


def results_so_far(folder: str | Path) -> dict[str, Any]:
    """Returns the validation scores of the best and last stored round, with traffic and seconds; no test scores.

    Args:
        folder: folder of a run with at least one stored round.

    Returns:
        Content in the schema of ``results.json``; ``best`` is the round with the highest mean Dice. The run may choose
        another round if a site was missing in some.
    """
    run, log, rounds = run_record(folder), Path(folder) / "run.log", Path(folder) / "rounds"
    records = [read_round(path, number, run.get("run", "")) for number, path in round_folders(rounds).items()]
    last = records[-1]
    text = log.read_text(encoding="utf-8", errors="replace") if log.is_file() else ""
    commands = re.findall(r"^\S+ \S+ INFO +(.* federate .*)$", text, re.MULTILINE)
    best = max(records, key=lambda record: (record["average"]["validation"]["dice"] or 0.0, -record["round"]))
    if best["average"]["validation"]["dice"] is None:
        best = last
    sites = dict.fromkeys(site for record in records for site in record["sites"])
    traffic = [round_traffic(record) for record in records]
    stored = f"{len(records)} of {last['rounds']} rounds are stored"
    return build_results(
        variant=run.get("config", {}).get("variant") or "samfed",
        rounds=len(records),
        scores={
            name: {site: {"validation": record["sites"].get(site, {}).get("validation")} for site in sites}
            for name, record in (("best", best), ("last", last))
        },
        model_rounds={"best": best["round"], "last": last["round"]},
        traffic={direction: sum(round_bytes[direction] for round_bytes in traffic) for direction in BYTES},
        rounds_traffic=traffic,
        seconds={name: sum(record["seconds"].get(name, 0.0) for record in records) for name in ROUND_ACTIVITIES},
        hashes=run.get("hashes"),
        versions=run.get("versions"),
        seeds=run.get("seeds"),
        command=commands[-1] if commands else None,
        caveats=[f"The run is not finished: {stored}, no test image is scored."],
    )
