"""``samfed check``: finds all problems of a bundle and its data before a run."""

from __future__ import annotations

import argparse
import sys

from samfed_monai.cli.arguments import add_bundle, add_command, add_data, take_overrides
from samfed_monai.config.overrides import overrides_of
from samfed_monai.core.errors import Problem, Problems, Refused, refused


def add_check_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed check BUNDLE [--workflow W] [--variant V] [--datalist L --data-root D] [--strict]``."""
    parser = add_command(subparsers, "check", run=run)
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


def run(arguments: argparse.Namespace) -> None:
    """Checks the bundle and the data, and prints what was checked."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.check import check_bundle, workflows_of
    from samfed_monai.config.ids import UnreadOption
    from samfed_monai.config.options import groups_of
    from samfed_monai.config.parse import SITES, BundleConfig
    from samfed_monai.config.strict import inventory, strict_bundle_problems, strict_problems
    from samfed_monai.config.variants import own_variants, variant_files
    from samfed_monai.data.checks import Facts, check_datalist, facts_of, leaks
    from samfed_monai.data.datalist import DataList

    root, only = find_bundle(arguments.bundle), arguments.variant
    overrides = overrides_of(arguments.extra)
    if overrides and not arguments.workflow:
        expected, hint = "--workflow NAME with --key value", "--workflow federate checks a run of `samfed federate`"
        raise refused("command line", f"--{next(iter(overrides))} alone", expected, hint)
    workflows = [arguments.workflow] if arguments.workflow else workflows_of(root)
    trains = {"train", "federate", "teacher"} & set(workflows)
    variants = [only] if only else list(own_variants(root)) if trains - {"teacher"} else []
    chosen = {**overrides, **({"variant": only} if only else {})}
    problems, code = Problems(), strict_bundle_problems(root)
    if arguments.strict:  # first, as its messages are clearer
        problems.extend([*code, *strict_problems(overrides, "command line", file=True)])
    strict = {problem.where: problem for problem in problems}
    for workflow in workflows:
        given = chosen if workflow == "federate" else overrides
        problems.extend(check_bundle(root, workflow, overrides=given, ready=False))
    for variant in variants:
        variant_overrides = overrides if arguments.workflow == "train" else None
        found = check_bundle(root, "train", variant=variant, overrides=variant_overrides, ready=False)
        # another variant may read the option
        problems.extend(each for each in found if variant == only or not isinstance(each, UnreadOption))
    listed, ignored, notes = None, list[Problem](), list[str]()
    with problems.collected():
        if (arguments.datalist is None) != (arguments.data_root is None):
            one, other = ("data-root", "datalist LIST") if arguments.datalist is None else ("datalist", "data-root DIR")
            raise refused("command line", found=f"--{one} alone", expected=f"--{other} as well")
        if arguments.datalist:
            from samfed_monai.data.quality_report import notes_on

            listed = DataList.load(arguments.datalist)
            sites = groups_of(BundleConfig.of_workflow(root, "federate", chosen))[SITES]
            facts = list[Facts]()
            for part, data_root in listed.by_root(arguments.data_root, sites):
                seen = facts_of(part, data_root)
                facts += seen
                problems.extend(check_datalist(part, data_root, seen))
            problems.extend(each for each in leaks(listed) if each not in problems)
            notes = notes_on(listed, facts)
    values_checked = bool(trains) and not code  # a check runs no code of a bundle
    if values_checked and not problems:
        from samfed_monai.federation.job import check_fit, check_job, check_training

        if "federate" in workflows:
            found, ignored = check_job(root, chosen, listed)
        elif "train" in workflows:
            found = check_training(root, overrides, only, listed)
        else:
            found = check_fit(root, overrides)
        problems.extend(found)
    if problems:  # each place is reported once
        superseded = {"variant"} if any(each.where == "command line -> variant" for each in problems) else set()
        remaining = (problem for problem in problems if problem.where not in superseded)
        raise Refused(problem for problem in remaining if strict.get(problem.where, problem) is problem)
    variants_text = f" and the variant{'s' * (len(variants) > 1)} {', '.join(variants)}" if variants else ""
    lines = [f"{root.name}: no problems in {', '.join(workflows)}{variants_text}"]
    lines += [f"  note: {note}" for note in [*notes, *ignored]]
    if trains and not values_checked:
        lines.append("  not checked: whether a run accepts the values, as they could run code (--strict says where)")
    if any(problem.where.rpartition(" -> ")[2].startswith("imports#") for problem in code):
        lines.append("  not checked: names of networks, rules and guides, as modules in imports may add names")
    if arguments.strict:
        lines.append("  strict: no code, no pickle, no component outside the strict allow-list")
    if arguments.inventory:
        lines.append("\n" + inventory(root, variant_files(root, only) if only else ()).removesuffix("\n"))
    sys.stdout.write("\n".join(lines) + "\n")
