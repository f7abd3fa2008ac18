"""A run on FLARE from outside: its status file, its server's log, and a session that submits, follows and fetches."""

from __future__ import annotations

import contextlib
import filecmp
import io
import logging
import math
import re
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import AGAIN, ExitCode, SamFedError, Stopped, Terminated, refused
from samfed_monai.core.io import PUBLIC, atomic_write, read_json, write_json
from samfed_monai.federation.run_folder import START, RoundStore
from samfed_monai.federation.signals import RECEIVED_SIGTERM, Interrupted

logger = logging.getLogger(__name__)

STATUS = "flare.json"
RUN_ID = "flare.run.json"
"""File with the run's random name, under which every site keeps its state."""


def write_status(folder: str | Path, state: str, message: str = "", exit_code: int = 0) -> dict[str, Any]:
    """Writes ``flare.json``; returns its content.

    Args:
        folder: the run's folder.
        state: ``running``, ``done``, ``refused``, ``stopped`` or ``failed``.
        message: text for the user.
        exit_code: of the command that waits for the run.
    """
    content = {"state": state, "message": message, "exit_code": int(exit_code), "time": time.time()}
    write_json(Path(folder) / STATUS, content, mode=PUBLIC)
    return content


def read_status(folder: str | Path) -> dict[str, Any]:
    """Reads the last status of :func:`write_status`; ``{"state": "none"}`` before that."""
    path = Path(folder) / STATUS
    return dict(read_json(path)) if path.is_file() else {"state": "none", "message": "", "exit_code": 1}


_FOR_USERS = re.compile(
    r"round \d+ of \d+: .*|resuming after round .*|\w+: waiting for .*|.*: dropped an? .*"
    r"|[\w-]+ failed: .*|[\w-]+: message refused: .*|teacher: .*|warm start: .*"
)
_WARNS = frozenset(("guard", "noise", "progress", "run", "run_folder", "server", "transport", "wire_transport"))
"""Modules whose warnings at a server are for users; FLARE's log has the last part of a logger's name."""
_LINE = re.compile(r"\d{4}-\d\d-\d\d [\d:,]+ - (?:([\w.]+) - )?(INFO|WARNING) - (?:\[.*?\]: )?(.*)")
_ENDED = re.compile(
    r"^\d{4}-\d\d-\d\d [\d:,]+ - (?:[\w.]+ - )?ERROR - (?:\[.*?\]: )?((?:stopped|refused): .*(?:\n  .*)*)", re.MULTILINE
)


class ShownLog:
    """Shows the lines of a server's log that are meant for users, each once."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def show(self, log: str) -> None:
        """Shows new lines; FLARE sends only the end of a long log, so earlier lines may be missing from it."""
        earlier, lines = self._lines, user_lines(log.splitlines())
        already_shown = next((n for n in range(min(len(earlier), len(lines)), 0, -1) if earlier[-n:] == lines[:n]), 0)
        for line in lines[already_shown:]:
            logger.info("%s", line)
        self._lines = lines or earlier

    def stored(self) -> str:
        """Text on the number of rounds that the server has stored."""
        return stored_rounds(self._lines)


def user_lines(lines: Iterable[str]) -> list[str]:
    """Lines of a FLARE log that are meant for users, without FLARE's prefix."""
    parts = (line.groups() for line in map(_LINE.match, lines) if line)
    candidates = ((text.strip(), level == "WARNING" and name in _WARNS) for name, level, text in parts)
    return [text for text, warns in candidates if warns or _FOR_USERS.fullmatch(text)]


def reported_error(log: str) -> ServerReported | None:
    """The run's outcome from the server's log, for a server that could not write its status (a full disk)."""
    matches = list(_ENDED.finditer(log))
    if not matches:
        return None
    message = matches[-1][1]
    return ServerReported(message, ExitCode.REFUSED if message.startswith("refused") else ExitCode.STOPPED)


_STORED = re.compile(r"(?:resuming after )?round (\d+) of (\d+)(?:: (?:no )?validation |$)")


