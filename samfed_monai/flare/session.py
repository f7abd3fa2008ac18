"""A session with a FLARE server by an admin start-up kit: wait for sites, submit, take the results."""

from __future__ import annotations

import contextlib
import io
import logging
import math
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import AGAIN, Problem, Refused, SamFedError, Stopped, Terminated
from samfed_monai.core.io import atomic_write, read_json
from samfed_monai.federation.run_folder import START, RoundStore
from samfed_monai.federation.signals import ASKED, Interrupted
from samfed_monai.flare.status import (
    RUN_ID,
    STATUS,
    ShownLog,
    last_report,
    read_status,
    stored_rounds,
    user_lines,
    write_status,
)

logger = logging.getLogger(__name__)


def admin_of(kit: str | Path) -> str:
    """The user that an admin start-up kit belongs to.

    Raises:
        Refused: it is no admin kit; the message says what it is instead.
    """
    startup = Path(kit) / "startup"
    hint = "name the folder of an admin start-up kit: the one that holds startup/fed_admin.json and its certificates"
    found = "no startup folder"
    if (startup / "fed_client.json").is_file():
        found = "a site's start-up kit"
    elif (startup / "fed_server.json").is_file():
        found = "a server's start-up kit"
    elif startup.is_dir():
        found = "no startup/fed_admin.json"
    if (startup / "fed_admin.json").is_file():
        admin = read_json(startup / "fed_admin.json").get("admin", {})
        lacks = [admin.get(name, name) for name in ("client_key", "client_cert", "ca_cert")]
        lacks = [name for name in lacks if not (startup / name).is_file()]
        if admin.get("username") and not lacks:
            return str(admin["username"])
        found = f"an admin start-up kit without {', '.join(lacks) or 'a user name'}"
    raise Refused([Problem(f"start-up kit {kit}", found=found, expected="an admin start-up kit", hint=hint)])


def server_of(kit: str | Path) -> str:
    """Host and port of the server that a kit belongs to."""
    admin = read_json(Path(kit) / "startup" / "fed_admin.json").get("admin", {})
    return f"{admin.get('host', '?')}:{admin.get('port', '?')}"


def accepts_certificate(kit: str | Path, *, timeout: float = 5.0) -> bool | None:
    """Whether the server's certificate is one of the kit's own provisioning; ``None`` where no TLS server answers."""
    admin = read_json(Path(kit) / "startup" / "fed_admin.json").get("admin", {})
    context = ssl.create_default_context(cafile=str(Path(kit) / "startup" / admin.get("ca_cert", "rootCA.pem")))
    context.check_hostname = False
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((admin.get("host"), int(admin.get("port"))), timeout=timeout) as raw,
            context.wrap_socket(raw, server_hostname=admin.get("host")),
        ):
            return True
    except ssl.SSLCertVerificationError:
        return False
    except (OSError, TypeError, ValueError):
        return None


_FINISHED = ("FINISHED", "FAILED", "ABORTED", "ABANDONED")
#: Seconds of silence after which a site counts as gone: a client is heard of every 10, FLARE lists it for ten minutes.
_SILENT = 40.0


