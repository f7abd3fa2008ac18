"""How well expected Dice identifies good masks and good rounds: records, and their page."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from scipy import ndimage

from samfed_monai.core.errors import Problem, Refused
from samfed_monai.core.io import read_json, write_bytes, write_text
from samfed_monai.core.run_log import round_folders
from samfed_monai.core.text import counted
from samfed_monai.data import DataList, load_records
from samfed_monai.federation.run_folder import expected_dice
from samfed_monai.inference.assessment import calibrated_on, measure
from samfed_monai.inference.model import TrainedModel, trained_network
from samfed_monai.metrics import segmentation_scores
from samfed_monai.metrics.quality import Calibration, Mask, ProbabilityMap, level_dice
from samfed_monai.networks.inferer import VIEWS

TITLE = "How far a mask can be trusted"
ESTIMATORS = {
    "nested": "Dice of the area above 0.75 with that above 0.25",
    "soft": "2 Σ q m / (Σ q + Σ m)",
    "level": "mean Dice with the areas above 0.05, 0.15, … 0.95",
    "border": "1 minus the entropy at the border",
    "agreement": "mean Dice between the masks of four views (four passes)",
}
CHOSEN = "level"
"""The estimator of the package, :func:`samfed_monai.metrics.quality.estimate`."""

ROUNDS = "rounds"
"""Name of a part whose rows are rounds of a run, not images."""

Row = dict[str, Any]
Line = Mapping[str, Any]


def soft_dice(chances: ProbabilityMap, mask: Mask) -> float:
    """Expected Dice for independently drawn pixels: ``2 sum(q m) / (sum(q) + sum(m))``.

    Args:
        chances: (H, W) float in [0, 1], the probability q of the foreground.
        mask: (H, W) bool, m.
    """
    both = float(chances.sum(dtype=np.float64)) + float(np.count_nonzero(mask))
    return 2 * float(chances[mask].sum(dtype=np.float64)) / both if both else 1.0


def nested_dice(chances: ProbabilityMap) -> float:
    """Dice between the areas with a probability above 0.75 and above 0.25; 1 if both are empty.

    ``chances`` as for :func:`soft_dice`.
    """
    inner, outer = (int(np.count_nonzero(chances >= level)) for level in (0.75, 0.25))
    return 2 * inner / (inner + outer) if outer else 1.0


def agreement(masks: Sequence[Mask]) -> float:
    """Mean Dice between the masks of several views, (H, W) bool each; 1 for a single view."""
    pairs = [soft_dice(one.astype(np.float32), other) for i, one in enumerate(masks) for other in masks[:i]]
    return float(np.mean(pairs)) if pairs else 1.0


def border_certainty(chances: ProbabilityMap, mask: Mask) -> float:
    """1 minus the mean entropy in bits of pixels at the mask's border; 0 without a border (see :func:`soft_dice`)."""
    border = ndimage.binary_dilation(mask) ^ ndimage.binary_erosion(mask)
    chance = np.clip(chances[border], 1e-7, 1 - 1e-7)
    entropy = -chance * np.log2(chance) - (1 - chance) * np.log2(1 - chance)
    return 1 - float(entropy.mean()) if border.any() else 0.0


def estimates_of(views: Sequence[np.ndarray]) -> dict[str, float]:
    """All estimators for the first view, and for the mean of all views with ``4`` after the name.

    Args:
        views: probabilities (H, W) of one image in several test-time views, transformed back; the first view is the
            unchanged image.
    """
    found = dict[str, float]()
    for name, chances in (("", views[0]), ("4", np.mean(views, axis=0))):
        mask = chances >= 0.5
        found |= {
            f"nested{name}": nested_dice(chances),
            f"soft{name}": soft_dice(chances, mask),
            f"level{name}": level_dice(chances, mask),
            f"border{name}": border_certainty(chances, mask),
        }
    return {**found, "agreement": agreement([view >= 0.5 for view in views])}


def measured(
    bundle: str,
    model: str | None,
    datalist: Path,
    data_root: Path,
    *,
    split: str,
    sites: Sequence[str] = (),
    limit: int | None = None,
) -> list[Row]:
    """Rows ``{"site", "dice", "dice4", …}`` with all estimators, one per image of a split.

    Args:
        bundle: name or folder of the bundle.
        model: as for ``samfed evaluate``.
        datalist: file of the list.
        data_root: folder of the images.
        split: ``validation`` or ``test``.
        sites: names of the sites; empty for all.
        limit: maximum number of images per site, chosen by hash.
    """
    trained = TrainedModel(bundle, model)
    given, listed = {"datalist": str(datalist), "data_root": str(data_root), "output_dir": "."}, DataList.load(datalist)
    ids, reads = {**given, **trained.ids("evaluate", {})}, {"network_def", "validate#preprocessing"}
    config = trained.config("evaluate", ids, given=(), reads=reads)
    network, preprocessing, rows = trained_network(config), config.value("validate#preprocessing"), list[Row]()
    for site in sites or sorted(listed.sites):
        for record in load_records(listed, data_root, split=split, site=site, with_labels=True, limit=limit):
            item = preprocessing(dict(record))
            image, label = torch.as_tensor(item["image"])[None].float(), np.asarray(item["label"])[0] > 0.5
            with torch.no_grad():
                turned = [view.undo(torch.sigmoid(network(view.apply(image))))[0, 0].numpy() for view in VIEWS[4]]
            masks = {"dice": turned[0] >= 0.5, "dice4": np.mean(turned, axis=0) >= 0.5}
            dice = {name: segmentation_scores(mask, label).dice for name, mask in masks.items()}
            found = {**dice, **estimates_of(turned)}
            rows.append({"site": site, **{name: round(value, 4) for name, value in found.items()}})
    return rows


