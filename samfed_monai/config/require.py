"""The first thing a bundle's ``initialize`` does: check itself, with whatever the command line said."""

from __future__ import annotations

from pathlib import Path

from samfed_monai.config.check import check_bundle
from samfed_monai.config.exit_codes import exit_on_refusal, install_exit_hook
from samfed_monai.config.layers import WORKFLOWS
from samfed_monai.config.overrides import MonaiCommand, monai_command, normal_ids
from samfed_monai.errors import Problems


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
