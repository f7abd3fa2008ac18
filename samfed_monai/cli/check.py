"""``samfed check``: everything that is wrong with a bundle and its data, before anything runs."""

from __future__ import annotations

import argparse
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import add_bundle, add_data, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import ExitCode, Problem, Refused

if TYPE_CHECKING:
    from samfed_monai.data.datalist import DataList

_WIDTH = 100  # characters of a line of variants


def add_check_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed check BUNDLE [--workflow W] [--variant V] [--datalist L --data-root D] [--strict]``."""
    parser = subparsers.add_parser(
        "check",
        help="look for mistakes in a bundle's JSON, and in a data list",
        description="Reads every configuration file of a bundle strictly and lists every mistake at once: misspelt "
        "keys, wrong types, unknown components, code in knobs, values that a run would refuse. With a data list, every "
        "image is decoded and hashed.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    add_data(parser, required=False)
    parser.add_argument(
        "--workflow", metavar="NAME", help="train, teacher, federate, evaluate or inference; default: all"
    )
    parser.add_argument("--variant", metavar="NAME", help="only this variant instead of all")
    parser.add_argument(
        "--strict", action="store_true", help="refuse whatever could become code, too: for a bundle from elsewhere"
    )
    take_overrides(parser, "the workflow")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks, and says what was checked."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.check import check_bundle, overruled, unlike_networks, workflows_of
    from samfed_monai.config.strict import strict_bundle_problems, strict_problems
    from samfed_monai.config.variants import known_variants, own_variants
    from samfed_monai.core.words import counted
    from samfed_monai.data.datalist import DataList, cannot_be_scored

    root = find_bundle(arguments.bundle)
    overrides = overrides_of(arguments.extra)
    if overrides and not arguments.workflow:
        expected = "--workflow NAME beside --key value"
        raise Refused([Problem("command line", found=f"--{next(iter(overrides))}", expected=expected)])
    workflows = [arguments.workflow] if arguments.workflow else workflows_of(root)
    trains = {"train", "federate"} & set(workflows)
    variants = [arguments.variant] if arguments.variant else known_variants(root) if trains else []
    problems: dict[Problem, None] = {}
    code = strict_bundle_problems(root)
    if arguments.strict:  # first: what it says of a place is plainer
        problems |= dict.fromkeys(code)
        problems |= dict.fromkeys(strict_problems(overrides, "command line", file=True))
    strict = {problem.where: problem for problem in problems}
    for workflow in workflows:
        problems |= dict.fromkeys(check_bundle(root, workflow, overrides=overrides, ready=False))
    unfit = {}
    for variant in variants:
        found = check_bundle(root, "train", variant=variant, ready=False)
        if variant == arguments.variant or variant in own_variants(root):
            problems |= dict.fromkeys(found)
        elif found:
            unfit[variant] = found[0]
    if arguments.datalist:
        problems |= dict.fromkeys(_check_data(arguments.datalist, arguments.data_root))
    tried = "federate" in workflows and not code  # a check runs nobody's code
    chosen = {**overrides, **({"variant": arguments.variant} if arguments.variant else {})}
    if tried and not problems:
        problems |= dict.fromkeys(_check_job(root, chosen, arguments.datalist))
    if problems:  # one place is told about once
        raise Refused(problem for problem in problems if strict.get(problem.where, problem) is problem)
    fit = [variant for variant in variants if variant not in unfit]
    sys.stdout.write(f"{root.name}: no problems in {', '.join(workflows)} and {counted(len(fit), 'variant')}\n")
    if fit:
        sys.stdout.write(textwrap.fill(", ".join(fit), _WIDTH, initial_indent="  ", subsequent_indent="  ") + "\n")
    listed = DataList.load(arguments.datalist) if arguments.datalist else None
    unscored = cannot_be_scored(listed) if listed is not None else None
    if unscored:
        sys.stdout.write(f"  note: {unscored}\n")
    notes = [*(overruled(root) if "federate" in workflows else ()), *unlike_networks(root)]
    notes += _job_notes(root, chosen, listed) if tried else []
    for problem in notes:
        sys.stdout.write(f"  note: {problem}\n")
    if "federate" in workflows and not tried:
        sys.stdout.write("  not tried whether a run takes its values: it could run code (--strict says where)\n")
    if arguments.strict:
        sys.stdout.write("  strict: no code, no pickle, no component outside the strict allow-list\n")
    for variant, problem in unfit.items():
        sys.stdout.write(f"  the package's variant {variant} does not fit this bundle: {problem}\n")
    return int(ExitCode.DONE)


def _check_job(root: Path, overrides: dict[str, Any], datalist: str | None) -> list[Problem]:
    from samfed_monai.data import DataList
    from samfed_monai.federation.job import check_job

    return check_job(root, overrides, DataList.load(datalist) if datalist else None)


def _job_notes(root: Path, overrides: dict[str, Any], datalist: DataList | None) -> list[Problem]:
    from samfed_monai.federation.job import job_notes

    return job_notes(root, overrides, datalist)


def _check_data(datalist: str, data_root: str | None) -> list[Problem]:
    from samfed_monai.data import DataList, check_datalist

    if data_root is None:
        return [Problem("command line", found="--datalist alone", expected="--data-root DIR beside it")]
    try:
        return check_datalist(DataList.load(datalist), data_root)
    except Refused as refused:
        return refused.problems
