"""Rounds of an engine: their number, steps, learning rate and seed, and the guard against divergence."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Sized
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data.utils import set_rnd
from monai.engines.utils import IterationEvents
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from samfed_monai.core.errors import Stopped
from samfed_monai.core.io import all_finite
from samfed_monai.core.seeds import derive_seed
from samfed_monai.core.validators import in_range, one_of, require, whole


def round_of(engine: Any) -> tuple[int, int]:
    """``(round, rounds)``, the round counted from 0.

    In a federation the client sets ``engine.state.round`` and ``engine.state.rounds`` before ``run()``. For a
    standalone trainer an epoch is a round, ``(epoch - 1, max_epochs)``.
    """
    if in_federation(engine):
        return int(engine.state.round), int(engine.state.rounds)
    return max(int(engine.state.epoch) - 1, 0), int(engine.state.max_epochs or 1)


def in_federation(engine: Any) -> bool:
    """Whether the engine's round is set."""
    return getattr(engine.state, "round", None) is not None


def when_round_starts(engine: Any, handler: Callable[[Any], Any]) -> None:
    """Calls ``handler`` whenever a round starts; in a standalone trainer, without rounds, also for every epoch."""
    engine.add_event_handler(Events.STARTED, handler)
    engine.add_event_handler(Events.EPOCH_STARTED, lambda engine: None if in_federation(engine) else handler(engine))


def forget_unfinished_run(engine: Any) -> None:
    """Prepares an engine for the next run after a failed one.

    After an exception Ignite keeps the finished generator of that run, and the next ``run()`` returns at once (0.5.5).
    """
    for name in ("_internal_run_generator", "_dataloader_iter", "_init_iter"):
        if hasattr(engine, name):
            setattr(engine, name, None)


