"""``samfed schema``: JSON Schema of a bundle's files, for editors."""

from __future__ import annotations

import argparse
import sys

from samfed_monai.cli.arguments import add_bundle
from samfed_monai.core.errors import ExitCode, Problem, Refused


def add_schema_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed schema BUNDLE [--output-dir DIR]``."""
    parser = subparsers.add_parser(
        "schema",
        help="write JSON Schema of a bundle's files, for editors",
        description="Writes a JSON Schema (draft 2020-12) of each of a bundle's files into its folder schemas and "
        "names it in the file ($schema): an editor then completes options, says what they do, and underlines misspelt "
        "ones and values out of range. "
        "`samfed init` has done so; do it again after an update, or when a method or a variant was added.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    parser.add_argument("--output-dir", metavar="DIR", help="write the schemas there, and change no file of the bundle")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes the schemas and says where they are."""
    from samfed_monai.config.bundles import find_bundle, packaged_bundles
    from samfed_monai.config.editor import write

    root = find_bundle(arguments.bundle)
    if arguments.output_dir is None and root in packaged_bundles().values():
        expected, hint = (
            "a bundle of your own",
            f"name a folder with --output-dir, or `samfed init {root.name} DIR` first",
        )
        raise Refused([Problem(str(root), found="a packaged bundle", expected=expected, hint=hint)])
    for path in write(root, arguments.output_dir):
        sys.stdout.write(f"{path}\n")
    return int(ExitCode.DONE)
