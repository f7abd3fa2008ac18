"""A session with a FLARE server by an admin start-up kit: wait for its sites, submit a job, follow it."""

from __future__ import annotations

import contextlib
import io
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import Problem, Refused, Stopped
from samfed_monai.flare.kit import accepts_certificate, admin_of, server_of
from samfed_monai.flare.needs import require_flare

logger = logging.getLogger(__name__)

_FINISHED = ("FINISHED", "FAILED", "ABORTED", "ABANDONED")
#: Seconds of silence after which a site that FLARE still lists counts as gone; it is heard of every 30 s at most.
_SILENT = 90.0


@contextmanager
def open_session(kit: str | Path, *, timeout: float = 15.0) -> Iterator[Any]:
    """A FLARE API session.

    Raises:
        Refused: no admin kit, or the server does not take it.
        Stopped: the server cannot be reached.
    """
    require_flare()
    user = admin_of(kit)
    from nvflare.fuel.flare_api import flare_api

    where = server_of(kit)
    try:
        with quiet():
            session = flare_api.new_secure_session(user, str(Path(kit).resolve()), timeout=timeout)
    except Exception as error:
        if "uthenti" in f"{type(error).__name__}{error}" or accepts_certificate(kit) is False:
            found, expected = "refused by the server", "a user of this project"
            mend = "use a start-up kit of the same provisioning as the server's"
            raise Refused([Problem(f"start-up kit {kit}", found=found, expected=expected, mend=mend)]) from None
        reason = f"the FLARE server at {where} cannot be reached within {timeout:g} s ({type(error).__name__})"
        raise Stopped(
            reason, "start the server (startup/start.sh), check port and firewall, then type it again"
        ) from None
    try:
        yield session
    finally:
        with contextlib.suppress(Exception), quiet():
            session.close()


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


def follow(session: Any, job_id: str, *, timeout: float | None = None, poll: float = 2.0) -> str:
    """Waits for a job's end and tells its rounds from the server's job log; returns FLARE's status."""
    started, told = time.monotonic(), 0
    while True:
        with quiet():
            status = str(session.get_job_meta(job_id).get("status", ""))
        told = _tell(session, job_id, told)
        if status.split(":")[0].split(".")[-1] in _FINISHED or "FINISHED" in status:
            return status
        if timeout is not None and time.monotonic() - started > timeout:
            raise Stopped(
                f"no end after {timeout:g} s; FLARE job {job_id} still runs",
                "wait for it, or `nvflare job abort` it and submit it again",
            )
        time.sleep(poll)


def _tell(session: Any, job_id: str, told: int) -> int:
    from samfed_monai.flare.watch import told_in

    try:
        with quiet():
            logs = session.get_job_logs(job_id, "server")
    except Exception:
        return told
    text = re.sub(r"\\n", "\n", str(logs)) if isinstance(logs, dict) else str(logs)
    said = told_in(text.splitlines())
    for line in said[told:]:
        logger.info("%s", line)
    return max(told, len(said))


@contextmanager
def quiet() -> Iterator[None]:
    """FLARE's session prints what it does; nothing of it is seen in this block."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield
