"""``samfed audit``: a table of the messages that left a site, and attacks on a finished run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from samfed_monai.cli.arguments import absolute, add_data, names_in
from samfed_monai.core.errors import Problem, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.validators import require, whole

_ATTACK_OPTIONS = ("bundle", "datalist", "data_root", "output_dir")


def add_audit_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``audit FILE`` and ``audit RUN --attack NAME[,NAME]``."""
    from samfed_monai.attacks.audit import ALL, ATTACKS, Options

    names = "\n".join(f"  {name:<12}{text}" for name, text in ATTACKS.items())
    parser = subparsers.add_parser(
        "audit",
        help="list all outgoing messages of a site; or attack a run of your own",
        description="FILE: shows a site's audit file, with one row for each message that was sent or held back, and "
        "totals.\nRUN --attack: attacks the released model and the messages with the run's images, and writes "
        f"audit.json\nand audit.html with text, numbers and pictures.\n\nattacks:\n{names}\n  {ALL:<12}all of them",
        epilog="examples:\n  samfed audit runs/first/sites/site-1/audit.jsonl\n"
        "  samfed audit runs/first --attack membership,planted\n"
        "  samfed audit runs/first --attack lira --shadows 32 --shadow-steps 500    # run again to resume",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="FILE|RUN", help="audit.jsonl in the site's folder of a run; a finished run")
    parser.add_argument("--attack", metavar="NAME[,NAME]", type=names_in, help="attacks from the list above")
    parser.add_argument("--bundle", metavar="BUNDLE", help="bundle of the run (default: from its command)")
    add_data(parser, required=False)
    parser.add_argument("--output-dir", metavar="DIR", help="folder of the audit (default: audit in the run's folder)")
    for option in fields(Options):
        text = f"{option.metadata['words']} (default: {option.default})"
        parser.add_argument(_flag(option.name), metavar="N", type=int, help=text)
    parser.set_defaults(run=run, kept="completed attacks and shadow models are kept")


def run(arguments: argparse.Namespace) -> None:
    """Writes the table, or runs the attacks."""
    from samfed_monai.attacks import audit

    given = {each.name: value for each in fields(audit.Options) if (value := getattr(arguments, each.name)) is not None}
    if arguments.attack is None:
        _refuse_options_of_attacks(arguments, given)
        from samfed_monai.privacy.audit import audit_table, read_audit

        sys.stdout.write(audit_table(read_audit(arguments.path)) + "\n")
        return
    names, about = audit.named(arguments.attack), {each.name: each.metadata for each in fields(audit.Options)}
    unused = {name: about[name]["attacks"] for name in given if not {*names} & {*about[name]["attacks"]}}
    require(
        *(whole(_flag(name), value, least=about[name]["least"]) for name, value in given.items()),
        (Problem(_flag(n), "none of them", f"an attack that reads it: {', '.join(by)}") for n, by in unused.items()),
    )
    options = audit.Options(**given)
    from samfed_monai.attacks.target import target_of_run

    paths = {"datalist": absolute(arguments.datalist), "data_root": absolute(arguments.data_root)}
    target = target_of_run(arguments.path, bundle=arguments.bundle, **paths, images=options.images)
    page = audit.run_audit(target, names, options, arguments.output_dir or Path(arguments.path) / "audit")
    content = read_json(page.parent / audit.NUMBERS)
    shown = {**content, "findings": [each for each in content["findings"] if each["attack"] in names]}
    sys.stdout.write(f"{audit.as_text(shown)}{page}\n")


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def _refuse_options_of_attacks(arguments: argparse.Namespace, numbers: Mapping[str, Any]) -> None:
    named = [name for name in _ATTACK_OPTIONS if getattr(arguments, name) is not None]
    require([Problem(_flag(n), "no --attack", "--attack NAME as well") for n in (*named, *numbers)])
    if Path(arguments.path).is_dir():
        files = sorted(Path(arguments.path).glob("sites/*/audit.jsonl"))
        hint = f"name the audit file of a site, {' or '.join(map(str, files[:3])) or 'sites/SITE/audit.jsonl'}"
        hint += ", or add an attack: --attack membership"
        raise refused(str(arguments.path), found="a folder", expected="an audit file", hint=hint)
