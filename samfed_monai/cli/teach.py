"""``samfed teach``: the bundle's ``teacher.json`` with friendlier arguments. Imports nothing heavy until it runs."""

from __future__ import annotations

import argparse

from samfed_monai.cli.arguments import add_device, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode

_KNOBS = (
    *("datalist", "data_root", "output", "adapt", "size", "base", "epochs", "seed", "views", "checkpoint"),
    *(
        "evaluate_on",
        "examine_before",
        "peak",
        "refine",
        "refine_with",
        "refine_size",
        "refine_least_iou",
        "refine_least_agreement",
    ),
)


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
    parser.add_argument("bundle", help="folder or name of a bundle, for instance samfed_skin")
    parser.add_argument("--datalist", required=True, help="data list made by `samfed prepare`")
    parser.add_argument("--data-root", required=True, help="folder that the list's paths are relative to")
    parser.add_argument("--output", required=True, metavar="ADAPTER", help="safetensors file to write")
    parser.add_argument("--adapt", choices=("lora", "decoder", "none"), help="what to train")
    parser.add_argument("--size", type=int, help="side of SAM's input in pixels: a multiple of 16, 64 to 1024")
    parser.add_argument("--base", help="vit_t (MobileSAM), vit_b, vit_l or vit_h")
    parser.add_argument("--epochs", type=int, help="passes over the public set")
    parser.add_argument("--seed", type=int, help="decides everything random")
    parser.add_argument("--views", type=int, choices=(1, 2, 4, 8), help="test-time views of the reported Dice")
    parser.add_argument(
        "--evaluate-on", choices=("validation", "test"), help="split of the sites that Dice is shown for"
    )
    parser.add_argument(
        "--examine-before",
        action="store_true",
        default=None,
        help="show the Dice of SAM as it comes, too; it is measured last and takes as long as the other",
    )
    parser.add_argument("--peak", type=float, help="foreground from this part of the image's highest probability on")
    parser.add_argument(
        "--refine",
        choices=("none", "boxes", "mean"),
        help="second pass of SAM, prompted with the boxes of what the first one found: instead of it, or the mean",
    )
    parser.add_argument("--refine-with", choices=("base", "adapted"), help="SAM as it comes, or the adapted one")
    parser.add_argument("--refine-size", type=int, help="side of the second pass's input")
    parser.add_argument("--refine-least-iou", type=float, help="least IoU that SAM must predict for a box's answer")
    parser.add_argument("--refine-least-agreement", type=float, help="least IoU of a box's answer with what was in it")
    parser.add_argument("--checkpoint", help="SAM's weights; default: the bundle's models/, then `samfed weights`")
    add_device(parser)
    take_overrides(parser, "teacher.json", "teacher.json")
    parser.set_defaults(run=run, kept="the epochs that were complete are kept beside the adapter")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks the bundle with its arguments, then runs its ``teacher.json``."""
    from samfed_monai.config.run_bundle import run_workflow

    overrides = overrides_of(arguments.extra)
    given = {knob: getattr(arguments, knob) for knob in _KNOBS}
    given = {knob: value for knob, value in given.items() if value is not None}
    run_workflow(arguments.bundle, "teacher", overrides | given)
    return int(ExitCode.DONE)
