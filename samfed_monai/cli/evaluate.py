"""``samfed evaluate``: scores a model, a run with sites' own models, or a teacher's adapter on a data list's split."""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from samfed_monai.cli.arguments import (
    absolute,
    add_bundle,
    add_command,
    add_data,
    add_model,
    add_other_size,
    take_overrides,
)
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.model_file import any_image_size


def add_evaluate_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed evaluate BUNDLE --datalist L --data-root D [--model W] [--site S] [--split test]``."""
    kept = "tables of sites that were scored are kept; metrics.json is written last"
    parser = add_command(subparsers, "evaluate", run=run, kept=kept)
    add_bundle(parser)
    add_model(parser)
    add_data(parser)
    parser.add_argument("--site", metavar="NAME", default="", help="only this site (default: all)")
    about = "split to score (default: test; with --calibrate: validation)"
    parser.add_argument("--split", choices=("validation", "test"), help=about)
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder for metrics.json and the tables")
    about = "also calibrate the expected Dice on these images, and write a file beside the model for `samfed infer`"
    parser.add_argument("--calibrate", action="store_true", help=f"{about}; check it on other images")
    add_other_size(parser)
    take_overrides(parser, "evaluate.json", "evaluate.json", unread=["encoder_weights"])


def run(arguments: argparse.Namespace) -> None:
    """Scores the model with :class:`samfed_monai.inference.Predictor` and prints one line per site."""
    from samfed_monai.handlers.evaluation import tables_of
    from samfed_monai.inference import Predictor
    from samfed_monai.inference.assessment import scored_pairs, sentences
    from samfed_monai.metrics.quality import quality_path
    from samfed_monai.reports.rows import interval

    logging.getLogger("samfed_monai.handlers.evaluation").setLevel(logging.WARNING)  # its table is printed here
    overrides = overrides_of(arguments.extra)
    predictor = Predictor(arguments.bundle, arguments.model, views=arguments.views, overrides=overrides)
    replaced = quality_path(predictor.model.path).is_file()
    paths = [str(absolute(each)) for each in (arguments.datalist, arguments.data_root, arguments.output_dir)]
    with any_image_size(arguments.allow_other_size):
        result = predictor.score(*paths, site=arguments.site, split=arguments.split, calibrate=arguments.calibrate)
    lines = list[str]()
    dices = [dice for of_site in scored_pairs(Path(paths[-1]), result).values() for _, dice in of_site.values()]
    if (found := interval(dices)) is not None:
        lines.append(f"average Dice {result['quality']['dice']:.2f} ({found[0]:.2f} to {found[1]:.2f}, 95 % interval)")
    lines += [*sentences(result["quality"]), f"{paths[-1]}/metrics.json"]
    if arguments.calibrate:
        note = " (replaced the earlier calibration)" if replaced else ""
        lines.append(f"calibration: {quality_path(predictor.model.path)}{note}")
    sys.stdout.write(tables_of(result) + "\n".join(lines) + "\n")
