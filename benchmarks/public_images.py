"""Public images at several sites in one process: one shared copy against one copy per data set, in memory and time.

Each setting runs in a separate process. It reads, once and with the bundle's transforms, the labelled views of every
site, and the plain images that methods with mixed networks also use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import BUNDLE, Figure, record
from simulated_sites import resident


def read(folder: Path, sites: int, shared: bool) -> dict[str, float]:
    """Memory in MiB and processor seconds of reading the data sets of all sites."""
    from samfed_monai.bundle import SplitDataset
    from samfed_monai.federation.workflow import client_config

    if not shared:
        SplitDataset._shared = lambda dataset: dataset._cache
    paths = {"datalist": str(folder / "list.json"), "data_root": str(folder), "encoder_weights": None}
    config = client_config(BUNDLE, "no_sam", paths)
    before, started, kept = resident(), time.process_time(), []
    for site in range(sites):
        parser = config.with_overrides({"site": f"site-{site + 1}"}).parser()
        data, plain = (parser.get_parsed_content(name) for name in ("images", "validate#preprocessing"))
        kept += [parser.get_parsed_content("train#dataset"), SplitDataset(data=data, split="public", transform=plain)]
        for dataset in kept[-2:]:
            for index in range(len(dataset)):
                dataset[index]
    return {"MiB": resident() - before, "seconds": time.process_time() - started}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sites", type=int, default=4)
    parser.add_argument("--images", type=int, default=100, help="public images, of 600 x 450 pixels")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--of", help=argparse.SUPPRESS)
    parser.add_argument("--shared", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.of:
        print(json.dumps(read(Path(options.of), options.sites, options.shared)))
        return
    from samfed_monai.data import render_synthetic

    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}
    with tempfile.TemporaryDirectory() as folder:
        counts = {"images_per_site": 1, "public": options.images, "validation": 1, "test": 1, "size": (450, 600)}
        render_synthetic(Path(folder), sites=options.sites, **counts).save(Path(folder) / "list.json")
        command = [sys.executable, __file__, "--of", folder, "--sites", str(options.sites)]
        for _ in range(options.repeats):
            for shared in found:
                process = subprocess.run([*command, *["--shared"] * shared], capture_output=True, text=True, check=True)
                found[shared].append(json.loads(process.stdout.splitlines()[-1]))
    what = f"{options.sites} sites of one process, {options.images} public images of 224 px"
    median = {
        (shared, name): statistics.median(one[name] for one in runs)
        for shared, runs in found.items()
        for name in ("MiB", "seconds")
    }
    ratio = median[True, "seconds"] / median[False, "seconds"]
    record(
        __file__,
        [
            Figure(f"{what}: memory with one copy per data set", median[False, "MiB"], unit="MiB"),
            Figure(f"{what}: memory with one copy", median[True, "MiB"], unit="MiB"),
            Figure(f"{what}: processor time of reading all once, one copy against one per data set", ratio),
        ],
    )


if __name__ == "__main__":
    main()
