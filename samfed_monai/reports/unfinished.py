"""The results so far of a run that goes on, in the layout of ``results.json``, from its stored rounds."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from samfed_monai.core.io import read_json
from samfed_monai.core.round_folders import round_folders, run_record
from samfed_monai.results import build_results

ACTIVITIES = ("training", "server", "controller", "evaluation")


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
        seconds={name: sum(record["seconds"].get(name, 0.0) for record in records) for name in ACTIVITIES},
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
