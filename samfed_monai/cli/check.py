"""``samfed check``: finds all problems of a bundle and its data before a run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import add_bundle, add_data, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import Problem, Problems, Refused, refused

if TYPE_CHECKING:
    from samfed_monai.data.datalist import DataList

_Ids = Mapping[str, Any]


def add_check_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed check BUNDLE [--workflow W] [--variant V] [--datalist L --data-root D] [--strict]``."""
    parser = subparsers.add_parser(
        "check",
        help="check a bundle's JSON and a data list for errors",
        description="Reads all configuration files of a bundle and lists all errors at once: misspelt "
        "keys, wrong types, unknown components, code in options, values that a run would refuse. With a data list, "
        "it also decodes and hashes every image.",
    )
    add_bundle(parser)
    add_data(parser, required=False)
    about = "train, teacher, federate, evaluate or inference; default: all"
    parser.add_argument("--workflow", metavar="NAME", help=about)
    parser.add_argument("--variant", metavar="NAME", help="also check this variant (default: all of the bundle)")
    about = "also refuse everything that could run code; for bundles that you did not write"
    parser.add_argument("--strict", action="store_true", help=about)
    about = "print every target prefix, package, file, hash and licence of the bundle (and of --variant)"
    parser.add_argument("--inventory", action="store_true", help=about)
    take_overrides(parser, "the workflow")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> None:
    """Checks the bundle and the data, and prints what was checked."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.check import workflows_of
    from samfed_monai.config.strict import inventory, strict_bundle_problems, strict_problems
    from samfed_monai.config.variants import own_variants, variant_files

    root, only, overrides = find_bundle(arguments.bundle), arguments.variant, overrides_of(arguments.extra)
    if overrides and not arguments.workflow:
        expected, hint = "--workflow NAME with --key value", "--workflow federate checks a run of `samfed federate`"
        raise refused("command line", f"--{next(iter(overrides))} alone", expected, hint)
    workflows = [arguments.workflow] if arguments.workflow else workflows_of(root)
    trains = {"train", "federate", "teacher"} & set(workflows)
    variants = [only] if only else list(own_variants(root)) if trains - {"teacher"} else []
    of_federation = {**overrides, **({"variant": only} if only else {})}
    code, problems = strict_bundle_problems(root), Problems()
    if arguments.strict:  # first, as its messages are clearer
        problems.extend([*code, *strict_problems(overrides, "command line", file=True)])
    strict = {problem.where: problem for problem in problems}
    problems.extend(_bundle_problems(root, workflows, variants, overrides, of_federation))
    listed, notes = None, list[str]()
    with problems.collected():
        listed, notes, found = _checked_data(arguments, root, of_federation)
        problems.extend(found)
    values_checked = bool(trains) and not code  # a check runs no code of a bundle
    if values_checked and not problems:
        found, ignored = _checked_values(root, workflows, overrides, of_federation, listed)
        problems.extend(found)
        notes += map(str, ignored)
    if problems:  # each place is reported once
        superseded = {"variant"} if any(each.where == "command line -> variant" for each in problems) else set()
        remaining = (problem for problem in problems if problem.where not in superseded)
        raise Refused(problem for problem in remaining if strict.get(problem.where, problem) is problem)
    variants_text = f" and the variant{'s' * (len(variants) > 1)} {', '.join(variants)}" if variants else ""
    lines = [f"{root.name}: no problems in {', '.join(workflows)}{variants_text}"]
    lines += [f"  note: {note}" for note in notes]
    if trains and not values_checked:
        lines.append("  not checked: whether a run accepts the values, as they could run code (--strict says where)")
    if any(problem.where.rpartition(" -> ")[2].startswith("imports#") for problem in code):
        lines.append("  not checked: names of networks, rules and guides, as modules in imports may add names")
    if arguments.strict:
        lines.append("  strict: no code, no pickle, no component outside the strict allow-list")
    if arguments.inventory:
        lines.append("\n" + inventory(root, variant_files(root, only) if only else ()).removesuffix("\n"))
    sys.stdout.write("\n".join(lines) + "\n")


def _bundle_problems(
    root: Path, workflows: Sequence[str], variants: Sequence[str], overrides: _Ids, of_federation: _Ids
) -> Iterator[Problem]:
    """Problems in the files of workflows and variants; a federation's overrides also name the chosen variant."""
    from samfed_monai.config.check import check_bundle
    from samfed_monai.config.ids import UnreadOption

    for workflow in workflows:
        given = of_federation if workflow == "federate" else overrides
        yield from check_bundle(root, workflow, overrides=given, ready=False)
    of_training = overrides if workflows == ["train"] else {}
    for variant in variants:
        for problem in check_bundle(root, "train", variant=variant, overrides=of_training, ready=False):
            if "variant" in of_federation or not isinstance(
                problem, UnreadOption
            ):  # another variant may read the option
                yield problem


def _checked_data(
    arguments: argparse.Namespace, root: Path, of_federation: _Ids
) -> tuple[DataList | None, list[str], list[Problem]]:
    """Reads the data list, if one is given, and its images: the list, notes on it, and problems."""
    from samfed_monai.config.options import groups_of
    from samfed_monai.config.parse import SITES, BundleConfig
    from samfed_monai.data.checks import Facts, check_datalist, facts_of, leaks
    from samfed_monai.data.datalist import DataList
    from samfed_monai.data.quality_report import notes_on

    if (arguments.datalist is None) != (arguments.data_root is None):
        one, other = ("data-root", "datalist LIST") if arguments.datalist is None else ("datalist", "data-root DIR")
        raise refused("command line", found=f"--{one} alone", expected=f"--{other} as well")
    if arguments.datalist is None:
        return None, [], []
    listed, facts, problems = DataList.load(arguments.datalist), list[Facts](), list[Problem]()
    sites = groups_of(BundleConfig.of_workflow(root, "federate", of_federation))[SITES]
    for part, data_root in listed.by_root(arguments.data_root, sites):
        seen = facts_of(part, data_root)
        facts += seen
        problems += check_datalist(part, data_root, seen)
    problems += [each for each in leaks(listed) if each not in problems]
    return listed, notes_on(listed, facts), problems


def _checked_values(
    root: Path, workflows: Sequence[str], overrides: _Ids, of_federation: _Ids, listed: DataList | None
) -> tuple[list[Problem], list[Problem]]:
    """Values that a run would refuse, and those that it would ignore."""
    from samfed_monai.federation.job import check_fit, check_job, check_training

    if "federate" in workflows:
        return check_job(root, of_federation, listed)
    if "train" in workflows:
        return check_training(root, overrides, of_federation.get("variant"), listed), []
    return check_fit(root, overrides), []
