"""``samfed infer``: masks for a folder of images without labels."""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from samfed_monai.cli import trained_model
from samfed_monai.cli.arguments import absolute, add_bundle, take_overrides
from samfed_monai.cli.trained_model import MODEL_HELP, run_or_file, trained_as, weights_file
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode, Problem, Refused


def add_infer_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed infer BUNDLE --model W [--site S] --images DIR --output DIR [--probabilities]``."""
    parser = subparsers.add_parser(
        "infer",
        help="segment a folder of images",
        description="Writes one PNG mask (0 and 255) per image, at the image's own size and under its own name. "
        "Nothing of the image's metadata is copied, and no file is replaced.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    parser.add_argument("--model", metavar="MODEL", required=True, help=MODEL_HELP)
    parser.add_argument("--site", metavar="NAME", default="", help="of a run: this site's own model")
    parser.add_argument("--images", metavar="DIR", required=True, help="folder of images; its sub-folders count, too")
    parser.add_argument("--output", metavar="DIR", required=True, help="folder for the masks, outside of the images'")
    parser.add_argument("--probabilities", action="store_true", help="also write 8-bit probability maps")
    trained_model.add_views(parser)
    take_overrides(parser, "inference.json")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Runs the bundle's ``inference.json`` with the settings that the weights were trained with, where they say."""
    from samfed_monai.cli.run_bundle import run_workflow

    adapter = trained_model.is_adapter(arguments)
    models = run_or_file(arguments.model)
    if arguments.site and isinstance(models, Path):
        mend = "leave it out, or name the folder of the run"
        raise Refused([Problem("--site", found="a weights file, which is one model", expected="a run", mend=mend)])
    if adapter:
        trained_model.infer(arguments)
        return int(ExitCode.DONE)
    with tempfile.TemporaryDirectory(prefix="samfed-") as scratch:
        model = weights_file(models, arguments.site, scratch)
        ids = trained_as(model, arguments.bundle, "inference", overrides_of(arguments.extra))
        overrides = {
            "model": str(model),
            "dataset_dir": absolute(arguments.images),
            "output_dir": absolute(arguments.output),
            "probabilities": arguments.probabilities,
        }
        run_workflow(arguments.bundle, "inference", overrides | ids)
    return int(ExitCode.DONE)
