"""A round is a function of (seed, site, round, incoming weights): bit by bit, whatever ran before."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor

from samfed_monai.handlers import (
    BatchGuide,
    EmaGuide,
    GlobalDistillationTerm,
    GlobalGuide,
    PseudoLabelTerm,
    SamDistillationTerm,
    SeedHandler,
    UnlabelledStream,
)
from tests.handlers.toy import next_round, same, toy_loader, toy_network, toy_trainer, weights


class Site:
    """A guided trainer and the one thing a federation asks of it."""

    def __init__(self, seed: int = 0, site: str = "site-1") -> None:
        labelled, unlabelled = toy_loader(10, 1), toy_loader(12, 2)
        stream = UnlabelledStream(loader=unlabelled, guides=[BatchGuide(), GlobalGuide(), EmaGuide()], cutmix=0.5)
        terms = [PseudoLabelTerm(), SamDistillationTerm(), GlobalDistillationTerm()]
        handlers = [SeedHandler(seed=seed, site=site, loaders=[labelled, unlabelled, None]), stream, *terms]
        self.trainer = toy_trainer(handlers, loader=labelled)

    def run(self, start: dict[str, Tensor], round: int) -> dict[str, Tensor]:
        self.trainer.network.load_state_dict(start)
        next_round(self.trainer, round, 5)
        return weights(self.trainer.network)


def test_the_same_round_from_the_same_weights_gives_the_same_bits_whatever_ran_before() -> None:
    start = weights(toy_network(7))
    fresh = Site().run(start, 3)
    used = Site()
    used.run(start, 0)
    used.run(weights(toy_network(8)), 1)
    torch.rand(5)  # another site took its turn
    random.random()
    np.random.rand(3)  # noqa: NPY002 - the global state is what this is about
    assert same(fresh, used.run(start, 3))
    assert same(fresh, used.run(start, 3))


@pytest.mark.parametrize(("site", "round", "seed"), [("site-2", 3, 0), ("site-1", 4, 0), ("site-1", 3, 1)])
def test_another_site_round_or_seed_gives_other_bits(site: str, round: int, seed: int) -> None:
    start = weights(toy_network(7))
    assert not same(Site().run(start, 3), Site(seed, site).run(start, round))


def test_global_generators_are_seeded() -> None:
    trainer = toy_trainer([SeedHandler(seed=1, site="a")], steps=1)
    draws = []
    for _ in range(2):
        next_round(trainer, 2, 3)
        numpy_draw = float(np.random.rand())  # noqa: NPY002
        draws.append((random.random(), numpy_draw, float(torch.rand(1))))
    assert draws[0] == draws[1]
