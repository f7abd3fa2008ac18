"""Memory that checkpointing and bfloat16 save in a training step of SAM as a client network, and their time."""

from __future__ import annotations

import argparse
import multiprocessing
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from common import Figure, record, side_by_side
from pfedsam import TITLES, Step

SETTINGS: dict[str, dict[str, bool]] = {
    "float32": {},
    "checkpointing": {"checkpointing": True},
    "bfloat16": {"bf16": True},
    "both": {"checkpointing": True, "bf16": True},
}
MIB = 1024**2


def step_of(base: str, options: argparse.Namespace, *, checkpointing: bool = False, bf16: bool = False) -> Step:
    """A training step of SAM with LoRA, experts and decoder: pFedSAM's stage L without the pass of the other path."""
    return Step(base, options.size, options.batch, options.device, checkpointing=checkpointing, bf16=bf16)


def resident(field: str) -> float:
    """``VmRSS`` (current memory) or ``VmHWM`` (peak) of this process, in MiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def memory(base: str, options: argparse.Namespace, name: str) -> dict[str, float]:
    """Peak memory of two steps, memory before them, and their difference, in MiB; must run in a separate process."""
    step = step_of(base, options, **SETTINGS[name])
    if options.device == "cuda":
        before = torch.cuda.memory_allocated() / MIB
        torch.cuda.reset_peak_memory_stats()
    else:
        Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, since building the network may have a higher peak
        before = resident("VmRSS")
    step()
    step()
    peak = torch.cuda.max_memory_allocated() / MIB if options.device == "cuda" else resident("VmHWM")
    return {"peak": peak, "before": before, "step": peak - before}


def in_new_process(action: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Runs ``action`` in a new process and returns its result."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(action)


def figures_of(base: str, options: argparse.Namespace) -> list[Figure]:
    where = f"{TITLES[base]}, {options.size} px, batch {options.batch}"
    found = {name: in_new_process(partial(memory, base, options, name)) for name in SETTINGS}
    plain = found["float32"]
    figures = [
        Figure(f"{where}: memory of a step beyond the idle network", plain["step"], unit="MiB", details=plain),
        Figure(f"{where}: peak memory of the process", plain["peak"], unit="MiB", details=plain),
    ]
    first = step_of(base, options) if options.repeats else None
    for name in list(SETTINGS)[1:]:
        here, what = found[name], f"{where}: {name} against float32 without checkpointing"
        figures += [
            Figure(f"{what}, memory of a step", here["step"] / plain["step"], details=here),
            Figure(f"{what}, peak memory", here["peak"] / plain["peak"], details=here),
        ]
        if first is None:
            continue
        clock = time.perf_counter if options.device == "cuda" else time.process_time
        second = step_of(base, options, **SETTINGS[name])
        times = side_by_side(first, second, repeats=options.repeats, clock=clock)
        kind = "time" if options.device == "cuda" else "processor time"
        figures.append(Figure(f"{what}, {kind} of a step", times["ratio"], details=times))
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bases", nargs="+", default=["vit_t", "vit_b"], choices=list(TITLES))
    parser.add_argument("--size", type=int, default=256, help="size of SAM's input in pixels")
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=5, help="pairs of timed steps; 0: only memory is measured")
    parser.add_argument("--device", default="cpu", choices=["cpu", "cuda"])
    options = parser.parse_args()
    for base in options.bases:
        record(__file__, figures_of(base, options), part=base)


if __name__ == "__main__":
    main()
