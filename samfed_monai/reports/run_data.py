"""One run folder, read and checked."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Refused, refused
from samfed_monai.core.io import canonical_hash, from_csv, read_json
from samfed_monai.core.run_log import round_folders, run_record
from samfed_monai.metrics import pool, worst
from samfed_monai.results import build_results, validate_results

TERM = "term_"
OF_A_ROUND = ("training", "server", "controller", "evaluation")
"""Activities whose seconds a stored round has."""


@dataclass(frozen=True)
class RoundRow:
    """What one site did in one round.

    Args:
        round: counted from 0.
        site: name.
        status: ``ok``, or what kept the update out.
        reason: why it was kept out, or empty.
        values: the numeric columns: ``dice`` and the other validation scores, ``n``, ``seconds``, ``up_bytes``, …
        terms: means of the round that begin with ``term_``, without that: the loss terms, ``reliability`` and
            ``agreement``.
    """

    round: int
    site: str
    status: str = "ok"
    reason: str = ""
    values: dict[str, float] = field(default_factory=dict)
    terms: dict[str, float] = field(default_factory=dict)

    @property
    def skipped(self) -> bool:
        return self.status != "ok"


def read_federation(path: str | Path) -> list[RoundRow]:
    """Rows of a ``federation.csv`` in the order of rounds; a missing file has none, as in a run without rounds."""
    path = Path(path)
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            rows = [_row(cells) for cells in from_csv(stream)]
    except (KeyError, ValueError, csv.Error) as error:
        hint = "restore the file from a copy"
        raise refused(str(path), found=str(error), expected="the table of a run's rounds", hint=hint) from None
    return sorted(rows, key=lambda row: (row.round, row.site))


def series(rows: Iterable[RoundRow], name: str) -> dict[str, list[tuple[int, float]]]:
    """Site to (round, value) of one column or term, without the rows that lack it."""
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        value = row.terms.get(name, row.values.get(name))
        if value is not None:
            lines.setdefault(row.site, []).append((row.round, value))
    return lines


def _row(cells: dict[str, str]) -> RoundRow:
    text = ("round", "site", "status", "reason")
    numbers = {name: _number(cell) for name, cell in cells.items() if name and name not in text}
    found = {name: value for name, value in numbers.items() if value is not None}
    return RoundRow(
        round=int(cells["round"]),
        site=cells["site"],
        status=cells.get("status") or "ok",
        reason=cells.get("reason") or "",
        values={name: value for name, value in found.items() if not name.startswith(TERM)},
        terms={name.removeprefix(TERM): value for name, value in found.items() if name.startswith(TERM)},
    )


def _number(cell: str | None) -> float | None:
    try:
        value = float(cell or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None


@dataclass(frozen=True)
class RunData:
    """What a report needs of a run.

    Args:
        folder: the run folder.
        results: content of ``results.json``, following the schema.
        run: content of ``run.json``; empty where there is none.
        rounds: rows of ``federation.csv``.
        about: content of ``compare.json``, which a comparison leaves in its runs: ``row``, ``title``, ``note``, …
        planned: rounds that a run will have which goes on; ``None`` of a finished one.
    """

    folder: Path
    results: dict[str, Any]
    run: dict[str, Any] = field(default_factory=dict)
    rounds: list[RoundRow] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    planned: int | None = None
    _tables: dict[Path, list[dict[str, Any]]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def read(cls, folder: str | Path, *, unfinished: bool = False) -> RunData:
        """Reads a run folder.

        Args:
            folder: of the run.
            unfinished: take a run that has no ``results.json`` as far as its stored rounds go.

        Raises:
            Refused: there is no ``results.json``, or it does not follow the schema (every departure is listed).
        """
        folder = Path(folder)
        path = folder / "results.json"
        if not path.is_file() and unfinished and stored_rounds(folder):
            rounds, run = read_federation(folder / "federation.csv"), run_record(folder)
            planned = run["config"].get("rounds")
            return cls(folder, results_so_far(folder), run, rounds, planned=planned)
        if not path.is_file():
            hint = "name a finished run; an interrupted one goes on with the command that started it"
            raise refused(str(folder), found="no results.json", expected="a finished run folder", hint=hint)
        results = read_json(path)
        if problems := validate_results(results, where=str(path)):
            raise Refused(problems)
        run = run_record(folder)
        about = read_json(folder / "compare.json") if (folder / "compare.json").is_file() else {}
        return cls(folder, results, run, read_federation(folder / "federation.csv"), about)

    @property
    def row(self) -> str:
        """The row that the run is of: its variant, unless a comparison gave it another name."""
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
    def asked(self) -> str:
        """Hash of everything that the run was asked for but its seed; "" where a comparison did not leave it."""
        seal = self.about.get("seal")
        if not isinstance(seal, Mapping) or "asked" not in seal:
            return str(self.about.get("asked", ""))
        return canonical_hash({**seal, "asked": {key: value for key, value in seal["asked"].items() if key != "seed"}})

    @property
    def seconds_left(self) -> float | None:
        """What the rounds of a run that goes on will still take, at the pace of those so far; else ``None``."""
        if self.planned is None:
            return None
        done, spent = self.results["rounds"], sum(self.results["seconds"][name] for name in OF_A_ROUND)
        return (self.planned - done) * spent / done

    @property
    def own_models(self) -> bool:
        """Whether each site ends with a model of its own: a network, or a part of one, that no other site has."""
        return bool(self.results.get("own_models"))

    @property
    def skipped(self) -> list[dict[str, Any]]:
        """Updates that were not aggregated: of ``results.json``, else as the rounds recorded them."""
        if self.results.get("skipped"):
            return list(self.results["skipped"])
        return [
            {"round": row.round, "site": row.site, "reason": row.reason or row.status}
            for row in self.rounds
            if row.skipped
        ]

    def setting(self, name: str) -> Any:
        """An option of the run, of ``run.json`` (at its top or in ``config``) or of its command; else ``None``."""
        config = self.run.get("config")
        for level in (self.run, config if isinstance(config, Mapping) else {}):
            if level.get(name) is not None:
                return level[name]
        option = "--" + name.replace("_", "[-_]")
        found = re.search(rf"(?:^|\s){option}[= ]('[^']*'|\S+)", self.results.get("command") or "")
        return found.group(1).strip("'") if found else None

    @property
    def classes(self) -> list[str]:
        """Names of the classes, where there are several; empty for one."""
        return list(self.results["average"]["test"].get("classes") or self._of_validation())

    def _of_validation(self) -> list[str]:
        return list(self.results["average"]["validation"].get("classes") or ())

    def image_scores(self, site: str, *, split: str = "test", model: str | None = None) -> list[dict[str, Any]]:
        """Rows of ``evaluation/<model>/<site>/<split>/scores.csv``, with ``dice`` and ``hd95`` as numbers."""
        return self._table(self.evaluation(site, split=split, model=model) / "scores.csv", "dice", "hd95")

    def disagreement(self, site: str) -> list[dict[str, Any]]:
        """Rows of ``disagreement.csv``, lowest first: ``id``, ``image_sha256``, ``dice``, ``mask`` (a file, or empty).

        Only a site without masks has them, in the run folder of the machine that has its images.
        """
        return self._table(self.own_images(site) / "disagreement.csv", "dice")

    def _table(self, path: Path, *numbers: str) -> list[dict[str, Any]]:
        """Rows of a site's table, some cells as numbers; read once, none of a missing file."""
        if path not in self._tables:
            rows = from_csv(io.StringIO(path.read_text(encoding="utf-8"))) if path.is_file() else []
            self._tables[path] = [{**row, **{name: float(row[name]) for name in numbers}} for row in rows]
        return self._tables[path]

    def student_and_teacher(self) -> dict[str, list[float]]:
        """Dice between student and teacher on each image of a site without masks, by site, of those that have any."""
        dices = {site: [row["dice"] for row in self.disagreement(site)] for site in self.sites}
        return {site: found for site, found in dices.items() if found}

    def own_images(self, site: str) -> Path:
        """Where a site without masks keeps what it saw on its own images: of the best model, or of the last round's."""
        return self.evaluation(site, split="unlabelled", model="best" if self.planned is None else "current")

    def evaluation(self, site: str, *, split: str = "test", model: str | None = None) -> Path:
        """The folder of one site's evaluation."""
        return self.folder / "evaluation" / (model or self.results["selected"]) / site / split


