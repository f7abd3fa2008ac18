"""The loop of a teacher's fit: steps, averaged weights, the choice of the epoch, progress that survives a kill."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

from torch import Tensor

from samfed_monai.bars import progress_bar
from samfed_monai.networks.sam.adapter import adapted_tensors
from samfed_monai.networks.sam.model import PromptFreeSam
from samfed_monai.networks.teacher.exam import as_good_as, mean
from samfed_monai.networks.teacher.fit_state import FitState, load_state, save_state
from samfed_monai.networks.teacher.recipe import Part, learning_rate_at, make_optimizer, mask_loss
from samfed_monai.networks.teacher.weight_average import WeightAverage

logger = logging.getLogger(__name__)


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
        progress_file: where progress is kept after every epoch; removing it is the caller's business.
        fit_hash: what the progress belongs to; that of another fit is ignored.
        progress: show a bar.
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
        for epoch in self._epochs():
            for logits, target in self.batches(epoch):
                self._step(mask_loss(logits, target))
            self.state.epoch = epoch + 1
            self._judge()
            weights = {"current": self.adapted, "average": self.average.tensors, "kept": self.kept}
            save_state(self.progress_file, self.state, self.optimizer, weights)
        self.sam.load_state_dict(self.kept, strict=False)
        return self.state

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

    def _epochs(self) -> Iterator[int]:
        first = self.state.epoch
        epochs, ends = range(first, self.epochs), {"initial": first, "total": self.epochs}
        bar = progress_bar(epochs, show=self.progress, desc=self.title, unit="epoch", **ends)
        for epoch in bar:
            yield epoch
            if self.state.history:
                bar.set_postfix(held_out=f"{self.state.history[-1]:.3f}", refresh=False)  # shown with the next state
