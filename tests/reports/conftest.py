"""A run folder as a federation leaves it: small files, plausible numbers, real pictures."""

from __future__ import annotations

import copy
import csv
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.io import sha256_file, write_json
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.handlers.evaluation import write_scores
from samfed_monai.metrics import segmentation_scores, summarise
from samfed_monai.reports import RunData
from samfed_monai.results import build_results

from .runs import DICE, write_run

SITES = {"Basel": 0.91, "Lübeck": 0.86, "Porto": 0.88, "São Paulo": 0.79}
ROUNDS = 16


def lesion(rng: np.random.Generator, size: int = 96) -> tuple[np.ndarray, np.ndarray]:
    """An image (H, W, 3) uint8 and its mask (H, W) bool."""
    y, x = np.mgrid[:size, :size] / size - 0.5
    angle = np.arctan2(y, x)
    radius = 0.25 + 0.05 * np.sin(angle * rng.integers(2, 5) + rng.uniform(0, 6)) + rng.uniform(-0.06, 0.06)
    mask = np.hypot(y - rng.uniform(-0.08, 0.08), x - rng.uniform(-0.08, 0.08)) < radius
    skin, dark = np.array([224, 178, 158]) - rng.integers(0, 40), np.array([120, 74, 60])
    image = np.where(mask[..., None], dark, skin) + rng.normal(0, 7, (size, size, 1))
    return image.clip(0, 255).astype(np.uint8), mask


def make_run(folder: Path, data_root: Path, *, seed: int = 0, variant: str = "samfed", gain: float = 0.0) -> Path:
    """Writes a run folder, and the images it is about; returns the run folder."""
    rng = np.random.default_rng(seed)
    scores: dict = {"best": {}, "last": {}}
    sites: dict = {}
    for site, level in SITES.items():
        items = []
        for split, count in {"validation": 3, "test": 7}.items():
            rows, masks = [], []
            for index in range(count):
                image, label = lesion(rng)
                name = f"{site} {split} {index:02d}"
                shift = round(6 * (1 - level) * 10 * rng.uniform(0.1, 1) * (1 - gain))
                prediction = np.roll(label, shift, axis=1) if index != 6 or site != "São Paulo" else label & False
                paths = {"image": f"{site}/images/{name}.png", "label": f"{site}/masks/{name}.png"}
                _save_pair(data_root, paths, image, label)
                items.append((split, paths))
                rows.append({"id": name, **segmentation_scores(prediction, label).as_dict()})
                masks.append(f"{name}.png")
                for model in ("best", "last"):
                    file = folder / "evaluation" / model / site / split / "masks" / f"{name}.png"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(prediction.astype(np.uint8) * 255).save(file)
            for model in ("best", "last"):
                scores[model].setdefault(site, {})[split] = summarise(rows)
                write_scores(folder / "evaluation" / model / site / split / "scores.csv", rows, masks=masks)
        sites[site] = {
            "unlabelled": [],
            **{split: [_item(data_root, p) for s, p in items if s == split] for split in ("validation", "test")},
        }
    public = {"image": "public/images/p.png", "label": "public/masks/p.png"}
    _save_pair(data_root, public, *lesion(rng))
    DataList(
        name="four clinics",
        public=[Item(**_item(data_root, public))],
        sites={
            site: Site(**{split: [Item(**item) for item in items] for split, items in splits.items()})
            for site, splits in sites.items()
        },
    ).save(data_root / "list.json")
    _federation(folder / "federation.csv", rng)
    write_json(folder / "run.json", {"config": {"rounds": ROUNDS}, "hashes": {"datalist": "4be1" * 16}})
    teacher = {
        site: {"test": {"dice": level - 0.02, "iou": level - 0.1, "hd95": 9.0, "n": 7, "empty": _no_empty()}}
        for site, level in SITES.items()
    }
    results = build_results(
        variant=variant,
        rounds=ROUNDS,
        scores=scores,
        model_rounds={"best": 12, "last": ROUNDS - 1},
        teacher_scores=None if variant in ("dp_only", "no_sam") else teacher,
        teacher=None
        if variant in ("dp_only", "no_sam")
        else {
            "base": "vit_t",
            "adapt": "lora",
            "size": 512,
            "before": {"held_out": 0.27, **{site: level - 0.6 for site, level in SITES.items()}},
            "after": {"held_out": 0.89, **{site: level - 0.02 for site, level in SITES.items()}},
        },
        traffic={"up_bytes": 3_152_000_000, "down_bytes": 3_155_200_000},
        seconds={
            "teacher": 118,
            "soft_masks": 74.3,
            "warm_start": 31,
            "training": 402,
            "controller": 4.1,
            "evaluation": 22,
        },
        hashes={"datalist": "4be1" * 16, "config": "07ac" * 16, "best": "91d2" * 16, "last": None},
        versions={"samfed_monai": "0.1.0", "torch": "2.13.0", "monai": "1.6.1", "python": "3.11.9"},
        seeds={"seed": seed},
        skipped=[{"round": 5, "site": "Porto", "reason": "layer4.1.conv2.weight: NaN or infinity"}],
        command=f"samfed federate bundles/samfed_skin --datalist '{data_root / 'list.json'}' --data-root '{data_root}' "
        "--rounds 16 --output-dir R",
        caveats=["A subset of the published lists, with ISIC-2017 masks."],
    )
    write_json(folder / "results.json", results)
    return folder


