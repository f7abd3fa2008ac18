"""FLARE on one machine: its simulator, or a whole system of real processes with certificates.

No process of FLARE is left behind: all of them inherit a mark in their environment, by which they are found and ended.
FLARE starts clients, job processes and trainers in sessions of their own, so ending one process group leaves the
others, and killing the simulator leaves orphans.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import bundle_or_path
from samfed_monai.core.errors import AGAIN, Stopped, refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.core.run_log import COMMAND, command_line
from samfed_monai.data import DataList
from samfed_monai.federation.plan import Paths
from samfed_monai.federation.run_folder import RunFolder, take_lock
from samfed_monai.federation.signals import Termination
from samfed_monai.flare.job import merge_allow_list
from samfed_monai.flare.session import (
    FINISHED,
    STATUS,
    ShownLog,
    open_session,
    raise_for_status,
    read_status,
    reported_error,
    submit_job,
    wait_for_sites,
)
from samfed_monai.flare.site_file import MARK, NAME, VARIABLE

logger = logging.getLogger(__name__)


class Processes(Termination):
    """Starts processes, and ends them together with all processes that they started.

    Use it in a ``with`` block: they are ended with the block, also after an error, a time-out, Ctrl-C or SIGTERM.

    The shell's site file (``SAMFED_SITE``) is not passed on: kits have their own.

    Args:
        environment: variables on top of this process's own.
    """

    def __init__(self, environment: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.mark = secrets.token_hex(8)
        self.environment = {**os.environ, VARIABLE: "", COMMAND: command_line(), **(environment or {}), MARK: self.mark}
        if weights := self.environment.get("SAMFED_WEIGHTS"):
            self.environment["SAMFED_WEIGHTS"] = _absolute(Path(weights).expanduser())
        if imports := self.environment.get("PYTHONPATH"):
            self.environment["PYTHONPATH"] = os.pathsep.join(map(_absolute, imports.split(os.pathsep)))
        self.started: dict[str, subprocess.Popen] = {}

    def start(self, name: str, module: str, *arguments: str, cwd: Path, log: Path) -> subprocess.Popen:
        """Starts ``python -m <module> <arguments>`` in a session of its own; its output goes to ``log``."""
        log.parent.mkdir(parents=True, exist_ok=True)
        with open(log, "ab") as output:
            self.started[name] = subprocess.Popen(
                [sys.executable, "-u", "-m", module, *arguments],
                cwd=cwd,
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        return self.started[name]

    def marked(self) -> list[int]:
        """Process ids of all processes that have the mark."""
        import psutil

        pids = []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                if process.environ().get(MARK) == self.mark and process.status() != psutil.STATUS_ZOMBIE:
                    pids.append(process.pid)
        return [pid for pid in pids if pid != os.getpid()]

    def end(self) -> None:
        """Sends SIGTERM to all of them, and kills those that still run after five seconds."""
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid in self.marked():
                with contextlib.suppress(OSError):
                    os.kill(pid, number)
            deadline = time.monotonic() + 5.0
            while self.marked() and time.monotonic() < deadline:
                time.sleep(0.1)
        for process in self.started.values():
            process.poll()

    def __enter__(self) -> Processes:
        super().__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self.end()
        super().__exit__()


def _absolute(path: str | Path) -> str:
    """Makes a path absolute from the command's working directory: FLARE's processes run in other folders."""
    return str(Path(path).absolute())


def write_site_files(
    folder: Path, datalist: DataList, paths: Paths, sites: Sequence[str], *, threads: int | None = None
) -> Path:
    """Writes ``<site>.json`` and ``server.json``, each with a data list of only the public images and its own.

    The server shares the caches of runs in one process (adapters, warm starts); a site has one of its own.

    Args:
        folder: folder of the files.
        datalist: the whole list.
        paths: of the run; ``output_dir`` is the server's run folder, and has the sites' evaluation files.
        sites: names of the sites.
        threads: number of threads of each process; ``None`` leaves it to torch.

    Returns:
        ``folder``.
    """
    folders = ("data_root", "output_dir", "bundle_root")
    common: dict[str, Any] = {name: _absolute(getattr(paths, name)) for name in folders}
    common |= {"device": str(paths.train.get("device", "")), "threads": threads}
    server = {name: bundle_or_path(getattr(paths, name)) for name in ("start_from", "masks_from")}
    server["adapter"] = _absolute(paths.adapter) if paths.adapter else None
    parts: dict[str, tuple[DataList, Path, dict[str, Any]]] = {
        site: (datalist.for_site(site), paths.cache / "sites" / site, {}) for site in sites
    }
    parts["server"] = (datalist.for_server(), paths.cache, server)
    for name, (listed, cache, of_server) in parts.items():
        listed.save(folder / f"{name}.list.json")
        listing = {"datalist": _absolute(folder / f"{name}.list.json"), "cache_dir": _absolute(cache)}
        write_json(folder / f"{name}.json", {**listing, **of_server, **common})
    return folder


def _wait(folder: Path, log: Path, why_ended: Callable[[], str], *, timeout: float | None = None) -> dict[str, Any]:
    """Waits for the end of a run on this machine, and shows the lines of the server's log that are meant for users.

    Args:
        folder: the run's folder, with its status.
        log: the server's log, which may not exist yet.
        why_ended: returns why the run cannot finish any more, or ``""``.
        timeout: seconds; ``None`` sets no limit.

    Returns:
        The run's status.

    Raises:
        SamFedError: the server's own error, a time-out, or FLARE ended without a status of the run.
    """
    started, shown_log = time.monotonic(), ShownLog()
    while True:
        reason = why_ended()  # checked before the status, which may just have been written
        status, text = read_status(folder), log.read_text(errors="replace") if log.is_file() else ""
        shown_log.show(text)
        if status["state"] not in ("none", "running"):
            raise_for_status(status)
            return status
        if reason:
            lines = [line for line in text.splitlines() if "ERROR" in line or "Error" in line] or text.splitlines()
            raise reported_error(text) or Stopped("\n  | ".join((reason, *(line[:300] for line in lines[-5:]))), AGAIN)
        if timeout is not None and time.monotonic() - started > timeout:
            raise Stopped(f"not finished after {timeout:g} s; all started processes were ended", AGAIN)
        time.sleep(1.0)


@contextlib.contextmanager
def _locked(run_folder: Path, workspace: Path) -> Iterator[None]:
    """Refuses a folder with an active run, before a file of that run is removed, and locks out other commands.

    Raises:
        Refused: another run, or another command of this kind, is active in it (fault 51); or FLARE, which splits the
            commands of its processes as a shell does, cannot start a job in this workspace or with this Python.
    """
    if cut := [path for path in (_absolute(workspace), sys.executable) if set(path) & set(" \t\n'\"\\#")]:
        expected = "a path without spaces, quotes, backslashes and #, for the workspace and for Python"
        raise refused("FLARE", repr(cut[0]), expected, "choose another --workspace, or another folder for Python")
    flare_folder = run_folder / "flare"
    flare_folder.mkdir(parents=True, exist_ok=True)
    take_lock(run_folder)
    RunFolder(run_folder).close()  # leaves the lock to the server, which is another process
    take_lock(flare_folder)
    with RunFolder(flare_folder):
        (run_folder / STATUS).unlink(missing_ok=True)  # of an earlier start of the run
        yield


def simulate(
    job: str | Path,
    *,
    sites: Sequence[str],
    workspace: str | Path,
    run_folder: str | Path,
    site_files: str | Path,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Runs the job in FLARE's simulator and waits for its end.

    Args:
        job: folder made by :func:`samfed_monai.flare.job.export_job`.
        sites: names of the clients.
        workspace: the simulator's folder; the simulator removes its content.
        run_folder: the run's folder, as the server's site file names it.
        site_files: folder of ``<site>.json`` and ``server.json``.
        timeout: seconds; ``None`` sets no limit.
        environment: variables on top of this process's own.

    Raises:
        Refused: a run is active in the run's folder (fault 51), or the workspace's path has spaces.
        SamFedError: the server's own error, or FLARE failed.
    """
    workspace, run_folder = Path(workspace), Path(run_folder)
    log = run_folder / "flare.log"
    args = (_absolute(job), "-w", _absolute(workspace), "-c", ",".join(sites), "-t", str(len(sites)), "-l", "concise")
    variables = {VARIABLE: _absolute(site_files), **(environment or {})}
    with _locked(run_folder, workspace), Processes(variables) as processes:
        merge_allow_list(workspace / "local")
        (workspace / "startup").mkdir(parents=True, exist_ok=True)
        log.unlink(missing_ok=True)
        logger.info("starting FLARE's simulator; its log: %s", log)
        simulator = processes.start("simulator", "samfed_monai.flare.simulator_process", *args, cwd=workspace, log=log)

        def why_ended() -> str:
            return "" if simulator.poll() is None else "FLARE's simulator ended before the run did"

        status = _wait(run_folder, log, why_ended, timeout=timeout)
        with contextlib.suppress(subprocess.TimeoutExpired):
            simulator.wait(timeout=20)
    return status


