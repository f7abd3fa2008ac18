"""Runs a bundle's workflow: components for its ``initialize`` and ``run``, the run by ``samfed``, errors."""

from __future__ import annotations

import logging
import re
import sys
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from samfed_monai.config.bundles import find_bundle
from samfed_monai.config.check import check_bundle
from samfed_monai.config.options import pairs_for_monai, training_values
from samfed_monai.config.overrides import MonaiCommand, monai_command, normal_ids, started_by_monai
from samfed_monai.config.parse import REFERRING, WORKFLOWS, BundleConfig, is_note, join_id, walk
from samfed_monai.core.errors import Problem, Refused, SamFedError, Terminated, machine_failure, refused, reported
from samfed_monai.core.process_setup import keep_freed_memory
from samfed_monai.core.validators import one_of, require


class Job(Protocol):
    """What a bundle runs: an engine, an evaluation, a federation."""

    def run(self) -> Any: ...


def run_job(*, job: Job, method: str = "run") -> Any:
    """Calls ``job.run()`` or ``job.write()``; for a bundle's ``run``.

    Under ``python -m monai.bundle run`` an error of this package ends the process with its message and exit code.

    Example::

        "run": [{"_target_": "samfed_monai.config.run_job", "job": "@job"}]

    Raises:
        Refused: another method; an engine without images.
    """
    from samfed_monai.federation.signals import Termination

    require(one_of("run_job -> method", method, ("run", "write")))
    if getattr(getattr(job, "state", None), "epoch_length", None) == 0:  # MONAI would only warn
        where, hint = f"{type(job).__name__} -> data loader", "correct the data set, or the override that sets it"
        raise refused(where, found="none", expected="at least one image", hint=hint)
    if not started_by_monai():
        return getattr(job, method)()
    install_exit_hook()
    keep_freed_memory()
    with Termination():
        return getattr(job, method)()


def install_exit_hook() -> None:
    """Under MONAI's command, makes errors of this package end the process with message and exit code, no traceback."""
    if started_by_monai():
        sys.excepthook = _exit_hook
        logging.getLogger("samfed_monai.audit").propagate = False  # JSON records, which are in audit.jsonl


def _exit_hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    from samfed_monai.federation.signals import stopped_by_sigterm

    command = monai_command()
    content = BundleConfig(command.config_files, command.overrides).content if command else {}
    known = stopped_by_sigterm() if isinstance(error, Terminated) else unwrap(error, content)
    if known is None:
        sys.__excepthook__(kind, error, trace)
        return
    raise SystemExit(reported(known)) from None


def require_checked(bundle_root: str | Path, workflow: str) -> None:
    """Refuses a bundle with problems, naming all of them.

    Under ``python -m monai.bundle run`` on this workflow it also checks the overrides and files of the command line,
    which MONAI does not, and problems end the process with exit code 2 and only the message.

    Example::

        "initialize": [{
            "_target_": "samfed_monai.config.require_checked", "bundle_root": "@bundle_root", "workflow": "train"
        }]

    Raises:
        Refused: with all problems.
    """
    install_exit_hook()
    given = _monai_run(bundle_root, workflow)
    if given is None:
        require(check_bundle(bundle_root, workflow, ready=False))
        return
    command, root, files = given
    problems = check_bundle(root, workflow, overrides=normal_ids(command.overrides), files=files)
    require(problems, _rewritten_by_monai(command, files))


def _rewritten_by_monai(command: MonaiCommand, files: Sequence[Path]) -> Iterator[Problem]:
    """Text with ``#``, which MONAI replaces by ``::`` before our code runs, and at which ``fire`` ends a word."""
    typed = {name: text for name, text in command.typed.items() if isinstance(command.overrides.get(name), str)}
    config = BundleConfig(files, command.overrides | typed)
    for parts, value in walk(config.content):
        if isinstance(value, str) and "#" in value and not value.startswith(REFERRING) and not is_note(parts[0]):
            hint = "rename it, or use the command `samfed`, which keeps it"
            yield Problem(config.where(parts), repr(value), "text without '#', which MONAI's own command changes", hint)


def training_values_of_command(bundle_root: str | Path) -> dict[str, Any]:
    """Values of the sites' training in ``federate.json`` and on MONAI's command line; empty without that command.

    A federation that is built in Python sets them itself.

    Args:
        bundle_root: folder of the bundle, used if the command names no file in one.
    """
    given = _monai_run(bundle_root, "federate")
    if given is None:
        return {}
    command, root, files = given
    return training_values(BundleConfig.of_workflow(root, "federate", normal_ids(command.overrides), files=files))


def _monai_run(bundle_root: str | Path, workflow: str) -> tuple[MonaiCommand, Path, list[Path]] | None:
    """MONAI's command line, the bundle's folder and the files, if the last workflow file is that of this workflow.

    ``None`` if Python code set up the workflow (``samfed``, a federated job that builds its clients, a test): its
    overrides are not visible here, so shipped paths count as placeholders.
    """
    command = monai_command()
    files = [path.resolve() for path in command.config_files] if command else []
    workflows = {each[-1]: name for name, each in WORKFLOWS.items()}
    if command is None or [workflows[path.name] for path in files if path.name in workflows][-1:] != [workflow]:
        return None
    root = files[0].parent.parent if files[0].parent.name == "configs" else Path(bundle_root)
    return command, root, files


WORKFLOW_TYPES = {"train": "train", "teacher": None, "federate": None, "evaluate": "eval", "inference": "infer"}
"""MONAI's type of each workflow; ``None`` for the properties of every bundle only."""

