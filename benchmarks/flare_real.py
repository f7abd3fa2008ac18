"""Real lists on a whole FLARE system of this machine, beside the same run in one process: equal models, seconds.

``python benchmarks/flare_real.py --data DATA --adapters DIR`` (``make flare-real SAMFED_DATA=DATA``): skin on four
sites, polyps on two, with the bundles' own network, size and batch; every split is cut to ``--images``. What was seen
goes into docs/deploy.md between its two marks.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import shlex
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import write_between

from samfed_monai.core.io import read_json, sha256_file
from samfed_monai.data import DataList

PAGE = Path(__file__).resolve().parent.parent / "docs" / "deploy.md"
MARKS = ("<!-- real: written by benchmarks/flare_real.py -->", "<!-- end of real -->")
LISTS = {
    "skin": ("samfed_skin", "isic_hssf.json", "skin/isic2017"),
    "polyp": ("samfed_polyp", "polyp_hssf.json", "polyp"),
}


def cut(whole: Path, path: Path, most: int) -> None:
    """Writes a list with at most ``most`` images of every split of another."""
    listed = DataList.load(whole)
    sites = {
        name: dataclasses.replace(site, **{str(split.value): list(items)[:most] for split, items in site.splits()})
        for name, site in listed.sites.items()
    }
    DataList(listed.name, listed.public[:most], sites).save(path)


def common(options: argparse.Namespace) -> str:
    """Options of every run: scores of as many images as there are, or of five, may leave a site."""
    scale = f"--rounds {options.rounds} --local_steps {options.local_steps} --overlays false"
    return f"{scale} --privacy#least_images {min(5, options.images)}"


def samfed(words: str, log: Path) -> float:
    """Runs a command line; returns its seconds."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "a") as stream:
        command = [sys.executable, "-m", "samfed_monai", *shlex.split(words)]
        if subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode:
            raise SystemExit(f"samfed {words}\n{log.read_text()[-3000:]}")
    return time.perf_counter() - started


def models(run: Path) -> list[str]:
    """SHA-256 of the models that a run has kept."""
    return [sha256_file(path) for path in sorted(run.glob("rounds/[0-9]*/global.safetensors"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def one(name: str, data: Path, folder: Path, options: argparse.Namespace) -> str:
    """Both runs of one list; a row of the table."""
    bundle, split, images = LISTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    log, whole, listed = folder / "log", folder / "whole.json", folder / "list.json"
    grouped = "--by-sequence" if name == "polyp" else ""
    source = f"--split {data / 'data' / 'splits' / split} --data-root {data / 'data' / images}"
    samfed(f"prepare list {source} {grouped} --limit-per-site {options.images} --output {whole}", log)
    cut(whole, listed, options.images)
    given = f"{bundle} --datalist {listed} --data-root {data / 'data' / images} {common(options)}"
    given += f" --cache-dir {folder / 'cache'}"
    if options.adapters:
        given += f" --adapter {Path(options.adapters).resolve() / name}.safetensors"
    here = samfed(f"federate {given} --output-dir {folder / 'one'}", log)
    there = samfed(f"flare poc {given} --output-dir {folder / 'poc'} --threads 1 --port {free_port()}", log)
    equal = models(folder / "one") == models(folder / "poc") != []
    scores = [read_json(folder / run / "results.json")["average"]["test"]["dice"] for run in ("one", "poc")]
    dice = f"test Dice {scores[0]:.4f} and {scores[1]:.4f}"
    sites = len(DataList.load(listed).sites)
    same = "equal, byte for byte" if equal else "**differ**"
    number = len(models(folder / "one"))
    kept = f"{number} kept model{'s' * (number != 1)}"
    print(
        f"{name}: {kept} {same}; {dice}; {here:.0f} s in one process, {there:.0f} s on POC",
        flush=True,
    )
    return f"| {name} | {sites} | {kept} {same}; {dice} | {here:.0f} s | {there:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with data/splits, data/skin and data/polyp")
    parser.add_argument(
        "--adapters", help="folder of skin.safetensors and polyp.safetensors; without it they are fitted"
    )
    parser.add_argument("--images", type=int, default=40, help="most images of each split of each site")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=12)
    parser.add_argument("--lists", default="skin,polyp")
    parser.add_argument("--dry", action="store_true", help="print what was seen, leave the guide as it is")
    parser.add_argument("--folder", help="where runs are kept; default: a temporary one")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).resolve()
        rows = [one(name, Path(options.data).resolve(), folder / name, options) for name in options.lists.split(",")]
    if options.dry:
        return
    head = ["| list | sites | | in one process | POC |", "| --- | --- | --- | --- | --- |"]
    note = (
        f"At most {options.images} images of each split; both with `{common(options)}` and one thread per process. "
        "Seconds are those of the whole command."
    )
    write_between(PAGE, MARKS, "\n".join([*head, *rows, "", note]))


if __name__ == "__main__":
    main()
