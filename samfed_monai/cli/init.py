"""``samfed init``: copies a bundle out of the installed package, to edit."""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.core.errors import ExitCode, Problem, Refused
from samfed_monai.core.io import atomic_folder

_WEIGHTS = shutil.ignore_patterns("*.pt", "*.pth", "*.safetensors")
_OTHERS = shutil.ignore_patterns("__pycache__", "*.pyc", "eval")


def add_init_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed init NAME DIR``."""
    parser = subparsers.add_parser(
        "init",
        help="copy a packaged bundle into a folder of your own",
        description="Copies a bundle out of the installed package, to edit its JSON, with the weights it ships; "
        "an existing folder is never written into.",
    )
    parser.add_argument("name", metavar="NAME", help="a packaged bundle, for instance samfed_skin")
    parser.add_argument("folder", metavar="DIR", help="new folder for the copy")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Copies the bundle and says where it is."""
    path = copy_bundle(arguments.name, arguments.folder)
    options = f"{path}/configs/train.json and federate.json, explained in the package's docs/options.md"
    sys.stdout.write(f"{path}\n  options: {options}\n")
    sys.stdout.write(f"  check:  samfed check {path}\n")
    return int(ExitCode.DONE)


def copy_bundle(name: str, folder: str | Path) -> Path:
    """Copies a packaged bundle; the folder appears complete or not at all.

    Raises:
        Refused: an unknown bundle, or the folder exists.
    """
    source = packaged_bundle(name)
    target = Path(folder).expanduser().absolute()
    if target.exists():
        hint = "name a folder that does not exist yet"
        raise Refused([Problem(str(target), found="it exists already", expected="a new folder", hint=hint)])
    with atomic_folder(target) as temporary:
        shutil.copytree(source, temporary, ignore=_left_out, dirs_exist_ok=True)
        (temporary / "models").mkdir(exist_ok=True)
    return target


def _left_out(folder: str, names: list[str]) -> set[str]:
    shipped = {"model.pt"} if Path(folder).name == "models" else set()  # others are what `samfed weights` put there
    return _WEIGHTS(folder, names) - shipped | _OTHERS(folder, names)
