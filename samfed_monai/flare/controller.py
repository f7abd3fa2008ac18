"""The server on NVIDIA FLARE: a controller that FLARE starts, its requests to sites, and its part of the run.

FLARE builds :class:`FederationController` from a job's ``config_fed_server.json``::

    {"id": "controller", "path": "samfed_monai.flare.controller.FederationController", "args": {"run_name": "first"}}
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nvflare.apis.client import Client
from nvflare.apis.controller_spec import ClientTask
from nvflare.apis.controller_spec import Task as FlareTask
from nvflare.apis.fl_constant import ReturnCode
from nvflare.apis.fl_context import FLContext
from nvflare.apis.impl.controller import Controller
from nvflare.apis.shareable import Shareable
from nvflare.apis.signal import Signal

from samfed_monai.core.errors import ExitCode, Refused, SamFedError, Stopped, machine_failure
from samfed_monai.core.io import read_json, write_json
from samfed_monai.core.process_setup import set_up_process
from samfed_monai.federation.wire_transport import Post, Request, WireTransport
from samfed_monai.flare.executor import FAILURE, pack, unpack
from samfed_monai.flare.session import RUN_ID, publish, write_status
from samfed_monai.flare.site_file import PLAN, apply_limits, read_plan, read_site_file, require_run_name

if TYPE_CHECKING:
    from samfed_monai.federation.plan import Plan

logger = logging.getLogger(__name__)


class FlarePost:
    """Sends and cancels requests of a :class:`WireTransport` through a FLARE controller.

    Args:
        controller: the controller that FLARE runs.
        run_name: name of the run, which is sent with every request.
    """

    def __init__(self, controller: FederationController, run_name: str) -> None:
        self.controller, self.run_name = controller, run_name

    def send(self, request: Request) -> Any:
        if all(client.name != request.site for client in self.controller.engine.get_clients()):
            request.answered(request.site, "not connected to this FLARE job")
            return None
        data = pack(request.payload, task=request.task, run_name=self.run_name, **request.metadata)
        # "train" is FLARE's name for all our tasks; the message has the site's task
        task = FlareTask("train", data, result_received_cb=partial(_deliver, request))
        self.controller.broadcast(task, self.controller.fl_ctx, targets=[request.site], min_responses=1)
        return task

    def cancel(self, ticket: Any) -> bool:
        if ticket is not None:
            self.controller.cancel_task(ticket, fl_ctx=self.controller.fl_ctx)
        return False

    def check_stop(self) -> None:
        if self.controller.abort_signal.triggered:
            raise Stopped("FLARE ended the job (aborted, or a client's job process died)", "submit the same job again")


def _deliver(request: Request, client_task: ClientTask, fl_ctx: FLContext) -> None:
    """Called by FLARE with a site's reply."""
    code = client_task.result.get_return_code(ReturnCode.OK)
    payload, meta = unpack(client_task.result)
    client_task.result = None  # FLARE keeps the task, and with it a whole model
    reply: bytes | str = "the reply contains no message" if payload is None else payload
    if code != ReturnCode.OK:
        reply = f"the FLARE client reported {code}; see the log at the site"
    elif reason := meta.get(FAILURE):
        reply = str(reason)
    request.answered(client_task.client.name, reply)


def run_server(
    folder: Path, *, kit: Path, job_config: Path, post: Post, on_transport: Callable[[WireTransport], None]
) -> None:
    """Runs what is left of the run in ``folder``.

    Args:
        folder: the run's folder.
        kit: folder of the server's start-up kit, with its site file.
        job_config: folder of the job's configuration files, with the plan.
        post: sends the requests to the sites.
        on_transport: called with the transport before any request is sent.

    Raises:
        SamFedError: the run is refused or stopped; its stored rounds are kept.
    """
    from samfed_monai.federation.run import Run

    logging.getLogger("samfed_monai").setLevel(logging.INFO)
    files = read_site_file(kit)
    apply_limits(files)
    plan = read_plan(job_config / PLAN)

    def transport(resolved: Plan) -> WireTransport:
        sites = tuple(sorted({*resolved.sites, *resolved.unseen}))
        wire = WireTransport(post, sites, run=run_identifier(folder), patience=resolved.timeout, spool=folder)
        on_transport(wire)
        return wire

    Run(plan, files.paths(plan, folder)).run(transport)
    if files.output_dir is None:
        from samfed_monai.reports import Report

        # no overlays: the images are at the sites
        Report(run_folder=folder, datalist=files.datalist, data_root=files.data_root, overlays=False).write()


