"""Runs real lists on a complete FLARE system on this machine and in one process; compares models and times.

``python benchmarks/flare_real.py --data DATA --adapters DIR`` (``make flare-real SAMFED_DATA=DATA``) runs skin on four
sites and polyps on two, with the bundles' default network, image size and batch. Every split is limited to ``--images``
images. The table is written into docs/deploy.md between two marks.
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


def write_subset(full: Path, path: Path, limit: int) -> None:
    """Writes a list with at most ``limit`` images of each split of the list ``full``."""
    listed = DataList.load(full)
    sites = {
        name: dataclasses.replace(site, **{str(split.value): list(items)[:limit] for split, items in site.splits()})
        for name, site in listed.sites.items()
    }
    DataList(listed.name, listed.public[:limit], sites).save(path)


def shared_options(options: argparse.Namespace) -> str:
    """Options of every run; ``privacy#least_images`` is lowered if a split has fewer than five images."""
    scale = f"--rounds {options.rounds} --local_steps {options.local_steps} --overlays false"
    return f"{scale} --privacy#least_images {min(5, options.images)}"


def samfed(words: str, log: Path) -> float:
    """Runs a command line of ``samfed``; returns its duration in seconds."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "a") as stream:
        command = [sys.executable, "-m", "samfed_monai", *shlex.split(words)]
        if subprocess.run(command, env=environment, stdout=stream, stderr=stream, check=False).returncode:
            raise SystemExit(f"samfed {words}\n{log.read_text()[-3000:]}")
    return time.perf_counter() - started


def models(run: Path) -> list[str]:
    """SHA-256 of the models that a run keeps."""
    return [sha256_file(path) for path in sorted(run.glob("rounds/[0-9]*/global.safetensors"))]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def compare_list(name: str, data: Path, folder: Path, options: argparse.Namespace) -> str:
    """Runs one list both ways; returns its row of the table."""
    bundle, split, images = LISTS[name]
    folder.mkdir(parents=True, exist_ok=True)
    log, full, listed = folder / "log", folder / "full.json", folder / "list.json"
    grouped = "--by-sequence" if name == "polyp" else ""
    source = f"--split {data / 'data' / 'splits' / split} --data-root {data / 'data' / images}"
    samfed(f"prepare list {source} {grouped} --limit-per-site {options.images} --output {full}", log)
    write_subset(full, listed, options.images)
    given = f"{bundle} --datalist {listed} --data-root {data / 'data' / images} {shared_options(options)}"
    given += f" --cache-dir {folder / 'cache'}"
    if options.adapters:
        given += f" --adapter {Path(options.adapters).resolve() / name}.safetensors"
    in_process = samfed(f"federate {given} --output-dir {folder / 'one'}", log)
    on_poc = samfed(f"flare poc {given} --output-dir {folder / 'poc'} --threads 1 --port {free_port()}", log)
    equal = models(folder / "one") == models(folder / "poc") != []
    scores = [read_json(folder / run / "results.json")["average"]["test"]["dice"] for run in ("one", "poc")]
    dice = f"test Dice {scores[0]:.4f} and {scores[1]:.4f}"
    sites = len(DataList.load(listed).sites)
    same = "equal, byte for byte" if equal else "**differ**"
    number = len(models(folder / "one"))
    kept = f"{number} kept model{'s' * (number != 1)}"
    print(
        f"{name}: {kept} {same}; {dice}; {in_process:.0f} s in one process, {on_poc:.0f} s on POC",
        flush=True,
    )
    return f"| {name} | {sites} | {kept} {same}; {dice} | {in_process:.0f} s | {on_poc:.0f} s |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", required=True, help="folder with data/splits, data/skin and data/polyp")
    parser.add_argument(
        "--adapters", help="folder of skin.safetensors and polyp.safetensors (default: adapters are fitted)"
    )
    parser.add_argument("--images", type=int, default=40, help="maximum number of images per split and site")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--local-steps", type=int, default=12)
    parser.add_argument("--lists", default="skin,polyp")
    parser.add_argument("--dry", action="store_true", help="print the results, do not write docs/deploy.md")
    parser.add_argument("--folder", help="folder of the runs (default: a temporary folder)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(options.folder or temporary).resolve()
        rows = [
            compare_list(name, Path(options.data).resolve(), folder / name, options)
            for name in options.lists.split(",")
        ]
    if options.dry:
        return
    head = ["| list | sites | | in one process | POC |", "| --- | --- | --- | --- | --- |"]
    note = (
        f"At most {options.images} images of each split; both with `{shared_options(options)}` and one thread per "
        "process. Seconds are those of the whole command."
    )
    write_between(PAGE, MARKS, "\n".join([*head, *rows, "", note]))


if __name__ == "__main__":
    main()
