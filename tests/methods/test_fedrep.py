"""FedRep's round: first the head moves alone, then the body."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedrep import AlternatingParts
from tests.handlers.toy import toy_network, toy_trainer

HEAD = ["3.*"]


def parameters(network: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in network.named_parameters()}


class Watch:
    """Which parameters each step moves."""

    def __init__(self) -> None:
        self.moved: list[set[str]] = []

    def attach(self, engine: Any) -> None:
        engine.add_event_handler(Events.ITERATION_STARTED, self._before)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._after)

    def _before(self, engine: Any) -> None:
        self._old = parameters(engine.network)

    def _after(self, engine: Any) -> None:
        new = parameters(engine.network)
        self.moved.append({name for name, old in self._old.items() if not torch.equal(old, new[name])})


def decaying(network: torch.nn.Module) -> torch.optim.Optimizer:
    """AdamW with moments and a weight decay: what is at rest must feel neither."""
    return torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.5)


def test_the_head_moves_alone_and_then_the_body_alone_in_every_epoch():
    network, watch = toy_network(), Watch()
    trainer = toy_trainer([AlternatingParts(personal=HEAD, share=0.5), watch], network=network, epochs=2, steps=3)
    trainer.optimizer = decaying(network)
    trainer.run()
    head, body = {"3.weight", "3.bias"}, {"0.weight", "0.bias", "1.weight", "1.bias"}
    for step, moved in enumerate(watch.moved):
        at_rest = body if step % 3 < 2 else head
        assert moved, step
        assert not moved & at_rest, step
    assert watch.moved[1] == head
    assert {"0.weight", "1.weight"} <= watch.moved[2]
    assert all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("personal", "share", "steps", "message"),
    [
        (["tail.*"], 0.5, 3, r"found no name like 'tail\.\*'"),
        ([], 0.5, 3, "found nothing of the personal part to train; name one in personal"),
        (["1.running_mean"], 0.5, 3, "found nothing of the personal part to train"),
        (HEAD, 0.9, 2, r"found 2 steps with a share of 0\.9; set local_steps to 10 or more, or lower share"),
        (HEAD, 0.5, 1, "found 1 steps with a share"),
    ],
)
def test_what_cannot_be_trained_in_turn_is_refused_before_any_work(personal, share, steps, message):
    with pytest.raises(Refused, match=message):
        toy_trainer([AlternatingParts(personal=personal, share=share)], steps=steps).run()
