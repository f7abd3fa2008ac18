"""``samfed model``: a run's model, or one site's own, as a single file."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from samfed_monai.core.errors import ExitCode


def add_model_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed model RUN --output FILE [--site S] [--states DIR]``."""
    parser = subparsers.add_parser(
        "model",
        help="write a run's model, or one site's own, to a file",
        description="Puts a model of a finished run together: what sites share, with what is one site's own. "
        "`samfed evaluate` and `samfed infer` take the file as --model.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", metavar="RUN", help="folder of a finished run")
    parser.add_argument("--site", metavar="NAME", default="", help="this site's own model (default: the server's)")
    parser.add_argument(
        "--states", metavar="DIR", help="at the site of a run on FLARE: its folder state/<run>/<site> in its cache_dir"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        required=True,
        help="file to write: NAME.safetensors, or NAME.pt, a plain state dict in half precision as bundles ship it",
    )
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes the file and prints its name."""
    from samfed_monai.core.errors import Problem, Refused
    from samfed_monai.federation.run_models import RunModels
    from samfed_monai.inference.quality_file import read_quality, write_quality
    from samfed_monai.metrics.quality import Quality

    if not arguments.output.endswith((".safetensors", ".pt")):
        expected = "a name that ends in .safetensors, or in .pt for a bundle's models/model.pt"
        raise Refused([Problem("--output", found=repr(arguments.output), expected=expected)])
    if arguments.states and not arguments.site:
        raise Refused([Problem("--states", found="no --site beside it", expected="the site whose states they are")])
    written = RunModels(arguments.folder).write(arguments.output, arguments.site, states=arguments.states)
    if (quality := read_quality(Path(arguments.folder).expanduser().resolve())) != Quality():
        write_quality(quality, written)
    sys.stdout.write(f"{written}\n")
    return int(ExitCode.DONE)
