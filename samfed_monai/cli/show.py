"""``samfed show``: shows the configuration that a workflow would use, and the source of each value."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from samfed_monai.cli.arguments import add_bundle, add_command, take_overrides
from samfed_monai.config.overrides import normal_ids, overrides_of
from samfed_monai.core.errors import Problems, refused
from samfed_monai.core.text import aligned, clipped

if TYPE_CHECKING:
    from samfed_monai.config.parse import BundleConfig


def add_show_parser(subparsers: argparse._SubParsersAction) -> None:
    """Adds ``samfed show BUNDLE [--workflow W] [--variant V] [--id ID] [--all] [--json]``."""
    parser = add_command(subparsers, "show", run=run)
    add_bundle(parser)
    about = "train (default), teacher, federate, evaluate or inference"
    parser.add_argument("--workflow", metavar="NAME", default="train", help=about)
    parser.add_argument("--variant", metavar="NAME", help="a baseline or ablation, see `samfed variants`")
    parser.add_argument("--id", metavar="ID", help="only this part, in full, for instance terms#sam_kd")
    parser.add_argument("--all", action="store_true", help="all ids, not only options and overrides")
    parser.add_argument("--json", action="store_true", help="print a JSON object, with long values in full")
    take_overrides(parser, "the workflow")


def run(arguments: argparse.Namespace) -> None:
    """Writes a table, or a JSON object."""
    from samfed_monai.config.bundles import find_bundle
    from samfed_monai.config.ids import unknown_hint
    from samfed_monai.config.parse import split_id

    root = find_bundle(arguments.bundle)
    config = configuration(root, arguments.workflow, arguments.variant, overrides_of(arguments.extra))
    entries, sources = list(shown(config)), _sources(config)
    chosen = [entry for entry in entries if arguments.all or entry.brief]
    if arguments.id is not None:
        parts = split_id(arguments.id)
        chosen = [entry for entry in entries if entry.parts[: len(parts)] == parts]
        if not chosen:
            hint = unknown_hint(config.content, parts, None) or "no file sets it; the component's default applies"
            raise refused("--id", found=repr(arguments.id), expected="an id of this workflow", hint=hint)
    if arguments.json:
        content = {"#".join(entry.parts): entry.to_json() for entry in chosen}
        sys.stdout.write(json.dumps(content, indent=4, ensure_ascii=False) + "\n")
        return
    sys.stdout.write(f"{root.name}, {arguments.workflow}: {', '.join(sources)}\n\n")
    sys.stdout.write(aligned([("id", "value", "from", "replaced"), *(entry.columns() for entry in chosen)]))
    if not all(entry.read for entry in chosen):
        sys.stdout.write("\n* this workflow does not read this id\n")
    if arguments.id is None and len(chosen) < len(entries):
        sys.stdout.write(f"\n{len(entries) - len(chosen)} more ids with --all\n")


class Shown(NamedTuple):
    """One id of a configuration.

    Args:
        parts: the id.
        values: (source, value) pairs: the effective value first, then those that it replaced.
        leads_to: for a reference to a plain value, a list with that value; else empty.
        brief: whether it is shown without ``--all``: an option, or overridden above the workflow's files.
        read: whether the workflow uses it.
    """

    parts: tuple[str, ...]
    values: Sequence[tuple[str, Any]]
    leads_to: list[Any]
    brief: bool
    read: bool

    def to_json(self) -> dict[str, Any]:
        (source, value), *replaced = self.values
        return {
            "value": value,
            **({"leads_to": self.leads_to[0]} if self.leads_to else {}),
            **({} if self.read else {"read": False}),
            "from": source,
            "replaced": [{"value": old, "from": before} for before, old in replaced],
        }

    def columns(self) -> tuple[str, str, str, str]:
        texts = [json.dumps(value, ensure_ascii=False) for _, value in self.values]
        text = texts[0].strip('"') if texts[0].startswith('"@') else texts[0]
        text += "".join(f" = {json.dumps(value, ensure_ascii=False)}" for value in self.leads_to)
        pairs = zip(self.values, texts, strict=True)
        replaced = ", ".join([f"{clipped(old)} ({name})" for (name, _), old in pairs][1:])
        return f"{'#'.join(self.parts)}{'' if self.read else ' *'}", clipped(text), self.values[0][0], replaced


def configuration(bundle_root: Path, workflow: str, variant: str | None, overrides: Mapping[str, Any]) -> BundleConfig:
    """Returns a workflow of a bundle with a variant and the command line's overrides.

    Args:
        bundle_root: folder of the bundle.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        variant: name of a variant; in ``federate`` it is the option.
        overrides: ids and values of the command line.

    Raises:
        Refused: unreadable files, an unknown workflow or variant, and overrides of unknown ids.
    """
    from samfed_monai.config.check import group_configs
    from samfed_monai.config.ids import check_override_ids
    from samfed_monai.config.parse import BundleConfig

    of_run = {"variant": variant} if workflow == "federate" and variant is not None else {}
    config = BundleConfig.of_workflow(bundle_root, workflow, normal_ids({**overrides, **of_run}), variant=variant)
    if variant is not None and workflow in ("teacher", "inference"):
        expected = "no variant: variants change only train, evaluate and federate"
        found = f"{variant!r} with --workflow {workflow}"
        raise refused("--variant", found=found, expected=expected, hint="leave it out")
    problems = Problems()
    for each in [config, *(group_configs(config, bundle_root) if config.federates else ())]:
        problems.extend(each.problems or check_override_ids(each, lazy=True))
    problems.refuse_if_any()
    return config


def _sources(config: BundleConfig) -> list[str]:
    """Returns the names of the layers, lowest first."""
    files = [f"variant {path.stem}" if 0 < n < config.base else path.name for n, path in enumerate(config.files)]
    return [*files, config.layers[-1][0]]


def shown(config: BundleConfig) -> Iterator[Shown]:
    """Yields every id with a plain value, a list of these, or an empty value; top-level notes are left out."""
    from samfed_monai.config.ids import is_read, read_contents
    from samfed_monai.config.options import GROUPS, all_options, is_plain
    from samfed_monai.config.parse import MISSING, follow, is_note, lookup, walk

    content = {name: value for name, value in config.content.items() if not is_note(name)}
    runs = read_contents(config) if "run" in content else [content]
    options, sources = all_options(config), _sources(config)
    for parts, value in walk(content):
        in_list = parts[:-1] and is_plain(lookup(content, parts[:-1]))  # the list is shown as a whole
        if not parts or in_list or not (is_plain(value) or not value):
            continue
        values = _history(config, parts)
        read = is_read(runs, parts[:1] if config.federates and parts[0] in GROUPS else parts)
        option = "#".join(parts) in options and (read or not config.federates)
        on_top = (parts[0] in GROUPS and len(parts) > 1) or values[0][0] not in config.own_layers
        _, target = follow(config.content, parts, value)
        leads_to = [target] if target is not value and target is not MISSING and is_plain(target) else []
        yield Shown(parts, [(sources[layer], old) for layer, old in values], leads_to, option or on_top, read)


def _history(config: BundleConfig, parts: tuple[str, ...]) -> list[tuple[int, Any]]:
    """Returns the layers that set an id, or a part of it, with its value after each; the last layer first.

    Layers before one that removes the id are left out.
    """
    from samfed_monai.config.parse import MISSING, lookup

    values = list[tuple[int, Any]]()
    for index in range(len(config.layers)):
        value = lookup(config.below(index + 1), parts)
        if value is MISSING:
            values.clear()
        elif config.sets_id(index, parts):
            values.insert(0, (index, value))
    return values
