"""``samfed variants``: the baselines and ablations that a bundle can be run as."""

from __future__ import annotations

import argparse
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.core.errors import ExitCode

if TYPE_CHECKING:
    from samfed_monai.config.variants import Method


def add_variants_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed variants [BUNDLE | VARIANT] [--path NAME] [--markdown]``."""
    parser = subparsers.add_parser(
        "variants",
        help="list baselines and ablations",
        description="Lists the variants that are installed and, with a bundle, the "
        "bundle's own (configs/variants/NAME.json), which go before those, each with what a round "
        "exchanges, what labels of its own a site needs and what leaves it. With a variant, prints its file as well.",
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
    parser.add_argument("--markdown", action="store_true", help="write the page docs/methods.md")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes what each variant is, one and its file, or one path."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.variants import (
        FEDAVG,
        broken_methods,
        declared,
        find_variant,
        known_variants,
        methods,
        variant_files,
    )

    if arguments.markdown:
        sys.stdout.write(methods_page(methods().values()))
        return int(ExitCode.DONE)
    if arguments.bundle in (FEDAVG, *known_variants()) and not Path(arguments.bundle).is_dir():
        text = find_variant(None, arguments.bundle).read_text(encoding="utf-8")
        sys.stdout.write(_described(declared(None, arguments.bundle), len(arguments.bundle) + 2) + "\n" + text)
        return int(ExitCode.DONE)
    root = find_bundle(arguments.bundle) if arguments.bundle else None
    if arguments.path:
        sys.stdout.write("".join(f"{path}\n" for path in variant_files(root, arguments.path)))
        return int(ExitCode.DONE)
    names = known_variants(root)
    width = max(map(len, names)) + 2
    for name in names:
        sys.stdout.write(_described(declared(root, name), width))
    for name, problem in broken_methods().items():
        sys.stderr.write(f"{name} cannot be used: {problem}\n")
    return int(ExitCode.DONE)


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


def methods_page(methods: Iterable[Method]) -> str:
    """``docs/methods.md``: what each method declares, a row each; the same declarations give the same bytes."""
    from samfed_monai.config.variants import CLASSES, EXCHANGES, LABELS, LEAVES_SITE

    rows = [
        f"| `{method.name}` | {method.title} | {'; '.join(filter(None, (method.note, method.use)))} "
        f"| {method.exchange} | {method.labels} | {method.classes} | {', '.join(method.leaves_site or ())} "
        f"| {method.source} |"
        for method in methods
    ]
    words = [
        *(f"| exchange | `{word}` | {text} |" for word, text in EXCHANGES.items()),
        *(f"| labels | `{word}` | {text} |" for word, text in LABELS.items()),
        *(f"| classes | `{word}` | {text} |" for word, text in CLASSES.items()),
        *(f"| leaves a site | `{word}` | {text} |" for word, text in LEAVES_SITE.items()),
    ]
    return _PAGE.format(rows="\n".join(rows), words="\n".join(words))


_PAGE = """# Methods

What `--variant` can name: SAM-Fed, its ablations, baselines, published methods. Each is a JSON file in
`samfed_monai/methods/`, with its code beside it if it has any; `samfed variants NAME` prints one. This page is made of
their blocks `_method` by `samfed variants --markdown`. What a method does not declare does not
[leave a site](privacy.md). How to write one: [a method of your own](extending.md#a-method-of-your-own).

| variant | title | what it is | exchange | labels | classes | leaves a site | source |
| --- | --- | --- | --- | --- | --- | --- | --- |
{rows}

Two knobs change what the table says: with `exchange` of the heterogeneous methods `weights` travel instead of
predictions, and `personal` keeps part of a network at its site.

| column | word | means |
| --- | --- | --- |
{words}

Number of images, seconds and steps leave a site under every method; failures leave as one line without paths.

## Sites that lie: what so many sites allow

FedAvg, and every method above that averages, believes each site. Four rules do not, each for so many sites that may
send what they like, together if they wish; they keep all answers of a round in memory, where FedAvg keeps two models.

| sites | `coordinate_median` | `trimmed_mean` (a quarter) | `krum` | `norm_clipping` |
| --- | --- | --- | --- | --- |
| 2 | refused | refused | refused | steps of one length |
| 3 | 1 | 1 | refused | steps of one length |
| 4 | 1 | 1 | refused | steps of one length |
| 5, 6 | 2 | 2 | 1 | steps of one length |
| 7, 8 | 3 | 2 | 2 (`faulty` 2), else 1 | steps of one length |

- **Two sites**: nothing can tell which of the two is wrong. Clipping takes away what a longer step gains, and
  `job#update_guard#largest_share` what a larger number of images gains; a wrong step of ordinary length is half of
  the model.
- **Four sites**, as in most federations of hospitals: one that lies is outvoted number by number by median or trimmed
  mean, two are not, and Krum needs a fifth. The number may still be the most harmful one that an honest site sent.
- `norm_clipping` stops scaled updates alone: flipped signs or labels at ordinary length keep their share of the mean.
- None of them is a proof against a backdoor, which can lie within what honest sites differ by; and the less alike
  honest sites are, the more an honest one looks like a liar and is left out.
"""
