"""The model and the training that all benchmarks on FLARE share: weights of a given size, to which a step is added."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

STEP = 1e-3
STAMPS = "BENCH_STAMPS"


class Payload(nn.Module):
    """A model of ``megabytes`` float32 tensors of 1 MB (10^6 bytes) each."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.layers = nn.ParameterList(nn.Parameter(torch.zeros(250_000)) for _ in range(megabytes))


def work(site: str, tensors: dict[str, Any]) -> dict[str, Any]:
    """Trains at a site: adds a step to arrays or tensors, and records the start and the duration."""
    began = time.time()
    done = {name: value + STEP for name, value in tensors.items()}
    folder = os.environ.get(STAMPS)
    if folder:
        with open(Path(folder) / site, "a") as stream:
            stream.write(f"{began} {time.time() - began}\n")
    return done


def stamps(folder: Path, site: str) -> list[tuple[float, float]]:
    """Returns what :func:`work` recorded for each round: start and duration in seconds."""
    lines = (folder / site).read_text().splitlines()
    return [(float(began), float(seconds)) for began, seconds in map(str.split, lines)]
