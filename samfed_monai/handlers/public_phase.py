"""Steps on the public set towards given targets: condensation at the server, fusion at a site, the same code."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from monai.data import DataLoader
from monai.engines import SupervisedTrainer
from monai.inferers import SimpleInferer

from samfed_monai.errors import Problems
from samfed_monai.handlers.divergence_guard import DivergenceGuard
from samfed_monai.handlers.endless_sampler import EndlessSampler
from samfed_monai.handlers.seed_handler import SeedHandler
from samfed_monai.handlers.term_logger import TermLogger
from samfed_monai.handlers.unfinished_run import forget_unfinished_run
from samfed_monai.transforms.load_target import PublicTargets

if TYPE_CHECKING:
    from monai.inferers import Inferer
    from torch import Tensor, nn
    from torch.optim import Optimizer
    from torch.utils.data import Dataset


class PublicPhase:
    """Trains a network on ``D_p``: its labels, and soft targets where their gate is open (RC and RF of HSSF).

    A MONAI trainer of its own on the site's (or the server's) network, optimiser, loss and labelled views. What is
    random in it is a function of (seed, site, round).

    Args:
        network, optimizer, loss, device, inferer: those of the local training.
        dataset: labelled public items with random views, whose transforms hold a ``LoadTargetd`` on ``targets``.
        targets: where the round's targets are put for the time of the steps.
        term: what a target adds to the loss, a handler such as :class:`PublicDistillationTerm`.
        learning_rate: the handler that sets the rate of a round; ``None`` leaves it as it is.
        batch_size: images a step.
        steps: optimiser steps a round; ``None`` is ``passes`` over the images.
        passes: how many times a round goes over the images where no steps are given (HSSF: 4).
        indices: places in the list of the images that take part, and to which targets belong; ``None`` is all.
        seed, site: what the random numbers derive from.
    """

    def __init__(
        self,
        *,
        network: nn.Module,
        optimizer: Optimizer,
        loss: Callable[..., Tensor],
        dataset: Dataset,
        targets: PublicTargets,
        device: torch.device | str = "cpu",
        inferer: Inferer | None = None,
        term: Any = None,
        learning_rate: Any = None,
        batch_size: int = 8,
        steps: int | None = None,
        passes: int = 1,
        indices: Sequence[int] | None = None,
        seed: int = 0,
        site: str = "",
    ) -> None:
        problems = Problems()
        if steps is not None and (not isinstance(steps, int) or steps < 0):
            problems.add("public_steps", found=repr(steps), expected="a number of steps >= 0, or null")
        if not isinstance(passes, int) or passes < 1:
            problems.add("sharing#passes", found=repr(passes), expected="a number of passes >= 1")
        problems.refuse_if_any()
        self.targets = targets
        self.indices, self.images = indices, len(dataset)  # type: ignore[arg-type]
        count = self.images if indices is None else len(indices)
        self.steps = passes * max(1, -(-count // batch_size)) if steps is None else steps
        sampler = EndlessSampler(dataset, indices=indices)  # type: ignore[arg-type]
        loader = DataLoader(dataset, batch_size=batch_size, sampler=sampler, num_workers=0)
        handlers = [SeedHandler(seed=seed, site=f"{site}, public", loaders=[loader]), learning_rate, term]
        self.trainer = SupervisedTrainer(
            device=torch.device(device),
            max_epochs=1,
            train_data_loader=loader,
            epoch_length=max(self.steps, 1),
            network=network,
            optimizer=optimizer,
            loss_function=loss,
            inferer=inferer or SimpleInferer(),
            train_handlers=[each for each in (*handlers, DivergenceGuard(site=site), TermLogger()) if each is not None],
            decollate=False,
        )

    def run(self, round: int, rounds: int, masks: Tensor | None = None, gate: Tensor | None = None) -> dict[str, float]:
        """Takes the steps of one round.

        Args:
            round, rounds: which one, from 0, and how many there are.
            masks: (N, C, h, w) uint8, the targets of ``indices`` in the public list's order; ``None`` trains on the
                labels alone.
            gate: (N,) bool, which targets count; ``None`` opens all.

        Returns:
            Means of the loss's parts over the steps, by name.
        """
        if not self.steps:
            return {}
        self._rewind(round, rounds)
        with self._given(masks, gate):
            self.trainer.run()
        return dict(getattr(self.trainer.state, "term_means", None) or {})

    @contextlib.contextmanager
    def _given(self, masks: Tensor | None, gate: Tensor | None) -> Any:
        if masks is not None:
            self.targets.set(*self._placed(masks, torch.ones(len(masks), dtype=torch.bool) if gate is None else gate))
        try:
            yield
        finally:
            self.targets.clear()

    def _placed(self, masks: Tensor, gate: Tensor) -> tuple[Tensor, Tensor]:
        if self.indices is None:
            return masks, gate
        everywhere, open_ = masks.new_zeros(self.images, *masks.shape[1:]), gate.new_zeros(self.images)
        everywhere[self.indices], open_[self.indices] = masks, gate
        return everywhere, open_

    def _rewind(self, round: int, rounds: int) -> None:
        state = self.trainer.state  # every round is a fresh run of one epoch
        state.round, state.rounds = round, rounds
        state.epoch, state.iteration, state.max_epochs = 0, 0, 1
        forget_unfinished_run(self.trainer)
