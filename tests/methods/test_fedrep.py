"""FedRep's round: the head is trained first, then the body."""

from __future__ import annotations

import pytest
import torch
from ignite.engine import Events

from samfed_monai.core.errors import Refused
from samfed_monai.methods.fedrep import AlternatingParts
from tests.handlers.toy import toy_network, toy_trainer, weights

HEAD = ["3.*"]


def test_head_then_body_is_trained_in_each_epoch():
    network, moved = toy_network(), []
    trainer = toy_trainer([AlternatingParts(personal=HEAD, share=0.5)], network=network, epochs=2, steps=3)
    # moments and a weight decay: what is at rest must feel neither
    trainer.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-2, weight_decay=0.5)
    before: dict[str, torch.Tensor] = {}

    def look() -> None:
        moved.append({name for name, now in network.named_parameters() if not torch.equal(now, before[name])})

    trainer.add_event_handler(Events.ITERATION_STARTED, lambda: before.update(weights(network)))
    trainer.add_event_handler(Events.ITERATION_COMPLETED, look)
    trainer.run()
    head, body = {"3.weight", "3.bias"}, {"0.weight", "0.bias", "1.weight", "1.bias"}
    assert [names <= head for names in moved] == [True, True, False] * 2
    assert [names <= body for names in moved] == [False, False, True] * 2
    assert moved[1] == head
    assert {"0.weight", "1.weight"} <= moved[2]
    assert all(weight.requires_grad for weight in network.parameters())


@pytest.mark.parametrize(
    ("personal", "share", "steps", "message"),
    [
        (["tail.*"], 0.5, 3, r"found no name like 'tail\.\*'"),
        ([], 0.5, 3, "found none in the personal part; add a layer to personal"),
        (["1.running_mean"], 0.5, 3, "found none in the personal part"),
        (HEAD, 0.9, 2, r"found 2 steps with a share of 0\.9; set local_steps to 10 or more, or lower share"),
        (HEAD, 0.5, 1, "found 1 steps with a share"),
    ],
)
def test_invalid_parts_or_steps_are_refused(personal, share, steps, message):
    with pytest.raises(Refused, match=message):
        toy_trainer([AlternatingParts(personal=personal, share=share)], steps=steps).run()
