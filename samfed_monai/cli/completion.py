"""Completion in a shell: commands, options, bundles, variants, networks, by the package argcomplete."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable, Iterator

from samfed_monai.cli.arguments import CommandParser


def complete(parser: argparse.ArgumentParser) -> None:
    """Answers a shell that asks what could come next, and ends the process."""
    import argcomplete
    from argcomplete.completers import DirectoriesCompleter

    folders = DirectoriesCompleter()
    for command in _parsers(parser):
        for file in command.option_files if isinstance(command, CommandParser) else ():
            _add_options(command, file)
        for action in command._actions:
            names = _NAMES.get(action.metavar if isinstance(action.metavar, str) else "") or _OF_OPTION.get(action.dest)
            if names is not None:
                action.completer = _either(names, folders if action.metavar == "BUNDLE" else None)  # type: ignore[attr-defined]
            elif action.metavar == "DIR":
                action.completer = folders  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _parsers(parser: argparse.ArgumentParser) -> Iterator[argparse.ArgumentParser]:
    """A parser and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _parsers(below)


def _add_options(parser: argparse.ArgumentParser, file: str) -> None:
    """The options of a bundle's file as options that complete; a run reads them as overrides."""
    from samfed_monai.config.options import options_in

    known = {word for action in parser._actions for word in action.option_strings}
    for name, keywords in options_in(file).items():
        if not {f"--{name}", f"--{name.replace('_', '-')}"} & known and "#" not in name:
            words = keywords.get("enum")
            parser.add_argument(f"--{name}", dest=name, choices=words and [str(word) for word in words])


def _either(names: Callable[[], list[str]], folders: Callable[..., Iterable[str]] | None) -> Callable[..., list[str]]:
    def either(prefix: str, **asked: object) -> list[str]:
        return [*names(), *(folders(prefix, **asked) if folders is not None else ())]

    return either


def _bundles() -> list[str]:
    from samfed_monai.config.bundles import packaged_bundles

    return list(packaged_bundles())


def _variants() -> list[str]:
    from samfed_monai.config.variants import known_variants

    return known_variants()


def _workflows() -> list[str]:
    from samfed_monai.config.parse import WORKFLOWS

    return list(WORKFLOWS)


_NAMES: dict[str, Callable[[], list[str]]] = {"BUNDLE": _bundles}
_OF_OPTION: dict[str, Callable[[], list[str]]] = {"variant": _variants, "workflow": _workflows}
