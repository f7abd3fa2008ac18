"""``samfed compare``: variants x seeds on one data list, one table with mean and spread."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from pathlib import Path

from samfed_monai.commands.arguments import absolute, add_bundle, add_data, overrides_of, take_overrides
from samfed_monai.errors import ExitCode, Problem, Problems


def add_compare_parser(subparsers: argparse._SubParsersAction) -> argparse.ArgumentParser:
    """Adds ``samfed compare BUNDLE --variants a,b --seeds 0,1 ... --output-dir R``."""
    parser = subparsers.add_parser(
        "compare",
        help="run variants x seeds and put them into one table",
        description="Runs every variant with every seed into OUTPUT/<variant>/seed-<seed>/ and writes one table with "
        "mean and spread. Finished runs are kept, interrupted ones go on where they stopped; adapters and soft masks "
        "are shared.",
        allow_abbrev=False,
    )
    add_bundle(parser)
    add_data(parser)
    parser.add_argument("--variants", metavar="A,B,C", required=True, help="files of configs/variants, with commas")
    parser.add_argument("--seeds", metavar="0,1,2", default="0,1,2", help="seeds, with commas (default: 0,1,2)")
    parser.add_argument("--rounds", metavar="N", type=int, required=True, help="federated rounds of every run")
    parser.add_argument("--output-dir", metavar="DIR", required=True, help="folder of all runs and of the table")
    parser.add_argument("--cache-dir", metavar="DIR", help="what the runs share (default: OUTPUT/cache)")
    parser.add_argument("--jobs", metavar="N", type=int, default=1, help="runs at the same time (default: 1)")
    take_overrides(parser, "federate.json")
    parser.set_defaults(run=run)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Checks all variants first, runs what is missing, and writes the table."""
    from samfed_monai.commands.run_many import Run, run_all
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.check import check_bundle
    from samfed_monai.reports.compare import comparison_table
    from samfed_monai.reports.compare_page import write_comparison
    from samfed_monai.reports.compare_text import to_text

    root = find_bundle(arguments.bundle)
    overrides = overrides_of(arguments.extra)
    problems = Problems()
    variants = _names(arguments.variants, "--variants", problems)
    seeds = _seeds(arguments.seeds, problems)
    if arguments.jobs < 1:
        problems.add("--jobs", found=str(arguments.jobs), expected="1 or more")
    places = {"datalist": absolute(arguments.datalist), "data_root": absolute(arguments.data_root)}
    for variant in variants:
        problems.extend(check_bundle(root, "federate", overrides={**places, "variant": variant, **overrides}))
    problems.refuse_if_any()
    output = Path(str(absolute(arguments.output_dir)))
    common = {
        "datalist": absolute(arguments.datalist),
        "data-root": absolute(arguments.data_root),
        "rounds": str(arguments.rounds),
        "cache-dir": absolute(arguments.cache_dir) or str(output / "cache"),
    }
    runs = [
        Run(root, variant, seed, output / variant / f"seed-{seed}", common, tuple(arguments.extra))
        for seed in seeds
        for variant in variants
    ]
    folders = [run.folder for run in runs]
    run_all(runs, jobs=arguments.jobs, threads=max(1, (os.cpu_count() or 1) // arguments.jobs))
    path = write_comparison(output, folders, command=shlex.join(["samfed", *sys.argv[1:]]))
    sys.stdout.write(f"{to_text(comparison_table(folders))}\n{path}\n")
    return int(ExitCode.DONE)


def _names(text: str, option: str, problems: Problems) -> list[str]:
    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names:
        problems.add(option, found=repr(text), expected="names with commas between")
    return names


def _seeds(text: str, problems: Problems) -> list[int]:
    names = _names(text, "--seeds", problems)
    for name in names:
        if not name.isdecimal():
            problems.extend([Problem("--seeds", found=repr(name), expected="whole numbers with commas between")])
    return [int(name) for name in names if name.isdecimal()]
