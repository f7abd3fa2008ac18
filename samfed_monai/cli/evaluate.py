"""``samfed evaluate``: a model on one split of one site or of all; of a run, each site's own model where it has one.

A fitted teacher is scored likewise, by the adapter that ``samfed teach`` wrote.
"""

from __future__ import annotations

import argparse
import io
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from samfed_monai.cli.arguments import (
    MODEL_HELP,
    absolute,
    add_bundle,
    add_data,
    add_device,
    add_other_size,
    add_views,
    take_overrides,
)
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode
from samfed_monai.core.io import from_csv
from samfed_monai.core.model_file import any_image_size


def add_evaluate_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed evaluate BUNDLE --datalist L --data-root D [--model W] [--site S] [--split test]``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model on a data list",
        description="Dice, IoU and HD95 (pixels) of a model on a split of one site, or of every site. Of a run whose "
        "sites have models of their own, each is scored on its own.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    parser.add_argument("--model", metavar="MODEL", help=f"{MODEL_HELP} (default: the bundle's own, where it has one)")
    add_data(parser)
    parser.add_argument("--site", metavar="NAME", default="", help="only this site (default: all)")
    about = "which images (default: test; with --calibrate validation)"
    parser.add_argument("--split", choices=("validation", "test"), help=about)
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder for metrics.json and the tables")
    about = "also write what the expected Dice of masks is worth on these images beside the model, for `samfed infer`"
    parser.add_argument("--calibrate", action="store_true", help=f"{about}; other images then say how far it holds")
    add_views(parser)
    add_other_size(parser)
    add_device(parser)
    take_overrides(parser, "evaluate.json", "evaluate.json")
    parser.set_defaults(run=run, kept="metrics.json is complete once all is scored; tables of sites are written before")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Scores the model with :class:`samfed_monai.inference.Predictor` and prints one line per site."""
    from samfed_monai.inference import Predictor
    from samfed_monai.inference.promised import sentences
    from samfed_monai.metrics.quality_file import quality_path

    logging.getLogger("samfed_monai.handlers.evaluation").setLevel(logging.WARNING)  # the table says the same
    overrides = overrides_of(arguments.extra)
    predictor = Predictor(arguments.bundle, arguments.model, views=arguments.views, overrides=overrides)
    replaced = quality_path(predictor.model.path).is_file()
    places = [str(absolute(each)) for each in (arguments.datalist, arguments.data_root, arguments.output_dir)]
    with any_image_size(arguments.allow_other_size):
        result = predictor.score(*places, site=arguments.site, split=arguments.split, calibrate=arguments.calibrate)
    written = []
    if arguments.calibrate:
        said = " (the one that was there is replaced)" if replaced else ""
        written = [f"calibration: {quality_path(predictor.model.path)}{said}"]
    beside = [*interval_of(result, Path(places[-1])), *sentences(result["quality"])]
    lines = [*lines_of(result), *volume_lines(result), *beside, f"{places[-1]}/metrics.json", *written]
    sys.stdout.write("\n".join(lines) + "\n")
    return int(ExitCode.DONE)


def interval_of(result: Mapping[str, Any], folder: Path) -> list[str]:
    """A line with the interval of the mean Dice over all images, from their tables; none of a single image."""
    from samfed_monai.reports.rows import interval

    tables = [folder / site / result["split"] / "scores.csv" for site in result["sites"]]
    rows = [row for table in tables for row in from_csv(io.StringIO(table.read_text(encoding="utf-8")))]
    dices = [float(row["dice"]) for row in rows]
    found = interval(dices)
    return (
        [] if found is None else [f"average Dice {fmean(dices):.2f} ({found[0]:.2f} to {found[1]:.2f}, 95 % interval)"]
    )


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """A plain table: one row per site, and the mean over all images; ``empty`` counts those with an empty mask."""
    rows = {**result["sites"], "average": result["average"]}
    width = max(len(name) for name in rows)
    lines = [f"{result['split']:<{width}}     n   Dice    IoU   HD95  empty"]
    for name, row in rows.items():
        far, empty = _number(row["hd95"], ".1f"), sum(row["empty"].values())
        lines.append(f"{name:<{width}} {row['n']:>5}  {row['dice']:.3f}  {row['iou']:.3f}  {far:>5}  {empty:>5}")
    return lines


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def volume_lines(result: Mapping[str, Any]) -> list[str]:
    """A table of whole volumes, a row for each site and class; none where no slice of a volume was scored."""
    found = dict[str, Mapping[str, Any]]()
    for site, row in {**result["sites"], "average": result["average"]}.items():
        if "volumes" in row:
            found[site] = row["volumes"]
            found |= {f"{site} {name}": part for name, part in row["volumes"].get("classes", {}).items()}
    if not found:
        return []
    width = max(map(len, (*found, "whole volumes")))
    lines = [f"{'whole volumes':<{width}}     n   Dice  HD95 mm"]
    for name, part in found.items():
        dice, far = _number(part["dice"], ".3f"), _number(part["hd95_mm"], ".1f")
        lines.append(f"{name:<{width}} {part['n']:>5}  {dice:>5}  {far:>7}")
    return lines
