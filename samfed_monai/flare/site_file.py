"""What a site (or the server) says about itself: where its data, caches and results lie, and what it asks of a run.

That is: of its name, its privacy, its memory and its threads; and how long old runs are kept. No place is ever sent,
and nothing is received.

Example (``local/samfed_site.json`` in a FLARE workspace)::

    {
        "datalist": "/hospital/samfed/list.json",
        "data_root": "/hospital/images",
        "cache_dir": "/hospital/samfed/cache",
        "runs_dir": "/hospital/samfed/runs"
    }
"""

from __future__ import annotations

import os
import re
import resource
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from samfed_monai.config.bundles import packaged_bundles
from samfed_monai.core.errors import Problem, Problems, Refused
from samfed_monai.core.io import read_json
from samfed_monai.core.own_process import DEVICE
from samfed_monai.core.validators import departures

RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


def require_run_name(name: str, where: str) -> None:
    """Refuses a name that would be a path.

    Args:
        name: of the run.
        where: what messages call it.

    Raises:
        Refused: it is not a name of up to 100 letters, digits, dots, dashes and underscores.
    """
    if not RUN_NAME.fullmatch(name):
        expected = "up to 100 letters, digits, dots, dashes and underscores, a letter or digit first"
        hint = "submit the job with another --run-name"
        raise Refused([Problem(where, found=repr(name[:120]), expected=expected, hint=hint)])


NAME, PLAN = "samfed_site.json", "samfed_plan.json"
VARIABLE = "SAMFED_SITE"
_PATHS = ("datalist", "data_root", "cache_dir", "output_dir", "runs_dir", "weights", "bundle_root", "adapter")
_MODELS = ("start_from", "masks_from")  # paths, or names of bundles
_ABOVE_0 = {"type": ["number", "null"], "exclusiveMinimum": 0, "description": "a number above 0"}
_KINDS = ["spectrum", "features", "prototypes", "graph"]  # StatisticKind, without torch
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "properties": {
        **{name: {"type": ["string", "null"]} for name in (*_PATHS, "device", *_MODELS)},
        **dict.fromkeys(("memory_limit_gib", "threads", "epsilon"), _ABOVE_0),
        "least_images": {"type": ["integer", "null"], "minimum": 1},
        "statistics": {"type": ["array", "null"], "items": {"enum": _KINDS}},
    },
}


@dataclass(frozen=True)
class SiteFile:
    """A checked site file.

    Args:
        path: where it was read from.
        datalist: this site's data list: the public part and its own images (the server's: the public part).
        data_root: folder that the list's paths start from.
        cache_dir: adapters, soft masks, and the site's state between rounds.
        output_dir: the run's folder, exactly; or
        runs_dir: a folder that gets one folder per run, named by the job.
        weights: folder of checkpoints (``SAMFED_WEIGHTS``); ``None`` keeps the environment's.
        bundle_root: the bundle's folder; ``None`` takes the packaged bundle of the job's name.
        adapter: server only: an adapter to use as it is.
        start_from: server only: a bundle, a finished run or a weights file that the network begins with.
        masks_from: server only: likewise, a model that makes the soft masks in SAM's place.
        device: of torch (``cuda:0``); ``None`` leaves it to the bundle.
        memory_limit_gib: most memory (data segment, GiB) of the process that trains; ``None`` sets no limit.
        threads: threads of torch in that process; ``None`` leaves it to torch.
        least_images, epsilon, statistics: as :class:`~samfed_monai.privacy.rules.PrivacyFloor` takes
            them; ``None`` leaves it to the run's plan.
    """

    path: Path
    datalist: Path
    data_root: Path
    cache_dir: Path
    output_dir: Path | None = None
    runs_dir: Path | None = None
    weights: Path | None = None
    bundle_root: Path | None = None
    adapter: Path | None = None
    start_from: str | None = None
    masks_from: str | None = None
    device: str | None = None
    memory_limit_gib: float | None = None
    threads: int | None = None
    least_images: int | None = None
    epsilon: float | None = None
    statistics: tuple[str, ...] | None = None

    def run_folder(self, run_name: str) -> Path:
        """The folder of a run at this site."""
        if self.output_dir is not None:
            return self.output_dir
        return (self.runs_dir or Path()) / run_name


def read_site_file(start: str | Path, site: str | None = None) -> SiteFile:
    """Finds, reads and checks a site file.

    ``$SAMFED_SITE`` names the file, or a folder with one ``<site>.json`` per site; without it, ``local/`` of ``start``
    or of the nearest folder above it has ``samfed_site.json``.

    Args:
        start: a folder inside the FLARE workspace.
        site: the site's name, for a folder of files; ``None`` is ``server``.

    Raises:
        Refused: no file, or every problem of it.
    """
    path = _find(Path(start), site or "server")
    content = read_json(path)
    problems = departures(content, _SCHEMA, path.name)
    if isinstance(content, dict):
        problems += _missing(path, content)
    if problems:
        raise Refused(problems)
    values = {name: value for name, value in content.items() if value is not None and value != ""}
    values |= {name: _place(path, values[name]) for name in _PATHS if name in values}
    for name in _MODELS:
        if values.get(name, "") not in ("", *packaged_bundles()):
            values[name] = str(_place(path, values[name]))
    if "statistics" in values:
        values["statistics"] = tuple(values["statistics"])
    return SiteFile(path=path, **values)


def _place(path: Path, value: str) -> Path:
    # from the site's file on: the folder that FLARE works in is the job's
    return path.parent / Path(value).expanduser()


def _find(start: Path, site: str) -> Path:
    named = os.environ.get(VARIABLE)
    if named:
        path = Path(named).absolute()
        path = path / f"{site}.json" if path.is_dir() else path
        candidates = [path]
    else:
        candidates = [folder / "local" / NAME for folder in (start.resolve(), *start.resolve().parents)]
    for path in candidates:
        if path.is_file():
            return path
    hint = f"write {NAME} into local/ of this site's start-up kit (docs/deploy.md), or set ${VARIABLE}"
    raise Refused([Problem(f"{site}: {NAME}", found="no such file", expected=str(candidates[0]), hint=hint)])


def _missing(path: Path, content: dict[str, Any]) -> list[Problem]:
    """Keys that are not given, and paths that do not exist."""
    needed = {"datalist": "a path", "data_root": "a path", "cache_dir": "a path"}
    if not content.get("output_dir"):
        needed["runs_dir"] = "a folder for runs"
    hint, problems = "add it; see docs/deploy.md", Problems()
    for name, expected in needed.items():
        if not content.get(name):
            problems.add(f"{path.name} -> {name}", found="nothing", expected=expected, hint=hint)
    for name in ("datalist", "data_root"):
        value = content.get(name)
        if value and isinstance(value, str) and not _place(path, value).exists():
            problems.add(f"{path.name} -> {name}", found=f"{value}, which does not exist", expected="an existing path")
    return list(problems)


def limit(files: SiteFile) -> None:
    """Sets what the file says for the whole process; before torch is imported, where that can be."""
    if files.device is not None:  # of the teacher, too, which no configuration of the sites' training reaches
        os.environ[DEVICE] = files.device
    if files.weights is not None:
        os.environ["SAMFED_WEIGHTS"] = str(files.weights)
    if files.memory_limit_gib is not None:
        most = int(files.memory_limit_gib * 1024**3)
        resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    if files.threads is not None:
        import torch

        torch.set_num_threads(int(files.threads))