def rounds_of(run: Path) -> list[Row]:
    """Rows ``{"round", "dice", "expected"}``, one per round of a run: true and expected validation Dice.

    Raises:
        Refused: the run has no rounds, or a round lacks one of the two values.
    """
    records = [read_json(folder / "round.json") for folder in round_folders(run / "rounds").values()]
    rows = [
        {"round": each["round"], "dice": each["average"]["validation"]["dice"], "expected": expected_dice(each)}
        for each in records
    ]
    if not rows or any(None in row.values() for row in rows):
        lacking = next((f"round {row['round']} without" for row in rows if None in row.values()), "no round")
        expected = "rounds with validation scores and expected Dice"
        raise Refused([Problem(str(run), found=lacking, expected=expected, hint="name a run of this version")])
    return rows


def choices(rows: Sequence[Row]) -> dict[str, Row]:
    """The round with the highest ``dice``, the highest ``expected`` (the earliest if equal), and the ``last`` round."""
    chosen = {key: max(rows, key=lambda row: (row[key], -row["round"])) for key in ("dice", "expected")}
    return {**chosen, "last": max(rows, key=lambda row: row["round"])}


def add(record: Path, about: Mapping[str, Any], rows: Sequence[Row]) -> None:
    """Writes rows to a record in JSON Lines; replaces those of the same collection, seed and part.

    Args:
        record: file of the record.
        about: ``collection``, ``seed`` and ``part``: ``validation`` for the calibration, :data:`ROUNDS` for rows of
            :func:`rounds_of`, other names for test images.
        rows: rows of :func:`measured` or :func:`rounds_of`.
    """
    lines = [json.loads(line) for line in record.read_text().splitlines()] if record.is_file() else []
    others = [line for line in lines if any(line[key] != about[key] for key in about)]
    found = sorted([*others, {**about, "rows": list(rows)}], key=lambda line: [str(line[key]) for key in about])
    write_text(record, "".join(f"{json.dumps(line)}\n" for line in found))


def page(path: Path, record: Path, *, command: str) -> None:
    """Writes the page, and a reliability plot next to it."""
    lines = [json.loads(line) for line in record.read_text().splitlines()]
    calibrations = {_key(line): _calibration(line["rows"]) for line in lines if line["part"] == "validation"}
    tested, runs = dict[str, list[Line]](), list[Line]()
    for line in lines:
        if line["part"] == ROUNDS:
            runs.append(line)
        elif line["part"] != "validation":
            tested.setdefault(f"{line['collection']}, {line['part']}", []).append(line)
    figure = path.with_name(f"{path.stem}.png")
    write_bytes(figure, reliability_plot(tested, calibrations))
    parts = [
        f"# {TITLE}",
        f"Made by `{command}`. It shows how well *expected Dice* and its *lower bound* agree with true Dice.",
        "Expected Dice is calibrated on validation images of the same sites, and tested on images that the calibration "
        "did not see. The lower bound should hold for nine masks in ten. Each seed is a separate run.",
        "*Error* is the mean distance between expected and true Dice. *Refitted* is that distance after a calibration "
        "on the tested images themselves: the part of it that comes from the estimate, not from the calibration. *Of "
        "four views* is the true Dice with `--views 4`, which takes four times as long; all else is with one view.",
        _table(_expected_rows(tested, calibrations)),
        f"![true against expected Dice]({figure.name})",
        "Ten groups of images, of all seeds together, in the order of their expected Dice. On the line, expected and "
        "true Dice are equal.",
        "## Estimators",
        "Spearman's rank correlation with true Dice, and the share of the worst tenth of the masks that is in the most "
        f"doubtful fifth; means over seeds. The product uses *{CHOSEN}* with one view ({ESTIMATORS[CHOSEN]}), chosen "
        "by the correlations in this table.",
        _table(_estimator_rows(tested)),
        "".join(f"- *{name}*: {text}\n" for name, text in ESTIMATORS.items()).rstrip(),
    ]
    if runs:
        parts += [
            "## The best round without masks",
            "If no site has masks, the round with the highest expected Dice is chosen. The table shows the cost on "
            "validation images with masks: how far this round and the last one are below the best.",
            _table(_round_rows(runs)),
        ]
    write_text(path, "\n\n".join(parts) + "\n")


