"""``samfed variants``: lists the baselines and ablations of a bundle."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.cli.arguments import add_command
from samfed_monai.core.errors import did_you_mean, refused

if TYPE_CHECKING:
    from samfed_monai.config.method import Method


def add_variants_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed variants [BUNDLE | VARIANT] [--path NAME]``."""
    parser = add_command(subparsers, "variants", run=run)
    about = "a bundle's folder or the name of a packaged bundle; or a variant, to print its file"
    parser.add_argument("bundle", metavar="BUNDLE | VARIANT", nargs="?", help=about)
    parser.add_argument("--path", metavar="NAME", help="print only the paths of this variant's files, its base first")


def run(arguments: argparse.Namespace) -> None:
    """Prints all variants, or one with its file, or the path of a variant's file."""
    from samfed_monai.config.bundles import find_bundle, packaged_bundles
    from samfed_monai.config.targets import entry_points_of
    from samfed_monai.config.variants import FEDAVG, find_variant, known_variants, resolved_method, variant_files

    if arguments.bundle in (FEDAVG, *known_variants()) and not Path(arguments.bundle).is_dir():
        if arguments.path:
            raise refused("--path", f"the variant {arguments.bundle}", "a bundle, or nothing", "leave out --path")
        text = find_variant(None, arguments.bundle).read_text(encoding="utf-8")
        sys.stdout.write(_described(resolved_method(None, arguments.bundle), len(arguments.bundle) + 2) + "\n" + text)
        return
    given = Path(arguments.bundle or ".")
    if arguments.bundle and not given.exists() and len(given.parts) == 1 and arguments.bundle not in packaged_bundles():
        expected = f"a bundle's folder, one of {sorted(packaged_bundles())}, or a variant"
        hint = (
            did_you_mean(arguments.bundle, [FEDAVG, *known_variants(), *packaged_bundles()])
            or "`samfed variants` lists the variants"
        )
        raise refused("BUNDLE | VARIANT", repr(arguments.bundle), expected, hint)
    root = find_bundle(arguments.bundle) if arguments.bundle else None
    if arguments.path:
        sys.stdout.write("".join(f"{path}\n" for path in variant_files(root, arguments.path)))
        return
    names = known_variants(root)
    width = max(map(len, names)) + 2
    for name in names:
        sys.stdout.write(_described(resolved_method(root, name), width))
    for name, problem in entry_points_of("methods").broken.items():
        sys.stderr.write(f"{name} cannot be used: {problem}\n")


def _described(method: Method, width: int) -> str:
    text = "; ".join(filter(None, (method.note, method.use))) + (f" ({method.source})" if method.source else "")
    indent = " " * width
    lines = textwrap.wrap(f"{method.name:<{width}}{text}", 100, subsequent_indent=indent)
    if method.leaves_site is not None:
        leaves = ", ".join(method.leaves_site) or "nothing"
        declared = f"exchange: {method.exchange}; labels: {method.labels}; leaves a site: {leaves}"
        declared += "; several classes" if method.classes == "several" else ""
        lines += textwrap.wrap(declared, 100, initial_indent=indent, subsequent_indent=indent)
    return "\n".join(lines) + "\n"
