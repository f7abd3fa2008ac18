"""What a killed fit needs to go on as if nothing had happened."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from samfed_monai.errors import Refused
from samfed_monai.io import safe_load, save_tensors


@dataclass
class FitState:
    """Where a fit stands after a whole epoch.

    Args:
        fit_hash: hash of everything that decides the result; a state of another fit is ignored.
        epoch: epochs done.
        kept_epoch: the one whose weights are kept; 0 is before any training.
        best: Dice of each held-out image after the epoch with the best mean.
        steps: optimiser steps done.
        history: mean Dice on the held-out part after each epoch.
    """

    fit_hash: str
    epoch: int = 0
    kept_epoch: int = 0
    best: list[float] = field(default_factory=list)
    steps: int = 0
    history: list[float] = field(default_factory=list)


def save_state(
    path: Path,
    state: FitState,
    optimizer: torch.optim.Optimizer,
    weights: Mapping[str, Mapping[str, Tensor]],
) -> None:
    """Writes progress, optimiser moments and named sets of weights (current, averaged, kept), atomically."""
    tensors = {f"{part}.{name}": tensor for part, named in weights.items() for name, tensor in named.items()}
    for index, moments in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{name}": tensor for name, tensor in moments.items()}
    save_tensors(path, {name: tensor.clone() for name, tensor in tensors.items()}, {"state": json.dumps(asdict(state))})


def load_state(
    path: Path, fit_hash: str, optimizer: torch.optim.Optimizer
) -> tuple[FitState, dict[str, dict[str, Tensor]]] | None:
    """Reads what :func:`save_state` wrote, into ``optimizer`` too: the state and the named sets of weights.

    Returns ``None`` where there is nothing, nothing readable, or the state of another fit: it then starts anew.
    """
    header: dict[str, str] = {}
    try:
        tensors = safe_load(path, metadata=header.update)
        state = FitState(**json.loads(header["state"]))
    except (Refused, KeyError, TypeError, ValueError):
        return None
    if state.fit_hash != fit_hash:
        return None
    weights: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        weights.setdefault(part, {})[rest] = tensor
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in weights.pop("optimizer", {}).items():
        index, _, kind = name.partition(".")
        moments.setdefault(int(index), {})[kind] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return state, weights
