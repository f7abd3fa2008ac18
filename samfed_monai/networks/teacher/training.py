"""The loop of a teacher's fit: steps, averaged weights, the choice of the epoch, progress that survives a kill."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from samfed_monai.bars import progress_bar
from samfed_monai.networks.sam.adapter import adapted_tensors
from samfed_monai.networks.sam.model import PromptFreeSam
from samfed_monai.networks.teacher.exam import as_good_as, mean
from samfed_monai.networks.teacher.fit_state import FitState, load_state, save_state
from samfed_monai.networks.teacher.recipe import Part, learning_rate_at, make_optimizer, mask_loss
from samfed_monai.networks.teacher.weight_average import WeightAverage

logger = logging.getLogger(__name__)

SAVE_SECONDS = 60.0
"""Between two savings of the progress: some 100 MB of weights, averages and moments, written as long as a few steps."""


class Batches(Protocol):
    """What a fit learns from: ``steps`` pairs of logits and targets an epoch."""

    @property
    def steps(self) -> int: ...

    def __call__(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]: ...


class Training:
    """Trains ``parts`` of ``sam`` and leaves the weights of the kept epoch in it.

    Args:
        sam: a SAM that ``prepare`` made ready.
        parts: what is trained, each with the peak of its learning rate.
        batches: yields logits and targets, an epoch at a time.
        examine: Dice of each held-out image with the weights that ``sam`` has when it is called; ``None`` keeps the
            last epoch.
        epochs: how many.
        progress_file: where progress is kept after the first epoch, and then after those that end :data:`SAVE_SECONDS`
            or more after the last that was kept; removing it is the caller's business.
        fit_hash: what the progress belongs to; that of another fit is ignored.
        progress: show a bar, of steps.
        title: what stands before it.
    """

    def __init__(
        self,
        sam: PromptFreeSam,
        parts: Sequence[Part],
        batches: Batches,
        examine: Callable[[], list[float]] | None,
        *,
        epochs: int,
        progress_file: Path,
        fit_hash: str,
        progress: bool,
        title: str = "teacher",
    ) -> None:
        self.sam, self.batches, self.examine, self.progress_file = sam, batches, examine, progress_file
        self.epochs, self.progress, self.title = epochs, progress, title
        self.optimizer = make_optimizer(parts)
        self.adapted = adapted_tensors(sam)  # they share the network's memory: always its weights of now
        self.state, self.average = FitState(fit_hash), WeightAverage(self.adapted)
        self.kept: dict[str, Tensor] = {}
        self._resume()

    def run(self) -> FitState:
        """Trains the epochs that are left."""
        saved = float("-inf")
        ends: dict[str, Any] = {"initial": self.state.steps, "total": self.epochs * self.batches.steps}
        # no smoothing: what is told of the time left takes in the exams between epochs
        with progress_bar(show=self.progress, desc=self.title, unit="step", smoothing=0, **ends) as bar:
            for epoch in range(self.state.epoch, self.epochs):
                for logits, target in self.batches(epoch):
                    self._step(mask_loss(logits, target))
                    bar.update()
                self.state.epoch = epoch + 1
                self._judge()
                if time.monotonic() - saved >= SAVE_SECONDS:
                    weights = {"current": self.adapted, "average": self.average.tensors, "kept": self.kept}
                    save_state(self.progress_file, self.state, self.optimizer, weights)
                    saved = time.monotonic()
                if self.state.history:
                    bar.set_postfix(held_out=f"{self.state.history[-1]:.3f}", refresh=False)  # shown with the next one
        self.sam.load_state_dict(self.kept, strict=False)
        return self.state

    def seconds_of_a_step(self) -> float:
        """Seconds of a step on this machine, from the second of two that leave everything as it is."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        taken = 0.0
        for _ in range(2):
            started = time.perf_counter()
            logits, target = next(iter(self.batches(self.state.epoch)))
            torch.autograd.grad(mask_loss(logits, target), parameters, allow_unused=True)
            taken = time.perf_counter() - started
        return taken

    def _resume(self) -> None:
        resumed = load_state(self.progress_file, self.state.fit_hash, self.optimizer)
        if resumed is None:
            return
        self.state, weights = resumed
        self.sam.load_state_dict(weights["current"], strict=False)
        device = self.sam.pixel_mean.device
        self.average = WeightAverage({name: tensor.to(device) for name, tensor in weights["average"].items()})
        self.average.step, self.kept = self.state.steps, weights["kept"]
        logger.info("teacher: going on after epoch %d of %d", self.state.epoch, self.epochs)

    def _step(self, loss: Tensor) -> None:
        total = self.epochs * self.batches.steps
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.state.steps, total, group["peak"])
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.average.update(self.adapted)
        self.state.steps += 1

    def _judge(self) -> None:
        state = self.state
        if self.examine is None:
            self._keep()
            return
        with self.average.applied(self.sam):
            scores = self.examine()
        state.history.append(mean(scores))
        if not state.best or mean(scores) > mean(state.best):
            state.best = scores
        if as_good_as(scores, state.best):
            self._keep()
        logger.debug("teacher: epoch %d of %d, held-out Dice %.3f", state.epoch, self.epochs, mean(scores))

    def _keep(self) -> None:
        self.state.kept_epoch = self.state.epoch
        self.kept = {name: tensor.clone() for name, tensor in self.average.tensors.items()}


def seconds_of(action: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    started = time.perf_counter()
    action()
    return time.perf_counter() - started


def span(seconds: float) -> str:
    """A time for a reader who waits: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
