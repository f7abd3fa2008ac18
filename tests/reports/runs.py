"""Small finished runs of several variants and seeds, to compare."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from samfed_monai.config.variants import methods
from samfed_monai.core.io import write_json
from samfed_monai.results import build_results

# Dice of the two test images of the sites a and b, by variant and seed.
DICE = {"oracle": [0.9] * 3, "samfed": [0.84, 0.86, 0.88], "dp_only": [0.8] * 3, "mine": [0.78, 0.80, 0.82]}
TEACHER = {"samfed": 0.85, "mine": 0.1}
LABELLED = {name for name, method in methods().items() if method.kind == "labelled"}


EMPTY = {"both": 0, "prediction": 0, "label": 0}
NO_MASKS = {key: {"dice": None, "iou": None, "hd95": None, "n": 0, "empty": EMPTY} for key in ("validation", "test")}
"""Scores of a site without masks."""


def summary(dice: float) -> dict:
    return {"dice": dice, "iou": max(dice - 0.1, 0.0), "hd95": 10.0, "n": 1, "empty": EMPTY}


def write_run(
    folder: Path,
    variant: str,
    seed: int,
    dice: float,
    *,
    datalist: str = "d" * 64,
    rounds: int = 5,
    unseen: float | None = None,
    **more: Any,
) -> Path:
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
        **{"hashes": {"datalist": datalist}, "own_labels": variant in LABELLED, **more},
        versions={"torch": "2.13.0"},
        seeds={"seed": seed},
        unseen=None if unseen is None else {m: {"far": {"test": summary(unseen)}} for m in ("best", "last")},
    )
    write_json(folder / "results.json", results)
    return folder


def write_row(folder: Path, row: str, variant: str, seed: int, dice: float, *, place: int = 0, **more: Any) -> Path:
    """A run as a comparison with a file of rows leaves it; texts of the row differ from ``write_run``'s."""
    texts = {key: more.pop(key) for key in ("title", "note", "setting", "sweep", "as", "earlier") if key in more}
    write_run(folder, variant, seed, dice, **more)
    write_json(folder / "compare.json", {"row": row, "variant": variant, "place": place, "overrides": {}, **texts})
    return folder


def write_disagreement(folder: Path, site: str, *rows: str) -> None:
    """Writes the table of what student and teacher drew at a site without masks into a run folder."""
    own = folder / "evaluation" / "best" / site / "unlabelled"
    own.mkdir(parents=True)
    (own / "disagreement.csv").write_text("\n".join(["id,image_sha256,dice,estimate,mask", *rows]) + "\n")


MIXED = {"a": "deeplabv3plus_resnet18", "b": "deeplabv3plus_resnet34"}


def heterogeneous_runs(folder: Path) -> list[Path]:
    """Two seeds of SAM-Fed, HSSF, lone sites and a floor, with different networks at the sites."""
    dices = {
        "heterogeneous": ("heterogeneous", [0.75, 0.79]),
        "hssf": ("hssf", [0.72, 0.74]),
        "local_only": ("local_only", [0.68, 0.68]),
        "dp_mixed": ("dp_only", [0.63, 0.63]),
    }
    alone, traffic = [{"up_bytes": 0, "down_bytes": 0}], [{"up_bytes": 500_000, "down_bytes": 1_000_000}] * 2
    return [
        write_row(
            folder / f"{row}-{seed}",
            row,
            variant,
            seed,
            dice,
            networks=MIXED,
            exchange="none" if row == "local_only" else "predictions",
            rounds_traffic=alone if row == "local_only" else traffic,
            unseen=dice - 0.1,
        )
        for row, (variant, found) in dices.items()
        for seed, dice in enumerate(found)
    ]
