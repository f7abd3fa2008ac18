"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from pathlib import Path

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


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``, which :func:`samfed_monai.cli.main.main` sets for the whole command."""
    help = "what computes: cpu, cuda, cuda:1, mps (default: SAMFED_DEVICE, else the first GPU, else the CPU)"
    parser.add_argument("--device", metavar="DEVICE", help=help)


def absolute(path: str | Path | None) -> str | None:
    """A path of the command line as an absolute one, so that it means the same from every folder."""
    return None if path is None else str(Path(path).expanduser().resolve())
