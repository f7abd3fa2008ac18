"""Without an exchange, messages have no tensors; what sites send is in ``test_matrix.py``."""

from samfed_monai.methods.local_only import LocalOnly
from samfed_monai.protocol import Kind, Server


def test_no_tensors_are_sent():
    strategy = LocalOnly().attach(Server(["site-1"], 2))
    for round in range(2):
        message = strategy.configure(round)["site-1"]
        assert (message.kind, message.tensors) == (Kind.METRICS, {})
    assert (strategy.evaluation("site-1"), strategy.evaluation("elsewhere")) == (None, {})
    assert (strategy.global_weights, strategy.requirements(), strategy.exchange.word) == ({}, {}, "none")
