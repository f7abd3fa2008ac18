"""``samfed variants``: the baselines and ablations that a bundle can be run as."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path

from samfed_monai.core.errors import ExitCode


def add_variants_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed variants [BUNDLE | VARIANT] [--path NAME]``."""
    parser = subparsers.add_parser(
        "variants",
        help="list baselines and ablations",
        description="Lists the variants that are installed and, with a bundle, the "
        "bundle's own (configs/variants/NAME.json), which go before those. With a variant, prints "
        "its file.",
        epilog="MONAI's own command takes a variant as a second file: python -m monai.bundle run "
        "--config_file \"['configs/train.json','$(samfed variants --path no_sam)']\"",
        allow_abbrev=False,
    )
    parser.add_argument(
        "bundle",
        metavar="BUNDLE | VARIANT",
        nargs="?",
        help="a bundle's folder, or the name of a packaged one; or a variant, whose file is printed",
    )
    parser.add_argument("--path", metavar="NAME", help="only say where the file of this variant is")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes one line per variant, or one path."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.variants import find_variant, known_variants, read_method, variant_files

    if arguments.bundle in known_variants() and not Path(arguments.bundle).is_dir():
        sys.stdout.write(find_variant(None, arguments.bundle).read_text(encoding="utf-8"))
        return int(ExitCode.DONE)
    root = find_bundle(arguments.bundle) if arguments.bundle else None
    if arguments.path:
        sys.stdout.write("".join(f"{path}\n" for path in variant_files(root, arguments.path)))
        return int(ExitCode.DONE)
    names = known_variants(root)
    width = max(map(len, names)) + 2
    for name in names:
        method = read_method(find_variant(root, name))
        text = "; ".join(filter(None, (method.note, method.use))) + (f" ({method.source})" if method.source else "")
        lines = textwrap.wrap(f"{name:<{width}}{text}", 100, subsequent_indent=" " * width)
        sys.stdout.write("\n".join(lines) + "\n")
    return int(ExitCode.DONE)
