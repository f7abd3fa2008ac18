"""A finished run folder: small files, plausible numbers, real pictures."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from samfed_monai.core.io import sha256_file, to_csv, write_json, write_text
from samfed_monai.data.datalist import DataList, Item, Site
from samfed_monai.handlers.evaluation import write_scores
from samfed_monai.metrics import segmentation_scores, summarise
from samfed_monai.reports import RunData, comparison_table
from samfed_monai.reports.compare import Table
from samfed_monai.results import build_results

from .runs import DICE, summary, write_run

SITES = {"Basel": 0.91, "Lübeck": 0.86, "Porto": 0.88, "São Paulo": 0.79}
ROUNDS, IMAGES = 16, 7
SKIPPED = {"round": 5, "site": "Porto", "reason": "layer4.1.conv2.weight: NaN or infinity"}


def lesion(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """An image (64, 64, 3) uint8 and its mask (64, 64) bool."""
    y, x = np.mgrid[:64, :64] / 64 - 0.5
    mask = np.hypot(y - rng.uniform(-0.08, 0.08), x - rng.uniform(-0.08, 0.08)) < rng.uniform(0.2, 0.3)
    image = np.where(mask[..., None], [120, 74, 60], [224, 178, 158]) + rng.normal(0, 7, (64, 64, 1))
    return image.clip(0, 255).astype(np.uint8), mask


def make_run(folder: Path, data_root: Path) -> Path:
    """Writes a run folder, and the images it is about; returns the run folder."""
    rng = np.random.default_rng(0)
    scores, sites = {}, {}
    for site, level in SITES.items():
        items, rows, tested = [], [], folder / "evaluation" / "best" / site / "test"
        for index in range(IMAGES):
            name, (image, label) = f"{site} test {index:02d}", lesion(rng)
            found = np.roll(label, round(40 * (1 - level) * rng.uniform(0.1, 1)), axis=1)
            found &= index != 6 or site != "São Paulo"
            items.append(_item(data_root, site, name, image, label))
            rows.append({"id": name, **segmentation_scores(found, label).as_dict()})
            _save(tested / "masks" / f"{name}.png", found * np.uint8(255))
        write_scores(tested / "scores.csv", rows, masks=[f"{row['id']}.png" for row in rows])
        scores[site] = {"validation": summarise(rows[:3]), "test": summarise(rows)}
        sites[site] = Site(test=items)
    listed = DataList("four clinics", [_item(data_root, "public", "p", *lesion(rng))], sites)
    listed.save(data_root / "list.json")
    rounds = list(_rounds(rng))
    write_text(folder / "federation.csv", to_csv(list(rounds[0]), rounds))
    write_json(folder / "run.json", {"config": {"rounds": ROUNDS}, "hashes": {"datalist": listed.hash}})
    dices = {site: splits["test"]["dice"] - 0.02 for site, splits in scores.items()}
    paths = f"--datalist '{data_root / 'list.json'}' --data-root '{data_root}'"
    results = build_results(
        variant="samfed",
        rounds=ROUNDS,
        scores={"best": scores, "last": scores},
        model_rounds={"best": 12, "last": ROUNDS - 1},
        teacher_scores={site: {"test": {**summary(dice), "n": IMAGES}} for site, dice in dices.items()},
        teacher={
            **{"base": "vit_t", "adapt": "lora", "size": 512},
            "before": {"held_out": 0.27, **dict.fromkeys(SITES, 0.3)},
            "after": {"held_out": 0.89, **dices},
        },
        traffic={"up_bytes": 3_152_000_000, "down_bytes": 3_155_200_000},
        seconds={
            **{"teacher": 118, "soft_masks": 74.3, "warm_start": 31},
            **{"training": 402, "controller": 4.1, "evaluation": 22},
        },
        hashes={"datalist": listed.hash, "config": "07ac" * 16, "best": "91d2" * 16, "last": None},
        versions={"samfed_monai": "0.1.0", "torch": "2.13.0", "monai": "1.6.1", "python": "3.11.9"},
        seeds={"seed": 0},
        skipped=[SKIPPED],
        command=f"samfed federate bundles/samfed_skin {paths} --rounds 16 --output-dir R",
        caveats=["A subset of the published lists, with ISIC-2017 masks."],
    )
    write_json(folder / "results.json", results)
    return folder


def _item(root: Path, site: str, name: str, image: np.ndarray, label: np.ndarray) -> Item:
    names = [f"{site}/{kind}/{name}.png" for kind in ("images", "masks")]
    _save(root / names[0], image)
    _save(root / names[1], label * np.uint8(255))
    hashes = [sha256_file(root / each) for each in names]
    return Item(image=names[0], label=names[1], sha256=hashes[0], label_sha256=hashes[1])


def _save(path: Path, pixels: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def _rounds(rng: np.random.Generator) -> Iterator[dict]:
    for number in range(ROUNDS):
        left = math.exp(-(number + 1) / 4)
        for site, level in SITES.items():
            values = {"dice": level - 0.18 * left, "hd95": 16 + 14 * left}
            values |= {"term_reliability": level * level - 0.3 * left, "term_agreement": 0.97 - 0.08 * left}
            values |= {"term_supervised": 0.25 + 0.9 * left, "term_pseudo_label": 0.3 + 0.5 * left}
            values |= {"term_sam_distillation": 0.2 + 0.3 * left, "term_global_distillation": 0.04}
            skipped = (number, site) == (SKIPPED["round"], SKIPPED["site"])
            status = ("skipped", SKIPPED["reason"]) if skipped else ("ok", "")
            about = {"round": number, "site": site, "status": status[0], "reason": status[1], "n": 160}
            about |= {"seconds": 6.2, "up_bytes": 49_250_000, "down_bytes": 49_300_000}
            yield about | {name: round(value + rng.normal(0, 0.006), 4) for name, value in values.items()}


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


def write_runs(folder: Path) -> list[Path]:
    return [
        write_run(folder / f"{variant}-{seed}", variant, seed, dice)
        for variant, dices in DICE.items()
        for seed, dice in enumerate(dices)
    ]


@pytest.fixture
def runs(tmp_path) -> list[Path]:
    """Three seeds of the variants of :data:`DICE`."""
    return write_runs(tmp_path)


@pytest.fixture(scope="session")
def table(tmp_path_factory) -> Table:
    """Their comparison, shared."""
    return comparison_table(write_runs(tmp_path_factory.mktemp("runs")))
