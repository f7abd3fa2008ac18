"""``samfed evaluate``: one model on one split of one site or of all."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Mapping
from typing import Any

from samfed_monai.commands.arguments import absolute, add_bundle, add_data, overrides_of, take_overrides
from samfed_monai.errors import ExitCode


def add_evaluate_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed evaluate BUNDLE --model W --datalist L --data-root D [--site S] [--split test]``."""
    parser = subparsers.add_parser(
        "evaluate",
        help="score a model on a data list",
        description="Dice, IoU and HD95 (pixels) of a model on a split of one site, or of every site.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    parser.add_argument("--model", metavar="MODEL", required=True, help="a finished run's folder, or a weights file")
    add_data(parser)
    parser.add_argument("--site", metavar="NAME", default="", help="only this site (default: all)")
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="default: %(default)s")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder for metrics.json and the tables")
    take_overrides(parser, "evaluate.json")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Runs the bundle's ``evaluate.json`` and prints one line per site."""
    from samfed_monai.commands.run_bundle import run_workflow
    from samfed_monai.trained_model import model_file, settings_of

    model = model_file(arguments.model)
    overrides = {
        **settings_of(model),
        "model": str(model),
        "datalist": absolute(arguments.datalist),
        "data_root": absolute(arguments.data_root),
        "site": arguments.site,
        "split": arguments.split,
        "output_dir": absolute(arguments.output_dir),
    }
    logging.getLogger("samfed_monai.handlers.site_evaluation").setLevel(logging.WARNING)  # the table says the same
    result = run_workflow(arguments.bundle, "evaluate", overrides | overrides_of(arguments.extra))[-1]
    sys.stdout.write("\n".join(lines_of(result)) + f"\n{overrides['output_dir']}/metrics.json\n")
    return int(ExitCode.DONE)


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """A plain table: one row per site, and the mean over all images; ``empty`` counts those with an empty mask."""
    rows = {**result["sites"], "average": result["average"]}
    width = max(len(name) for name in rows)
    lines = [f"{result['split']:<{width}}     n   Dice    IoU   HD95  empty"]
    for name, row in rows.items():
        far, empty = "-" if row["hd95"] is None else f"{row['hd95']:.1f}", sum(row["empty"].values())
        lines.append(f"{name:<{width}} {row['n']:>5}  {row['dice']:.3f}  {row['iou']:.3f}  {far:>5}  {empty:>5}")
    return lines
