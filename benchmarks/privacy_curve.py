"""Dice against epsilon on real images: pFedSAM's LoRA, 0.03 M numbers, or predictions (``--of predictions``).

LoRA has noise at the server or at the sites, predictions at the sites: soft masks of a few public images, by which
SAM-Fed's unlike networks (``heterogeneous``) and FedMD's learn from each other. One run of ``samfed federate`` for each
noise multiplier, one seed; a run that is there is not computed again, so the command goes on where it was stopped
(``--most N`` computes N runs at the most). Written as a table in Markdown. It is small on purpose and says how noise
compares with none and with sites alone, not what a hospital would get.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from torch.nn.functional import adaptive_avg_pool2d

from samfed_monai.data import load_records, read_mask
from samfed_monai.losses.pixelwise import dice_of_labels
from samfed_monai.methods.heterogeneous import evenly_spaced
from samfed_monai.privacy.noise import noisy_masks

SCALE = {"batch_size": 4, "warm_start_steps": 60, "limit": 12, "privacy#least_images": 1, "overlays": "false"}
SAM_AT = {"image_size": 128, "network_def#size": 128}  # where SAM itself is what sites train
FEW_MASKS = {"image_size": 224, "public_images": 16, "public_steps": 6, "client_algorithm#mask_size": 8}


@dataclass(frozen=True)
class Setting:
    """One run of a curve.

    Args:
        variant: what is run.
        noise: where and how much, as the command line takes it; ``None``: none.
        scale: sizes and steps, as options.
        cells: its first two cells in the table: where the noise is added, and its multiplier.
    """

    variant: str
    cells: tuple[str, str]
    scale: Mapping[str, object]
    noise: str | None = None


def lora(multipliers: Sequence[float], clip: float) -> dict[str, Setting]:
    """Name of a run's folder to what is run: LoRA with noise at the server, or at the sites."""
    runs = {
        "local": Setting("local_sam", ("none: every site alone", "–"), SAM_AT),
        "none": Setting("pfedsam", ("none", "–"), SAM_AT),
    }
    for multiplier in multipliers:
        fixed, shown = {"clip": clip, "noise_multiplier": multiplier}, f"{multiplier:g}"
        server = f"central_differential_privacy={ {**fixed, 'quantile': None} }"
        sites = f"differential_privacy={fixed}"
        runs[f"server-{shown}"] = Setting("pfedsam", ("server", shown), SAM_AT, server)
        runs[f"sites-{shown}"] = Setting("pfedsam", ("sites", shown), SAM_AT, sites)
    return runs


def predictions(multipliers: Sequence[float], clip: float) -> dict[str, Setting]:
    """Name of a run's folder to what is run: two methods that exchange predictions, with noise at the sites."""
    runs = {}
    for variant in ("heterogeneous", "fedmd"):
        runs[variant] = Setting(variant, (f"`{variant}`, none", "–"), FEW_MASKS)
        for multiplier in multipliers:
            noise = f"differential_privacy={ {'clip': clip, 'noise_multiplier': multiplier} }"
            shown = f"{multiplier:g}"
            runs[f"{variant}-{shown}"] = Setting(variant, (f"`{variant}`, sites", shown), FEW_MASKS, noise)
    return {"alone": Setting("local_only", ("none: every site alone", "–"), FEW_MASKS), **runs}


CURVES = {"lora": lora, "predictions": predictions}


def what_is_left(options: argparse.Namespace, setting: Setting) -> list[str]:
    """Mean Dice of true masks of the exchanged public images after the noise: of one site, and of all sites' mean.

    That is the best that can come of it: each site is taken to have predicted the true masks.
    """
    if setting.noise is None:
        return ["–", "–"]
    multiplier = float(setting.cells[1])
    side, count = FEW_MASKS["client_algorithm#mask_size"], FEW_MASKS["public_images"]
    records = load_records(options.output / "list.json", options.data / "data/polyp", split="public")
    labels = [records[index]["label"] for index in evenly_spaced(len(records), count) or range(len(records))]
    planes = [torch.from_numpy(np.array(read_mask(label))).double()[None, None] for label in labels]
    masks = torch.cat([(adaptive_avg_pool2d(plane, side) * 255).round().byte() for plane in planes])
    how = {"clip": options.clip, "noise_multiplier": multiplier}
    draws = [np.random.default_rng(site).standard_normal for site in range(2 * options.divide)]
    sites = [noisy_masks(masks, None, noise=noise, **how) for noise in draws]
    seen = sites[0], torch.stack([each.double() for each in sites]).mean(0)
    return [f"{float(dice_of_labels((each > 127).long(), (masks > 127).long()).mean()):.3f}" for each in seen]


def command(options: argparse.Namespace, folder: Path, setting: Setting) -> list[str]:
    given = {
        **SCALE,
        **setting.scale,
        "rounds": options.rounds,
        "local_steps": options.steps,
        "variant": setting.variant,
        "cache_dir": options.output / "cache",
    }
    pairs = [word for name, value in given.items() for word in (f"--{name}", str(value))]
    if setting.noise is not None:
        name, _, value = setting.noise.partition("=")
        pairs += [f"--privacy#{name}", value]
    paths = [
        "--datalist",
        options.output / "list.json",
        "--data-root",
        options.data / "data/polyp",
        "--output-dir",
        folder,
    ]
    return [*SAMFED, "federate", "samfed_polyp", *map(str, paths), *pairs]


SAMFED = [sys.executable, "-c", "import sys; from samfed_monai.cli.main import main; sys.exit(main())"]


def own_tables(folder: Path) -> list[list[float]]:
    """Dice of each test image of each site with its last model, out of the tables that stay at the sites.

    With noise at the sites no scores of the networks that they keep leave, and the results have none.
    """
    model = next(name for name in ("last", "best") if (folder / "evaluation" / name).is_dir())  # one, if they are one
    found = sorted((folder / "evaluation" / model).glob("*/test/scores.csv"))
    return [[float(line["dice"]) for line in csv.DictReader(path.open(encoding="utf-8"))] for path in found]


def row(setting: Setting, folder: Path, more: Sequence[str]) -> str:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    account = results.get("privacy") or {}
    server, sites = account.get("central_differential_privacy"), account.get("differential_privacy")
    epsilon = server["epsilon_replaced"] if server else sites["epsilon_total"] if sites else None
    spent = "–" if epsilon is None else f"{epsilon:.3g}" if epsilon < 100 else f"{epsilon:,.0f}"
    sites_dice = own_tables(folder)
    scores = [fmean(dice for each in sites_dice for dice in each), min(map(fmean, sites_dice))]
    cells = [*setting.cells, spent, *(f"{value:.3f}" for value in scores), *more]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/polyp and data/splits (SAMFED_DATA)")
    parser.add_argument("--output", type=Path, default=Path("runs/privacy-curve"))
    parser.add_argument("--of", choices=list(CURVES), default="lora", help="what travels")
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
    for name, setting in CURVES[options.of](options.multipliers, options.clip).items():
        folder = options.output / name
        if not (folder / "results.json").is_file():
            if options.most is not None and computed >= options.most:
                continue
            subprocess.run(command(options, folder, setting), check=True)
            computed += 1
        more = what_is_left(options, setting) if options.of == "predictions" else []
        rows.append(row(setting, folder, more))
    heads = ["noise at", "multiplier", "epsilon", "Dice", "worst site"]
    heads += ["masks after noise: a site's", "all sites' mean"] if options.of == "predictions" else []
    print("\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *rows]))


if __name__ == "__main__":
    main()