def _key(line: Line) -> tuple[str, Any]:
    return line["collection"], line["seed"]


def _pairs(rows: Iterable[Row], name: str = CHOSEN) -> list[tuple[float, float]]:
    dice = "dice4" if name.endswith("4") or name == "agreement" else "dice"
    return [(row[name], row[dice]) for row in rows]


def _calibration(rows: Sequence[Row]) -> Calibration:
    return calibrated_on(_pairs(rows), "validation")


_COLUMNS = {
    "dice": ("true Dice", ".3f"),
    "dice4": ("of four views", ".3f"),
    "expected_dice": ("expected", ".3f"),
    "error": ("error", ".3f"),
    "refitted_error": ("refitted", ".3f"),
    "above_bound": ("above bound", ".0%"),
    "spearman": ("Spearman", ".2f"),
    "worst_in_doubtful": ("worst tenth in doubtful fifth", ".0%"),
    "dice_of_others": ("Dice of the others", ".3f"),
}
"""Columns of the first table by key of :func:`_assessed`: heading and format."""


def _assessed(rows: Sequence[Row], calibration: Calibration) -> dict[str, Any]:
    """Accuracy of expected Dice, its error after a calibration on the same rows, and Dice with four views."""
    pairs = _pairs(rows)
    refitted = measure(pairs, calibrated_on(pairs, "tested"))["error"]
    return measure(pairs, calibration) | {"refitted_error": refitted, "dice4": fmean(row["dice4"] for row in rows)}


def _expected_rows(
    tested: Mapping[str, Sequence[Line]], calibrations: Mapping[tuple[str, Any], Calibration]
) -> list[list[str]]:
    rows = [["images", "seed", "n", *(head for head, _ in _COLUMNS.values())]]
    for images, lines in tested.items():
        found = [_assessed(line["rows"], calibrations[_key(line)]) for line in lines]
        seeds = [str(line["seed"]) for line in lines]
        if len(found) > 1:
            found.append({key: fmean(each[key] for each in found) for key in _COLUMNS} | {"images": found[0]["images"]})
            seeds.append("mean")
        for seed, each in zip(seeds, found, strict=True):
            cells = [f"{each[key]:{form}}" for key, (_, form) in _COLUMNS.items()]
            rows.append([images, seed, str(each["images"]), *cells])
    return rows


def _estimator_rows(tested: Mapping[str, Sequence[Line]]) -> list[list[str]]:
    names = [*(f"{name}{views}" for views in ("", "4") for name in list(ESTIMATORS)[:-1]), "agreement"]
    rows = [["images", "seeds", *(f"{name[:-1]}, 4 views" if name.endswith("4") else name for name in names)]]
    for images, lines in tested.items():
        cells = []
        for name in names:
            found = [measure(_pairs(line["rows"], name), None) for line in lines]
            ranked, worst = (fmean(each[key] for each in found) for key in ("spearman", "worst_in_doubtful"))
            cells.append(f"{ranked:.2f}, {worst:.0%}")
        rows.append([images, ", ".join(str(line["seed"]) for line in lines), *cells])
    return rows


def _round_rows(runs: Sequence[Line]) -> list[list[str]]:
    rows = [["images", "seed", "rounds", "best round", "its Dice", "chosen round", "loses", "the last loses"]]
    for line in runs:
        chosen = choices(line["rows"])
        best = chosen["dice"]["dice"]
        losses = [f"{best - chosen[rule]['dice']:.3f}" for rule in ("expected", "last")]
        named = [str(chosen[rule]["round"] + 1) for rule in ("dice", "expected")]
        about = [line["collection"], str(line["seed"]), str(len(line["rows"]))]
        rows.append([*about, named[0], f"{best:.3f}", named[1], *losses])
    return rows


def _table(rows: Sequence[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + " --- |" * len(rows[0]), *lines[1:]])


def reliability_plot(
    tested: Mapping[str, Sequence[Line]], calibrations: Mapping[tuple[str, Any], Callable[[float], tuple[float, float]]]
) -> bytes:
    """Draws the mean true Dice of ten groups of images over their mean expected Dice, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="0.7", linewidth=1)
    for images, lines in tested.items():
        pairs = sorted(
            (calibrations[_key(line)](estimate)[0], dice) for line in lines for estimate, dice in _pairs(line["rows"])
        )
        groups = np.array_split(np.array(pairs), 10)
        label = f"{images} ({counted(len(lines), 'seed')})"
        axes.plot(*np.array([group.mean(axis=0) for group in groups]).T, marker="o", markersize=4, label=label)
    axes.set(xlabel="expected Dice", ylabel="true Dice", xlim=(0, 1), ylim=(0, 1))
    if tested:
        axes.legend(fontsize=7, loc="upper left")
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png", dpi=110)
    return drawn.getvalue()
