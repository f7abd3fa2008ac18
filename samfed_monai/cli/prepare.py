"""``samfed prepare``: makes data lists; a table of options, and the printed summary."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.cli.arguments import names_in, on_list
from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.io import read_json
from samfed_monai.core.text import as_argument, counted, normal

if TYPE_CHECKING:
    from samfed_monai.data.datalist import DataList
    from samfed_monai.data.prepare import Prepared


MORE = 0.3  # share of images for validation and for test if a tenth is too little; as in docs/own-data.md


def run_source(arguments: argparse.Namespace) -> None:
    """Makes a list with the source's function ``prepare_<source>`` of ``data/prepare.py``."""
    from samfed_monai.data import prepare

    given = vars(arguments)
    root = given.get("data_root") or given["root"]
    if not root.is_dir():
        raise refused(root, "no such folder", "the folder of the images", "check the path")
    if given.get("public") is not None:
        given["public"] = None if given["public"] == "none" else normal(given["public"])
    for name, option in (("label_kinds", "--label-kind"), ("folders", "--folder")):
        if name in given:
            given[name] = _values_by_name(given[name], option)
    if arguments.source == "source":
        from samfed_monai.config.targets import entry_points_of

        given["find"] = entry_points_of("sources").named(arguments.name_of_source, (), "source")
    options = prepare.Options(**_kwargs(prepare.Options, given))
    make = getattr(prepare, f"prepare_{arguments.source}")
    _print_summary(make(options=options, **_kwargs(make, given)), given)


def run_split(arguments: argparse.Namespace) -> None:
    from samfed_monai.data.datalist import DataList
    from samfed_monai.data.records import write_site_lists

    for name, path in write_site_lists(DataList.load(arguments.datalist), arguments.output_dir).items():
        sys.stdout.write(f"{name}: {path}\n")


def run_weak(arguments: argparse.Namespace) -> None:
    from samfed_monai.data.datalist import DataList, require_free
    from samfed_monai.data.weak_labels import weaken_list

    datalist = DataList.load(arguments.datalist)
    by_site = _values_by_name(arguments.kind, "--kind")
    training = [name for name, site in datalist.sites.items() if site.unlabelled]
    kinds = (dict.fromkeys(training, by_site.pop("")) if "" in by_site else {}) | by_site
    require_free(arguments.output, name=datalist.name)
    given = _kwargs(weaken_list, vars(arguments)) | {"datalist": datalist, "kinds": kinds}
    _save(weaken_list(**given), arguments.data_root, arguments)


def run_synthetic(arguments: argparse.Namespace) -> None:
    from samfed_monai.data.synthetic import render_synthetic

    _save(render_synthetic(arguments.root, **_kwargs(render_synthetic, vars(arguments))), arguments.root, arguments)


def run_synthetic_volumes(arguments: argparse.Namespace) -> None:
    """Writes NIfTI files of two sites and a public set, and prints the command that makes a list of them."""
    from samfed_monai.data.synthetic import CLASSES, render_volumes

    sites = render_volumes(arguments.root, **_kwargs(render_volumes, vars(arguments)))
    root = as_argument(arguments.root)
    words = ["samfed", "prepare", "nifti", root, "--slices", f"{root}_slices"]
    words += ["--public", "none" if arguments.public == 0 else "public"]
    words += ["--classes", ",".join(CLASSES), "--validation", str(MORE), "--test", str(MORE)]
    sys.stdout.write(f"volumes of {', '.join(sites)} in {arguments.root}\n")
    sys.stdout.write(f"next    {shlex.join(words)} --output list.json\n")