PROJECT = "samfed"
ADMIN = "admin@samfed.local"
SERVER = "localhost"
PORT = 8102


class Poc:
    """Server and clients of a provisioned project, as processes of this machine.

    Args:
        workspace: folder of the project; if it was used before, the latest start-up kits are used.
        sites: names of the clients.
        port: port of the server.
    """

    def __init__(self, workspace: str | Path, sites: Sequence[str], *, port: int = PORT) -> None:
        self.workspace, self.sites, self.port = Path(workspace).resolve(), tuple(sites), port

    @property
    def kits(self) -> Path:
        """Folder of the start-up kits: FLARE makes a new one, ``prod_NN``, each time that it provisions."""
        provisioned = (self.workspace / PROJECT).glob("prod_*")
        return max(provisioned, key=lambda folder: int(folder.name[5:]), default=self.workspace / PROJECT / "prod_00")

    @property
    def admin(self) -> Path:
        """The admin's start-up kit."""
        return self.kits / ADMIN

    def provision(self, site_files: str | Path) -> None:
        """Makes the start-up kits, with site files and the list of classes in their ``local`` folders.

        Jobs are stored in the server's kit: FLARE's default is one folder below ``/tmp`` for all systems of a machine,
        from which a server would start jobs that another one left behind.
        """
        from nvflare.lighter.prov_utils import prepare_builders, prepare_packager
        from nvflare.lighter.provision import prepare_project
        from nvflare.lighter.provisioner import Provisioner
        from nvflare.lighter.utils import update_storage_locations

        content = project(self.sites, port=self.port)
        self.workspace.mkdir(parents=True, exist_ok=True)
        provisioner = Provisioner(str(self.workspace), prepare_builders(content), prepare_packager(content))
        with contextlib.redirect_stdout(io.StringIO()):  # FLARE prints where "generated results" are: the kits
            provisioner.provision(prepare_project(content))
        update_storage_locations(str(self.kits / SERVER / "local"), str(self.kits / SERVER))
        for name in (SERVER, *self.sites):
            local = self.kits / name / "local"
            merge_allow_list(local)
            shutil.copy(Path(site_files) / f"{'server' if name == SERVER else name}.json", local / NAME)

    @contextlib.contextmanager
    def open_session(self, why_ended: Callable[[], str] = str) -> Iterator[Any]:
        """Opens an admin session with a server that was just started.

        Args:
            why_ended: returns why the server will not reply any more, or ``""``.

        Raises:
            Stopped: no reply within two minutes.
        """
        deadline, session = time.monotonic() + 120.0, None
        with contextlib.ExitStack() as stack:
            while session is None:
                try:
                    session = stack.enter_context(open_session(self.admin, timeout=10))
                except Stopped as error:
                    if reason := why_ended():
                        raise Stopped(reason, error.resume) from None
                    if time.monotonic() > deadline:
                        raise
            yield session

    def start(self, processes: Processes, name: str, log: Path) -> subprocess.Popen:
        """Starts the server, or a site's client."""
        kind, uid = ("server", ()) if name == SERVER else ("client", (f"uid={name}",))
        args = ("-m", str(self.kits / name), "-s", f"fed_{kind}.json", "--set", "secure_train=true", *uid)
        module, more = f"nvflare.private.fed.app.{kind}.{kind}_train", (f"org={PROJECT}", "config_folder=config")
        return processes.start(name, module, *args, *more, cwd=self.kits / name, log=log)


