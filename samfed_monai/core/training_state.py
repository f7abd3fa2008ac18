"""The state of a training beside its weights: random number generators and the optimizer."""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from samfed_monai.core.errors import refused
from samfed_monai.core.io import all_finite, parse_json

if TYPE_CHECKING:
    from torch import Tensor
    from torch.optim import Optimizer

logger = logging.getLogger(__name__)


@contextmanager
def own_random_state(seed: int | None) -> Iterator[None]:
    """Runs a block on random numbers of its own and leaves everybody else's as they were.

    Args:
        seed: what the block starts from; ``None`` starts from where the process is, and still restores it.

    Covers Python's ``random``, numpy's global generator, torch on the CPU and on every CUDA device in use.
    It does not reach generators that objects hold themselves (see :func:`seed_transforms`).
    """
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else None
    try:
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002 - MONAI and users' transforms draw from it
            torch.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_rng_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state_all(cuda)


def seed_transforms(dataset: Any, seed: int | None) -> None:
    """Seeds the random transforms of a MONAI dataset, which hold generators of their own; others are left alone.

    Without a ``seed`` all are left alone.
    """
    transform: Any = getattr(dataset, "transform", None)
    if seed is not None and hasattr(transform, "set_random_state"):
        transform.set_random_state(seed=seed)


_PLAIN = "plain"


def pack(optimizer: Optimizer) -> dict[str, Tensor]:
    """Named tensors of ``optimizer.state_dict()``.

    Moments are ``<parameter index>.<name>`` and refer to the optimizer's own memory; everything that is not a tensor
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
    """Puts what :func:`pack` returned back into an optimizer of the same parameters.

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
        groups = [{**group, **_tuples(group)} for group in plain["groups"]]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (KeyError, ValueError, TypeError) as error:
        expected = f"the state of this {type(optimizer).__name__}"
        raise refused("optimizer state", found=str(error), expected=expected) from error


@contextmanager
def kept_finite(optimizer: Optimizer, *, owner: str) -> Iterator[None]:
    """Forgets all moments when a block, whether it fails or not, leaves one of them NaN or infinite, and says so.

    A round that diverged would otherwise spoil every later round of the site, whatever weights the server sends.

    Args:
        optimizer: whose moments they are.
        owner: the site, for the log.
    """
    try:
        yield
    finally:
        moments = (value for entry in optimizer.state.values() for value in entry.values())
        if not all(all_finite(value) for value in moments if isinstance(value, torch.Tensor)):
            optimizer.state.clear()
            logger.warning("%s: the optimizer's moments were not finite and were forgotten", owner)


def _tuples(group: Mapping[str, Any]) -> dict[str, Any]:
    return {name: tuple(value) for name, value in group.items() if isinstance(value, list) and name != "params"}
