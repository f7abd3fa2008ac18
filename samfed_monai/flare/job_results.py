"""What comes back of a job: the server puts a run's results into the job's folder, and the submitter fetches them."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from samfed_monai.core.errors import ExitCode
from samfed_monai.flare.session import quiet
from samfed_monai.flare.status import RUN_ID, STATUS, read_status

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
        shutil.copytree(found[0].parent, output_dir, dirs_exist_ok=True)
    return read_status(output_dir)


def publish(run_folder: str | Path, job_run: str | Path) -> None:
    """Puts a run's results (no site's state, no caches) where FLARE's download of the job finds them."""
    run_folder, target = Path(run_folder), Path(job_run) / RESULTS
    names = ["run.json", "results.json", "report.html", "federation.csv", STATUS, RUN_ID]
    rounds = [path.relative_to(run_folder) for path in sorted(run_folder.glob("rounds/[0-9]*/*")) if path.is_file()]
    target.mkdir(parents=True, exist_ok=True)
    for name in [*map(Path, names), *rounds]:
        if (run_folder / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(run_folder / name, target / name)


def _last_words(where: Path) -> str:
    for log in sorted(where.rglob("error_log.txt")):
        lines = [line for line in log.read_text(errors="replace").splitlines() if "ERROR" in line][-3:]
        if lines:
            return "FLARE ended the job without a run:" + "".join(f"\n  | {line[:300]}" for line in lines)
    return "FLARE ended the job without a run; see the server's log"
