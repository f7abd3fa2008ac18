"""The ``samfed`` command: parses arguments, runs a command, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from samfed_monai import __version__
from samfed_monai.cli.arguments import CommandParser
from samfed_monai.core import errors
from samfed_monai.core.process_setup import DEVICE, best_device, set_up_process
from samfed_monai.core.run_log import is_first
from samfed_monai.federation.signals import Termination, stopped_by_sigterm

DESCRIPTION = """\
Sites that hold only unlabelled images train a small segmentation network together, guided by SAM.
A re-implementation of SAM-Fed; the agreement rule is our reading of it. Research software, not a medical device."""

EPILOG = """\
a first run:
  samfed weights  mobile_sam --from FILE|URL|registry
  samfed prepare  folders DIR --public NAME --output list.json      # DIR/<site>/{images,masks}
  samfed check    samfed_skin --datalist list.json --data-root DIR
  samfed federate samfed_skin --datalist list.json --data-root DIR --output-dir runs/first

`samfed COMMAND --help` explains each.
exit codes: 0 done, 2 refused (every problem is listed), 3 stopped (the message says how to resume), 130 interrupted"""

COMMANDS = (
    *("prepare", "weights", "init", "check", "show", "variants", "new", "teach", "federate", "flare"),
    *("compare", "report", "audit", "evaluate", "infer", "app", "model", "export"),
)
"""Commands in the order of use; ``add_NAME_parser`` is in the module NAME of this package, or in that of ``BESIDE``."""

BESIDE = {"weights": "teach", "init": "new", "app": "infer", "model": "export"}
"""Commands that are in another command's module."""


def build_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = CommandParser(
        prog="samfed", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=f"samfed {__version__}")
    subparsers: Any = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in COMMANDS:
        module = importlib.import_module(f"samfed_monai.cli.{BESIDE.get(name, name)}")
        getattr(module, f"add_{name}_parser")(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command.

    Args:
        argv: words after ``samfed``; ``None`` takes those of the process.

    Returns:
        The exit code: 0 done, 1 a bug, 2 refused, 3 stopped, 130 interrupted.
    """
    if argv is None:  # in its own process, which has not imported torch yet
        set_up_process()
        argv = sys.argv[1:]
    parser = build_parser()
    arguments = argparse.Namespace(kept=None)
    try:
        _parse(parser, argv or ["--help"], arguments)
        _show_records()
        _refuse_unnameable(argv)
        with Termination(), _device(getattr(arguments, "device", None)):
            arguments.run(arguments)
        sys.stdout.flush()
        return int(errors.ExitCode.DONE)
    except errors.Refused as error:
        return errors.reported(_with_options(error, getattr(arguments, "known_options", ())))
    except (errors.SamFedError, KeyboardInterrupt) as error:
        return errors.reported(error, arguments.kept)
    except errors.Terminated:
        return errors.reported(stopped_by_sigterm(arguments.kept))
    except Exception as error:
        from samfed_monai.config.workflow import unwrap

        known = unwrap(error)
        if isinstance(error, BrokenPipeError):  # else Python reports it again at exit
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
        if known is not None:
            return errors.reported(known, arguments.kept)
        traceback.print_exc()
        sys.stderr.write(f"\n{errors.BUG_NOTE}\n")
        return int(errors.ExitCode.FAILED)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, namespace: argparse.Namespace) -> None:
    try:
        _, extra = parser.parse_known_args(argv, namespace)
        if extra and not getattr(namespace, "takes_overrides", False):
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
    except SystemExit:  # help or an error was printed, perhaps to a closed pipe
        sys.stdout.flush()
        raise
    namespace.extra = extra


def _refuse_unnameable(words: Sequence[str]) -> None:
    """Refuses paths of the command line, and a current folder, with names that no list or table can hold."""
    problems = errors.Problems(
        errors.name_problems((word for word in words if _SURROGATE.search(word)), "command line")
    )
    try:
        problems.extend(errors.name_problems([os.getcwd()], "the current folder"))
    except FileNotFoundError:
        problems.add("the current folder", found="a deleted folder", expected="a folder that exists")
    problems.refuse_if_any()


def _with_options(error: errors.Refused, options: Collection[str]) -> errors.Refused:
    """Returns the error; the hint of an unknown id that resembles an option of the command's own parser names that."""
    from samfed_monai.config.ids import UnknownId

    problems = errors.Problems()
    for problem in error.problems:
        _, from_command_line, name = problem.where.rpartition("command line -> ")
        unknown = from_command_line and isinstance(problem, UnknownId) and not problem.hint.startswith("did you mean")
        similar = errors.closest(f"--{name}", options, 0.7) if unknown else None
        problems.append(replace(problem, hint=f"did you mean {similar}?") if similar else problem)
    return errors.Refused(problems)


_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def _device(name: str | None) -> Iterator[None]:
    """Sets the device of ``--device`` inside the block, for child processes too."""
    if not name:
        yield
        return
    previous = os.environ.get(DEVICE)
    os.environ[DEVICE] = name
    try:
        best_device()  # refuses an unknown device before anything else
        yield
    finally:
        del os.environ[DEVICE]
        if previous is not None:
            os.environ[DEVICE] = previous


class _StderrHandler(logging.StreamHandler):
    """Writes to the current ``sys.stderr``, not to that of its creation: notebook cells and tests replace it."""

    # the base class sets the stream, which is not kept
    stream = property(lambda self: sys.stderr, lambda self, stream: None)


def _show_records() -> None:
    """Shows log records of this package on standard error as plain text, and only warnings of other libraries."""
    logger = logging.getLogger("samfed_monai")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
    if logging.lastResort is not None:  # shows warnings of other libraries
        logging.lastResort.addFilter(is_first)
    logging.getLogger("samfed_monai.audit").propagate = False  # one line per message, as in the site's audit.jsonl
