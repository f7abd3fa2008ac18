"""``samfed audit``: what left a site, as a table; and what an attacker makes of a finished run."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from samfed_monai.cli.arguments import absolute, add_data
from samfed_monai.core.errors import ExitCode, Problems, refused

if TYPE_CHECKING:
    from argparse import _SubParsersAction

    from samfed_monai.attacks.finding import Options

_NUMBERS = {
    "images": ("N", 1, "at most so many images of each group, chosen by hash (default: 64)"),
    "shadows": ("K", 16, "shadow models of lira, an even number (default: 16)"),
    "shadow-steps": ("N", 0, "optimizer steps of each (default: 200)"),
    "steps": ("N", 1, "steps of a reconstruction (default: 200)"),
    "batch": ("B", 1, "images behind an attacked update (default: 4)"),
    "seed": ("SEED", 0, "of every draw (default: 0)"),
}
_OF_ATTACKS = ("bundle", "datalist", "data_root", "output_dir", *(name.replace("-", "_") for name in _NUMBERS))


def add_audit_parser(subparsers: _SubParsersAction[argparse.ArgumentParser]) -> argparse.ArgumentParser:
    """Adds ``audit FILE`` and ``audit RUN --attack NAME[,NAME]``."""
    from samfed_monai.attacks.audit import ALL, ATTACKS

    names = "\n".join(f"  {name:<12}{words}" for name, words in ATTACKS.items())
    parser = subparsers.add_parser(
        "audit",
        help="show what left a site, message by message; or attack a run of one's own",
        description="FILE: shows a site's audit file, one row for every message that left it or was held back, and the "
        "sums.\nRUN --attack: attacks the run's released model and what travelled with its own images, and writes "
        f"audit.json\nand audit.html with words, numbers and pictures.\n\nattacks:\n{names}\n  {ALL:<12}every one",
        epilog="for instance:\n  samfed audit runs/first/sites/site-1/audit.jsonl\n"
        "  samfed audit runs/first --attack membership,planted\n"
        "  samfed audit runs/first --attack lira --shadows 32 --shadow-steps 500    # typed again, it goes on",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("path", metavar="FILE|RUN", help="audit.jsonl in the site's folder of a run; a finished run")
    parser.add_argument("--attack", metavar="NAME[,NAME]", help="what to try, of the list above")
    parser.add_argument("--bundle", metavar="BUNDLE", help="of the run (default: as its command names it)")
    add_data(parser, required=False)
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the audit (default: audit in the run's folder)")
    for name, (metavar, _, text) in _NUMBERS.items():
        parser.add_argument(f"--{name}", metavar=metavar, type=int, help=text)
    parser.set_defaults(run=run, kept="attacks that were done, and shadow models, are kept")
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes the table, or attacks."""
    if arguments.attack is None:
        _refuse_options_of_attacks(arguments)
        from samfed_monai.privacy.audit import audit_table, read_audit

        sys.stdout.write(audit_table(read_audit(arguments.path)) + "\n")
        return int(ExitCode.DONE)
    from samfed_monai.attacks import audit

    names = audit.named(arguments.attack)
    folder = audit.require_folder(arguments.path)
    options = _options(arguments)
    from samfed_monai.attacks.target import target_of_run

    target = target_of_run(
        folder,
        bundle=arguments.bundle,
        datalist=absolute(arguments.datalist),
        data_root=absolute(arguments.data_root),
        images=options.images,
    )
    page = audit.run_audit(target, names, options, arguments.output_dir or folder / "audit")
    from samfed_monai.core.io import read_json

    content = read_json(page.parent / audit.NUMBERS)
    asked = {**content, "findings": [each for each in content["findings"] if each["attack"] in names]}
    sys.stdout.write(f"{audit.as_text(asked)}{page}\n")
    return int(ExitCode.DONE)


def _options(arguments: argparse.Namespace) -> Options:
    from samfed_monai.attacks.finding import Options

    problems, given = Problems(), {}
    for name, (_, least, _) in _NUMBERS.items():
        value = getattr(arguments, name.replace("-", "_"))
        if value is None:
            continue
        if value < least:
            problems.add(f"--{name}", found=str(value), expected=f"at least {least}")
        given[name.replace("-", "_")] = value
    problems.refuse_if_any()
    return dataclasses.replace(Options(), **given)


def _refuse_options_of_attacks(arguments: argparse.Namespace) -> None:
    problems = Problems()
    for name in _OF_ATTACKS:
        if getattr(arguments, name) is not None:
            problems.add(f"--{name.replace('_', '-')}", found="it without --attack", expected="--attack NAME with it")
    problems.refuse_if_any()
    if Path(arguments.path).is_dir():
        files = sorted(Path(arguments.path).glob("sites/*/audit.jsonl"))
        hint = f"name a site's file in it, {' or '.join(map(str, files[:3])) or 'sites/SITE/audit.jsonl'}"
        hint += ", or an attack: --attack membership"
        raise refused(str(arguments.path), found="a folder", expected="an audit file", hint=hint)
