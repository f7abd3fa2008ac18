"""From an error to an exit code: 0 done, 2 refused, 3 stopped, 130 interrupted; the message goes to stderr."""

from __future__ import annotations

import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from samfed_monai.config.check import check_bundle
from samfed_monai.config.overrides import MonaiCommand, monai_command, normal_ids, started_by_monai
from samfed_monai.config.parse import WORKFLOWS, join_id, walk
from samfed_monai.core.allocator import keep_freed_memory
from samfed_monai.core.errors import ExitCode, Problem, Problems, Refused, SamFedError, machine_failure

GetParser = Callable[[], Any]
"""Gives a MONAI ``ConfigParser``, or ``None``; asked only when something failed."""

# monai.utils.module.instantiate raises this from what the component raised
_WRAPPED = re.compile(r"Failed to instantiate component '([\w.]+)'")

_WORKFLOW = "samfed_monai.config."
"""What runs a bundle's workflow (``run_job``, ``require_checked``): what it raises is not about one component."""


def component_refusal(error: BaseException, parser: GetParser | None = None, *, file: str = "") -> Refused | None:
    """A refusal of values that a component named in a bundle does not take; ``None`` where ``error`` is another fault.

    Such is a ``ValueError`` or ``TypeError`` that the component itself raised when MONAI built it, as
    ``torch.optim.AdamW`` does with a negative learning rate. A ``TypeError`` out of this package's own code is a fault
    of ours: a value of the wrong kind is refused before anything is built.

    Args:
        error: what was raised, however deep MONAI wrapped it.
        parser: gives the ``ConfigParser`` that built the component, whose id is then told; without one, or where that
            holds no such component, it is told by its name.
        file: the bundle's file that names the component, where that is known.
    """
    seen: BaseException | None = error
    while seen is not None and seen.__cause__ is not None:
        cause, wrapped = seen.__cause__, _WRAPPED.match(str(seen)) if isinstance(seen, RuntimeError) else None
        if wrapped and isinstance(cause, (ValueError, TypeError)) and not _ours(cause, wrapped[1]):
            where = " -> ".join(filter(None, (file, _id_of(wrapped[1], cause, parser) or wrapped[1])))
            expected = f"values that {wrapped[1]} takes"
            found, mend = f"{str(cause).rstrip('.')!r}", "correct them in the bundle, or the override that sets them"
            return Refused([Problem(where, found=found, expected=expected, mend=mend)])
        seen = cause
    return None


def _ours(cause: BaseException, component: str) -> bool:
    if component.startswith(_WORKFLOW):
        return True
    *_, last = [None, *(frame for frame, _ in traceback.walk_tb(cause.__traceback__))]
    module = last.f_globals.get("__name__", "") if last else ""
    return isinstance(cause, TypeError) and module.partition(".")[0] == "samfed_monai"


def _id_of(component: str, cause: BaseException, get: GetParser | None) -> str:
    """The id of the component that raised ``cause``; empty where the configuration has none of that name.

    Of several, each is built again by itself, until one says the same.
    """
    parser = get() if get is not None else None
    if parser is None:
        return ""
    ids = [join_id(parts) for parts, value in walk(parser.get()) if _is(value, component)]
    return next((id_ for id_ in ids if len(ids) == 1 or _says_again(parser, id_, cause)), "")


def _is(value: Any, component: str) -> bool:
    target = value.get("_target_") if isinstance(value, dict) else None
    return isinstance(target, str) and (component == target or component.endswith(f".{target}"))


def _says_again(parser: Any, id_: str, cause: BaseException) -> bool:
    try:
        parser.get_parsed_content(id_)
    except Exception as error:
        seen: BaseException | None = error
        while seen is not None:
            if type(seen) is type(cause) and str(seen) == str(cause):
                return True
            seen = seen.__cause__
    return False


T = TypeVar("T")
_Method = Literal["run", "write"]

OUR_MISTAKE = "this is a mistake in samfed rather than in your input; the lines above say where"
"""The last line below the traceback of what is no refusal."""

_INTERRUPTED = "interrupted: what was complete is kept\n  to go on: type the same command again"


def told_by(error: BaseException, parser: GetParser | None = None) -> SamFedError | KeyboardInterrupt | None:
    """The error of ours that ``error`` was raised from (MONAI wraps what its ``$`` expressions raise).

    Only an explicit ``raise ... from`` counts: what merely happened while a refusal was dealt with is a fault of its
    own and must be seen. Where there is none, what a component refused in its own words is one
    (:func:`component_refusal`, which takes ``parser``), and what the machine could not do
    (:func:`samfed_monai.core.errors.machine_failure`).
    """
    return raised_by_us(error) or component_refusal(error, parser) or _by_the_machine(error)


def _by_the_machine(error: BaseException | None) -> SamFedError | None:
    while error is not None:
        if told := machine_failure(error):
            return told
        error = error.__cause__
    return None


