"""Writes a FLARE job by hand: three JSON files and the plan, no code. One job for simulator, POC and production."""

from __future__ import annotations

import logging
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.core.io import write_json
from samfed_monai.flare.client import PLAN
from samfed_monai.flare.run_name import require_run_name

logger = logging.getLogger(__name__)

CONTROLLER = "samfed_monai.flare.controller.FederationController"
EXECUTOR = "nvflare.app_common.executors.client_api_executor.ClientAPIExecutor"


def export_job(
    folder: str | Path,
    plan: Mapping[str, Any],
    *,
    run_name: str,
    min_clients: int = 1,
    controller: str = CONTROLLER,
    client_args: Sequence[str] = (),
    python: str = "python3",
) -> Path:
    """Writes a complete job.

    Args:
        folder: the job's folder; it is created.
        plan: what every participant must agree on, as JSON content; nothing in it says where files lie.
        run_name: name of the run and of the job.
        min_clients: clients that FLARE waits for before it starts the job, and below which it ends it.
        controller: class that FLARE builds at the server.
        client_args: further words for ``python -m samfed_monai.flare.client``.
        python: the interpreter at the sites.

    Returns:
        The folder.

    Raises:
        Refused: a name that is no folder name.
    """
    require_run_name(run_name, "--run-name")
    folder = Path(folder)
    config = folder / "app" / "config"
    write_json(
        folder / "meta.json",
        {"name": run_name, "resource_spec": {}, "min_clients": min_clients, "deploy_map": {"app": ["@ALL"]}},
    )
    write_json(
        config / "config_fed_server.json",
        {
            "format_version": 2,
            "server": {"task_request_interval": 0.5},
            "workflows": [{"id": "controller", "path": controller, "args": {"run_name": run_name}}],
            "components": [],
            "task_data_filters": [],
            "task_result_filters": [],
        },
    )
    executor = {
        "path": EXECUTOR,
        "args": {
            "execution_mode": "external_process",
            "command": [python, "-u", "-m", "samfed_monai.flare.client", *client_args],
            "launch_timeout": 300.0,
            "shutdown_timeout": 5.0,
            "stop_grace_period": 5.0,
            "heartbeat_timeout": 120.0,
        },
    }
    write_json(
        config / "config_fed_client.json",
        {
            "format_version": 2,
            "executors": [{"tasks": ["train"], "executor": executor}],
            "components": [],
            "task_data_filters": [],
            "task_result_filters": [],
        },
    )
    write_json(config / PLAN, dict(plan))
    return folder


def this_python() -> str:
    """The interpreter that runs now, for jobs whose sites are on this machine."""
    return sys.executable
