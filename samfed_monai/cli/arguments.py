"""Arguments that several commands share."""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.core.errors import refused
from samfed_monai.core.io import read_json
from samfed_monai.core.text import as_argument, normal

if TYPE_CHECKING:
    from samfed_monai.data.datalist import DataList

EMPTY = "is a shell variable empty? Write . for the current folder"
OVERRIDES_HELP = "any other `--key value` sets the id `key` of {file}, for instance --seed 1 or --a#b#c true; "
OVERRIDES_HELP += "an id that the run does not read is refused"


@functools.cache
def _texts() -> dict[str, dict[str, str]]:
    texts: dict[str, dict[str, str]] = read_json(Path(__file__).with_name("commands.json"))
    return texts


def add_command(subparsers: Any, name: str, **defaults: Any) -> argparse.ArgumentParser:
    """Adds a command with its texts of ``commands.json``.

    Args:
        subparsers: of ``samfed``.
        name: of the command.
        **defaults: what its parsed arguments always have: ``run`` and, for :func:`~samfed_monai.cli.main.main`,
            ``kept``, the work that is kept if the command is terminated.
    """
    parser: argparse.ArgumentParser = subparsers.add_parser(name, **_texts()[name])
    parser.set_defaults(**defaults)
    return parser


def add_bundle(parser: argparse.ArgumentParser, others: str = "") -> None:
    about = f"a bundle's folder, or the name of a packaged bundle (samfed_skin){others}"
    parser.add_argument("bundle", metavar="BUNDLE", help=about)


def add_model(parser: argparse.ArgumentParser, others: str = "") -> None:
    """Adds ``--model``, ``--views`` and ``--device``; ``others`` describes further kinds of models, for the help.

    Other options of ``teacher.json`` have the prefix ``--teacher#``.
    """
    about = f"a finished run's folder, a weights file, the adapter of a fitted teacher{others}"
    parser.add_argument("--model", metavar="MODEL", help=f"{about} (default: the bundle's own model, if any)")
    about = "average the probabilities over this many views (reflections and quarter turns), one pass of the network "
    about += "each (default: 1; for a teacher's adapter: as in teacher.json; --teacher#… sets its other options)"
    parser.add_argument("--views", type=int, choices=(1, 2, 4, 8), help=about)
    add_device(parser)


