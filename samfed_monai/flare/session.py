"""A session with a FLARE server by an admin start-up kit: wait for sites, submit, take the results."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import shutil
import socket
import ssl
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import ExitCode, Problem, Refused, Stopped
from samfed_monai.core.io import atomic_write, read_json
from samfed_monai.core.round_folders import round_folders
from samfed_monai.flare.needs import require_flare
from samfed_monai.flare.watch import RUN_ID, STATUS, read_status

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
#: Seconds of silence after which a site that FLARE still lists counts as gone; it is heard of every 30 s at most.
_SILENT = 90.0


@contextmanager
def open_session(kit: str | Path, *, timeout: float = 15.0) -> Iterator[Any]:
    """A FLARE API session.

    Raises:
        Refused: no admin kit, or the server does not take it; in the block, what its user may not do.
        Stopped: the server cannot be reached; in the block, whatever else FLARE reports.
    """
    require_flare()
    user = admin_of(kit)
    from nvflare.fuel.flare_api import api_spec, flare_api

    where = server_of(kit)
    try:
        with quiet():
            session = flare_api.new_secure_session(user, str(Path(kit).resolve()), timeout=timeout)
    except Exception as error:
        if "uthenti" in f"{type(error).__name__}{error}" or accepts_certificate(kit) is False:
            found, expected = "refused by the server", "a user of this project"
            hint = "use a start-up kit of the same provisioning as the server's"
            raise Refused([Problem(f"start-up kit {kit}", found=found, expected=expected, hint=hint)]) from None
        reason = f"the FLARE server at {where} cannot be reached within {timeout:g} s ({type(error).__name__})"
        raise Stopped(
            reason, "start the server (startup/start.sh), check port and firewall, then type it again"
        ) from None
    try:
        yield session
    except (api_spec.AuthorizationError, api_spec.AuthenticationError, api_spec.JobNotFound) as error:
        expected, hint = "what this user may do on that server", "ask whoever provisioned it for a kit with that role"
        if isinstance(error, api_spec.JobNotFound):
            expected, hint = "a job of that server", "`nvflare job list` has them"
        raise Refused([Problem(f"FLARE server {where}", found=str(error), expected=expected, hint=hint)]) from None
    except _of_flare(api_spec) as error:
        raise Stopped(f"the FLARE server at {where}: {error or type(error).__name__}", _FETCH) from None
    finally:
        with contextlib.suppress(Exception), quiet():
            session.close()


def _of_flare(api_spec: Any) -> tuple[type[Exception], ...]:
    """The exceptions that FLARE's session declares."""
    found = (value for value in vars(api_spec).values() if isinstance(value, type) and issubclass(value, Exception))
    return tuple(each for each in found if each.__module__ == api_spec.__name__)


_FETCH = "`samfed flare fetch JOB --kit KIT --output-dir RUN` waits for a job and fetches its results"
_LOST = 300.0  # seconds without an answer of the server, after which nobody waits any more


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
        with quiet():
            connected = _connected(session.get_system_info().client_info)
        missing = sorted(set(sites) - connected)
        if not missing:
            return
        waited = time.monotonic() - started
        if gone():
            raise Stopped(gone())
        if timeout is not None and waited > timeout:
            if least is not None and len(sites) - len(missing) >= least:
                logger.warning("going on without %s", ", ".join(missing))
                return
            reason = f"not connected to the server after {timeout:g} s: {', '.join(missing)}"
            raise Stopped(reason, "start these sites (startup/start.sh of their kits), then type the command again")
        if waited - noticed > 10:
            noticed = waited
            logger.info("waiting for %s to connect", ", ".join(missing))
        time.sleep(0.5)


def _connected(clients: Iterable[Any]) -> set[str]:
    """Names of the clients that were heard of lately, by the server's clock: one that died is listed for minutes."""
    heard: dict[str, float] = {}
    for client in clients:
        heard[client.name] = max(float(client.last_connect_time or 0), heard.get(client.name, 0.0))
    return {name for name, time in heard.items() if time > max(heard.values()) - _SILENT}


def submit_job(session: Any, job: str | Path) -> str:
    """Submits a job folder; returns its FLARE identifier."""
    with quiet():
        job_id = str(session.submit_job(str(Path(job).resolve())))
    logger.info("submitted as FLARE job %s", job_id)
    return job_id