def run_identifier(folder: Path) -> str:
    """The run's random name: taken from its ``run.json`` at first, and kept when the run is resumed."""
    path = folder / RUN_ID
    if not path.is_file():
        write_json(path, {"run": read_json(folder / "run.json")["run"]})
    return str(read_json(path)["run"])


class FederationController(Controller):
    """Runs a federation's server inside a FLARE job.

    The rounds are those of :class:`~samfed_monai.federation.RoundController`, over a :class:`WireTransport`; their
    state is in the run's folder, outside the job's, so that the same job submitted again continues where it stopped.
    The outcome of the run is written to ``flare.json`` there, since FLARE's own job status does not have it.

    Args:
        run_name: name of the run, and of its folder if the server's site file has a ``runs_dir``.

    Raises:
        Refused: not a valid folder name.
    """

    def __init__(self, run_name: str = "samfed") -> None:
        require_run_name(run_name, "config_fed_server.json -> run_name")
        super().__init__(task_check_period=0.1)
        self.run_name = run_name
        self.transport: WireTransport | None = None
        #: Whether the command that started the run reads the run's folder itself, so that nothing has to be fetched.
        self.on_this_machine = True

    def start_controller(self, fl_ctx: FLContext) -> None:
        """Called by FLARE before the run."""
        self.fl_ctx, self.engine = fl_ctx, fl_ctx.get_engine()

    def stop_controller(self, fl_ctx: FLContext) -> None:
        """Called by FLARE after the run."""

    def control_flow(self, abort_signal: Signal, fl_ctx: FLContext) -> None:
        """Called by FLARE when all clients of the job are connected."""
        self.abort_signal, self.fl_ctx = abort_signal, fl_ctx
        self.run()

    def run(self) -> None:
        """Runs the federation and records its outcome."""
        set_up_process()  # FLARE's process of this job: warm start and aggregation run here
        try:
            folder = self.run_folder()
        except Refused as error:  # no folder for a status; `samfed flare submit` reads this line of the log
            logger.error("%s", error)
            self.system_panic(str(error), self.fl_ctx)
            return
        try:
            write_status(folder, "running")
            self.federate(folder)
            write_status(folder, "done")
        except BaseException as error:
            failure = error if isinstance(error, SamFedError) else machine_failure(error)
            if failure is None:
                with contextlib.suppress(OSError):
                    write_status(folder, "failed", f"{type(error).__name__}: {error}", ExitCode.FAILED)
                raise
            logger.error("%s", failure)  # also in the log, in case the disk is too full for the status
            with contextlib.suppress(OSError):
                state = "stopped" if isinstance(failure, Stopped) else "refused"
                write_status(folder, state, str(failure), failure.exit_code)
            self.system_panic(str(failure), self.fl_ctx)
        finally:
            if not self.on_this_machine:
                try:
                    publish(folder, self.job_run_folder())
                except OSError as error:
                    logger.error("%s", machine_failure(error) or error)

    def run_folder(self) -> Path:
        """The run's folder, from the server's own site file."""
        files = read_site_file(self.kit_folder())
        self.on_this_machine = files.output_dir is not None
        return files.run_folder(self.run_name)

    def federate(self, folder: Path) -> None:
        """Runs everything that ``samfed federate`` does, with this job's clients as its sites."""
        kit, job_config, post = self.kit_folder(), self.job_config(), self.make_post()
        run_server(folder, kit=kit, job_config=job_config, post=post, on_transport=partial(setattr, self, "transport"))

    def make_post(self) -> Post:
        """Returns the sender of requests to this job's clients."""
        return FlarePost(self, self.run_name)

    def kit_folder(self) -> Path:
        """The folder of this server's start-up kit."""
        return Path(self.engine.get_workspace().get_root_dir())

    def job_config(self) -> Path:
        """The folder of the job's configuration files."""
        return Path(self.engine.get_workspace().get_app_config_dir(self.fl_ctx.get_job_id()))

    def job_run_folder(self) -> Path:
        """The job's own folder, which FLARE packs for downloads of the job's result."""
        return Path(self.engine.get_workspace().get_run_dir(self.fl_ctx.get_job_id()))

    def process_result_of_unknown_task(
        self, client: Client, task_name: str, client_task_id: str, result: Shareable, fl_ctx: FLContext
    ) -> None:
        if self.transport is not None:
            self.transport.note_late_reply(client.name)
