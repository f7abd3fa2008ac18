"""Many federated runs, rows by seeds, each in its own process; finished ones are not repeated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from operator import attrgetter
from pathlib import Path
from typing import Any

from samfed_monai.config.overrides import normal_ids, overrides_of
from samfed_monai.config.parse import BundleConfig, is_note, workflow_files
from samfed_monai.core.errors import AGAIN, ExitCode, Problems, Refused, SamFedError, Stopped
from samfed_monai.core.io import PRIVATE, PUBLIC, canonical_hash, read_json, sha256_file, write_json
from samfed_monai.core.process_setup import ENDS_WITH_PARENT
from samfed_monai.core.run_log import progress_bar
from samfed_monai.core.validators import require, schema_problems
from samfed_monai.federation.signals import Termination
from samfed_monai.federation.workflow import evaluation_changes

SCHEMA: Mapping[str, Any] = read_json(Path(__file__).with_name("rows.schema.json"))
"""JSON schema of a file of rows, without its notes."""
PER_COMPARISON: tuple[str, ...] = tuple(SCHEMA["$defs"]["overrides"]["propertyNames"]["not"]["enum"])
"""Ids that the comparison sets for its runs itself; neither a row nor its command line may set them."""


@dataclass(frozen=True)
class NamedRow:
    """One row of a comparison before it has run.

    Args:
        name: unique; the folder of its runs.
        variant: name of its variant.
        overrides: ids of ``federate.json`` and ``train.json``, and values, on top of the command line's.
        title: its name in tables; empty for the variant's own title.
        note: a sentence below the table.
        setting: rows of one setting share ``dp_only`` and ``oracle``; empty for the setting of the variants.
        sweep: title of the file that the row is from.
        role: ``dp_only`` or ``oracle`` (``as`` in the file) if the row is its setting's floor or ceiling with a variant
            of another name; empty for all others.
    """

    name: str
    variant: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    title: str = ""
    note: str = ""
    setting: str = ""
    sweep: str = ""
    role: str = ""

    def about(self, place: int) -> dict[str, Any]:
        """Entry on the row in a run's ``compare.json``, for reports."""
        texts = {name: getattr(self, name) for name in ("title", "note", "setting", "sweep")} | {"as": self.role}
        entry = {"row": self.name, "variant": self.variant, "place": place, "overrides": dict(self.overrides)}
        return entry | {name: text for name, text in texts.items() if text}


def read_rows(path: str | Path) -> list[NamedRow]:
    """Reads the rows of a file, in its order.

    Overrides at the top of the file apply to all of its rows. Keys that start with ``_`` are notes to the reader.
    Variants and ids are not checked here: ``samfed compare`` checks each row against the bundle.

    Args:
        path: a JSON file.

    Raises:
        Refused: content that departs from :data:`SCHEMA`, such as a row's name that cannot name a folder, or an id of
            the whole comparison in a row.

    Example::

        {"title": "Agreement rule",
         "rows": {"samfed": {"variant": "samfed"},
                  "average": {"variant": "samfed", "note": "the mean of the two probabilities",
                              "overrides": {"agreement#rule": "average"}}}}
    """
    content = _without_notes(read_json(path))
    if isinstance(content, dict) and isinstance(content.get("rows"), dict):
        content["rows"] = {name: _without_notes(row) for name, row in content["rows"].items()}
    require(schema_problems(content, SCHEMA, Path(path).name))
    shared = _overrides(content)
    return [
        NamedRow(
            name,
            row["variant"],
            {**shared, **_overrides(row)},
            title=row.get("title", ""),
            note=row.get("note", ""),
            setting=row.get("setting", content.get("setting", "")),
            sweep=content.get("title", ""),
            role=row.get("as", ""),
        )
        for name, row in content["rows"].items()
    ]


def all_rows(variants: Sequence[str], rows: Iterable[NamedRow], problems: Problems) -> list[NamedRow]:
    """Combines the rows of ``--variants`` and of the files; a name with two meanings is a problem.

    Args:
        variants: names of variants, which are rows without overrides.
        rows: rows of all files.
        problems: problems are added to it.
    """
    from samfed_monai.reports.rows import VARIANTS

    rows_by_name: dict[str, NamedRow] = {}
    for row in [*(NamedRow(variant, variant) for variant in variants), *rows]:
        where = f"rows -> {row.name}"
        if row.name in VARIANTS and row.variant != row.name:
            expected = f"the variant of that name, or a name other than {row.name!r}"
            problems.add(where, found=f"variant {row.variant!r}", expected=expected)
        # rows of one name may be one run, for instance the default row in the files of two sweeps
        if row.name in rows_by_name and _run_settings(row) != _run_settings(rows_by_name[row.name]):
            problems.add(where, found="two rows with this name", expected="unique names", hint="rename one")
        else:
            rows_by_name[row.name] = row
    return list(rows_by_name.values())


