"""Sizes of a federation on NVIDIA FLARE: measured with small payloads in the simulator, computed beyond.

The server's highest resident memory is measured for some numbers of sites and fitted as a straight line over the bytes
of one model for every site. Bytes of a round are counted (one model down and one up per site: the model that was
scored is the one that the next round trains from) and held against what the runs record. The table goes into
docs/deploy.md between its two marks.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import Figure, record, short, write_between
from on_flare.measured import Watched, bytes_per_round, on_flare

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deploy.md"
MARKS = ("<!-- sizing: written by benchmarks/sizing.py -->", "<!-- end of sizing -->")
SERVER = "server (FLARE's simulator)"
NETWORKS = {"ResNet-18": "deeplabv3plus_resnet18", "ResNet-34": "deeplabv3plus_resnet34"}
MASKS = 0.44  # MB to and from each site for 100 public images of 384 px: benchmarks/heterogeneous.py
LINK = 100e6 / 8  # bytes a second


@dataclass(frozen=True)
class Row:
    """One line of the table: bytes of a round are those of all sites together."""

    what: str
    sites: int
    server: float  # MiB
    down: float  # MB
    up: float  # MB
    measured: bool

    def __str__(self) -> str:
        minutes = (self.down + self.up) * 1e6 / LINK / 60
        how = "measured" if self.measured else "computed"
        memory = f"{self.server / 1024:.1f} GiB"
        round_ = f"{short(self.down)} + {short(self.up)} MB"
        return f"| {self.what} | {self.sites} | {memory} | {round_} | {minutes:.2g} | {how} |"


def measure(sites: int, options: argparse.Namespace) -> Row:
    """A run of the payload in the simulator."""
    with tempfile.TemporaryDirectory() as folder, Watched() as watched:
        run = on_flare(Path(folder) / "run", sites, rounds=options.rounds, megabytes=options.megabytes, evaluate=True)
        size = bytes_per_round(run)
    what = f"{options.megabytes} MB of weights"
    return Row(what, sites, watched.peaks[SERVER], size["down"] / 1e6, size["up"] / 1e6, True)


def line(rows: list[Row]) -> tuple[float, float]:
    """Base (MiB) and slope (MiB per MB of one model for every site) of the server's memory; never a falling line."""
    import numpy as np

    slope, base = np.polyfit([row.up for row in rows], [row.server for row in rows], 1)
    return float(base), max(float(slope), 0.0)


def computed(base: float, slope: float) -> list[Row]:
    """For 4, 20 and 100 sites."""
    from samfed_monai.networks import client_network

    rows = []
    for what, name in NETWORKS.items():
        weights = client_network(name).state_dict().values()
        size = sum(tensor.numel() * tensor.element_size() for tensor in weights) / 1e6
        for sites in (4, 20, 100):
            up = sites * size
            rows.append(Row(f"{what}, FedAvg", sites, base + slope * up, up, up, False))
    for sites in (4, 20, 100):
        rows.append(
            Row(
                "unlike networks, predictions", sites, base + slope * sites * MASKS, sites * MASKS, sites * MASKS, False
            )
        )
    return rows


def write(rows: list[Row], note: str) -> None:
    """Puts the table between the marks of the guide."""
    head = ["| what travels | sites | server's memory | a round, to + from the sites | minutes at 100 Mbit/s | |"]
    table = "\n".join([*head, "| --- | --- | --- | --- | --- | --- |", *map(str, rows), "", note])
    write_between(PAGE, MARKS, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", default="2,4,8", help="numbers of sites to run in the simulator")
    parser.add_argument("--megabytes", type=int, default=24, help="of the payload")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dry", action="store_true", help="print what would be written")
    options = parser.parse_args()
    numbers = [int(sites) for sites in options.measure.split(",")]
    if min(numbers) < 2:
        parser.error("--measure: a federation has at least 2 sites")
    rows = [measure(sites, options) for sites in numbers]
    for row in rows:
        expected = row.sites * options.megabytes
        assert abs(row.up - expected) < 0.02 * expected, row
        assert abs(row.down - expected) < 0.02 * expected, row
    if len(rows) < 2:
        raise SystemExit(f"{rows[0]}\nnothing is written: a line needs two numbers of sites, for instance 2,4")
    base, slope = line(rows)
    if options.dry:
        print(*rows, *computed(base, slope), sep="\n")
        return
    note = (
        f"The server's memory is {base:.0f} MiB and {slope:.2g} MiB for each MB of one model for every site, fitted to "
        f"the measured rows (highest resident memory of the simulator's process, torch included). Computed rows take "
        f"that line and the networks' own sizes; a server's link of 100 Mbit/s is shared by all sites."
    )
    write([*rows, *computed(base, slope)], note)
    figures = [Figure(f"server, {row.sites} sites of {row.what}", row.server, unit="MiB") for row in rows]
    record(__file__, [*figures, Figure("server: MiB for each MB of one model for every site", slope, unit="MiB")])
    print("written: docs/deploy.md")


if __name__ == "__main__":
    main()