def _kwargs(function: Callable[..., Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arguments that a function has parameters for, without ``None``."""
    names = signature(function).parameters
    return {name: value for name, value in given.items() if name in names and value is not None}


def _values_by_name(words: Sequence[str], option: str) -> dict[str, str]:
    """Parses words ``[NAME=]VALUE`` to values by name; ``""`` is every site that is not named."""
    problems, given = Problems(), dict[str, str]()
    for word in words:
        name, _, value = word.rpartition("=")
        name = normal(name)
        if not value:
            problems.add(option, found=repr(word), expected="a value after the name and '='")
        elif name in given:
            problems.add(option, found=f"two values for {name or 'all sites'}", expected="one value")
        given[name] = value
    problems.refuse_if_any()
    return given


def _save(datalist: DataList, root: Path, arguments: argparse.Namespace) -> None:
    """Writes a list that does not come from ``data/prepare.py``, with its report, and prints a summary."""
    from samfed_monai.data.datalist import freeze
    from samfed_monai.data.prepare import Prepared
    from samfed_monai.data.quality_report import report_on

    freeze({arguments.output: datalist})
    page = report_on(datalist, root, arguments.output.with_suffix(".report.html")) if arguments.report else None
    _print_summary(Prepared(datalist, arguments.output, page), vars(arguments))


def _print_summary(prepared: Prepared, given: Mapping[str, Any]) -> None:
    """Prints a summary of the list."""
    datalist = prepared.datalist
    public, sites = counted(len(datalist.public), "public image"), counted(len(datalist.sites), "site")
    lines = [f"{datalist.name}: {public}, {sites}"]
    for name, site in datalist.sites.items():
        lines.append(f"  {name}: {', '.join(f'{len(items)} {split.value}' for split, items in site.splits())}")
    for part in [part for part in prepared.coverage if part.missing]:
        place = f"{part.client} ({part.split.value})"
        lines.append(f"  missing: {len(part.missing)} of {part.listed} images of {place}")
    lines += [f"  please check: {sentence}" for sentence in prepared.warnings]
    lines += [f"list    {prepared.path}  ({datalist.hash[:12]})"]
    lines += [f"report  {prepared.report}"] if prepared.report else []
    root = given.get("slices") or given.get("data_root") or given["root"]
    training = {name: site.unlabelled for name, site in datalist.sites.items() if site.unlabelled}
    bare = [name for name, items in training.items() if not any(item.label for item in items)]
    weak = any(item.weak for items in training.values() for item in items)
    variant = "weak_labels" if weak else None if datalist.public else "supervised"
    if datalist.sites and not training:
        words = on_list(["samfed", "evaluate", "BUNDLE", "--model", "MODEL"], prepared.path, root)
        lines += [f"next    {shlex.join([*words, '--output-dir', 'SCORES'])}"]
    elif variant == "supervised" and bare:
        lines += ["next    add public images with masks (--public), or masks at every site: no variant trains without"]
    elif prepared.report and training:
        unseen = bare if weak else []  # at which this variant has nothing to learn from
        trained = replace(datalist, sites={name: site for name, site in datalist.sites.items() if name not in unseen})
        words = on_list(["samfed", "federate", "BUNDLE"], prepared.path, root, trained)
        words += ["--variant", variant] if variant else []
        words += ["--unseen", json.dumps(unseen, ensure_ascii=False)] if unseen else []
        lines += [f"next    look at the report, then {shlex.join([*words, '--output-dir', 'RUN'])}"]
    sys.stdout.write("\n".join(lines) + "\n")


def number_or_folder(text: str) -> int | str:
    with suppress(ValueError):
        return text if text == "folder" else int(text)
    raise argparse.ArgumentTypeError(f"expected a number, or folder, found {text!r}")


TYPES = {"path": Path, "int": int, "float": float, "number_or_folder": number_or_folder, "names": names_in}
"""Types of options in ``sources.json``."""

RUNS = {"split": run_split, "synthetic": run_synthetic, "synthetic-volumes": run_synthetic_volumes, "weak": run_weak}
"""Sources that are not functions of ``data/prepare.py``, with their functions here."""


def add_prepare_parser(subparsers: Any) -> None:
    """Adds ``prepare`` and its sources; each sets ``run``, a function of the parsed arguments.

    ``sources.json`` has every option once (a suffix after a colon distinguishes options of the same name), those that
    sources share, and the description, options and defaults of each; one of the options joined by ``|`` is required.

    Args:
        subparsers: from ``ArgumentParser.add_subparsers``.
    """
    about = "Turn images into a frozen data list, with a report to look at."
    prepare: argparse.ArgumentParser = subparsers.add_parser("prepare", help=about.lower()[:-1], description=about)
    sources = prepare.add_subparsers(dest="source", required=True, metavar="SOURCE")
    tables = read_json(Path(__file__).with_name("sources.json"))
    for source, table in tables["sources"].items():
        description = table["about"][0].upper() + table["about"][1:] + "."
        parser = sources.add_parser(source, help=table["about"], description=description)
        for names in table["options"].format(**tables["shared"]).format(**tables["shared"]).split():
            options = names.split("|")
            group = parser if len(options) == 1 else parser.add_mutually_exclusive_group(required=True)
            for name in options:
                _add(group, name, tables["options"][name], table.get("defaults", {}))
        parser.set_defaults(run=RUNS.get(source, run_source))


def _add(parser: Any, name: str, settings: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Adds an option of the table, with its default in the help."""
    flag, changed = name.partition(":")[0], dict[str, Any]()
    default = settings.get("default", defaults.get(flag.strip("-").replace("-", "_")))
    if default not in (None, []):
        changed |= {"default": default, "help": f"{settings['help']} (default: {default})"}
    if "type" in settings:
        changed["type"] = TYPES[settings["type"]]
    if isinstance(settings.get("metavar"), list):
        changed["metavar"] = tuple(settings["metavar"])
    parser.add_argument(flag, **{**settings, **changed})