_run_settings = attrgetter("variant", "overrides", "setting", "role")


def _without_notes(content: Any) -> Any:
    return {key: value for key, value in content.items() if not is_note(key)} if isinstance(content, dict) else content


def _overrides(part: Mapping[str, Any]) -> dict[str, Any]:
    overrides: dict[str, Any] = _without_notes(normal_ids(part.get("overrides", {})))
    return overrides


class RunsRefused(SamFedError):
    """Every run that failed was refused."""

    exit_code = ExitCode.REFUSED


def failure(failed: Sequence[tuple[Run, int]], runs: int) -> RunsRefused | Stopped:
    """Returns the error that names failed runs, each with its log file and the end of the log.

    Args:
        failed: failed runs with their exit codes, in the order in which they ended.
        runs: total number of runs.
    """
    text = "".join(
        f"\n    {run.name} ({run.folder / 'log.txt'}):\n      {log_reason(run.folder, code)}" for run, code in failed
    )
    refused = sum(code == ExitCode.REFUSED for _, code in failed)
    if refused == len(failed):
        return RunsRefused(f"refused: {refused} of {runs} runs{text}\n  to continue: fix the problems, then {AGAIN}")
    resume = f"fix the refused runs ({refused} of them), then {AGAIN}" if refused else AGAIN
    return Stopped(f"{len(failed)} of {runs} runs failed{text}", resume=resume)


def log_reason(folder: Path, code: int) -> str:
    """Reason why a run was refused or stopped, from its exit code and the end of its log; else the log's last line."""
    if code < 0:
        return f"the run was ended by signal {-code} (9: killed, for instance because memory ran out)"
    log = folder / "log.txt"
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() if log.is_file() else []
    prefix = {int(ExitCode.REFUSED): "refused: ", int(ExitCode.STOPPED): "stopped: "}.get(code)
    endings = [index for index, line in enumerate(lines) if prefix and line.startswith(prefix)]
    first, *more = lines[endings[-1] if endings else -1 :] or ["no output"]
    # not the lines of another comparison in the same folder
    return "\n      ".join([first, *takewhile(lambda line: line.startswith(" "), more)])


def configs_of(bundle: Path, variant: str, overrides: Mapping[str, Any]) -> list[Path]:
    """Configuration files that a federation of this variant reads; missing files are left out.

    They are ``train.json``, the variant's files, ``federate.json``, ``teacher.json`` unless the variant has no teacher,
    and ``evaluate.json`` if it changes ids of ``train.json``. It does not read other variants or ``inference.json``,
    and ``metadata.json`` does not affect results.
    """
    config = BundleConfig(workflow_files(bundle, "federate"), overrides)
    with suppress(Refused):  # reported when the bundle is checked
        config = BundleConfig.of_workflow(bundle, "federate", {**overrides, "variant": variant})
    guided = config.content.get("teacher_adapt", "off") != "off"
    files = [path for path in [*config.files, *(workflow_files(bundle, "teacher") if guided else ())] if path.is_file()]
    return [*files, bundle / "configs" / "evaluate.json"] if evaluation_changes(bundle) else files


