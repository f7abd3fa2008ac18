"""Shared by all benchmarks: timing two actions in turn, and recording figures with their bounds."""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"
BUNDLE = Path(__file__).resolve().parent.parent / "bundles" / "samfed_skin"


def short(value: float) -> str:
    """Formats a number with three significant digits, or as an integer from 1,000 on."""
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


@dataclass(frozen=True)
class Figure:
    """One measured figure.

    Args:
        what: label in the table.
        value: the figure, in ``unit``.
        bound: maximum (minimum with ``at_least``); ``None``: the figure has no bound.
        unit: ``x`` for a ratio, else a unit or ``%``.
        details: the numbers from which it was computed.
    """

    what: str
    value: float
    bound: float | None = None
    at_least: bool = False
    unit: str = "x"
    details: dict[str, Any] = field(default_factory=dict)

    @property
    def holds(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound

    def __str__(self) -> str:
        if self.bound is None:
            return f"{self.what}: {self.value:.4g} {self.unit}"
        verdict = "holds" if self.holds else "DOES NOT HOLD"
        sign = ">=" if self.at_least else "<="
        return f"{self.what}: {self.value:.4g} {self.unit} (bound {sign} {self.bound:g}: {verdict})"


def write_between(page: Path, marks: tuple[str, str], text: str) -> None:
    """Replaces the text between the two marks of a page."""
    content = page.read_text()
    before, _, rest = content.partition(marks[0])
    _, _, after = rest.partition(marks[1])
    page.write_text(f"{before}{marks[0]}\n{text}\n{marks[1]}{after}")


def seconds(action: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """Returns the duration of one call in seconds, by default wall-clock time."""
    start = clock()
    action()
    return clock() - start


def side_by_side(
    first: Callable[[], Any],
    second: Callable[[], Any],
    *,
    repeats: int,
    warm_up: int = 1,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Times two actions in turn, so that other load on the machine affects both.

    The ratio is the median of ``second / first`` over the pairs. The order alternates, so that neither action always
    finds the caches filled by the other. On shared cores, use ``time.process_time``: it excludes time spent waiting
    for a core.

    Returns:
        ``ratio`` with its quartiles ``low`` and ``high``, and the median seconds ``first`` and ``second``.
    """
    for _ in range(warm_up):
        first()
        second()
    pairs = []
    for repeat in range(repeats):
        if repeat % 2:
            b = seconds(second, clock)
            a = seconds(first, clock)
        else:
            a = seconds(first, clock)
            b = seconds(second, clock)
        pairs.append((a, b))
    return {
        **median_and_quartiles([b / a for a, b in pairs]),
        "first": statistics.median(a for a, _ in pairs),
        "second": statistics.median(b for _, b in pairs),
        "repeats": repeats,
    }


def median_and_quartiles(ratios: Sequence[float]) -> dict[str, float]:
    """Returns the median as ``ratio``, and the quartiles as ``low`` and ``high``."""
    ordered = sorted(ratios)
    quarter = len(ordered) // 4
    return {"ratio": statistics.median(ordered), "low": ordered[quarter], "high": ordered[-1 - quarter]}


STEP = "A step of DeepLabV3+ ResNet-18, 4 images of {size} px"


def training_step(size: int, steps: int, clock: Callable[[], float] = time.perf_counter) -> float:
    """Median duration in seconds of the step that :data:`STEP` describes, after two warm-up steps."""
    import torch

    from samfed_monai.networks.catalogue import client_network

    torch.manual_seed(0)
    network = client_network("deeplabv3plus_resnet18")
    optimizer = torch.optim.AdamW(network.parameters())
    images = torch.rand(4, 3, size, size)

    def step() -> None:
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()

    return statistics.median([seconds(step, clock) for _ in range(steps + 2)][2:])


def in_new_process(script: str, *measured: int, environment: Mapping[str, str] | None = None) -> dict[str, float]:
    """Runs a benchmark with ``--measure`` in a new process and returns the JSON of its last output line."""
    command = [sys.executable, "-W", "ignore", script, "--measure", *map(str, measured)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def machine() -> dict[str, Any]:
    """Returns the processor, GPU and versions that a measurement depends on."""
    import torch

    cpu = platform.processor() or platform.machine()
    if Path("/proc/cpuinfo").is_file():
        names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
        cpu = names[0].split(":", 1)[1].strip() if names else cpu
    return {
        "processor": cpu,
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def record(script: str, figures: Sequence[Figure], *, part: str = "") -> None:
    """Prints figures and writes them to ``benchmarks/results/<script>.json``, the source of docs/benchmarks.md.

    Args:
        script: file of the benchmark.
        figures: its figures.
        part: name of a part that was run separately; figures of other parts are kept.
    """
    name = Path(script).stem
    for figure in figures:
        print(figure, flush=True)
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": f"python benchmarks/{name}.py {' '.join(sys.argv[1:])}".strip(),
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "machine": machine(),
        "figures": [asdict(figure) | {"holds": figure.holds} for figure in figures],
    }
    path = RESULTS / f"{name}.json"
    if part:
        kept = json.loads(path.read_text()).get("parts", {}) if path.is_file() else {}
        content = {"parts": {**kept, part: content}}
    path.write_text(json.dumps(content, indent=2) + "\n")