@contextmanager
def open_session(kit: str | Path, *, timeout: float = 15.0) -> Iterator[Any]:
    """A FLARE API session.

    Raises:
        Refused: no admin kit, or the server does not take it; in the block, what its user may not do.
        Stopped: the server cannot be reached; in the block, whatever else FLARE reports.
    """
    from nvflare.fuel.flare_api import api_spec, flare_api

    user, where = admin_of(kit), server_of(kit)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.ExitStack() as stack:  # FLARE prints what it does
        try:
            session = flare_api.new_secure_session(user, str(Path(kit).resolve()), timeout=timeout)
        except Exception as error:
            if "uthenti" in f"{type(error).__name__}{error}" or accepts_certificate(kit) is False:
                found, expected = "refused by the server", "a user of this project"
                hint = "use a start-up kit of the same provisioning as the server's"
                raise Refused([Problem(f"start-up kit {kit}", found=found, expected=expected, hint=hint)]) from None
            reason = f"the FLARE server at {where} cannot be reached within {timeout:g} s ({type(error).__name__})"
            hint = "start the server (startup/start.sh), check port and firewall, then type it again"
            raise Stopped(reason, hint) from None
        cells = logging.getLogger("nvflare.fuel.f3")  # logs a line or two for each question to a dead server
        stack.callback(cells.setLevel, cells.level)
        cells.setLevel(logging.CRITICAL)
        stack.callback(_close, session)
        try:
            yield session
        except (api_spec.AuthorizationError, api_spec.AuthenticationError) as error:
            expected, hint = "what this user may do on that server", "ask for a kit with that role"
            raise Refused([Problem(f"FLARE server {where}", str(error), expected, hint)]) from None
        except api_spec.JobNotFound as error:
            expected, hint = "a job of that server", "`nvflare job list` has them"
            raise Refused([Problem(f"FLARE server {where}", str(error), expected, hint)]) from None
        except Exception as error:
            if type(error).__module__ != api_spec.__name__:
                raise
            raise Stopped(f"the FLARE server at {where}: {error or type(error).__name__}", _FETCH) from None


def _close(session: Any) -> None:
    with contextlib.suppress(Exception):  # of a server that is gone
        session.close()


_FETCH = "`samfed flare fetch JOB --kit KIT --output-dir RUN` waits for a job and fetches its results"
_LOST = 45.0  # seconds without an answer of the server, after which it counts as dead


def wait_for_sites(
    session: Any,
    sites: Sequence[str],
    *,
    timeout: float | None,
    least: int | None = None,
    gone: Callable[[], str] = lambda: "",
) -> None:
    """Waits until all ``sites`` are connected to the server.

    Args:
        session: of an admin.
        sites: names of the clients.
        timeout: seconds; ``None`` waits.
        least: so many are enough after ``timeout``; ``None`` needs all. A run that begins needs all of them in any
            case (each is checked before round 0); one that goes on needs its quorum.
        gone: says why waiting is of no use any more, or ``""``.

    Raises:
        Stopped: too few are there after ``timeout`` seconds; those that are not are named.
    """
    started, noticed = time.monotonic(), 0.0
    while True:
        ago = _silence(session.get_system_info().client_info)
        missing = sorted(site for site in sites if ago.get(site, math.inf) > _SILENT)
        named = ", ".join(f"{site} (heard of {ago[site]:.0f} s ago)" if site in ago else site for site in missing)
        if not missing:
            return
        waited = time.monotonic() - started
        if gone():
            raise Stopped(gone())
        if timeout is not None and waited > timeout:
            if least is not None and len(sites) - len(missing) >= least:
                logger.warning("going on without %s", named)
                return
            reason = f"not connected to the server after {timeout:g} s: {named}"
            raise Stopped(reason, "start these sites (startup/start.sh of their kits), then type the command again")
        if waited - noticed > 10:
            noticed = waited
            logger.info("waiting for %s to connect; one that died counts as connected for %g s", named, _SILENT)
        time.sleep(0.5)


def _silence(clients: Iterable[Any]) -> dict[str, float]:
    """Seconds since each client was heard of, by the server's clock: one that died is listed for minutes."""
    heard: dict[str, float] = {}
    for client in clients:
        heard[client.name] = max(float(client.last_connect_time or 0), heard.get(client.name, 0.0))
    return {name: max(heard.values()) - time for name, time in heard.items()}


def submit_job(session: Any, job: str | Path) -> str:
    """Submits a job folder; returns its FLARE identifier."""
    job_id = str(session.submit_job(str(Path(job).resolve())))
    logger.info("submitted as FLARE job %s", job_id)
    return job_id


