"""A term that draws to weights it is given, and to nothing where it is given none."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from samfed_monai.handlers import AnchoredTerm
from tests.handlers.toy import toy_network


def engine_of(network: torch.nn.Module) -> Any:
    state = SimpleNamespace(round=0, rounds=1, iteration=1, output={"loss": torch.zeros(())})
    return SimpleNamespace(state=state, network=network)


def test_the_gradient_is_lambda_times_the_way_from_what_is_held() -> None:
    network, term = toy_network(), AnchoredTerm(mu=0.3)
    held = {name: weight.detach() - 2 for name, weight in network.named_parameters()}
    term.hold(held)
    engine = engine_of(network)
    term(engine)
    engine.state.output["loss"].backward()
    for weight in network.parameters():
        torch.testing.assert_close(weight.grad, torch.full_like(weight, 0.6))


def test_names_that_are_not_held_are_free_and_nothing_held_is_no_pull() -> None:
    network, term = toy_network(), AnchoredTerm(mu=1.0)
    first, weight = next(iter(network.named_parameters()))
    term.hold({first: weight.detach() - 1})
    engine = engine_of(network)
    term(engine)
    assert engine.state.terms["anchored"].item() == weight.numel() / 2
    term.hold(None)
    term(engine)
    assert engine.state.terms["anchored"].item() == 0
