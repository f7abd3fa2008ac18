"""The job that a bundle's ``federate.json`` declares."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from samfed_monai.config.exit_codes import as_told
from samfed_monai.config.knobs import whole_groups
from samfed_monai.config.parse import workflow_files

if TYPE_CHECKING:
    from samfed_monai.federation.job import FederatedJob


def federate_parser(bundle_root: Path, overrides: Mapping[str, Any]) -> Any:
    """``federate.json`` with the command line's values on top, as a MONAI ``ConfigParser``; nothing is instantiated."""
    from monai.bundle import ConfigParser

    files, parser = workflow_files(bundle_root, "federate"), ConfigParser()
    parser.read_config([str(path) for path in files])
    parser.update(pairs={"bundle_root": str(bundle_root), **whole_groups(files, overrides)})
    return parser


def job_of(parser: Any) -> FederatedJob:
    """The job, built and not run.

    Raises:
        Refused: a value that it does not take.
    """
    with as_told():
        job: FederatedJob = parser.get_parsed_content("job")
    return job