_NEEDED = {"evaluate": ("run", "validate#evaluator"), "inference": ("run", "evaluator")}
"""Ids that this module or its callers read by name."""


def run_workflow(
    bundle: str | Path,
    workflow: str,
    overrides: Mapping[str, Any],
    *,
    given: Collection[str] | None = None,
    on_initialized: Callable[[Any], None] = lambda job: None,
) -> Any:
    """Checks a workflow with its overrides and runs it: initialize, run, finalize.

    MONAI's logging configuration is not applied. MONAI's warning that a bundle may run code is silenced, since the
    bundle has passed the check.

    Args:
        bundle: folder or packaged name.
        workflow: a name in :data:`samfed_monai.config.WORKFLOWS`.
        overrides: ids and values.
        given: ids of ``overrides`` that the user gave, which must be read; ``None``: all of them.
        on_initialized: called with MONAI's workflow after its initialization, to attach handlers to its ``evaluator``.

    Returns:
        the results of the expressions in the bundle's ``run``.

    Raises:
        Refused: with all problems of the bundle, or the refusal of a component.
        Stopped: raised by the workflow, unwrapped from MONAI's own error.
    """
    root = find_bundle(bundle)
    require(check_bundle(root, workflow, overrides=overrides, given=given))
    config = BundleConfig.of_workflow(root, workflow, {"bundle_root": str(root), **normal_ids(dict(overrides))})
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="parsing config_file")
        from samfed_monai.config.monai_parser import ConfigWorkflow
    logging.getLogger("monai.bundle.workflows").setLevel(logging.ERROR)
    job = ConfigWorkflow(
        config_file=[str(path) for path in config.files],
        meta_file=str(root / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type=WORKFLOW_TYPES[workflow],
        **pairs_for_monai(config),
    )
    for name in _NEEDED.get(workflow, ("run",)):
        if name not in job.parser:
            raise refused(config.files[-1 if name == "run" else 0].name, "none", f"an id {name}", "add this id")
    with unwrapped(job.parser):
        job.initialize()
        on_initialized(job)
        results: list[Any] = job.run()
        job.finalize()
    return results


# raised by monai.utils.module.instantiate from the component's error
_WRAPPED = re.compile(r"Failed to instantiate component '([\w.]+)'")

_WORKFLOW = "samfed_monai.config."
"""Components that run a workflow (``run_job``, ``require_checked``): their errors do not concern one component."""


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yields an error and its causes by explicit ``raise ... from``.

    An error while a refusal is being handled is a separate fault and must be reported.
    """
    while error is not None:
        yield error
        error = error.__cause__


def component_refusal(
    error: BaseException, content: Mapping[str, Any] | None = None, *, file: str = ""
) -> Refused | None:
    """Returns a refusal if a component of a bundle rejected its arguments; ``None`` for other errors.

    That is a ``ValueError`` or ``TypeError`` of the component while MONAI built it, for instance of
    ``torch.optim.AdamW`` for a negative learning rate. A ``TypeError`` in this package's own code is a bug, since
    values of wrong types are refused before anything is built.

    Args:
        error: the error, possibly wrapped several times by MONAI.
        content: the configuration, to find the component's id; without the id, the message has the component's name.
        file: the bundle's file that names the component, if known.
    """
    for outer, cause in pairwise(_causes(error)):
        wrapped = _WRAPPED.match(str(outer)) if isinstance(outer, RuntimeError) else None
        if wrapped and isinstance(cause, (ValueError, TypeError)) and not _is_own_error(cause, wrapped[1]):
            name = wrapped[1]
            targets = ((parts[:-1], value) for parts, value in walk(content) if parts[-1:] == ("_target_",))
            ids = [join_id(parts) for parts, value in targets if f".{name}".endswith(f".{value}")]
            where = " -> ".join(filter(None, (file, " or ".join(ids) or name)))
            found, hint = f"{str(cause).rstrip('.')!r}", "correct them in the bundle, or the override that sets them"
            return refused(where, found=found, expected=f"values that {name} accepts", hint=hint)
    return None


def _is_own_error(cause: BaseException, component: str) -> bool:
    if component.startswith(_WORKFLOW):
        return True
    *_, innermost = [None, *(frame for frame, _ in traceback.walk_tb(cause.__traceback__))]
    module = innermost.f_globals.get("__name__", "") if innermost else ""
    return isinstance(cause, TypeError) and module.partition(".")[0] == "samfed_monai"


def unwrap(error: BaseException, content: Mapping[str, Any] | None = None) -> SamFedError | KeyboardInterrupt | None:
    """Returns the error of this package that ``error`` was raised from (MONAI wraps errors of ``$`` expressions).

    If there is none, returns arguments rejected by a component (:func:`component_refusal`, with ``content``), or a
    failure of the machine (:func:`samfed_monai.core.errors.machine_failure`), or ``None``.
    """
    failures = (failure for each in _causes(error) if (failure := machine_failure(each)))
    return unwrap_own(error) or component_refusal(error, content) or next(failures, None)


def unwrap_own(error: BaseException) -> SamFedError | KeyboardInterrupt | None:
    """As :func:`unwrap`, but only for errors of this package and ``KeyboardInterrupt``."""
    return next((each for each in _causes(error) if isinstance(each, (SamFedError, KeyboardInterrupt))), None)


@contextmanager
def unwrapped(parser: Any = None) -> Iterator[None]:
    """Raises the error found by :func:`unwrap` in place of MONAI's wrapper.

    Args:
        parser: MONAI's ``ConfigParser`` that builds the components.
    """
    try:
        yield
    except Exception as error:
        known = unwrap(error, parser.get() if parser is not None else None)
        if known is None:
            raise
        raise known from None