def stored_rounds(lines: Iterable[str]) -> str:
    """Text on the number of rounds that a server has stored, from the lines of its log for users."""
    matches = [line for line in map(_STORED.match, lines) if line]
    if not matches:
        return "no round is stored yet, according to the server's log"
    done, total = matches[-1].groups()
    return f"{done} of {total} rounds are stored at the server"


def raise_for_status(status: dict[str, Any]) -> None:
    """Raises the error that the server's run ended with; does nothing for a finished run.

    Raises:
        SamFedError: with the server's own message and exit code.
    """
    if status["state"] == "done":
        return
    unknown = f"stopped: the run's status is {status['state']!r}; see the server's log"
    raise ServerReported(status["message"] or unknown, status["exit_code"] or ExitCode.STOPPED)


class ServerReported(SamFedError):
    """The error that the server's run ended with, in the server's own words."""

    def __init__(self, message: str, code: int) -> None:
        self.exit_code = code  # type: ignore[assignment]
        super().__init__(message)


def admin_of(kit: str | Path) -> dict[str, Any]:
    """Reads user and server from an admin start-up kit.

    Raises:
        Refused: it is not an admin kit; the message says what it is.
    """
    startup = Path(kit) / "startup"
    found = "no startup/fed_admin.json" if startup.is_dir() else "no startup folder"
    for name, kind in (("fed_client.json", "a site's"), ("fed_server.json", "a server's")):
        if (startup / name).is_file():
            found = f"{kind} start-up kit"
    if (startup / "fed_admin.json").is_file():
        admin = dict(read_json(startup / "fed_admin.json").get("admin", {}))
        files = [admin.get(name, name) for name in ("client_key", "client_cert", "ca_cert")]
        missing = [name for name in files if not (startup / name).is_file()]
        if admin.get("username") and not missing:
            return admin
        found = f"an admin start-up kit without {', '.join(missing) or 'a user name'}"
    hint = "give the folder of an admin start-up kit, with startup/fed_admin.json and its certificates"
    raise refused(f"start-up kit {kit}", found, "an admin start-up kit", hint)


def _is_of_another_project(kit: str | Path, admin: Mapping[str, Any]) -> bool:
    """Whether the replying server has a certificate of another provisioning than the kit's."""
    context = ssl.create_default_context(cafile=str(Path(kit) / "startup" / admin["ca_cert"]))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    host, port = str(admin.get("host")), int(admin.get("port") or 0)
    try:
        with socket.create_connection((host, port), timeout=5) as raw, context.wrap_socket(raw, server_hostname=host):
            return False
    except OSError as error:
        return isinstance(error, ssl.SSLCertVerificationError)


_FETCH = "`samfed flare fetch JOB --kit KIT --output-dir RUN` waits for a job and fetches its results"
#: Seconds of silence after which a site counts as gone: a client reports every 10, FLARE lists it for ten minutes.
_SILENCE = 40.0


@contextmanager
def open_session(kit: str | Path, *, timeout: float = 15.0) -> Iterator[Any]:
    """Opens a FLARE API session.

    Raises:
        Refused: not an admin kit, or the server does not accept it; in the block, an action that its user may not take.
        Stopped: the server cannot be reached; in the block, any other error that FLARE reports.
    """
    from nvflare.fuel.flare_api import api_spec, flare_api

    admin = admin_of(kit)
    where = f"FLARE server at {admin.get('host', '?')}:{admin.get('port', '?')}"
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:  # FLARE prints its progress
        cells = logging.getLogger("nvflare.fuel.f3")  # logs a line or two for each request to a dead server
        stack.callback(cells.setLevel, cells.level)
        cells.setLevel(logging.CRITICAL)
        try:
            session = flare_api.new_secure_session(admin["username"], str(Path(kit).resolve()), timeout=timeout)
        except Exception as error:
            if "uthenti" in f"{type(error).__name__}{error}" or _is_of_another_project(kit, admin):
                hint = "use a kit of the server's provisioning"
                raise refused(f"start-up kit {kit}", "a kit that was refused", "a kit of this project", hint) from None
            reason = f"the {where} cannot be reached within {timeout:g} s ({type(error).__name__})"
            hint = "start the server (startup/start.sh), check port and firewall, then run the command again"
            raise Stopped(reason, hint) from None
        stack.callback(_close, session)
        try:
            yield session
        except (api_spec.AuthorizationError, api_spec.AuthenticationError) as error:
            raise refused(where, str(error), "a permitted action", "ask for a kit with that role") from None
        except api_spec.JobNotFound as error:
            raise refused(where, str(error), "a job of this server", "`nvflare job list` shows its jobs") from None
        except Exception as error:
            if type(error).__module__ != api_spec.__name__:
                raise
            raise Stopped(f"the {where}: {error or type(error).__name__}", _FETCH) from None