def follow(
    session: Any,
    job_id: str,
    *,
    fetch: str = _FETCH,
    timeout: float | None = None,
    poll: float = 2.0,
    look: float = 10.0,
    lost: float = _LOST,
    clock: Any = time,
) -> str:
    """Waits for a job's end and shows its rounds from the server's job log; returns FLARE's status.

    Args:
        session: of an admin.
        job_id: FLARE's identifier of the job.
        fetch: command that fetches the job's results later, for messages.
        timeout: seconds; ``None`` waits.
        poll: seconds between two questions for the job's status.
        look: seconds between two looks at the job's log, which is sent whole, and at the server.
        lost: seconds for which the server may not answer.
        clock: has ``monotonic`` and ``sleep``.

    Raises:
        Stopped: no end after ``timeout`` seconds or before SIGTERM, and the job goes on; no answer for ``lost``; or
            FLARE lists a job as running that no process runs. The message says how many rounds are stored.
        SamFedError: how the run ended, by the server's log, where FLARE does not list the job as finished.
    """
    job = _Followed(session, job_id, clock)
    started = heard = clock.monotonic()
    looked, silent = started - look, False
    goes_on = f"{fetch}; `nvflare job abort {job_id}` ends the job"
    try:
        while True:
            now, status = clock.monotonic(), ""
            try:
                status = job.ask()
                ended = status.split(":")[0].split(".")[-1] in _FINISHED or "FINISHED" in status
                if ended or now - looked >= look:
                    looked = now
                    job.look(ended)
                heard, silent = now, False
            except ConnectionError as error:
                ended = False
                if now - heard > lost:
                    reason = f"no answer of the FLARE server about job {job_id} for {lost:g} s ({error})"
                    again = f"start the server (startup/start.sh), then {AGAIN}: it goes on after the last stored round"
                    reason += f"; by its last answer, {job.log.stored()}"
                    raise Stopped(reason, f"{again}; or, if only the network failed: {fetch}") from None
                if not silent:
                    logger.warning("the FLARE server does not answer; asking again for %g s", lost)
                silent = True
            if ended:
                for line in job.meta.get("job_deploy_detail", ()):
                    if not line.endswith(": OK"):
                        logger.warning("FLARE did not deploy the job: %s", line)
                return status
            if timeout is not None and now - started > timeout:
                raise Stopped(f"no end after {timeout:g} s; FLARE job {job_id} still runs, {job.log.stored()}", goes_on)
            clock.sleep(poll)
    except (Terminated, KeyboardInterrupt) as asked:
        with contextlib.suppress(Exception):
            job.look(ended=True)
        reason = f"FLARE job {job_id} goes on, {job.log.stored()}"
        if isinstance(asked, Terminated):
            raise Stopped(f"{ASKED}; {reason}", goes_on) from None
        raise Interrupted(f"interrupted; {reason}", goes_on) from None


def job_log(session: Any, job_id: str) -> str:
    """The server's log of a job; of a long one the end alone, and nothing where FLARE has none at the moment."""
    from nvflare.fuel.flare_api import api_spec

    try:
        logs = session.get_job_logs(job_id, "server")
    except (api_spec.InternalError, api_spec.JobNotFound, RuntimeError):
        return ""
    return str(logs.get("logs", {}).get("server", ""))


#: Seconds after which a job that FLARE lists as running, and that its server does not run, is given up.
_GONE = 15.0
_WAITING = 30.0  # seconds of a job that has not started, after which this is said


