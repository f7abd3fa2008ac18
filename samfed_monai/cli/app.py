"""``samfed app``: masks in the browser of this machine."""

from __future__ import annotations

import argparse

from samfed_monai.cli.arguments import MODEL_HELP, add_device, add_views
from samfed_monai.core.errors import ExitCode


def add_app_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed app [BUNDLE] [--model MODEL] [--port N] …``."""
    parser: argparse.ArgumentParser = subparsers.add_parser(
        "app",
        help="segment images that are dropped into a browser of this machine",
        description="Prints an address. Pictures, NIfTI volumes, DICOM objects and videos that are dropped there are "
        "segmented as `samfed infer` does it; masks, outlines, NIfTI and DICOM segmentations can be downloaded. It "
        "listens to 127.0.0.1 alone, loads nothing from the net, and deletes all images when it ends.",
        allow_abbrev=False,
    )
    about = "a bundle's folder, or the name of a packaged one (default: samfed_skin)"
    parser.add_argument("bundle", metavar="BUNDLE", nargs="?", default="samfed_skin", help=about)
    about = f"{MODEL_HELP}, or an exported ONNX file (default: the bundle's own, where it has one)"
    parser.add_argument("--model", metavar="MODEL", help=about)
    parser.add_argument("--site", metavar="NAME", default="", help="of a run: this site's own model")
    parser.add_argument("--port", metavar="N", type=int, default=7860, help="to listen to; 0: a free one (7860)")
    about = "turn NIfTI volumes to RAS+ before they are cut into slices; their masks have the volumes' own axes"
    parser.add_argument("--reorient", action="store_true", help=about)
    add_views(parser)
    add_device(parser)
    parser.set_defaults(run=run, kept="masks that were downloaded are complete")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Serves until it is interrupted."""
    from samfed_monai.inference import Predictor
    from samfed_monai.inference.app import App

    predictor = Predictor(arguments.bundle, arguments.model, site=arguments.site, views=arguments.views)
    App(predictor, port=arguments.port, reorient=arguments.reorient).run()
    return int(ExitCode.DONE)