def _close(session: Any) -> None:
    with contextlib.suppress(Exception):  # the server may be gone
        session.close()


def wait_for_sites(
    session: Any, sites: Sequence[str], *, timeout: float, least: int | None = None, gone: Callable[[], str] = str
) -> None:
    """Waits until all ``sites`` are connected to the server.

    Args:
        session: of an admin.
        sites: names of the clients.
        timeout: seconds.
        least: number of sites that are enough after ``timeout``; ``None`` needs all. A new run needs all of them in any
            case (each is checked before round 0); a resumed one needs its quorum.
        gone: returns why waiting is useless, or ``""``.

    Raises:
        Stopped: too few are connected after ``timeout`` seconds; the missing ones are named.
    """
    started, logged = time.monotonic(), 0.0
    while True:
        last_seen: dict[str, float] = {}  # by the server's clock: a client that died is listed for minutes
        for client in session.get_system_info().client_info:
            last_seen[client.name] = max(float(client.last_connect_time or 0), last_seen.get(client.name, 0.0))
        ago = {name: max(last_seen.values()) - when for name, when in last_seen.items()}
        missing = sorted(site for site in sites if ago.get(site, math.inf) > _SILENCE)
        names = ", ".join(f"{site} (last seen {ago[site]:.0f} s ago)" if site in ago else site for site in missing)
        if not missing:
            return
        waited = time.monotonic() - started
        if reason := gone():
            raise Stopped(reason)
        if waited > timeout:
            if least is not None and len(sites) - len(missing) >= least:
                logger.warning("continuing without %s", names)
                return
            reason = f"not connected to the server after {timeout:g} s: {names}"
            raise Stopped(reason, "start these sites (startup/start.sh of their kits), then run the command again")
        if waited - logged > 10:
            logged = waited
            logger.info("waiting for %s to connect; a dead client counts as connected for %g s", names, _SILENCE)
        time.sleep(0.5)


def submit_job(session: Any, job: str | Path) -> str:
    """Submits a job folder; returns its FLARE identifier."""
    job_id = str(session.submit_job(str(Path(job).resolve())))
    logger.info("submitted as FLARE job %s", job_id)
    return job_id


def job_log(session: Any, job_id: str) -> str:
    """The server's log of a job: only the end of a long one, and empty if FLARE has none at the moment."""
    from nvflare.fuel.flare_api import api_spec

    with contextlib.suppress(api_spec.InternalError, api_spec.JobNotFound, RuntimeError):
        return str(session.get_job_logs(job_id, "server").get("logs", {}).get("server", ""))
    return ""


FINISHED = ("FINISHED", "FAILED", "ABORTED", "ABANDONED")
_POLL = 5.0  # seconds between two checks of a job, of its log, which is sent whole, and of the server
_LOST = 45.0  # seconds without a reply after which the server counts as dead
#: Seconds after which a job that FLARE lists as running, but that its server does not run, is given up.
_GONE = 15.0


