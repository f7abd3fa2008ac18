"""Memory and bytes of a federation on NVIDIA FLARE: measured for small payloads, computed for larger federations.

The server's peak resident memory is measured in the simulator for a few numbers of sites. A straight line is fitted to
it, over the total bytes of one model per site. A round sends one model to each site and receives one from it, since
the scored model is also the start of the next round; the runs' records are checked against this. The table is written
into docs/deploy.md between two marks.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import dataclass
from pathlib import Path

from common import Figure, record, short, write_between
from on_flare.measured import MemoryWatch, bytes_per_round, on_flare

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deploy.md"
MARKS = ("<!-- sizing: written by benchmarks/sizing.py -->", "<!-- end of sizing -->")
SERVER = "server (FLARE's simulator)"
NETWORKS = {"ResNet-18": "deeplabv3plus_resnet18", "ResNet-34": "deeplabv3plus_resnet34"}
MASKS = 0.44  # MB to and from each site for 100 public images of 384 px: benchmarks/heterogeneous.py
LINK = 100e6 / 8  # bytes per second


@dataclass(frozen=True)
class Row:
    """A row of the table; bytes of a round are summed over all sites."""

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
    """Runs the payload in the simulator; returns a measured row."""
    with tempfile.TemporaryDirectory() as folder, MemoryWatch() as watched:
        run = on_flare(Path(folder) / "run", sites, rounds=options.rounds, megabytes=options.megabytes, evaluate=True)
        size = bytes_per_round(run)
    what = f"{options.megabytes} MB of weights"
    return Row(what, sites, watched.peaks[SERVER], size["down"] / 1e6, size["up"] / 1e6, True)


def fit_line(rows: list[Row]) -> tuple[float, float]:
    """Intercept (MiB) and slope (MiB per MB of all sites' models) of the server's memory; the slope is at least 0."""
    import numpy as np

    slope, base = np.polyfit([row.up for row in rows], [row.server for row in rows], 1)
    return float(base), max(float(slope), 0.0)


def computed(base: float, slope: float) -> list[Row]:
    """Computed rows for 4, 20 and 100 sites."""
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
            Row("mixed networks, predictions", sites, base + slope * sites * MASKS, sites * MASKS, sites * MASKS, False)
        )
    return rows


def write(rows: list[Row], note: str) -> None:
    """Writes the table into docs/deploy.md."""
    head = ["| exchange | sites | server's memory | a round, to + from the sites | minutes at 100 Mbit/s | |"]
    table = "\n".join([*head, "| --- | --- | --- | --- | --- | --- |", *map(str, rows), "", note])
    write_between(PAGE, MARKS, table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--measure", default="2,4,8", help="numbers of sites to measure in the simulator")
    parser.add_argument("--megabytes", type=int, default=24, help="size of the payload")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--dry", action="store_true", help="only print the rows")
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
        raise SystemExit(f"{rows[0]}\nnothing is written: --measure needs two numbers of sites, for instance 2,4")
    base, slope = fit_line(rows)
    if options.dry:
        print(*rows, *computed(base, slope), sep="\n")
        return
    note = (
        f"The server's memory is {base:.0f} MiB plus {slope:.2g} MiB for each MB of one model for every site, fitted "
        "to the measured rows (peak resident memory of the simulator's process, torch included). Computed rows use "
        "this line and the networks' sizes. All sites share the server's link of 100 Mbit/s."
    )
    write([*rows, *computed(base, slope)], note)
    figures = [Figure(f"server, {row.sites} sites of {row.what}", row.server, unit="MiB") for row in rows]
    record(__file__, [*figures, Figure("server: MiB for each MB of one model for every site", slope, unit="MiB")])
    print("written: docs/deploy.md")


if __name__ == "__main__":
    main()
