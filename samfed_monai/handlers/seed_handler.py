"""Makes a round a function of (seed, site, round)."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ignite.engine import Events
from monai.data.utils import set_rnd

from samfed_monai.handlers.rounds import round_of
from samfed_monai.seeds import derive_seed

if TYPE_CHECKING:
    from ignite.engine import Engine
    from torch.utils.data import DataLoader


class SeedHandler:
    """Seeds Python, NumPy, torch, and the order and the random transforms of the given loaders, at ``STARTED``.

    The same round from the same weights then gives the same bits, whatever ran before in this process and in whichever
    order sites take turns (CPU; a GPU may add in another order). It expects loaders with ``num_workers: 0``.

    Args:
        seed: the run's seed.
        site: the site's name.
        loaders: loaders whose sampler and ``dataset.transform`` are seeded; ``None`` entries are passed over.

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
