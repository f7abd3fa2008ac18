"""``samfed evaluate``: a model on one split of one site or of all; of a run, each site's own model where it has one.

A fitted teacher is scored likewise, by the adapter that ``samfed teach`` wrote.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli import trained_model
from samfed_monai.cli.arguments import absolute, add_bundle, add_data, add_device, take_overrides
from samfed_monai.cli.trained_model import MODEL_HELP, run_or_file, scored_as, trained_as, weights_file
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode
from samfed_monai.core.model_file import any_image_size

if TYPE_CHECKING:
    from samfed_monai.federation.run_models import RunModels


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
    parser.add_argument("--split", choices=("validation", "test"), default="test", help="default: %(default)s")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder for metrics.json and the tables")
    trained_model.add_views(parser)
    trained_model.add_other_size(parser)
    add_device(parser)
    take_overrides(parser, "evaluate.json", "evaluate.json")
    parser.set_defaults(run=run, kept="metrics.json is complete once all is scored; tables of sites are written before")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Runs the bundle's ``evaluate.json`` and prints one line per site."""
    logging.getLogger("samfed_monai.handlers.evaluation").setLevel(logging.WARNING)  # the table says the same
    arguments.model = arguments.model or str(trained_model.shipped_model(arguments.bundle))
    with any_image_size(arguments.allow_other_size):
        if trained_model.is_adapter(arguments):
            result = trained_model.evaluate(arguments)
        elif isinstance(models := run_or_file(arguments.model), Path) or not models.personal:
            result = _scores(arguments, models, arguments.site)
        else:
            result = _each_on_its_own(arguments, models)
    sys.stdout.write("\n".join(lines_of(result)) + f"\n{absolute(arguments.output_dir)}/metrics.json\n")
    return int(ExitCode.DONE)


def _scores(arguments: argparse.Namespace, models: RunModels | Path, site: str, whose: str = "") -> dict[str, Any]:
    """``metrics.json`` of a site, or of all where ``site`` is "", on the model of ``whose``."""
    from samfed_monai.cli.run_bundle import run_workflow

    with tempfile.TemporaryDirectory(prefix="samfed-") as scratch:
        model = weights_file(models, whose, scratch)
        overrides = {
            "model": str(model),
            "datalist": absolute(arguments.datalist),
            "data_root": absolute(arguments.data_root),
            "site": site,
            "split": arguments.split,
            "output_dir": absolute(arguments.output_dir),
        }
        asked = overrides_of(arguments.extra)
        asked |= {} if arguments.views is None else {"validate#inferer#views": arguments.views}
        ids = trained_as(model, arguments.bundle, "evaluate", scored_as(models) | asked)
        result: dict[str, Any] = run_workflow(arguments.bundle, "evaluate", overrides | ids, asked=asked)[-1]
    return result


def _each_on_its_own(arguments: argparse.Namespace, models: RunModels) -> dict[str, Any]:
    """The same, each site on the model that the run scored it on; a site that the run does not know on the server's."""
    from samfed_monai.core.io import write_json
    from samfed_monai.data import DataList
    from samfed_monai.metrics import pool

    listed = DataList.load(arguments.datalist).sites
    named = [arguments.site] if arguments.site else sorted(listed)
    sites = [name for name in named if name == arguments.site or getattr(listed[name], arguments.split)]
    for site in sites:  # before the first one takes its time
        models.require(_whose(site, models))
    results = [_scores(arguments, models, site, _whose(site, models)) for site in sites]
    if not results:
        return _scores(arguments, models, "", models.sites[0])  # refuses, and says why
    rows = {name: row for result in results for name, row in result["sites"].items()}
    skip = results[0]["convention"]["empty"] == "skipped"
    own = {name: result["model"] for result in results for name in result["sites"]}
    whole = {**results[0], "sites": rows, "average": pool(rows.values(), skip_empty=skip), "model": own}
    write_json(Path(arguments.output_dir) / "metrics.json", whole)
    return whole


def _whose(site: str, models: RunModels) -> str:
    return site if site in models.sites else ""


def lines_of(result: Mapping[str, Any]) -> list[str]:
    """A plain table: one row per site, and the mean over all images; ``empty`` counts those with an empty mask."""
    rows = {**result["sites"], "average": result["average"]}
    width = max(len(name) for name in rows)
    lines = [f"{result['split']:<{width}}     n   Dice    IoU   HD95  empty"]
    for name, row in rows.items():
        far, empty = "-" if row["hd95"] is None else f"{row['hd95']:.1f}", sum(row["empty"].values())
        lines.append(f"{name:<{width}} {row['n']:>5}  {row['dice']:.3f}  {row['iou']:.3f}  {far:>5}  {empty:>5}")
    return lines
