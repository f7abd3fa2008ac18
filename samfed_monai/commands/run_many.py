"""Many federated runs, each in a process of its own, some at a time; finished ones are not run again."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from samfed_monai.bars import progress_bar
from samfed_monai.commands.failed_runs import AGAIN, FailedRun, failure
from samfed_monai.commands.seal import configs_of, seal_of
from samfed_monai.config.overrides import normal_ids, parse_pairs, samfed_value
from samfed_monai.errors import ExitCode, Stopped
from samfed_monai.federation.signals import Terminated, Termination
from samfed_monai.io import read_json, write_json

# Options that say where something lies; the data list names every image by its hash.
_PLACES = frozenset({"data-root", "cache-dir"})


@dataclass(frozen=True)
class Run:
    """One row of a comparison with one seed.

    Args:
        bundle: the bundle's folder.
        variant, seed: which run.
        folder: its run folder.
        options: options of ``samfed federate`` that all runs share.
        extra: ``--key value`` words: those that all runs share, and the row's own.
        about: what reports say of the row (``row``, ``title``, ``note``, …); without it the row is the variant.
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
        """The command that makes this run, complete: it can be typed by hand."""
        words = ["federate", str(self.bundle)]
        for option, value in self.options.items():
            words += [f"--{option}", value] if value is not None else []
        words += ["--output-dir", str(self.folder), "--variant", self.variant, "--seed", str(self.seed), *self.extra]
        return [sys.executable, "-m", "samfed_monai", *words]

    def is_done(self) -> bool:
        """Whether the run folder holds the results of what is asked for, on these very files."""
        path = self.folder / "compare.json"
        return (self.folder / "results.json").is_file() and path.is_file() and _seal(read_json(path)) == self.seal()

    def mark_done(self, seal: Mapping[str, Any] | None = None) -> None:
        """Writes ``compare.json``: the seal as it was when the run began, and what reports say of the row."""
        write_json(self.folder / "compare.json", {**self.about, "seal": dict(seal or self.seal())})

    def seal(self) -> dict[str, Any]:
        """What the run depends on, as it is now; where its bundle, images, cache and results lie is not part of it."""
        overrides = normal_ids(parse_pairs(self.extra, samfed_value))
        options = {option: value for option, value in self.options.items() if option not in _PLACES}
        asked = {**options, "variant": self.variant, "seed": self.seed, **overrides}
        return seal_of(asked, configs_of(self.bundle, self.variant, overrides))


def run_all(runs: Sequence[Run], *, jobs: int = 1, threads: int = 1) -> None:
    """Runs what is not done yet, ``jobs`` at a time, each with ``threads`` threads of torch.

    ``OMP_NUM_THREADS`` or ``MKL_NUM_THREADS`` of the environment, where set, goes before ``threads``. A run that fails
    does not end the others; its output is in ``log.txt`` of its folder.

    Raises:
        RunsRefused: some runs failed, all of them because they were refused; the message has their problems.
        Stopped: some runs failed, and the message names them, or the process was asked to end; it says how to go on.
    """
    waiting = [run for run in runs if not run.is_done()]
    for run in runs:
        if run not in waiting:
            run.mark_done()  # its title or note may have changed
    failed: list[FailedRun] = []
    running: dict[subprocess.Popen[bytes], tuple[Run, dict[str, Any]]] = {}
    with Termination(), progress_bar(total=len(runs), initial=len(runs) - len(waiting), unit="run", desc="runs") as bar:
        try:
            while waiting or running:
                while waiting and len(running) < jobs:
                    run = waiting.pop(0)
                    seal = run.seal()  # a file that changes while it runs was not what it read
                    running[_start(run, threads)] = run, seal
                    bar.set_postfix_str("; ".join(run.name for run, _ in running.values()))
                time.sleep(0.2)
                for process in [process for process in running if process.poll() is not None]:
                    run, seal = running.pop(process)
                    bar.update()
                    if process.returncode == ExitCode.DONE:
                        run.mark_done(seal)
                    else:
                        failed.append(FailedRun(run.name, run.folder, process.returncode))
        except BaseException as error:
            _end(list(running))
            if isinstance(error, Terminated):
                reason = "asked to end (SIGTERM); what has finished is kept, and so are the rounds of what was running"
                raise Stopped(reason, resume=AGAIN) from None
            raise
    if failed:
        raise failure(failed, len(runs))


def _seal(content: Any) -> Any:
    return content.get("seal") if isinstance(content, Mapping) else None


def _start(run: Run, threads: int) -> subprocess.Popen[bytes]:
    run.folder.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, **_threads(threads)}
    with (run.folder / "log.txt").open("ab") as log:
        return subprocess.Popen(run.command(), stdout=log, stderr=subprocess.STDOUT, env=environment)


def _threads(threads: int) -> dict[str, str]:
    """A number that the user set goes before ours (other work may share the processor), and one variable is enough."""
    omp, mkl = (os.environ.get(name) for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"))
    return {"OMP_NUM_THREADS": omp or mkl or str(threads), "MKL_NUM_THREADS": mkl or omp or str(threads)}


def _end(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
