"""Weights are sent once: what is left out, restored, and reported by a site that does not hold them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.tensor_file import checksum
from samfed_monai.protocol.message import Kind, Message, MessageRefused, from_bytes, to_bytes, wire_size
from samfed_monai.protocol.statistics import with_statistics
from samfed_monai.protocol.transport import NOT_HELD, HeldWeights, SentWeights, scrub

WEIGHTS = {"a.weight": torch.arange(6.0).reshape(2, 3), "a.count": torch.tensor(3)}


def message(weights=WEIGHTS, *, kind: Kind = Kind.WEIGHTS, site: str = "a", **words: str) -> Message:
    return Message(kind, site, 1, 3, tensors={name: tensor.clone() for name, tensor in weights.items()}, extra=words)


def send(sent: SentWeights, held: HeldWeights, message: Message) -> tuple[int, Message]:
    """Bytes on the wire, and what the site makes of them."""
    payload = to_bytes(sent.shortened(message.site, message))
    return len(payload), held.complete(from_bytes(payload))


def test_repeated_weights_are_named_and_restored():
    sent, held = SentWeights(), HeldWeights()
    first, _ = send(sent, held, message(split="validation", model="current"))
    second, arrived = send(sent, held, message(purpose="replace"))
    # six floats and one integer, and what the header says of them, are left out
    assert second < first - 6 * 4 - 8
    assert arrived.extra == {"purpose": "replace"}
    assert all(torch.equal(arrived.tensors[name], tensor) for name, tensor in WEIGHTS.items())
    arrived.check(up=False, like=WEIGHTS, site="a", round=1)


def test_named_message_is_valid_and_forgotten_site_gets_weights():
    sent = SentWeights()
    sent.shortened("a", message())
    assert sent.shortened("b", message(site="b")).tensors
    short = sent.shortened("a", message())
    short.check(up=False)
    assert (short.tensors, short.extra.keys()) == ({}, {"held"})
    with pytest.raises(MessageRefused, match="held"):
        replace(short, extra={"held": "abc"}).check(up=False)
    sent.forget("a")
    sent.forget("c")
    assert sent.shortened("a", message()).tensors
    assert not sent.shortened("b", message(site="b")).tensors


@pytest.mark.parametrize(
    "other",
    [
        {**WEIGHTS, "a.weight": WEIGHTS["a.weight"] + 2.0**-20},
        {**WEIGHTS, "a.weight": WEIGHTS["a.weight"].reshape(3, 2)},
        {**WEIGHTS, "a.count": WEIGHTS["a.count"].to(torch.int32)},
        {"b.weight": WEIGHTS["a.weight"], "a.count": WEIGHTS["a.count"]},
        {"a.weight": WEIGHTS["a.weight"]},
    ],
    ids=["value", "shape", "dtype", "name", "one less"],
)
def test_changed_weights_are_sent(other):
    sent = SentWeights()
    sent.shortened("a", message())
    assert sent.shortened("a", message(other)).tensors.keys() == other.keys()


def test_other_messages_are_unchanged():
    sent, held = SentWeights(), HeldWeights()
    masks = message({"m": torch.zeros(2, 2, dtype=torch.uint8)}, kind=Kind.SOFT_MASKS)
    for each in (masks, masks, Message(Kind.METRICS, "a", 0, 1), Message(Kind.METRICS, "a", 0, 1)):
        assert sent.shortened("a", each) is each
    held.complete(masks)
    for named in (checksum(masks.tensors), checksum({})):  # no weights that a message could name
        with pytest.raises(MessageRefused):
            held.complete(replace(message({}), extra={"held": named}))


def test_site_without_matching_weights_reports_not_held():
    sent = SentWeights()
    sent.shortened("a", message())
    short = sent.shortened("a", message())
    held = {name: HeldWeights() for name in ("nothing", "others", "changed", "the same")}
    held["others"].complete(message({"x": torch.ones(2)}))
    held["changed"].complete(whole := message())
    whole.tensors["a.weight"][0, 0] = 9.0
    held["the same"].complete(message())
    held["the same"].complete(message({}))  # leaves what is held
    assert held["the same"].complete(short).tensors.keys() == WEIGHTS.keys()
    for name, site in held.items():
        # one message names weights and carries some, too
        for each in (replace(message(), extra=short.extra) if name == "the same" else short, short):
            with pytest.raises(MessageRefused) as refused:
                site.complete(each)
            assert scrub(refused.value) == NOT_HELD, "words that the server knows"
        site.complete(message())
        assert site.complete(short).tensors.keys() == WEIGHTS.keys()


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(0, 2), st.booleans()), max_size=30))
def test_site_never_uses_other_weights_than_sent(steps):
    sent, held = SentWeights(), {site: HeldWeights() for site in "ab"}
    for site, value, again in steps:
        if again:  # the process is new, and the server has noticed nothing
            held[site] = HeldWeights()
        whole = message({"w": torch.full((4,), float(value))}, site=site)
        try:
            _, arrived = send(sent, held[site], whole)
        except MessageRefused:
            sent.forget(site)
            _, arrived = send(sent, held[site], whole)
        assert arrived.tensors["w"].tolist() == [value] * 4
        assert wire_size(whole) == len(to_bytes(whole))


def test_statistics_are_sent_beside_held_weights():
    sent, held = SentWeights(), HeldWeights()
    held.complete(sent.shortened("a", message(with_statistics(WEIGHTS, {"graph": torch.tensor([1.0])}))))
    again = with_statistics(WEIGHTS, {"graph": torch.tensor([2.0])})
    short = sent.shortened("a", message(again, split="test"))
    assert list(short.tensors) == ["statistics.graph"]
    whole = held.complete(short)
    assert checksum(whole.tensors) == checksum(again)
    assert whole.extra == {"split": "test"}
