"""Dice against epsilon on real images: pFedSAM's LoRA, 0.03 M parameters, or predictions (``--of predictions``).

LoRA gets noise at the server or at the sites, predictions at the sites. Predictions are soft masks of a few public
images, from which the mixed networks of ``heterogeneous`` and ``fedmd`` learn from each other. Each noise multiplier is
one run of ``samfed federate`` with one seed. Finished runs are kept, so the same command resumes (``--most N`` computes
at most N runs). The result is a table in Markdown. Runs are small on purpose: they compare noise with no noise and with
separate sites, and do not predict results at hospitals.
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
SAM_AT = {"image_size": 128, "network_def#size": 128}  # for variants whose sites train SAM itself
FEW_MASKS = {"image_size": 224, "public_images": 16, "public_steps": 6, "client_algorithm#mask_size": 8}


@dataclass(frozen=True)
class Setting:
    """One run of a curve.

    Args:
        variant: the variant of the run.
        cells: its first two cells in the table: place of the noise, and multiplier.
        scale: options of size and number of steps.
        noise: option of the noise as ``NAME=VALUE``; ``None``: no noise.
    """

    variant: str
    cells: tuple[str, str]
    scale: Mapping[str, object]
    noise: str | None = None


def lora(multipliers: Sequence[float], clip: float) -> dict[str, Setting]:
    """Name of each run's folder to its setting: LoRA with noise at the server, or at the sites."""
    runs = {
        "local": Setting("local_sam", ("none: every site alone", "–"), SAM_AT),
        "none": Setting("pfedsam", ("none", "–"), SAM_AT),
    }
    for multiplier in multipliers:
        settings, shown = {"clip": clip, "noise_multiplier": multiplier}, f"{multiplier:g}"
        server = f"central_differential_privacy={ {**settings, 'quantile': None} }"
        sites = f"differential_privacy={settings}"
        runs[f"server-{shown}"] = Setting("pfedsam", ("server", shown), SAM_AT, server)
        runs[f"sites-{shown}"] = Setting("pfedsam", ("sites", shown), SAM_AT, sites)
    return runs


def predictions(multipliers: Sequence[float], clip: float) -> dict[str, Setting]:
    """Name of each run's folder to its setting: two methods that exchange predictions, with noise at the sites."""
    runs = {}
    for variant in ("heterogeneous", "fedmd"):
        runs[variant] = Setting(variant, (f"`{variant}`, none", "–"), FEW_MASKS)
        for multiplier in multipliers:
            noise = f"differential_privacy={ {'clip': clip, 'noise_multiplier': multiplier} }"
            shown = f"{multiplier:g}"
            runs[f"{variant}-{shown}"] = Setting(variant, (f"`{variant}`, sites", shown), FEW_MASKS, noise)
    return {"alone": Setting("local_only", ("none: every site alone", "–"), FEW_MASKS), **runs}


CURVES = {"lora": lora, "predictions": predictions}


def dice_after_noise(options: argparse.Namespace, setting: Setting) -> list[str]:
    """Mean Dice of the public images' true masks after the noise: at one site, and averaged over all sites.

    This is an upper bound of the exchange, since it assumes that each site predicts the true masks.
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
    noisy = sites[0], torch.stack([each.double() for each in sites]).mean(0)
    return [f"{float(dice_of_labels((each > 127).long(), (masks > 127).long()).mean()):.3f}" for each in noisy]


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


def dice_at_sites(folder: Path) -> list[list[float]]:
    """Dice of each test image of each site with its last model, from the tables that stay at the sites.

    With noise at the sites, scores of networks that a site keeps are not sent, so results.json lacks them.
    """
    model = next(name for name in ("last", "best") if (folder / "evaluation" / name).is_dir())  # one folder if equal
    found = sorted((folder / "evaluation" / model).glob("*/test/scores.csv"))
    return [[float(line["dice"]) for line in csv.DictReader(path.open(encoding="utf-8"))] for path in found]


def row(setting: Setting, folder: Path, more: Sequence[str]) -> str:
    results: dict[str, Any] = json.loads((folder / "results.json").read_text())
    account = results.get("privacy") or {}
    server, sites = account.get("central_differential_privacy"), account.get("differential_privacy")
    epsilon = server["epsilon_replaced"] if server else sites["epsilon_total"] if sites else None
    spent = "–" if epsilon is None else f"{epsilon:.3g}" if epsilon < 100 else f"{epsilon:,.0f}"
    sites_dice = dice_at_sites(folder)
    scores = [fmean(dice for each in sites_dice for dice in each), min(map(fmean, sites_dice))]
    cells = [*setting.cells, spent, *(f"{value:.3f}" for value in scores), *more]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder with data/polyp and data/splits (SAMFED_DATA)")
    parser.add_argument("--output", type=Path, default=Path("runs/privacy-curve"))
    parser.add_argument("--of", choices=list(CURVES), default="lora", help="what sites exchange")
    parser.add_argument("--multipliers", type=float, nargs="+", default=[0.5, 2.0, 8.0])
    parser.add_argument("--clip", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6, help="local steps per round")
    parser.add_argument("--divide", type=int, default=4, help="parts per collection; each is a site")
    parser.add_argument("--most", type=int, help="maximum number of runs to compute")
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
        more = dice_after_noise(options, setting) if options.of == "predictions" else []
        rows.append(row(setting, folder, more))
    heads = ["noise at", "multiplier", "epsilon", "Dice", "worst site"]
    heads += ["masks after noise: a site's", "all sites' mean"] if options.of == "predictions" else []
    print("\n".join([f"| {' | '.join(heads)} |", f"|{' --- |' * len(heads)}", *rows]))


if __name__ == "__main__":
    main()