def follow(session: Any, job_id: str, *, fetch: str = _FETCH, timeout: float | None = None, clock: Any = time) -> str:
    """Waits for a job's end and shows its rounds from the server's job log; returns FLARE's status.

    Args:
        session: of an admin.
        job_id: FLARE's identifier of the job.
        fetch: command that fetches the job's results later, for messages.
        timeout: seconds; ``None`` sets no limit.
        clock: object with ``monotonic`` and ``sleep``.

    Raises:
        Stopped: no end after ``timeout`` seconds or before SIGTERM, while the job continues; no reply for some time; or
            FLARE lists a job as running that no process runs. The message has the number of stored rounds.
        SamFedError: the run's error from the server's log, if FLARE does not list the job as finished.
    """
    job = _FollowedJob(session, job_id, clock)
    started = last_reply = clock.monotonic()
    resume = f"{fetch}; `nvflare job abort {job_id}` ends the job"
    silent = f"the FLARE server does not answer; retrying for {_LOST:g} s"
    try:
        while True:
            now = clock.monotonic()
            try:
                if status := job.ended():
                    return status
                last_reply = now
                job.shown.discard(silent)
            except ConnectionError as error:
                if now - last_reply > _LOST:
                    reason = f"no answer from the FLARE server about job {job_id} for {_LOST:g} s ({error})"
                    again = f"start the server (startup/start.sh), then {AGAIN}: it resumes after the last stored round"
                    reason += f"; at its last answer, {job.log.stored()}"
                    raise Stopped(reason, f"{again}; or, if only the network failed: {fetch}") from None
                job.notice(logging.WARNING, silent)
            if timeout is not None and now - started > timeout:
                raise Stopped(f"no end after {timeout:g} s; FLARE job {job_id} still runs; {job.log.stored()}", resume)
            clock.sleep(_POLL)
    except (Terminated, KeyboardInterrupt) as interruption:
        with contextlib.suppress(Exception):
            job.log.show(job_log(session, job_id))
        reason = f"FLARE job {job_id} continues; {job.log.stored()}"
        if isinstance(interruption, Terminated):
            raise Stopped(f"{RECEIVED_SIGTERM}; {reason}", resume) from None
        raise Interrupted(f"interrupted; {reason}", resume) from None


class _FollowedJob:
    """A submitted job, and the lines of it that were shown."""

    def __init__(self, session: Any, job_id: str, clock: Any) -> None:
        self.session, self.job_id, self.clock = session, job_id, clock
        self.log = ShownLog()
        self.since: dict[str, float] = {}  # name of each state to its start time
        self.shown: set[str] = set()

    def notice(self, level: int, text: str) -> None:
        """Shows a line once."""
        if text not in self.shown:
            self.shown.add(text)
            logger.log(level, "%s", text)

    def ended(self) -> str:
        """Shows new lines; returns FLARE's status of a job that has ended, or ``""`` for one that has not."""
        meta, log = self.session.get_job_meta(self.job_id), job_log(self.session, self.job_id)
        self.log.show(log)
        full_status = str(meta.get("status", ""))
        if any(word in full_status for word in FINISHED):
            for line in meta.get("job_deploy_detail", ()):
                if not line.endswith(": OK"):
                    logger.warning("FLARE did not deploy the job: %s", line)
            return full_status
        system, status = self.session.get_system_info(), full_status.split(".")[-1]
        is_running = any(job.job_id == self.job_id for job in system.job_info)
        if self._seconds_in("waits", status == "SUBMITTED") > 30.0:  # seconds without a start
            needed = f"it needs answers from {meta.get('min_clients', 'enough')} sites"
            self.notice(logging.INFO, f"FLARE has not started job {self.job_id} yet: {needed}")
        if self._seconds_in("gone", status in ("DISPATCHED", "RUNNING") and not is_running) >= _GONE:
            self._report_gone(status, log, float(system.server_info.start_time or 0), meta.get("submit_time"))
        return ""

    def _report_gone(self, status: str, log: str, server_start: float, submitted: Any) -> None:
        """Raises the error of a job that no process runs; shows a line if its end may still be reported."""
        if reported := reported_error(log):
            raise reported
        if server_start > float(submitted or math.inf):
            reason = f"the FLARE server was restarted and no longer runs its earlier jobs: it lists job {self.job_id}"
            again = f"{AGAIN}: this submits a new job, which resumes after the last stored round"
            raise Stopped(f"{reason} as {status}, but no process runs it; {self.log.stored()}", again)
        if status == "RUNNING":
            ended = "the run's process at the server has ended"
            self.notice(logging.INFO, f"{ended}; FLARE waits up to 15 min for the sites' reports")

    def _seconds_in(self, state: str, holds: bool) -> float:
        """Seconds for which a state has lasted; 0 if it does not hold."""
        now = self.clock.monotonic()
        if not holds:
            self.since.pop(state, None)
        return float(now - self.since.setdefault(state, now)) if holds else 0.0