def follow(
    session: Any,
    job_id: str,
    *,
    timeout: float | None = None,
    poll: float = 2.0,
    look: float = 10.0,
    lost: float = _LOST,
) -> str:
    """Waits for a job's end and tells its rounds from the server's job log; returns FLARE's status.

    Args:
        session: of an admin.
        job_id: FLARE's identifier of the job.
        timeout: seconds; ``None`` waits.
        poll: seconds between two questions how the job stands.
        look: seconds between two looks at the job's log, which is sent whole.
        lost: seconds for which the server may not answer.

    Raises:
        Stopped: no end after ``timeout`` seconds, or no answer for ``lost``; the job goes on.
    """
    started = heard = time.monotonic()
    looked, told, silent = started - look, list[str](), False
    while True:
        now, status = time.monotonic(), ""
        try:
            with quiet():
                status = str(session.get_job_meta(job_id).get("status", ""))
            heard, silent = now, False
        except ConnectionError as error:
            if now - heard > lost:
                raise Stopped(
                    f"no answer of the FLARE server for {lost:g} s ({error}); FLARE job {job_id}", _FETCH
                ) from None
            if not silent:
                logger.warning("the FLARE server does not answer; asking again for %g s", lost)
            silent = True
        ended = status.split(":")[0].split(".")[-1] in _FINISHED or "FINISHED" in status
        if ended or now - looked >= look:
            looked, told = now, _log_progress(session, job_id, told)
        if ended:
            return status
        if timeout is not None and now - started > timeout:
            hint = f"{_FETCH}; `nvflare job abort` ends it"
            raise Stopped(f"no end after {timeout:g} s; FLARE job {job_id} still runs", hint)
        time.sleep(poll)


def _log_progress(session: Any, job_id: str, told: list[str]) -> list[str]:
    """Tells what the log says beyond what was told; returns all that it says."""
    from samfed_monai.flare.watch import user_lines

    try:
        with quiet():
            logs = session.get_job_logs(job_id, "server")
    except Exception:
        return told
    text = re.sub(r"\\n", "\n", str(logs)) if isinstance(logs, dict) else str(logs)
    said = user_lines(text.splitlines())
    # of a long log FLARE sends the end alone: what was told may begin before it
    known = next((n for n in range(min(len(told), len(said)), 0, -1) if told[-n:] == said[:n]), 0)
    for line in said[known:]:
        logger.info("%s", line)
    return said or told


@contextmanager
def quiet() -> Iterator[None]:
    """FLARE's session prints what it does; nothing of it is seen in this block."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


#: Folder of a finished job's workspace in which the server puts the run's results for whoever downloads them.
RESULTS = "samfed"


def fetch_results(session: Any, job_id: str, output_dir: str | Path) -> dict[str, Any]:
    """Downloads a finished job's results into ``output_dir``; returns the run's status."""
    output_dir = Path(output_dir)
    with tempfile.TemporaryDirectory(prefix="samfed-flare-") as folder:
        with quiet():
            where = Path(session.download_job_result(job_id, folder))
        found = sorted(where.rglob(f"{RESULTS}/{STATUS}"))
        if not found:
            return {"state": "none", "message": _last_words(where), "exit_code": int(ExitCode.FAILED)}
        shutil.copytree(found[0].parent, output_dir, dirs_exist_ok=True, copy_function=_copied)
    return read_status(output_dir)


def publish(run_folder: str | Path, job_run: str | Path) -> None:
    """Puts a run's results (no site's state, no caches) where FLARE's download of the job finds them."""
    run_folder, target = Path(run_folder), Path(job_run) / RESULTS
    names = ["run.json", "results.json", "report.html", "federation.csv", RUN_ID]
    stored = [path for round in round_folders(run_folder / "rounds").values() for path in sorted(round.iterdir())]
    rounds = [path.relative_to(run_folder) for path in stored if path.is_file()]
    for name in [*map(Path, names), *rounds, Path(STATUS)]:  # its status last, by which a result is known
        if (run_folder / name).is_file():
            _copied(run_folder / name, target / name)


def _copied(source: str | Path, target: str | Path) -> None:
    with open(source, "rb") as stream, atomic_write(target, mode=Path(source).stat().st_mode & 0o777) as copy:
        shutil.copyfileobj(stream, copy)


def _last_words(where: Path) -> str:
    for log in sorted(where.rglob("error_log.txt")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line][-3:]
        if lines:
            return "FLARE ended the job without a run:" + "".join(f"\n  | {line[:300]}" for line in lines)
    return "FLARE ended the job without a run; see the server's log"
