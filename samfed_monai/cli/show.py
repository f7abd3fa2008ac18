"""``samfed show``: the configuration that a workflow would use, and the file that each value is from."""

from __future__ import annotations

import argparse
import json
import sys

from samfed_monai.cli.arguments import add_bundle, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode
from samfed_monai.core.words import aligned


def add_show_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed show BUNDLE [--workflow W] [--variant V] [--id ID] [--all] [--json]``."""
    parser = subparsers.add_parser(
        "show",
        help="show which values a workflow would use, and where each comes from",
        description="Merges a workflow's files, the variant's and the command line's, as a run does, and shows every "
        "option, and every other id that the variant or the command line sets: its value, the file that says it, and "
        "what it replaced. A star marks what nothing that the workflow runs reads. Nothing "
        "is built or evaluated; `samfed check` says whether a run would take the values.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    parser.add_argument(
        "--workflow", metavar="NAME", default="train", help="train (default), teacher, federate, evaluate or inference"
    )
    parser.add_argument("--variant", metavar="NAME", help="a baseline or ablation, see `samfed variants`")
    parser.add_argument("--id", metavar="ID", help="only this part, whole, for instance terms#sam_kd")
    parser.add_argument("--all", action="store_true", help="every id, not only options and what was set on top")
    parser.add_argument("--json", action="store_true", help="write a JSON object, with long values whole")
    take_overrides(parser, "the workflow")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Writes a table, or a JSON object."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.parse import join_id
    from samfed_monai.config.provenance import Configuration, inside

    root = find_bundle(arguments.bundle)
    shown = Configuration(root, arguments.workflow, arguments.variant, overrides_of(arguments.extra))
    every = list(shown.ids())
    if arguments.id is not None:
        chosen = inside(every, shown.config, arguments.id)
    else:
        chosen = [each for each in every if arguments.all or each.brief]
    if arguments.json:
        content = {join_id(each.parts): each.to_json() for each in chosen}
        sys.stdout.write(json.dumps(content, indent=4, ensure_ascii=False) + "\n")
        return int(ExitCode.DONE)
    sys.stdout.write(f"{root.name}, {arguments.workflow}: {shown.order}\n\n")
    sys.stdout.write(aligned([("id", "value", "from", "replaced"), *(each.columns() for each in chosen)]))
    if not all(each.read for each in chosen):
        sys.stdout.write("\n* nothing that this workflow runs reads it\n")
    if arguments.id is None and len(chosen) < len(every):
        sys.stdout.write(f"\n{len(every) - len(chosen)} more ids with --all\n")
    return int(ExitCode.DONE)