def teacher_alone(results: Mapping[str, Any]) -> dict[str, Any] | None:
    """A run's teacher in the layout of a model's test tables: ``sites``, ``average``, ``worst``, ``unseen``.

    Its average and its worst site are over the sites that trained, as those of the run's models are; hospitals that
    took no part are ``unseen``, also in results that list them among the sites.

    Args:
        results: of ``results.json``.

    Returns:
        ``None`` where the run had no teacher, or it was not scored.
    """
    teacher = results.get("teacher") or {}
    everywhere = {**teacher.get("sites", {}), **teacher.get("unseen", {})}
    tests = {site: {"test": splits["test"]} for site, splits in everywhere.items() if splits.get("test", {}).get("n")}
    here = {site: splits for site, splits in tests.items() if site in results["sites"]}
    if not here:
        return None
    skip_empty = results.get("convention", {}).get("empty") == "skipped"
    return {
        "sites": {site: here.get(site, {}) for site in results["sites"]},
        "average": {"test": pool([splits["test"] for splits in here.values()], skip_empty=skip_empty)},
        "worst": {"test": worst({site: splits["test"] for site, splits in here.items()})},
        "unseen": {site: splits for site, splits in tests.items() if site not in here},
        **({"costs": {"teacher": teacher}} if "milliseconds" in teacher else {}),
        **({"convention": results["convention"]} if "convention" in results else {}),
    }


