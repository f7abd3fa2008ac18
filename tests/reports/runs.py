"""Small finished runs of several variants and seeds, to compare."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.io import write_json
from samfed_monai.results import build_results

# Dice of the two test images of the sites a and b, by variant and seed.
DICE = {
    "oracle": [0.90, 0.90, 0.90],
    "samfed": [0.84, 0.86, 0.88],
    "dp_only": [0.80, 0.80, 0.80],
    "mine": [0.78, 0.80, 0.82],
}
TEACHER = {"samfed": 0.85, "mine": 0.1}


def summary(dice: float) -> dict:
    return {"dice": dice, "iou": dice - 0.1, "hd95": 10.0, "n": 1, "empty": {"both": 0, "prediction": 0, "label": 0}}


def write_run(folder: Path, variant: str, seed: int, dice: float, *, datalist: str = "d" * 64, rounds: int = 5) -> Path:
    def sites(value: float) -> dict:
        return {
            "a": {"validation": summary(value), "test": summary(value + 0.02)},
            "b": {"validation": summary(value), "test": summary(value - 0.02)},
        }

    teacher = TEACHER.get(variant)
    results = build_results(
        variant=variant,
        rounds=rounds,
        scores={"best": sites(dice), "last": sites(dice - 0.05)},
        teacher_scores={site: {"test": summary(teacher)} for site in "ab"} if teacher else None,
        hashes={"datalist": datalist},
        versions={"torch": "2.13.0"},
        seeds={"seed": seed},
    )
    write_json(folder / "results.json", results)
    return folder