@dataclass(frozen=True)
class Run:
    """One row of a comparison with one seed.

    Args:
        bundle: the bundle's folder.
        variant, seed: of the run.
        folder: its run folder.
        options: options of ``samfed federate`` that all runs share.
        extra: ``--key value`` words: those that all runs share, and the row's own.
        about: entry on the row for reports (``row``, ``title``, ``note``, …); if empty, the row is the variant.
    """

    bundle: Path
    variant: str
    seed: int
    folder: Path
    options: Mapping[str, str | None]
    extra: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.about.get('row', self.variant)}, seed {self.seed}"

    def command(self) -> list[str]:
        """The complete command of this run, as it could be typed by hand."""
        args = ["federate", str(self.bundle)]
        for option, value in self.options.items():
            args += [f"--{option}", value] if value is not None else []
        args += ["--output-dir", str(self.folder), "--variant", self.variant, "--seed", str(self.seed), *self.extra]
        return [sys.executable, "-m", "samfed_monai", *args]

    def is_done(self) -> bool:
        """Whether the run folder has results for the same settings and the same files."""
        path = self.folder / "compare.json"
        if not (path.is_file() and (self.folder / "results.json").is_file()):
            return False
        done = read_json(path)
        return isinstance(done, dict) and done.get("seal") == self.seal()

    def mark_done(self, seal: Mapping[str, Any] | None = None) -> None:
        """Writes ``compare.json``: the seal as of the start of the run, and the entry on the row for reports."""
        write_json(self.folder / "compare.json", {**self.about, "seal": dict(seal or self.seal())}, mode=PUBLIC)

    def seal(self) -> dict[str, Any]:
        """Current state of all that the run depends on: its options, and its configuration files without their notes.

        Paths of bundle, images, cache and results are left out: the data list identifies every image by its hash, and
        an option that is a file's path counts with the file's content. So does the weights file of a run or bundle that
        ``start_from`` or ``masks_from`` names.
        """
        overrides = overrides_of(self.extra)
        options = {option: value for option, value in self.options.items() if option not in ("data-root", "cache-dir")}
        settings = {**options, "variant": self.variant, "seed": self.seed, **overrides}
        files = configs_of(self.bundle, self.variant, overrides)
        return {
            "asked": {option: _as_sealed(option, value) for option, value in settings.items()},
            "configs": [[path.name, canonical_hash(_without_notes(read_json(path)))] for path in files],
        }


def _as_sealed(option: str, value: Any) -> str:
    if option in ("start_from", "masks_from") and isinstance(value, str):
        from samfed_monai.federation.run_models import starting_file

        with suppress(SamFedError):  # reported where the run reads it
            value = str(starting_file(value))
    if isinstance(value, str):
        return f"sha256:{sha256_file(value)}" if os.path.isfile(value) else value
    return json.dumps(value, default=repr)


def run_all(runs: Sequence[Run], *, jobs: int = 1, threads: int = 1) -> None:
    """Runs all unfinished runs, ``jobs`` at a time, each with ``threads`` threads of torch.

    ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` of the environment, if set, takes precedence over ``threads``. A failed
    run does not end the others; its output is in ``log.txt`` of its folder.

    Raises:
        RunsRefused: some runs failed, all of them because they were refused; the message has their problems.
        Stopped: some runs failed; the message names them, and says how to continue.
        Terminated: SIGTERM was received; unfinished runs are ended.
    """
    waiting = [run for run in runs if not run.is_done()]
    for run in runs:
        if run not in waiting:
            run.mark_done()  # its title or note may have changed
    failed: list[tuple[Run, int]] = []
    running: dict[subprocess.Popen[bytes], tuple[Run, dict[str, Any]]] = {}
    with Termination(), progress_bar(total=len(runs), initial=len(runs) - len(waiting), unit="run", desc="runs") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    seal = run.seal()  # as of the start: files may change while it runs
                    running[_start(run, threads)] = run, seal
                    bar.set_postfix_str("; ".join(run.name for run, _ in running.values()))
                time.sleep(0.2)
                for process in [process for process in running if process.poll() is not None]:
                    run, seal = running.pop(process)
                    bar.update()
                    if process.returncode == ExitCode.DONE:
                        run.mark_done(seal)
                    else:
                        failed.append((run, process.returncode))
        finally:
            _end(list(running))
    if failed:
        raise failure(failed, len(runs))


def _start(run: Run, threads: int) -> subprocess.Popen[bytes]:
    """Starts a run; thread numbers of the user take precedence (other work may share the processor), one is enough."""
    run.folder.mkdir(parents=True, exist_ok=True)
    omp, mkl = (os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    limits = {"OMP_NUM_THREADS": omp or mkl or str(threads), "MKL_NUM_THREADS": mkl or omp or str(threads)}
    private = partial(os.open, mode=PRIVATE)  # it may name images, as run.log does
    with open(run.folder / "log.txt", "ab", opener=private) as log:
        streams: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": log, "stderr": subprocess.STDOUT}
        return subprocess.Popen(run.command(), env={**os.environ, **limits, ENDS_WITH_PARENT: "1"}, **streams)


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
