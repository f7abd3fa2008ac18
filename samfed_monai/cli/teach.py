"""``samfed teach``: fits SAM to the public images by the bundle's ``teacher.json``."""

from __future__ import annotations

import argparse
import logging
import shlex

from samfed_monai.cli.arguments import add_bundle, add_data, add_device, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode

logger = logging.getLogger(__name__)


def add_teach_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed teach BUNDLE --datalist L --data-root D --output ADAPTER``; the arguments carry ``run(args)``."""
    parser = subparsers.add_parser(
        "teach",
        help="adapt SAM to the public images",
        description="Fits SAM's decoder, and LoRA if asked, on the public set of a data list and writes an adapter; "
        "says how long that will take, and shows its Dice. What is not given here is taken from the bundle's "
        "teacher.json.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    add_data(parser)
    parser.add_argument("--output", required=True, metavar="ADAPTER", help="safetensors file to write")
    parser.add_argument("--checkpoint", help="SAM's weights; default: the bundle's models/, then `samfed weights`")
    parser.add_argument("--start-from", metavar="ADAPTER", help="an adapter to go on from (default: SAM as it comes)")
    add_device(parser)
    take_overrides(parser, "teacher.json", "teacher.json")
    parser.set_defaults(run=run, kept="the epochs that were complete are kept beside the adapter")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks the bundle with its arguments, then runs its ``teacher.json``."""
    from samfed_monai.config.workflow import run_workflow

    given = {name: getattr(arguments, name) for name in ("datalist", "data_root", "output", "checkpoint", "start_from")}
    given = {name: value for name, value in given.items() if value is not None}
    run_workflow(arguments.bundle, "teacher", given | overrides_of(arguments.extra))
    words = ["--datalist", arguments.datalist, "--data-root", arguments.data_root, "--adapter", arguments.output]
    logger.info("next: %s", shlex.join(["samfed", "federate", arguments.bundle, *words, "--output-dir", "RUN"]))
    return int(ExitCode.DONE)
