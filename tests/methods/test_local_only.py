"""No exchange: nothing but numbers travels in either direction."""

from __future__ import annotations

import pytest

from samfed_monai.federation.site import ClientAlgoSite
from samfed_monai.methods.local_only import LocalOnly
from samfed_monai.protocol import Kind
from tests.federation.unlike import run_unlike


def test_no_tensors_are_exchanged(tmp_path, monkeypatch):
    seen = []
    answer = ClientAlgoSite.answer

    def spy(self, task, message):
        reply = answer(self, task, message)
        seen.extend([message, reply])
        return reply

    monkeypatch.setattr(ClientAlgoSite, "answer", spy)
    result, _, strategy = run_unlike(tmp_path, rounds=2, strategy=LocalOnly(), exchange="none")
    models = len({model["round"] for model in result.models.values()})
    assert len(seen) == 2 * (8 + 2 * models), "training and validation of two rounds at two sites; each model on test"
    assert all(message.kind == Kind.METRICS and not message.tensors for message in seen)
    assert (strategy.global_weights, strategy.requirements(), strategy.exchange.word) == ({}, {}, "none")
    terms = result.records[1]["sites"]["site-1"]["terms"]
    assert "public_supervised" in terms
    assert "public_kd" not in terms


@pytest.mark.parametrize("site", ["site-1", "elsewhere"])
def test_evaluation_sends_no_weights(site):
    from samfed_monai.protocol import Server

    assert LocalOnly().attach(Server(["site-1"], 1)).evaluation(site) == (None if site == "site-1" else {})
