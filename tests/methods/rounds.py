"""Rounds of a strategy without sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from hypothesis import strategies as st

from samfed_monai.protocol import Kind, Message, Server, Strategy


def a_round(strategy: Strategy, answers: Mapping[str, Message], round: int = 0) -> dict[str, Message]:
    """The messages to the sites in a round that ends with these replies."""
    messages = strategy.configure(round)
    strategy.aggregate(round, answers)
    return messages


def update(
    site: str, *, round: int = 0, rounds: int = 9, images: int = 1, metrics: Any = None, **tensors: Any
) -> Message:
    """The weights that a site sends, with numbers for its tensors."""
    made = {name: torch.as_tensor(numbers) for name, numbers in tensors.items()}
    return Message(Kind.WEIGHTS, site, round, rounds, n=images, tensors=made, metrics=metrics or {})


VALUES = st.floats(-100, 100, width=32)


def rows(least: int, most: int = 9) -> Any:
    """Weights of ``least`` to ``most`` sites, three numbers each."""
    return st.lists(st.lists(VALUES, min_size=3, max_size=3), min_size=least, max_size=most)


def weights_of(row: Any) -> dict[str, torch.Tensor]:
    return row if isinstance(row, dict) else {"w": torch.tensor(row, dtype=torch.float32)}


def attach(strategy: Strategy, sites: int, start: Any = (0.0, 0.0, 0.0), **options: Any) -> Strategy:
    names = [f"s{index:02d}" for index in range(sites)]
    return strategy.attach(Server(names, 9, weights=weights_of(start), **options))


def weights_after(strategy: Strategy, answers: Sequence[Any], round: int = 0, counts: Sequence[int] = ()) -> dict:
    """The global weights after a round in which the first sites send ``answers``."""
    updates = {
        f"s{index:02d}": Message(Kind.WEIGHTS, f"s{index:02d}", round, 9, n=n, tensors=weights_of(row))
        for index, (row, n) in enumerate(zip(answers, counts or [1] * len(answers), strict=True))
    }
    a_round(strategy, updates, round)
    return strategy.global_weights


def combine(strategy: Strategy, answers: Sequence[Any], **options: Any) -> list[float]:
    """Their combination from weights of zero."""
    return weights_after(attach(strategy, len(answers)), answers, **options)["w"].tolist()
