"""Prints bytes per site and round, and Dice, of runs that differ only in ``federate.json -> compression``.

``make compression SAMFED_DATA=DATA`` makes the runs. For their table:
``python benchmarks/compression.py runs/kvasir/compression-skin-*``.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from samfed_monai.core.io import read_json


def row(run: Path) -> str:
    """A table row: compression, bytes, Dice of the last model. Round 0, which sends whole models, is excluded."""
    compression = read_json(run / "run.json")["config"].get("compression", "float32")
    results: Mapping[str, Any] = read_json(run / "results.json")
    records = [read_json(path) for path in sorted(run.glob("rounds/[0-9]*/round.json"))]
    sites = [entry for record in records[1:] for entry in record["sites"].values() if entry["status"] == "ok"]
    up, down = (fmean(entry[way] for entry in sites) / 1e6 for way in ("up_bytes", "down_bytes"))
    last = results["models"]["last"]["sites"].values()
    dice = [
        sum(site[split]["dice"] * site[split]["n"] for site in last) / sum(site[split]["n"] for site in last)
        for split in ("validation", "test")
    ]
    return f"| `{compression}` | {up:.2f} | {down:.2f} | {up + down:.2f} | {dice[0]:.4f} | {dice[1]:.4f} |"


def table(runs: list[Path]) -> str:
    """The table in Markdown."""
    head = "| compression | MB up | MB down | MB both ways | Dice, validation | Dice, test |"
    return "\n".join([head, "| --- | --- | --- | --- | --- | --- |", *map(row, runs)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="folders of finished runs of two rounds or more")
    print(table(parser.parse_args().runs))


if __name__ == "__main__":
    main()
