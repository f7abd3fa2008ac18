"""The ``samfed`` command: parses, runs one command, and turns errors into messages and exit codes."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from samfed_monai import __version__
from samfed_monai.cli.arguments import CommandParser
from samfed_monai.core.errors import (
    AGAIN,
    BUG_NOTE,
    ExitCode,
    Problems,
    SamFedError,
    Stopped,
    Terminated,
    name_problems,
    reported,
)
from samfed_monai.core.own_process import set_up_process
from samfed_monai.core.run_log import is_news
from samfed_monai.federation.signals import ASKED, Termination

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
exit codes: 0 done, 2 refused (every problem is listed), 3 stopped (how to go on is printed), 130 interrupted"""

COMMANDS = (
    *("prepare", "weights", "init", "check", "show", "variants", "new", "teach", "federate", "flare"),
    *("compare", "report", "audit", "evaluate", "infer", "app", "model", "export"),
)
"""In the order in which a user meets them; ``add_NAME_parser`` is in the module of this folder of that name."""

BESIDE = {"weights": "teach", "init": "new", "app": "infer", "model": "export"}
"""Commands in the module of another."""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = CommandParser(
        prog="samfed",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
        the exit code: 0 done, 1 a mistake of ours, 2 refused, 3 stopped, 130 interrupted.
    """
    if argv is None:  # a process of our own, which has not imported torch yet
        set_up_process()
    parser = build_parser()
    arguments = argparse.Namespace()
    try:
        _parse(parser, argv, arguments)
        _show_records()
        _refuse_unnameable(sys.argv[1:] if argv is None else argv)
        with Termination(), _device(getattr(arguments, "device", None)):
            arguments.run(arguments)
        sys.stdout.flush()
        return int(ExitCode.DONE)
    except (SamFedError, KeyboardInterrupt) as error:
        return reported(error)
    except Terminated:
        kept = getattr(arguments, "kept", "what was complete is kept")
        return reported(Stopped(f"{ASKED}; {kept}", AGAIN))
    except Exception as error:
        from samfed_monai.config.workflow import unwrap

        known = unwrap(error)
        if isinstance(error, BrokenPipeError):  # or Python complains once more when it ends
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the rest of the process
        if known is not None:
            return reported(known)
        traceback.print_exc()
        sys.stderr.write(f"\n{BUG_NOTE}\n")
        return int(ExitCode.FAILED)


def _parse(parser: argparse.ArgumentParser, argv: Sequence[str] | None, into: argparse.Namespace) -> None:
    try:
        _, extra = parser.parse_known_args(argv, into)
        if extra and not getattr(into, "takes_overrides", False):
            parser.error(f"unrecognized arguments: {' '.join(extra)}")
    except SystemExit:  # help, or what is wrong, was printed: to a pipe that is closed, perhaps
        sys.stdout.flush()
        raise
    into.extra = extra


def _refuse_unnameable(words: Sequence[str]) -> None:
    """Paths of the command line, and the folder that this is called in, whose name no list or table could hold."""
    problems = Problems()
    problems.extend(name_problems((word for word in words if _SURROGATE.search(word)), "command line"))
    try:
        problems.extend(name_problems([os.getcwd()], "the folder that this is called in"))
    except FileNotFoundError:
        problems.add("the folder that this is called in", found="it was deleted", expected="one that exists")
    problems.refuse_if_any()


_SURROGATE = re.compile("[\ud800-\udfff]")


@contextmanager
def _device(asked: str | None) -> Iterator[None]:
    """Sets what ``--device`` says for the command and the processes that it starts, and for nothing after it."""
    if not asked:
        yield
        return
    from samfed_monai.core.own_process import DEVICE, best_device

    before = os.environ.get(DEVICE)
    os.environ[DEVICE] = asked
    try:
        best_device()  # refused here, before anything else
        yield
    finally:
        if before is None:
            del os.environ[DEVICE]
        else:
            os.environ[DEVICE] = before


class _StderrHandler(logging.StreamHandler):
    """Writes to the standard error of the moment, not of the moment in which it was made: a notebook's cell and a test
    replace it, and what is written afterwards belongs to the new one."""

    @property
    def stream(self):
        return sys.stderr

    @stream.setter
    def stream(self, stream) -> None:
        """The base class sets the stream once; there is nothing to keep."""


def _show_records() -> None:
    """Log records of this package on standard error, plain; other libraries' warnings only."""
    logger = logging.getLogger("samfed_monai")
    if not logger.handlers:
        handler = _StderrHandler()
        handler.setFormatter(logging.Formatter("%(message)s"))
        logger.addHandler(handler)
        logger.propagate = False
    logger.setLevel(logging.INFO)
    if logging.lastResort is not None:  # shows the others' warnings
        logging.lastResort.addFilter(is_news)
    logging.getLogger("samfed_monai.audit").propagate = False  # a line per message: the site's audit.jsonl has it