def _save_pair(root: Path, paths: dict[str, str], image: np.ndarray, label: np.ndarray) -> None:
    for path, pixels in zip(paths.values(), (image, label.astype(np.uint8) * 255), strict=True):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / path)


def _no_empty() -> dict[str, int]:
    return {"both": 0, "prediction": 0, "label": 0}


def _item(root: Path, paths: dict[str, str]) -> dict[str, str]:
    hashes = {"sha256": sha256_file(root / paths["image"]), "label_sha256": sha256_file(root / paths["label"])}
    return {**paths, **hashes}


def _federation(path: Path, rng: np.random.Generator) -> None:
    names = ["round", "site", "status", "reason", "n", "dice", "hd95", "seconds", "up_bytes", "down_bytes"]
    terms = ["reliability", "agreement", "supervised", "pseudo_label", "sam_distillation", "global_distillation"]
    names += [f"term_{name}" for name in terms]
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, names)
        writer.writeheader()
        for number in range(ROUNDS):
            rise, noise = 1 - math.exp(-(number + 1) / 4), rng.normal(0, 0.006, (len(SITES), 7))
            for index, (site, level) in enumerate(SITES.items()):
                row = {"round": number, "site": site, "status": "ok", "n": 160 * (index + 1), "seconds": 6.2}
                row |= {"up_bytes": 49_250_000, "down_bytes": 49_300_000}
                row["dice"] = round(level - 0.18 * (1 - rise) + noise[index, 0], 4)
                row["hd95"] = round(30 - 14 * rise + 80 * noise[index, 1], 2)
                row["term_reliability"] = round(level * level - 0.3 * (1 - rise) + 2 * noise[index, 2], 4)
                row["term_agreement"] = round(0.97 - 0.08 * (1 - rise) + noise[index, 3] / 2, 4)
                row["term_supervised"] = round(0.25 + 0.9 * (1 - rise) + noise[index, 4], 4)
                row["term_pseudo_label"] = round(0.3 + 0.5 * (1 - rise) + noise[index, 5], 4)
                row["term_sam_distillation"] = round(0.2 + 0.3 * (1 - rise) + noise[index, 6], 4)
                row["term_global_distillation"] = round(0.04 + abs(noise[index, 2]), 4)
                if (number, site) == (5, "Porto"):
                    row |= {"status": "skipped", "reason": "layer4.1.conv2.weight: NaN or infinity"}
                writer.writerow(row)


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory) -> Path:
    """One finished run, shared: tests that write into it copy it first."""
    base = tmp_path_factory.mktemp("run")
    return make_run(base / "R", base / "data")


@pytest.fixture
def run(run_folder, tmp_path) -> RunData:
    """That run with its student 0.8 and its teacher 0.78 everywhere, in a folder without anything else."""
    results = copy.deepcopy(RunData.read(run_folder).results)
    for site in results["sites"]:
        results["sites"][site]["test"]["dice"] = 0.8
        results["teacher"]["sites"][site]["test"]["dice"] = 0.78
    results["average"]["test"]["dice"] = 0.8
    return RunData(tmp_path, results)


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / f"{variant}-{seed}", variant, seed, dice)
        for variant, dices in DICE.items()
        for seed, dice in enumerate(dices)
    ]