def steps_per_round(*, local_steps: int | None, batch_size: int, labelled: Sized, unlabelled: Sized) -> int:
    """Returns ``local_steps``, or else the number of steps of one pass over the unlabelled images.

    Args:
        local_steps: number of steps, or ``None``.
        batch_size: images in a batch.
        labelled: the public images; used for the pass if there are no unlabelled images (warm start).
        unlabelled: the site's unlabelled images.

    Raises:
        Refused: a number of steps or a batch size below 1.
    """
    require(
        whole("train.json -> local_steps", local_steps, least=1, or_null=True),
        whole("train.json -> batch_size", batch_size, least=1),
    )
    if local_steps is not None:
        return local_steps
    return max(1, -(-(len(unlabelled) or len(labelled)) // batch_size))


LEARNING_RATE_SCHEDULES: dict[str, Callable[[float], float]] = {
    "cosine": lambda done: 0.5 * (1 + math.cos(math.pi * done)),
    "constant": lambda done: 1.0,
}
"""Schedules by name: functions of the completed fraction of the run, in [0, 1), that return a factor in [0, 1]."""


class RoundLearningRate:
    """Sets the learning rate at the start of every round; it is constant within a round.

    Since it depends only on (round, rounds), a resumed run has the rates of an uninterrupted one. Without rounds,
    epochs count.

    Args:
        optimizer: the optimizer; the initial rate of each parameter group is its peak.
        schedule: ``cosine`` (from the peak towards ``floor``) or ``constant``.
        warmup: number of first rounds in which the rate rises linearly to its peak.
        floor: lowest factor, in [0, 1].
        part: fraction of the schedule that the run covers, in (0, 1]: with 0.25 a cosine ends near 0.85.

    Raises:
        Refused: an unknown schedule, a negative warm-up, a floor outside [0, 1], a part outside (0, 1].

    Example::

        {"_target_": "samfed_monai.handlers.RoundLearningRate", "optimizer": "@optimizer", "schedule": "cosine"}
    """

    def __init__(
        self, *, optimizer: Optimizer, schedule: str = "cosine", warmup: int = 0, floor: float = 0.0, part: float = 1.0
    ) -> None:
        require(
            whole("RoundLearningRate -> warmup", warmup, "a number of rounds", least=0),
            in_range("RoundLearningRate -> floor", floor, "a factor", least=0, most=1),
            in_range("RoundLearningRate -> part", part, "a fraction", above=0, most=1),
            one_of("RoundLearningRate -> schedule", schedule, LEARNING_RATE_SCHEDULES),
        )
        self._schedule = LEARNING_RATE_SCHEDULES[schedule]
        self.optimizer, self.warmup, self.floor, self.part = optimizer, warmup, floor, part
        self._peaks = [float(group["lr"]) for group in optimizer.param_groups]

    def factor(self, round: int, rounds: int) -> float:
        """Factor of the peak in a round, counted from 0."""
        if round < self.warmup:
            return (round + 1) / self.warmup if self.warmup < rounds else (round + 1) / rounds
        progress = (round - self.warmup) / max(rounds - self.warmup, 1)
        return self.floor + (1 - self.floor) * self._schedule(self.part * min(progress, 1.0))

    def attach(self, engine: Engine) -> None:
        """Binds to the start of every epoch, when the round is known."""
        engine.add_event_handler(Events.EPOCH_STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Sets the rate of this round."""
        factor = self.factor(*round_of(engine))
        for group, peak in zip(self.optimizer.param_groups, self._peaks, strict=True):
            group["lr"] = peak * factor


class SeedHandler:
    """Seeds Python, NumPy, torch, and the order and the random transforms of the given loaders, at ``STARTED``.

    The same round from the same weights then gives the same bits, whatever ran before in this process and in any order
    of the sites (CPU; a GPU may add in another order). It expects loaders with ``num_workers: 0``.

    Args:
        seed: the run's seed.
        site: the site's name.
        loaders: loaders whose sampler and ``dataset.transform`` are seeded; ``None`` entries are skipped.

    Example::

        {"_target_": "samfed_monai.handlers.SeedHandler", "seed": "@seed", "site": "@site",
         "loaders": ["@train#dataloader", "@unlabelled#dataloader"]}
    """

    def __init__(self, *, seed: int = 0, site: str = "", loaders: Iterable[DataLoader | None] = ()) -> None:
        self.seed, self.site = seed, site
        self.loaders = list(loaders)

    def attach(self, engine: Engine) -> None:
        """Binds to the start of every run; list it before all other handlers."""
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Seeds everything for the round that starts."""
        number, _ = round_of(engine)
        seed = derive_seed(self.seed, self.site, number)
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - third-party transforms may draw from the global state
        torch.manual_seed(seed)
        for index, loader in enumerate(self.loaders):
            if loader is not None:
                self._seed_loader(loader, number, index)

    def _seed_loader(self, loader: Any, number: int, index: int) -> None:
        set_rnd(loader.sampler, derive_seed(self.seed, self.site, number, "order", index))
        # `set_rnd` walks into every attribute: the transforms only, not the cached images
        set_rnd(getattr(loader.dataset, "transform", None), derive_seed(self.seed, self.site, number, "views", index))


class DivergenceGuard:
    """Raises before back-propagation if the loss is NaN or infinite, naming site, round, step and the terms at fault.

    List it after the terms. At the end of an epoch it also checks the weights, which the last step may have broken
    after a finite loss. Unlike Ignite's ``TerminateOnNan`` it makes the round fail: a federation must not use the
    weights of a trainer that only stopped early.

    Args:
        site: the site's name, for the message.

    Raises:
        Stopped: during the run.

    Example::

        {"_target_": "samfed_monai.handlers.DivergenceGuard", "site": "@site"}
    """

    def __init__(self, *, site: str = "") -> None:
        self.site = site

    def attach(self, engine: Engine) -> None:
        engine.add_event_handler(IterationEvents.LOSS_COMPLETED, self)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self.check_weights)

    def __call__(self, engine: Any) -> None:
        """Checks the loss before back-propagation."""
        if bool(engine.state.output["loss"].isfinite().all()):
            return
        terms = getattr(engine.state, "terms", {})
        faulty = [name for name, value in terms.items() if not bool(value.isfinite().all())]
        self._stop(engine, f"the loss is NaN or infinite (terms at fault: {', '.join(faulty) or 'their sum'})")

    def check_weights(self, engine: Any) -> None:
        """Checks the weights after the epoch's last step."""
        for name, tensor in engine.network.state_dict().items():
            if not all_finite(tensor):
                self._stop(engine, f"the weights have NaN or infinity (first in {name})")

    def _stop(self, engine: Any, what: str) -> None:
        number, rounds = round_of(engine)
        where = f"site {self.site!r}, round {number + 1} of {rounds}, step {engine.state.iteration}"
        raise Stopped(f"training diverged at {where}: {what}", "lower learning_rate, or the weight of that term")
