"""A whole small run of an earlier version against this one: the same network, image size, images and steps.

Each version starts with an empty cache and runs separate commands for everything that a user waits for: imports,
checks, soft masks of the teacher, warm start, rounds, scores and report. The earlier version is a checkout of
``--commit`` in a temporary folder; it runs with the same interpreter and packages. Each version fits the adapter with
its own defaults, except for kind (``decoder``), epochs and views. Both may use all cores; this version uses
``--workers`` processes.

Client networks start from random weights, as in the earlier version. Both versions use the settings that such networks
need (docs/options.md, "From random numbers"), which are the earlier version's defaults: only SAM's labels, and full
colour augmentation. A final run, which is not timed, shows the Dice of the current defaults, which are for pretrained
encoders.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from itertools import count
from pathlib import Path
from statistics import median

from common import Figure, record, side_by_side

from samfed_monai.core.io import read_json
from samfed_monai.data import render_synthetic

HERE = Path(__file__).resolve().parent.parent
FIRST_EDITION = "760a4fd"
TEACH = "--adapt decoder --epochs 6 --views 1"
NETWORK = "--network_name deeplabv3plus_resnet18 --learning_rate 0.0003 --batch_size 8"
EARLIER = f"{NETWORK} --teacher#views 1"
DEFAULTS = f"{NETWORK} --encoder_weights null --teacher#views 1"
FROM_RANDOM_NUMBERS = "--agreement#rule teacher --strong_view#strength 1.0 --strong_view#cutout 0.2"
NOW = f"{DEFAULTS} {FROM_RANDOM_NUMBERS}"


def samfed(root: Path, words: str, log: Path) -> float:
    """Runs a command line of the package in ``root``; returns its duration in seconds."""
    started = time.perf_counter()
    command = [sys.executable, "-m", "samfed_monai", *words.split()]
    with open(log, "a") as stream:
        ended = subprocess.run(
            command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, stdout=stream, stderr=stream, check=False
        )
    if ended.returncode:
        raise SystemExit(f"{root.name}: samfed {words}\n{log.read_text()[-3000:]}")
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--commit", default=FIRST_EDITION, help="the earlier version")
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--images", type=int, default=64, help="unlabelled images per site")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--local-steps", type=int, default=8)
    parser.add_argument("--warm-start-steps", type=int, default=60)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()

    number, parts = count(), {"earlier": [], "now": [], "defaults": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        earlier = folder / "earlier"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", earlier, options.commit], cwd=HERE, check=True)
        try:
            images = folder / "images"
            counts = {"images_per_site": options.images, "public": 32, "validation": 16, "test": 16}
            render_synthetic(images, sites=options.sites, labelled=True, **counts).save(folder / "list.json")
            data = f"samfed_skin --datalist {folder / 'list.json'} --data-root {images}"
            scale = (
                f"--rounds {options.rounds} --image_size {options.size} --local_steps {options.local_steps} "
                f"--warm_start_steps {options.warm_start_steps}"
            )

            def run(name: str, root: Path, words: str) -> None:
                place = folder / f"{name}-{next(number)}"
                place.mkdir()
                adapter = place / "adapter.safetensors"
                teach = samfed(root, f"teach {data} {TEACH} --output {adapter}", place / "log")
                to = f"--output-dir {place / 'run'} --cache-dir {place / 'cache'} --adapter {adapter}"
                federate = samfed(root, f"federate {data} {scale} {words} {to}", place / "log")
                dice = read_json(place / "run" / "results.json")["average"]["test"]["dice"]
                parts[name].append({"teach": teach, "federate": federate, "dice": dice})

            found = side_by_side(
                lambda: run("now", HERE, f"{NOW} --workers {options.workers}"),
                lambda: run("earlier", earlier, EARLIER),
                repeats=options.repeats,
                warm_up=0,
            )
            run("defaults", HERE, f"{DEFAULTS} --workers {options.workers}")
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", earlier], cwd=HERE, check=True)

    def median_of(name: str, key: str) -> float:
        return median(part[key] for part in parts[name])

    steps = f"{options.rounds} rounds of {options.local_steps} steps"
    what = f"{options.sites} sites of {options.images} images, {options.size} px, {steps}"
    record(
        __file__,
        [
            Figure(f"{what}: seconds at {options.commit} against now", found["ratio"], 3.0, True, details=found),
            Figure(
                "the same without the fit of the teacher, medians",
                median_of("earlier", "federate") / median_of("now", "federate"),
            ),
            Figure("now", found["first"], unit="s"),
            Figure(f"at {options.commit}", found["second"], unit="s"),
            Figure("now: test Dice", median_of("now", "dice"), unit=""),
            Figure(f"at {options.commit}: test Dice", median_of("earlier", "dice"), unit=""),
            Figure("now, with the defaults for pretrained encoders: test Dice", median_of("defaults", "dice"), unit=""),
        ],
    )


if __name__ == "__main__":
    main()
