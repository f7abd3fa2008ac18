"""What a FLARE client builds of our job: an executor whose command is this package's, whatever the job says.

FLARE's ``ClientAPIExecutor`` starts the command that a job names, so that a site that lets jobs name that class runs
whatever a submitter writes. :class:`SiteExecutor` takes no argument: a site lists it instead, and the plan is all that
a job decides.
"""

from __future__ import annotations

import sys
from typing import ClassVar

from nvflare.app_common.executors.client_api_executor import ClientAPIExecutor, ExecutionMode

from samfed_monai.flare.client import WORKER

#: FLARE starts it in the job's own folder. ``python -m`` would import from there first, and a folder ``samfed_monai``
#: in a job would be code; ``-P`` is not known to Python 3.10.
_START = (
    "import sys; sys.path[:] = [folder for folder in sys.path if folder]; "
    "from samfed_monai.flare.client import main; sys.exit(main())"
)


class SiteExecutor(ClientAPIExecutor):
    """Runs :mod:`samfed_monai.flare.client` in a process of its own, with the interpreter that runs FLARE at this site.

    A job that gives it an argument, a command for instance, ends at the site when FLARE builds it. It does not look at
    the plan: the process that it starts does, before anything is built (:func:`samfed_monai.flare.site.read_plan`).

    Example (``config_fed_client.json``)::

        {"path": "samfed_monai.flare.executor.SiteExecutor", "args": {}}
    """

    #: Module of the process that trains; a subclass, which a site lists by its own name, may have another.
    worker: ClassVar[str] = WORKER

    def __init__(self) -> None:
        super().__init__(
            execution_mode=ExecutionMode.EXTERNAL_PROCESS,
            command=[sys.executable, "-u", "-c", _START, "--worker", self.worker],
            launch_timeout=300.0,
            shutdown_timeout=5.0,
            stop_grace_period=5.0,
            heartbeat_timeout=120.0,
        )