def project(sites: Sequence[str], *, port: int) -> dict[str, Any]:
    """A project for FLARE's provisioning: one server on this machine, the sites, one admin."""
    content: dict[str, Any] = read_json(Path(__file__).with_name("poc_project.json"))
    content["participants"][0] |= {"fed_learn_port": port, "admin_port": port}
    content["participants"] += [{"name": site, "type": "client", "org": PROJECT} for site in sites]
    return content


def run_poc(
    job: str | Path,
    *,
    sites: Sequence[str],
    workspace: str | Path,
    run_folder: str | Path,
    site_files: str | Path,
    port: int = PORT,
    timeout: float | None = None,
    environment: Mapping[str, str] | None = None,
) -> dict[str, Any]:
    """Provisions, starts server and clients, submits the job and waits for its end.

    Args:
        job, sites, run_folder, site_files, timeout, environment: as for :func:`simulate`.
        workspace: folder of the start-up kits.
        port: port of the server.

    Raises:
        Refused: the port is in use, a run is active in the run's folder (fault 51), or a path has spaces.
        SamFedError: the server's own error, or FLARE failed.
    """
    run_folder = Path(run_folder)
    poc = Poc(workspace, sites, port=port)
    logs = run_folder / "flare"
    with reserved_port(port), _locked(run_folder, poc.workspace), Processes(environment) as processes:
        poc.provision(site_files)
        logger.info("starting a FLARE server and %d clients; their logs: %s", len(sites), logs)
        server = poc.start(processes, SERVER, logs / "server.log")
        clients = [poc.start(processes, site, logs / f"{site}.log") for site in sites]

        def why_ended() -> str:
            if server.poll() is not None:
                return "the FLARE server ended before the run did"
            all_ended = all(client.poll() is not None for client in clients)
            return "all FLARE clients ended before the run did" if all_ended else ""

        with poc.open_session(why_ended) as session:
            wait_for_sites(session, sites, timeout=120, gone=why_ended)
            job_id = submit_job(session, job)

            def why_job_ended() -> str:
                with contextlib.suppress(ConnectionError):  # `why_ended` notices a server that has ended
                    status = str(session.get_job_meta(job_id).get("status"))
                    if any(word in status for word in FINISHED):
                        return f"FLARE ended the job ({status}); logs: {logs}"
                return why_ended()

            return _wait(run_folder, poc.kits / SERVER / job_id / "log.txt", why_job_ended, timeout=timeout)


@contextlib.contextmanager
def reserved_port(port: int) -> Iterator[None]:
    """Refuses a port that another program uses, or that this user cannot open, and reserves it inside the block.

    FLARE's server needs seconds until it listens, and two of them can listen on one port (gRPC permits it): each then
    gets clients of the other. The UDP port of the same number is the reservation, which ends with this process.

    Raises:
        Refused: with the system's reason; the message says how to choose another.
    """
    with socket.socket() as probe, socket.socket(type=socket.SOCK_DGRAM) as reservation:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
            reservation.bind(("127.0.0.1", port))
        except OSError as error:
            other = port + 100 if 1023 < port < 65000 else PORT
            hint = f"choose another port, for instance --port {other}, or end the program that uses it"
            raise refused(f"port {port}", str(error.strerror), "a free port", hint) from None
        probe.close()
        yield