def raised_by_us(error: BaseException) -> SamFedError | KeyboardInterrupt | None:
    """As :func:`told_by`, without what components refused in their own words."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, (SamFedError, KeyboardInterrupt)):
            return seen
        seen = seen.__cause__
    return None


@contextmanager
def as_told(parser: GetParser | None = None) -> Iterator[None]:
    """Raises the error of ours in place of the one that MONAI wrapped it in; ``parser`` as :func:`told_by` takes it."""
    try:
        yield
    except Exception as error:
        told = told_by(error, parser)
        if told is None:
            raise
        raise told from None


def message_and_code(error: SamFedError | KeyboardInterrupt) -> tuple[str, ExitCode]:
    """What to write to standard error, and the exit code."""
    if isinstance(error, KeyboardInterrupt):
        return _INTERRUPTED, ExitCode.INTERRUPTED
    return str(error), ExitCode(error.exit_code)


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Inside ``python -m monai.bundle run``, ends the process with our message and exit code instead of a traceback.

    Anywhere else (``samfed``, tests, a notebook) the error passes through unchanged.

    Raises:
        SystemExit: the process was started by MONAI and the block refused, stopped or was interrupted.
    """
    try:
        yield
    except (SamFedError, KeyboardInterrupt, RuntimeError) as error:
        told = told_by(error, _parser_of_command)
        if told is None or not started_by_monai():
            raise
        _leave(told)


def run_or_exit(job: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Calls ``job`` inside :func:`exit_on_refusal`."""
    with exit_on_refusal():
        return job(*args, **kwargs)


def run_job(*, job: Any, method: _Method = "run") -> Any:
    """Calls ``job.run()``, or ``job.write()``, inside :func:`exit_on_refusal`; what a bundle's ``run`` consists of.

    Example::

        "run": [{"_target_": "samfed_monai.config.run_job", "job": "@job"}]

    Raises:
        Refused: another method.
    """
    if method not in get_args(_Method):
        raise Refused([Problem("run_job -> method", found=repr(method), expected="'run' or 'write'")])
    if started_by_monai():
        keep_freed_memory()
    return run_or_exit(getattr(job, method))


def install_exit_hook() -> None:
    """Lets errors of ours that components raise while MONAI builds them end the process in the same way."""
    if started_by_monai() and sys.excepthook is not _exit_hook:
        sys.excepthook = _exit_hook


def _exit_hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    told = told_by(error, _parser_of_command)
    if told is None:
        sys.__excepthook__(kind, error, where)
        return
    _leave(told)


def _parser_of_command() -> Any:
    """What ``python -m monai.bundle run`` was given, read anew; ``None`` where it was not, or cannot be read."""
    from monai.bundle import ConfigParser

    command, parser = monai_command(), ConfigParser()
    if command is None or not command.config_files:
        return None
    try:
        parser.read_config([str(path) for path in command.config_files])
        parser.update(pairs=command.overrides)
    except Exception:  # MONAI's own words about it come first
        return None
    return parser


def _leave(error: SamFedError | KeyboardInterrupt) -> None:
    message, code = message_and_code(error)
    sys.stderr.write(f"{message}\n")
    raise SystemExit(int(code)) from None


def require_checked(bundle_root: str | Path, workflow: str, variant: str | None = None) -> None:
    """Refuses a bundle that has problems; names them all.

    Started by ``python -m monai.bundle run`` on this workflow, it also checks the overrides and the files of that
    command line, which MONAI does not, and ends the process with exit code 2 and the message alone.

    Example::

        "initialize": [{
            "_target_": "samfed_monai.config.require_checked", "bundle_root": "@bundle_root", "workflow": "train"
        }]

    Raises:
        Refused: with every problem; ``SystemExit(2)`` instead when MONAI started the process.
    """
    install_exit_hook()
    with exit_on_refusal():
        command = _command_of(workflow)
        root = Path(bundle_root) if command is None else _bundle_root(bundle_root, command)
        problems = Problems()
        problems.extend(
            check_bundle(
                root,
                workflow,
                variant=variant,
                overrides=normal_ids(command.overrides) if command else None,
                files=_files(command, root, workflow) if command else None,
                ready=command is not None,
                routes=command is None,
            )
        )
        problems.refuse_if_any()


def _command_of(workflow: str) -> MonaiCommand | None:
    """MONAI's command line if it names this workflow's own file.

    ``None`` where Python code set the workflow up (``samfed``, a federated job that builds its clients, a test): what
    it overrides cannot be seen from here, so that shipped paths count as placeholders.
    """
    command = monai_command()
    names = {path.name for path in command.config_files} if command else set()
    return command if names & set(WORKFLOWS.get(workflow, ())) else None


def _bundle_root(bundle_root: str | Path, command: MonaiCommand) -> Path:
    """The folder above the given config file's ``configs``, else what the bundle calls its root."""
    given = command.config_files
    if given and given[0].resolve().parent.name == "configs":
        return given[0].resolve().parent.parent
    return Path(bundle_root)


def _files(command: MonaiCommand, root: Path, workflow: str) -> list[Path] | None:
    """Files of the command line, or ``None`` when they are the workflow's own."""
    given = [path.resolve() for path in command.config_files]
    own = [(root / "configs" / name).resolve() for name in WORKFLOWS.get(workflow, ())]
    return given if given and given != own else None
