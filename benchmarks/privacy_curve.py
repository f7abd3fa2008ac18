"""Dice against epsilon: pFedSAM's LoRA, 0.03 M numbers, with noise at the server or at the sites, on real images.

One run of ``samfed federate`` for each noise multiplier, one seed; a run that is there is not computed again, so the
command goes on where it was stopped (``--most N`` computes N runs at the most). Written as a table in Markdown. It is
small on purpose and says how noise compares with none and with sites alone, not what a hospital would get.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

SCALE = {
    "image_size": 128,
    "client#network_def#size": 128,
    "batch_size": 4,
    "warm_start_steps": 60,
    "client#limit": 12,
    "privacy#least_images": 1,
    "overlays": "false",
}


def settings(multipliers: list[float], clip: float) -> dict[str, tuple[str, str | None]]:
    """Name of a run to its variant and its noise, as the command line takes them."""
    runs: dict[str, tuple[str, str | None]] = {"local": ("local_sam", None), "none": ("pfedsam_joint", None)}
    for multiplier in multipliers:
        fixed = {"clip": clip, "noise_multiplier": multiplier}
        server = {**fixed, "quantile": None}
        runs[f"server-{multiplier:g}"] = ("pfedsam_joint", f"central_differential_privacy={server}")
        runs[f"sites-{multiplier:g}"] = ("pfedsam_joint", f"differential_privacy={fixed}")
    return runs


def command(options: argparse.Namespace, folder: Path, variant: str, noise: str | None) -> list[str]:
    given = {
        **SCALE,
        "rounds": options.rounds,
        "local_steps": options.steps,
        "variant": variant,
        "cache_dir": options.output / "cache",
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if noise is not None:
        name, _, value = noise.partition("=")
        pairs += [f"--privacy#{name}", value]
    places = [
        "--datalist",
        options.output / "list.json",
        "--data-root",
        options.data / "data/polyp",
        "--output-dir",
        folder,
    ]
    return [*SAMFED, "federate", "samfed_polyp", *map(str, places), *pairs]


SAMFED = [sys.executable, "-c", "import sys; from samfed_monai.cli.main import main; sys.exit(main())"]


def row(name: str, results: dict[str, Any]) -> str:
    account = results.get("privacy") or {}
    server, sites = account.get("central_differential_privacy"), account.get("differential_privacy")
    spent = "–"
    if server is not None:
        spent = f"{server['epsilon_replaced']:.3g}"
    elif sites is not None:
        spent = f"{sites['epsilon_total']:.3g}"
    last = results["models"]["last"]
    place, _, multiplier = name.partition("-")
    where = {"server": "server", "sites": "sites"}.get(place, "none: every site alone" if place == "local" else "none")
    scores = [last["average"]["test"]["dice"], last["worst"]["test"]["dice"]]
    return f"| {where} | {multiplier or '–'} | {spent} | {scores[0]:.3f} | {scores[1]:.3f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/polyp and data/splits (SAMFED_DATA)")
    parser.add_argument("--output", type=Path, default=Path("runs/privacy-curve"))
    parser.add_argument("--multipliers", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="local steps of a round")
    parser.add_argument("--divide", type=int, default=4, help="parts of each collection, a site each")
    parser.add_argument("--most", type=int, help="runs to compute at the most")
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    if not (options.output / "list.json").is_file():
        split = str(options.data / "data/splits/polyp_hssf.json")
        words = ["--split", split, "--by-sequence", "--divide", str(options.divide), "--limit-per-site", "12"]
        where = ["--data-root", str(options.data / "data/polyp"), "--output", str(options.output / "list.json")]
        subprocess.run([*SAMFED, "prepare", "list", *words, *where, "--no-report"], check=True)
    computed, rows = 0, []
    for name, (variant, noise) in settings(options.multipliers, options.clip).items():
        folder = options.output / name
        if not (folder / "results.json").is_file():
            if options.most is not None and computed >= options.most:
                continue
            subprocess.run(command(options, folder, variant, noise), check=True)
            computed += 1
        rows.append(row(name, json.loads((folder / "results.json").read_text())))
    print("| noise at | multiplier | epsilon | Dice | worst site |\n| --- | --- | --- | --- | --- |")
    print("\n".join(rows))


if __name__ == "__main__":
    main()
