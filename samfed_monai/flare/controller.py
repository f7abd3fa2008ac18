"""The server's side on NVIDIA FLARE: a controller that FLARE starts.

FLARE builds :class:`FederationController` from a job's ``config_fed_server.json``::

    {"id": "controller", "path": "samfed_monai.flare.controller.FederationController", "args": {"run_name": "first"}}
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from samfed_monai.core.errors import ExitCode, SamFedError, Stopped
from samfed_monai.flare.flare_post import LETTER, FlarePost
from samfed_monai.flare.needs import require_flare
from samfed_monai.flare.post import Letter, Post
from samfed_monai.flare.run_name import require_run_name
from samfed_monai.flare.transport import FlareTransport

require_flare()

from nvflare.apis.client import Client  # noqa: E402
from nvflare.apis.controller_spec import ClientTask  # noqa: E402
from nvflare.apis.fl_constant import ReturnCode  # noqa: E402
from nvflare.apis.fl_context import FLContext  # noqa: E402
from nvflare.apis.shareable import Shareable  # noqa: E402
from nvflare.app_common.workflows.model_controller import ModelController  # noqa: E402

logger = logging.getLogger(__name__)


class FederationController(ModelController):
    """Runs a federation's server inside a FLARE job.

    The rounds are those of :class:`~samfed_monai.federation.RoundController`, over a :class:`FlareTransport`; their
    state lies in the run's folder, outside the job's, so that the same job submitted again goes on where it stopped.
    How the run ended is written to ``flare.json`` there: FLARE's own job status does not say it.

    Args:
        run_name: name of the run; where the server's site file has a ``runs_dir``, the folder below it.

    Raises:
        Refused: a name that is no folder name.
    """

    def __init__(self, run_name: str = "samfed") -> None:
        require_run_name(run_name, "config_fed_server.json -> run_name")
        super().__init__(persistor_id="", ignore_result_error=True)
        self._task_check_period = 0.1
        self.run_name = run_name
        self.transport: FlareTransport | None = None
        #: Whether whoever started the run reads the run's folder itself, so that nothing has to be fetched.
        self.on_this_machine = True

    def run(self) -> None:
        """Called by FLARE when all clients of the job are there."""
        from samfed_monai.flare.job_results import publish
        from samfed_monai.flare.status import write_status

        folder = self.run_folder()
        try:
            write_status(folder, "running")
            self.federate(folder)
            write_status(folder, "done")
        except SamFedError as error:
            logger.error("%s", error)
            with contextlib.suppress(OSError):  # a full disk must not hide why
                state = "stopped" if isinstance(error, Stopped) else "refused"
                write_status(folder, state, str(error), error.exit_code)
            self.panic(str(error))
        except BaseException as error:
            with contextlib.suppress(OSError):
                write_status(folder, "failed", f"{type(error).__name__}: {error}", ExitCode.FAILED)
            raise
        finally:
            if not self.on_this_machine:
                publish(folder, self.job_run_folder())

    def run_folder(self) -> Path:
        """The run's folder, from the server's own site file."""
        from samfed_monai.flare.site_file import read_site_file

        files = read_site_file(self.kit_folder())
        self.on_this_machine = files.output_dir is not None
        return files.run_folder(self.run_name)

    def federate(self, folder: Path) -> None:
        """The whole run: everything that ``samfed federate`` does, with this job's clients as its sites."""
        from samfed_monai.flare.server_job import run_server

        def opened(transport: FlareTransport) -> None:
            self.transport = transport

        run_server(folder, kit=self.kit_folder(), job_config=self.job_config(), post=self.make_post(), opened=opened)

    def make_post(self) -> Post:
        """What carries letters to this job's clients."""
        return FlarePost(self, self.run_name)

    def kit_folder(self) -> Path:
        """The folder of this server's start-up kit."""
        return Path(self.engine.get_workspace().get_root_dir())

    def job_config(self) -> Path:
        """The folder of the job's configuration files."""
        return Path(self.engine.get_workspace().get_app_config_dir(self.fl_ctx.get_job_id()))

    def job_run_folder(self) -> Path:
        """The job's own folder, which FLARE packs for whoever downloads the job's result."""
        return Path(self.engine.get_workspace().get_run_dir(self.fl_ctx.get_job_id()))

    def client_names(self) -> tuple[str, ...]:
        """Names of the clients that take part in this job."""
        return tuple(sorted(client.name for client in self.engine.get_clients()))

    def _process_result(self, client_task: ClientTask, fl_ctx: FLContext) -> None:
        code = client_task.result.get_return_code()
        if code and code != ReturnCode.OK:  # FLARE keeps such an answer from the callback
            letter: Letter = client_task.task.props[LETTER]
            letter.answered(client_task.client.name, f"its FLARE client reported {code}; see the log at the site")
        super()._process_result(client_task, fl_ctx)

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        if self.transport is not None:
            self.transport.came_late(client.name)
