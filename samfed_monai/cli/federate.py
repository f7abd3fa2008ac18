"""``samfed federate``: runs a federation, from a data list to a report."""

from __future__ import annotations

import argparse
from typing import Any

from samfed_monai.cli.arguments import absolute, add_bundle, add_command, add_data, add_device, take_overrides
from samfed_monai.config.bundles import bundle_or_path
from samfed_monai.config.overrides import overrides_of


def add_federate_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed federate BUNDLE [--datalist L] [--data-root D] [--rounds N] [--output-dir R] [--variant V]``."""
    kept = "completed steps (teacher, soft masks, warm start) are kept in the run's cache"
    parser = add_command(subparsers, "federate", run=run, kept=kept)
    add_bundle(parser)
    add_data(parser, required=False)
    parser.add_argument("--rounds", metavar="N", type=int, help="federated rounds")
    parser.add_argument("--output-dir", metavar="RUN", help="the run's folder")
    parser.add_argument("--variant", metavar="NAME", help="a baseline or ablation, see `samfed variants`")
    parser.add_argument("--cache-dir", metavar="DIR", help="adapters, soft masks and warm starts that runs share")
    about = "start with the network of a bundle, a finished run or a weights file; the warm start trains it further"
    parser.add_argument("--start-from", metavar="BUNDLE|RUN|MODEL", help=about)
    about = "second generation: soft masks by the model of a bundle, a finished run or a weights file instead of SAM"
    parser.add_argument("--masks-from", metavar="BUNDLE|RUN|MODEL", help=about)
    about = "hash every image again; by default, images whose size and date have not changed since the last check "
    about += "are not hashed, except a few at each start"
    parser.add_argument("--verify", action="store_true", help=about)
    add_device(parser)
    take_overrides(parser, "federate.json or train.json", "federate.json", "train.json")


def overrides_from(arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns values of the command line by id of ``federate.json`` and ``train.json``."""
    given = {
        "datalist": absolute(arguments.datalist),
        "data_root": absolute(arguments.data_root),
        "rounds": arguments.rounds,
        "output_dir": absolute(arguments.output_dir),
        "variant": arguments.variant,
        "cache_dir": absolute(arguments.cache_dir),
        "start_from": bundle_or_path(getattr(arguments, "start_from", None)),
        "masks_from": bundle_or_path(getattr(arguments, "masks_from", None)),
        "job#verify": getattr(arguments, "verify", False) or None,
    }
    return {key: value for key, value in given.items() if value is not None} | overrides_of(arguments.extra)


def run(arguments: argparse.Namespace) -> None:
    """Runs the bundle's ``federate.json``."""
    from samfed_monai.config.workflow import run_workflow

    run_workflow(arguments.bundle, "federate", overrides_from(arguments))