class _Followed:
    """A submitted job: its status, and what was shown of its log."""

    def __init__(self, session: Any, job_id: str, clock: Any) -> None:
        self.session, self.job_id, self.clock = session, job_id, clock
        self.log = ShownLog()
        self.meta: dict[str, Any] = {}
        self.since = {"": clock.monotonic()}  # of each state, by name: when it began

    def ask(self) -> str:
        """FLARE's status of the job."""
        self.meta = self.session.get_job_meta(self.job_id)
        return str(self.meta.get("status", ""))

    def look(self, ended: bool) -> None:
        """Shows what is new in the log; unless the job has ended, looks at the server, too."""
        log = job_log(self.session, self.job_id)
        self.log.show(log)
        if not ended:
            self._look_at_run(self.session.get_system_info(), log)

    def _lasts(self, state: str, holds: bool) -> float:
        """Seconds for which a state has lasted; 0 where it does not hold."""
        if not holds:
            self.since.pop(state, None)
            return 0.0
        now = self.clock.monotonic()
        return now - self.since.setdefault(state, now)

    def _look_at_run(self, system: Any, log: str) -> None:
        status = str(self.meta.get("status", "")).split(".")[-1]
        running = any(job.job_id == self.job_id for job in system.job_info)
        if self._lasts("waits", status == "SUBMITTED") > _WAITING:
            self.since.pop("waits")
            least = self.meta.get("min_clients", "enough")
            logger.info("FLARE has not started job %s yet: it needs an answer of %s sites", self.job_id, least)
        if self._lasts("gone", status in ("DISPATCHED", "RUNNING") and not running) < _GONE:
            return
        if reported := last_report(log):
            raise reported
        if float(system.server_info.start_time or 0) > float(self.meta.get("submit_time") or math.inf):
            reason = (
                f"the FLARE server was started again, and what it ran before is gone: it lists job {self.job_id} as"
            )
            again = f"{AGAIN}: it is submitted as a new job, and the run goes on after its last stored round"
            raise Stopped(f"{reason} {status}, which no process runs; {self.log.stored()}", again)
        if status == "RUNNING" and "ended" not in self.since:
            self.since["ended"] = 0.0
            logger.info("the run's process at the server has ended; FLARE waits up to 15 min for the sites' reports")


#: Folder of a finished job's workspace in which the server puts the run's results for whoever downloads them.
RESULTS = "samfed"


def fetch_results(session: Any, job_id: str, output_dir: str | Path) -> dict[str, Any]:
    """Downloads a finished job's results into ``output_dir``; returns the run's status.

    Where the server could not write the status (a full disk, a killed process), it is what the server's log says.

    Raises:
        Stopped: FLARE has no results of the job.
        SamFedError: it has none, and the log says how the run ended.
    """
    output_dir = Path(output_dir)
    with tempfile.TemporaryDirectory(prefix="samfed-flare-") as folder:
        try:
            where = Path(session.download_job_result(job_id, folder))
        except RuntimeError as error:  # FLARE's, of a job that its server could not pack
            if reported := last_report(job_log(session, job_id)):
                raise reported from None
            raise Stopped(f"the results of FLARE job {job_id} cannot be fetched: {error}", _FETCH) from None
        found = sorted(where.rglob(f"{RESULTS}/{STATUS}"))
        if found:
            shutil.copytree(found[0].parent, output_dir, dirs_exist_ok=True, copy_function=_copied)
            if read_status(output_dir)["state"] != "running":
                return read_status(output_dir)
        ended = _last_words(where)
        if found:
            write_status(output_dir, "stopped", str(ended), ended.exit_code)
        return {"state": "stopped", "message": str(ended), "exit_code": int(ended.exit_code)}


def publish(run_folder: str | Path, job_run: str | Path) -> None:
    """Puts a run's results (no site's state, no caches) where FLARE's download of the job finds them."""
    run_folder, target = Path(run_folder), Path(job_run) / RESULTS
    names = ["run.json", "results.json", "report.html", "federation.csv", RUN_ID]
    store = RoundStore(run_folder / "rounds")
    stored = [path for round in (START, *store.rounds()) for path in sorted(store.path(round).glob("*"))]
    rounds = [path.relative_to(run_folder) for path in stored if path.is_file()]
    for name in [*map(Path, names), *rounds, Path(STATUS)]:  # its status last, by which a result is known
        if (run_folder / name).is_file():
            _copied(run_folder / name, target / name)


def _copied(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as stream, atomic_write(target, mode=Path(source).stat().st_mode & 0o777) as copy:
        shutil.copyfileobj(stream, copy)


def _last_words(where: Path) -> SamFedError:
    """How a run ended that left no status, by the logs that came with its job."""
    logs = "".join(path.read_text(errors="replace") for path in sorted(where.rglob("log.txt")))
    if reported := last_report(logs):
        return reported
    lines = [line for line in logs.splitlines() if " - ERROR - " in line][-3:]
    reason = "FLARE ended the job, and the run left no word of its own" + "".join(
        f"\n  | {line[:300]}" for line in lines
    )
    return Stopped(f"{reason}\n  {stored_rounds(user_lines(logs.splitlines()))}", f"see the server's log, then {AGAIN}")
