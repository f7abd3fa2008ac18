"""A workflow of a bundle at work: what its ``initialize`` and ``run`` name, and how ``samfed`` runs it."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeVar, get_args

from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.check import check_bundle
from samfed_monai.config.layers import layered, pairs_for_monai, training_values
from samfed_monai.config.overrides import MonaiCommand, monai_command, normal_ids, started_by_monai
from samfed_monai.config.parse import REFERRING, WORKFLOWS, BundleConfig, is_note, walk, workflow_files
from samfed_monai.config.wrapped_errors import unwrap, unwrapped
from samfed_monai.core.errors import (
    AGAIN,
    Problem,
    Problems,
    Refused,
    SamFedError,
    Stopped,
    Terminated,
    message_and_code,
    refused,
)
from samfed_monai.core.own_process import keep_freed_memory

T = TypeVar("T")
_Method = Literal["run", "write"]


@contextmanager
def exit_on_refusal() -> Iterator[None]:
    """Inside ``python -m monai.bundle run``, ends the process with our message and exit code instead of a traceback.

    Anywhere else (``samfed``, tests, a notebook) the error passes through unchanged.

    Raises:
        SystemExit: the process was started by MONAI and the block refused, stopped or was interrupted.
    """
    from samfed_monai.federation.signals import ASKED, Termination

    try:
        with Termination() if started_by_monai() else nullcontext():
            yield
    except Terminated:
        if not started_by_monai():
            raise
        _leave(Stopped(f"{ASKED}; what was complete is kept", AGAIN))
    except (SamFedError, KeyboardInterrupt, RuntimeError) as error:
        known = unwrap(error, _parser_of_command)
        if known is None or not started_by_monai():
            raise
        _leave(known)


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
        raise refused("run_job -> method", found=repr(method), expected="'run' or 'write'")
    if started_by_monai():
        keep_freed_memory()
    return run_or_exit(getattr(job, method))


def install_exit_hook() -> None:
    """Lets errors of ours that components raise while MONAI builds them end the process in the same way."""
    if started_by_monai() and sys.excepthook is not _exit_hook:
        sys.excepthook = _exit_hook
        logging.getLogger("samfed_monai.audit").propagate = False  # JSON a message, which the site's audit.jsonl has


def _exit_hook(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    known = unwrap(error, _parser_of_command)
    if known is None:
        sys.__excepthook__(kind, error, where)
        return
    _leave(known)


def _parser_of_command() -> Any:
    """What ``python -m monai.bundle run`` was given, read anew; ``None`` where it was not, or cannot be read."""
    from samfed_monai.config.monai_parser import ConfigParser

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
            )
        )
        problems.extend(_rewritten_by_monai(command, root, workflow) if command else ())
        problems.refuse_if_any()


def _rewritten_by_monai(command: MonaiCommand, root: Path, workflow: str) -> Iterator[Problem]:
    """Text with ``#``: MONAI puts ``::`` in its place before any code of ours runs, and ``fire`` ends a word there."""
    typed = {name: text for name, text in command.typed.items() if isinstance(command.overrides.get(name), str)}
    config = BundleConfig(_files(command, root, workflow) or workflow_files(root, workflow), command.overrides | typed)
    for parts, value in walk(config.content):
        if isinstance(value, str) and "#" in value and not value.startswith(REFERRING) and not is_note(parts[0]):
            hint = "rename it, or run this with `samfed`, which takes it as it is"
            expected = "text without '#', which MONAI's own command takes for something else"
            yield Problem(config.where(parts), found=repr(value), expected=expected, hint=hint)


def training_values_of_command(bundle_root: str | Path) -> dict[str, Any]:
    """What ``federate.json`` and the command line of this process set of the sites' training, where MONAI started it.

    Elsewhere nothing: who builds a federation in Python says so itself.

    Args:
        bundle_root: folder of the bundle, where the command names no file in one.
    """
    command = _command_of("federate")
    if command is None:
        return {}
    root, overrides = _bundle_root(bundle_root, command), normal_ids(command.overrides)
    files, base = layered(root, "federate", overrides, files=_files(command, root, "federate"))
    return training_values(BundleConfig(files, overrides, base=base))


def _command_of(workflow: str) -> MonaiCommand | None:
    """MONAI's command line if it runs this workflow: its last file of a workflow's own is that of this one.

    ``None`` where Python code set the workflow up (``samfed``, a federated job that builds its clients, a test): what
    it overrides cannot be seen from here, so that shipped paths count as placeholders.
    """
    command, mains = monai_command(), {files[-1] for files in WORKFLOWS.values()}
    named = [path.name for path in command.config_files if path.name in mains] if command else []
    return command if named and named[-1] == WORKFLOWS.get(workflow, ("",))[-1] else None


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


WORKFLOW_TYPES = {"train": "train", "teacher": None, "federate": None, "evaluate": "eval", "inference": "infer"}
"""What MONAI calls each workflow; ``None`` has only the properties that every bundle has."""


def run_workflow(
    bundle: str | Path,
    workflow: str,
    overrides: Mapping[str, Any],
    *,
    variant: str | None = None,
    asked: Collection[str] | None = None,
    prepared: Callable[[Any], None] = lambda job: None,
) -> Any:
    """Checks a workflow with its overrides and runs it: initialize, run, finalize.

    MONAI's logging configuration is left alone and its warning that a bundle may run code is silenced: the bundle has
    passed the check, which is what the warning asks for.

    Args:
        bundle: folder or packaged name.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        overrides: ids and values.
        variant: variant, laid on the workflow's first file; not for ``federate``, where it is an option.
        asked: ids of ``overrides`` that the user gave, which must be read; ``None``: all of them.
        prepared: called with MONAI's workflow when it is initialized, to attach handlers to its ``evaluator``.

    Returns:
        what the expressions of the bundle's ``run`` returned.

    Raises:
        Refused: with every problem of the bundle, or what a component refused.
        Stopped: as raised inside, unwrapped from MONAI's own error.
    """
    root = find_bundle(bundle)
    problems = check_bundle(root, workflow, variant=variant, overrides=overrides, asked=asked)
    if problems:
        raise Refused(problems)
    given = {"bundle_root": str(root), **normal_ids(dict(overrides))}
    files, base = layered(root, workflow, given, variant=variant)
    return _run(root, files, workflow, pairs_for_monai(BundleConfig(files, given, base=base)), prepared)


def _run(
    root: Path, files: list[Path], workflow: str, overrides: Mapping[str, Any], prepared: Callable[[Any], None]
) -> list[Any]:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")
        from samfed_monai.config.monai_parser import ConfigWorkflow
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    job = ConfigWorkflow(
        config_file=[str(path) for path in files],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=WORKFLOW_TYPES[workflow],
        **overrides,
    )
    if "run" not in job.parser:
        raise refused(files[-1].name, "none", "an id run, which says what the workflow does", "add it")
    with unwrapped(lambda: job.parser):
        job.initialize()
        prepared(job)
        returned: list[Any] = job.run()
        job.finalize()
    return returned