def stored_rounds(folder: str | Path) -> int:
    """How many rounds of a run are stored."""
    return len(_round_files(Path(folder)))


def results_so_far(folder: str | Path) -> dict[str, Any]:
    """Validation scores of the best and of the last round so far, and what the rounds took; nothing is tested yet.

    Args:
        folder: of a run with at least one stored round.

    Returns:
        What follows the schema of ``results.json``; ``best`` is the round with the highest mean Dice, and the run's
        own choice may differ where a site was away.
    """
    folder = Path(folder)
    records = [read_json(path) for path in _round_files(folder)]
    run = run_record(folder)
    last = records[-1]
    best = max(records, key=lambda record: (record["average"]["validation"]["dice"] or 0.0, -record["round"]))
    if best["average"]["validation"]["dice"] is None:
        best = last
    sites = dict.fromkeys(site for record in records for site in record["sites"])
    traffic = [
        {way: sum(entry[way] for entry in record["sites"].values()) for way in ("up_bytes", "down_bytes")}
        for record in records
    ]
    return build_results(
        variant=run["config"].get("variant") or "samfed",
        rounds=len(records),
        scores={
            name: {site: _validation(record["sites"].get(site)) for site in sites}
            for name, record in (("best", best), ("last", last))
        },
        model_rounds={"best": best["round"], "last": last["round"]},
        traffic={way: sum(one[way] for one in traffic) for way in ("up_bytes", "down_bytes")},
        rounds_traffic=traffic,
        seconds={
            name: sum(record["seconds"].get(name, 0.0) for record in records)
            for name in ("training", "server", "controller", "evaluation")
        },
        hashes=run.get("hashes"),
        versions=run.get("versions"),
        seeds=run.get("seeds"),
        command=_command(folder / "run.log"),
        caveats=[
            f"The run goes on: {len(records)} of {last['rounds']} rounds are stored, and no test image is scored."
        ],
    )


def _round_files(folder: Path) -> list[Path]:
    found = (round / "round.json" for round in round_folders(folder / "rounds").values())
    return [path for path in found if path.is_file()]


def _command(log: Path) -> str | None:
    """The command that works on the run, as its log begins with it."""
    if not log.is_file():
        return None
    found = re.findall(r"^\S+ \S+ INFO +(.* federate .*)$", log.read_text(encoding="utf-8", errors="replace"), re.M)
    return found[-1] if found else None


def _validation(entry: dict[str, Any] | None) -> dict[str, Any]:
    scores = (entry or {}).get("validation")
    return {"validation": scores} if scores else {}
