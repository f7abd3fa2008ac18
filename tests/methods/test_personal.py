"""Personal sites on the toy bundle: a failed round keeps their state."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from samfed_monai.federation import ClientAlgoSite
from samfed_monai.protocol import Kind, Message, Task
from tests.federation.toys import toy_algo, toy_weights
from tests.methods import present

TERM = {"_target_": "samfed_monai.methods.ditto.AnchoredTerm", "name": "ditto", "mu": 0.1}
#: Overrides of the toy bundle from the variants of these names.
ALGORITHMS: dict[str, dict[str, Any]] = {
    "ditto": {"_target_": "samfed_monai.methods.ditto.DittoAlgorithm", "term": "@ditto"},
    "fedala": {
        "_target_": "samfed_monai.methods.fedala.AdaptiveMixing",
        "rate": 50.0,
        "batches": 2,
        "first_batches": 3,
    },
    "apple": {"_target_": "samfed_monai.methods.apple.AppleAlgorithm", "rate": 0.05, "fraction": 1.0},
}


@pytest.mark.parametrize("name", present(*ALGORITHMS))
def test_failed_round_keeps_site_state(name):
    common = {"network": "@network", "optimizer": "@optimizer", "site": "@site"}
    bundle: dict[str, Any] = {"fail_in_round": 1, "client_algorithm": {**ALGORITHMS[name], **common}}
    bundle |= {"ditto": TERM} if name == "ditto" else {}
    terms = {"_target_": "tests.federation.toys.ToyTerms", "fail_in_round": "@fail_in_round"}
    bundle["train#handlers"] = [*(["@ditto"] if name == "ditto" else []), "@client_algorithm", terms]
    algo = toy_algo(bundle=bundle)
    algo.load_network(toy_weights())
    worker = ClientAlgoSite("site-1", algo)
    message = {"tensors": toy_weights(1), "extra": {"purpose": "distil"}}
    worker.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 0, 2, **message))
    before = {n: t.clone() for n, t in algo.state_dict().items() if not n[0].isdigit() and n != "plain"}
    with pytest.raises(FileNotFoundError):
        worker.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 1, 2, **message))
    after = algo.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {n for n in after if n.startswith("algorithm.")} == {n for n in before if n.startswith("algorithm.")}
