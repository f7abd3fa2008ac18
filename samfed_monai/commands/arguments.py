"""Arguments that several commands share, and the ``--key value`` pairs that override a bundle's ids."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.overrides import parse_pairs, samfed_value
from samfed_monai.errors import Problem, Refused

OVERRIDES_HELP = "any other `--key value` sets that id of {file}, for instance --seed 1 or --a#b#c true; it is checked"


def add_bundle(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "bundle", metavar="BUNDLE", help="a bundle's folder, or the name of a packaged one (samfed_skin)"
    )


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--datalist", metavar="LIST", required=required, help="data list made by `samfed prepare`")
    parser.add_argument("--data-root", metavar="DIR", required=required, help="folder that the list's paths start from")


def take_overrides(parser: argparse.ArgumentParser, file: str) -> None:
    """Lets a command accept ``--key value`` pairs that its parser does not know."""
    parser.epilog = OVERRIDES_HELP.format(file=file)
    parser.set_defaults(takes_overrides=True)


def overrides_of(words: Sequence[str]) -> dict[str, Any]:
    """The pairs among the words that a parser left over.

    Raises:
        Refused: a word that belongs to no ``--key``.
    """
    stray: list[str] = []
    pairs = parse_pairs(words, samfed_value, stray)
    if stray:
        expected = "`--key value` pairs after the command's own arguments"
        raise Refused([Problem("command line", found=repr(word), expected=expected) for word in stray])
    return pairs


def absolute(path: str | Path | None) -> str | None:
    """A path of the command line as an absolute one, so that it means the same from every folder."""
    return None if path is None else str(Path(path).expanduser().resolve())
