"""Training state other than weights: random number generators, the optimizer, moving averages."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from samfed_monai.core.errors import refused
from samfed_monai.core.io import all_finite, parse_json

logger = logging.getLogger(__name__)


@contextmanager
def own_random_state(seed: int | None) -> Iterator[None]:
    """Restores the state of all random number generators after the block.

    Covers Python's ``random``, numpy's global generator, torch on the CPU and on every CUDA device in use, but not
    generators that objects hold themselves (see :func:`seed_transforms`).

    Args:
        seed: seed of all generators inside the block; ``None`` continues from the present state.
    """
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002
    devices = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    try:
        with torch.random.fork_rng(list(devices)):
            if seed is not None:
                random.seed(seed)
                np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - MONAI and users' transforms draw from it
                torch.manual_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002


def seed_transforms(dataset: Any, seed: int | None) -> None:
    """Seeds the random transforms of a MONAI dataset, which have their own generators.

    Does nothing for other datasets, or without a ``seed``.
    """
    transform: Any = getattr(dataset, "transform", None)
    if seed is not None and hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=seed)


_PLAIN = "plain"


def pack(optimizer: Optimizer) -> dict[str, Tensor]:
    """Returns ``optimizer.state_dict()`` as named tensors.

    Moments are ``<parameter index>.<name>`` and share the optimizer's memory; everything that is not a tensor
    (parameter groups, counts) is JSON in the bytes of one ``uint8`` tensor.
    """
    content = optimizer.state_dict()
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entry in content["state"].items():
        for name, value in entry.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{name}"] = value
            else:
                plain.setdefault(str(index), {})[name] = value
    text = json.dumps({"groups": content["param_groups"], "state": plain}).encode()
    tensors[_PLAIN] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return tensors


def unpack(optimizer: Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Loads the tensors of :func:`pack` into an optimizer of the same parameters.

    Raises:
        Refused: the tensors belong to another optimizer.
    """
    try:
        plain = parse_json(bytes(tensors[_PLAIN].numpy()))
        state: dict[int, dict[str, Any]] = {int(index): dict(entry) for index, entry in plain["state"].items()}
        for key, tensor in tensors.items():
            if key != _PLAIN:
                index, _, name = key.partition(".")
                state.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": state, "param_groups": plain["groups"]})
    except (KeyError, ValueError, TypeError) as error:
        raise refused("optimizer state", found=str(error), expected=f"a state of {type(optimizer).__name__}") from error


@contextmanager
def reset_if_not_finite(optimizer: Optimizer, *, owner: str) -> Iterator[None]:
    """Clears the optimizer's state, with a warning, if a moment is NaN or infinite after the block, failed or not.

    Otherwise a diverged round would spoil all later rounds of the site, even with new weights from the server.

    Args:
        optimizer: the optimizer to check.
        owner: the site, for the log.
    """
    try:
        yield
    finally:
        moments = (value for entry in optimizer.state.values() for value in entry.values())
        if not all(all_finite(value) for value in moments if isinstance(value, torch.Tensor)):
            optimizer.state.clear()
            logger.warning("%s: the optimizer's moments were not finite and were reset", owner)


@torch.no_grad()
def move_average(average: Sequence[Tensor], current: Sequence[Tensor], decay: float) -> None:
    """``average = decay average + (1 - decay) current``, in place; integers (BatchNorm's counters) are copied.

    Args:
        average: the averages; tensors of any shapes and dtypes.
        current: as many tensors, of the same shapes and dtypes.
        decay: weight of the old average, in [0, 1]; with 0 the result is bit-identical to ``current``.
    """
    floating = [i for i, tensor in enumerate(average) if tensor.is_floating_point()]
    if floating:
        get_ema_multi_avg_fn(decay)([average[i] for i in floating], [current[i] for i in floating], 0)
    for old, new in zip(average, current, strict=True):
        if not old.is_floating_point():
            old.copy_(new)


class WeightAverage:
    """Exponential moving average of tensors over optimiser steps, which a module can use temporarily.

    With few held-out images the Dice of single epochs is mostly noise (it jumped by 0.1 between epochs on 7 images).
    The average changes slowly, so that no lucky epoch is selected.

    Args:
        tensors: the tensors by name; the average starts as a copy of them.
        decay: the decay; the first steps use a lower one, ``(1 + step) / (10 + step)``, to forget the initial values.
    """

    def __init__(self, tensors: Mapping[str, Tensor], decay: float = 0.98) -> None:
        self.decay, self.step = decay, 0
        self.tensors = {name: tensor.detach().clone() for name, tensor in tensors.items()}

    def update(self, tensors: Mapping[str, Tensor]) -> None:
        """Moves the average towards ``tensors``; call it after every optimiser step."""
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        self.step += 1
        move_average(list(self.tensors.values()), [tensors[name] for name in self.tensors], decay)

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Loads the averaged weights into ``module`` inside the block and restores its own afterwards."""
        state = module.state_dict()
        own = {name: state[name].clone() for name in self.tensors}
        module.load_state_dict(self.tensors, strict=False)
        try:
            yield
        finally:
            module.load_state_dict(own, strict=False)
