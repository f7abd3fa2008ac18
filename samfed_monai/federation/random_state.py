"""Clients of one process share Python's, numpy's and torch's random numbers; each must see only its own."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


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