def add_site(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--site", metavar="NAME", default="", help="for a run: use this site's own model")


def add_other_size(parser: argparse.ArgumentParser) -> None:
    """Adds ``--allow-other-size``, without which ``--image_size`` must be the size that the model was trained at."""
    about = "accept an --image_size that the model was not trained at; scores are lower"
    parser.add_argument("--allow-other-size", action="store_true", help=about)


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    parser.add_argument("--datalist", metavar="LIST", required=required, help="data list made by `samfed prepare`")
    parser.add_argument("--data-root", metavar="DIR", required=required, help="base folder of the list's paths")


class CommandParser(argparse.ArgumentParser):
    """A parser without abbreviated options, whose ``--help`` also lists options of the bundle's files, from
    ``config/options.json``."""

    option_files: tuple[str, ...] = ()
    unread: Collection[str] = frozenset()

    def __init__(self, **settings: Any) -> None:
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Parses like ``argparse``, but accepts options with underscores (``--output_dir``) for those with hyphens, and
        expands ``~`` in values, which shells leave in ``--output=~/list.json``.

        If the command takes overrides, unknown options and their values may be at any position.

        Raises:
            Refused: an empty argument, which would mean a default or the current folder.
        """
        known = {word for action in self._actions for word in action.option_strings}

        def spelt(word: str) -> str:
            option, equals, value = word.partition("=") if word.startswith("--") else ("", "", word)
            kebab = option.replace("_", "-")
            return f"{kebab if option not in known and kebab in known else option}{equals}{os.path.expanduser(value)}"

        words = [spelt(word) for word in (sys.argv[1:] if args is None else args)]
        if self._subparsers is not None:
            return super().parse_known_args(words, namespace)
        own, pairs, takes = list[str](), list[str](), False  # takes: whether a pair's value may come next
        overrides = self.get_default("takes_overrides")
        for word in words:
            is_option = word.startswith("--")
            pair = overrides and (word.partition("=")[0] not in known if is_option else takes)
            takes = is_option and pair and "=" not in word
            (pairs if pair else own).append(word)
        valued = {word: action for action in self._actions if action.nargs != 0 for word in action.option_strings}
        options = [word.partition("=")[0] for word in own]
        for before, word, option in zip(["", *own], own, options, strict=False):
            if option in valued and options.count(option) > 1 and not isinstance(valued[option].default, list):
                self.error(f"{option}: expected it once, found it again; leave one out")
            if not word or (option in valued and word == f"{option}="):
                place = option or (before if before in valued else "command line")
                raise refused(place, found="an empty text", expected="a value", hint=EMPTY)
        found, rest = super().parse_known_args(own, namespace)
        found.known_options = known
        if hasattr(found, "sources"):  # images after an option, which argparse does not assign
            found.sources, rest = [*found.sources, *rest], []
        return found, [*rest, *pairs]

    def format_help(self) -> str:
        """Returns the help of ``argparse`` followed by one or two lines for every option of the bundle's files."""
        text = super().format_help()
        known = {word for action in self._actions for word in action.option_strings} | {*self.unread}
        for file in self.option_files:
            text += f"\n{options_help(file, without=known)}"
            known |= {"--epochs", "--site"}  # set by a federation for every site
        return text


def options_help(file: str, *, without: Collection[str] = ()) -> str:
    """Returns the help text for the options of one of a bundle's files.

    Args:
        file: ``federate.json``, ``train.json``, …
        without: options that are listed already, ``--rounds``, ``--output-dir``, …
    """
    from samfed_monai.config.options import FEDERATION_ONLY, option_tables, shipped
    from samfed_monai.config.parse import split_id

    listed = argparse.ArgumentParser(usage=argparse.SUPPRESS, add_help=False)
    group = listed.add_argument_group(f"options of {file} (more: docs/options.md; values: samfed show)")
    tables, contents, room = option_tables()[file], shipped(file), 2 * (shutil.get_terminal_size().columns - _INDENT)
    for name, about in [option for table in tables if table != "paths" for option in tables[table].items()]:
        if {f"--{name}", f"--{name.replace('_', '-')}"} & {*without} or "description" not in about:
            continue
        if file == "teacher.json" and split_id(name)[0] in FEDERATION_ONLY:
            continue
        values = {json.dumps(content.get(name)) for content in contents}
        default = f" [{values.pop()}]" if len(values) == 1 else ""
        default = "" if len(default) > _LONGEST or "{" in default else default
        text = _LINK.sub(r"\1", _BELOW.sub("", about["description"]))
        text = textwrap.shorten(text + default, max(room, 72), placeholder=f" …{default}")
        group.add_argument(f"--{name}", action="store_true", help=text.replace("%", "%%"))
    return listed.format_help()


_INDENT = 26  # argparse's indent of help texts, and its margin
_LONGEST = 30  # characters of a shown default
_BELOW, _LINK = re.compile(r",? *\[below\]\([^)]*\)"), re.compile(r"\[([^]]*)\]\([^)]*\)")


def take_overrides(parser: argparse.ArgumentParser, file: str, *option_files: str, unread: Iterable[str] = ()) -> None:
    """Lets a command accept ``--key value`` pairs that its parser does not know.

    Args:
        parser: the command's parser.
        file: name of the file with these ids, for the help.
        option_files: files of a bundle whose options the help lists.
        unread: ids of these files that the command does not read.
    """
    parser.epilog = OVERRIDES_HELP.format(file=file)
    parser.set_defaults(takes_overrides=True)
    if isinstance(parser, CommandParser):
        parser.option_files, parser.unread = option_files, {f"--{name}" for name in ("bundle_root", *unread)}


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device``, which :func:`samfed_monai.cli.main.main` sets for the whole command."""
    help = "device: cpu, cuda, cuda:1, mps (default: SAMFED_DEVICE, else the first GPU, else the CPU)"
    parser.add_argument("--device", metavar="DEVICE", help=help)


def names_in(text: str) -> list[str]:
    """Returns comma-separated names, for ``argparse``; an empty name is refused."""
    if all(found := [normal(name) for name in text.split(",")]):
        return found
    raise argparse.ArgumentTypeError(f"expected names, separated by commas, found {text!r}")


def absolute(path: str | Path | None) -> str | None:
    """Returns a path of the command line as an absolute path."""
    return None if path is None else str(Path(path).expanduser().resolve())


def on_list(start: Sequence[str], path: str | Path, root: str | Path, trains: DataList | None = None) -> list[str]:
    """Returns the words of a command to copy into a shell: its first words, then the options of a data list.

    Args:
        start: its first words.
        path: file of the list.
        root: its data root.
        trains: the list, for a command that trains; its classes and number of sites need options.
    """
    words = [*start, "--datalist", as_argument(path), "--data-root", as_argument(root)]
    words += ["--classes", json.dumps(trains.classes, ensure_ascii=False)] if trains and trains.classes else []
    alone = trains is not None and sum(bool(site.unlabelled) for site in trains.sites.values()) == 1
    return [*words, "--allow_single_site", "true"] if alone else words