#: Folder of a finished job's workspace in which the server puts the run's results for download.
RESULTS = "samfed"


def fetch_results(session: Any, job_id: str, output_dir: str | Path, command: str | None = None) -> dict[str, Any]:
    """Downloads a finished job's results into ``output_dir``; returns the run's status.

    If the server could not write the status (a full disk, a killed process), it is taken from the server's log. The
    server does not know the ``command`` that submitted the job; if given, it is recorded in ``results.json``.

    Raises:
        Refused: ``output_dir`` has the results of another run, or of one that was not on FLARE; nothing is copied.
        Stopped: FLARE has no results of the job.
        SamFedError: it has none, and the log has the run's error.
    """
    with tempfile.TemporaryDirectory(prefix="samfed-flare-") as folder:
        try:
            download = Path(session.download_job_result(job_id, folder))
        except RuntimeError as error:  # raised by FLARE for a job that its server could not pack
            if reported := reported_error(job_log(session, job_id)):
                raise reported from None
            raise Stopped(f"the results of FLARE job {job_id} cannot be fetched: {error}", _FETCH) from None
        for status in sorted(download.rglob(f"{RESULTS}/{STATUS}"))[:1]:
            names = (n for n in (RUN_ID, "results.json", "rounds/000/round.json") if (Path(output_dir) / n).is_file())
            name = next(names, None)
            if name and name not in filecmp.cmpfiles(output_dir, status.parent, [name], shallow=False)[0]:
                raise_for_status(read_status(status.parent))
                hint = f"nothing was copied; run `samfed flare fetch {job_id} --kit KIT --output-dir OTHER`"
                raise refused(output_dir, "the results of another run", "an empty folder or this run's folder", hint)
            shutil.copytree(status.parent, output_dir, dirs_exist_ok=True, copy_function=_copy_file)
            if command and (results := Path(output_dir) / "results.json").is_file():
                write_json(results, {**read_json(results), "command": command}, mode=PUBLIC)
            if read_status(output_dir)["state"] != "running":
                return read_status(output_dir)
        outcome = _error_in_logs(download)
        return write_status(output_dir, "stopped", str(outcome), outcome.exit_code)


def publish(run_folder: str | Path, job_run: str | Path) -> None:
    """Copies a run's results (no site's state, no caches) to the folder that FLARE packs for downloads of the job."""
    run_folder, target = Path(run_folder), Path(job_run) / RESULTS
    names = ["run.json", "results.json", "quality.json", "report.html", "federation.csv", RUN_ID]
    store = RoundStore(run_folder / "rounds")
    stored = [path for round in (START, *store.rounds()) for path in sorted(store.path(round).glob("*"))]
    rounds = [path.relative_to(run_folder) for path in stored if path.is_file()]
    for name in [*map(Path, names), *rounds, Path(STATUS)]:  # the status last, by which results are found
        if (run_folder / name).is_file():
            _copy_file(run_folder / name, target / name)


def _copy_file(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as stream, atomic_write(target, mode=Path(source).stat().st_mode & 0o777) as copy:
        shutil.copyfileobj(stream, copy)


def _error_in_logs(where: Path) -> SamFedError:
    """Error of a run that left no status, from the logs that came with its job."""
    logs = "".join(path.read_text(errors="replace") for path in sorted(where.rglob("log.txt")))
    if reported := reported_error(logs):
        return reported
    lines = [line for line in logs.splitlines() if " - ERROR - " in line][-3:]
    reason = "".join(("FLARE ended the job, and the run left no status", *(f"\n  | {line[:300]}" for line in lines)))
    return Stopped(f"{reason}\n  {stored_rounds(user_lines(logs.splitlines()))}", f"see the server's log, then {AGAIN}")
