"""An order of images that never ends, so that every batch is full."""

from __future__ import annotations

from collections.abc import Iterator, Sequence, Sized

import torch
from torch.utils.data import Sampler


class EndlessSampler(Sampler[int]):
    """One random order of all images after the other, without end.

    Batches are always full (a last batch of one image would break BatchNorm), and each image comes equally often. The
    order depends on the seed alone: iterating again replays it. It has no length; give the trainer ``epoch_length``.

    Args:
        dataset: what is sampled from.
        seed: of the order; :class:`SeedHandler` sets it anew for each round.
        indices: the images that take part; ``None`` is all of them.

    Example::

        {"_target_": "samfed_monai.handlers.EndlessSampler", "dataset": "@train#dataset"}
    """

    def __init__(self, dataset: Sized, *, seed: int = 0, indices: Sequence[int] | None = None) -> None:
        self.dataset, self.seed, self.indices = dataset, seed, indices

    def set_random_state(self, seed: int) -> None:
        """Fixes the order of the next iteration."""
        self.seed = seed

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        while count := len(self.dataset if self.indices is None else self.indices):
            order = torch.randperm(count, generator=generator).tolist()
            yield from order if self.indices is None else (self.indices[place] for place in order)
