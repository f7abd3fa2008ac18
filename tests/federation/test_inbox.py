"""Each state of a round against each kind of message."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.protocol import Envelope, Inbox, Kind, MessageRefused
from tests.federation.toys import weights


def message(**changes) -> Envelope:
    fields = {"kind": Kind.WEIGHTS, "site": "a", "round": 2, "rounds": 5, "n": 7, "tensors": weights()}
    return Envelope(**{**fields, **changes})


@pytest.fixture
def inbox() -> Inbox:
    return Inbox(round=2, sites=["a", "b"], like=lambda site: weights())


def test_each_site_may_answer_once(inbox):
    inbox.check("b", message(site="b"))
    inbox.check("a", message())


def test_fault_43_a_duplicate_is_refused(inbox):
    inbox.check("a", message())
    with pytest.raises(MessageRefused, match="expected one answer per site and round, found a second answer"):
        inbox.check("a", message())


@pytest.mark.parametrize("round", [1, 3, -1])
def test_faults_44_and_45_another_rounds_message_is_refused_and_the_right_one_still_taken(inbox, round):
    with pytest.raises(MessageRefused, match=f"message -> round: expected round 2, found round {round}"):
        inbox.check("a", message(round=round))
    inbox.check("a", message())


def test_fault_46_an_unknown_sender_is_refused(inbox):
    with pytest.raises(MessageRefused, match="expected a site of this federation, found an unknown sender"):
        inbox.check("z", message(site="z"))


def test_a_sender_under_anothers_name_is_refused(inbox):
    with pytest.raises(MessageRefused, match="another site's name"):
        inbox.check("b", message(site="a"))


def test_fault_37_more_than_twice_the_bytes_and_a_header_are_refused(inbox):
    allowed = 1024**2 + 2 * sum(tensor.numel() * tensor.element_size() for tensor in weights().values())
    with pytest.raises(MessageRefused, match=f"message: expected at most {allowed} bytes"):
        inbox.check("a", message(tensors={"w": torch.zeros(allowed // 4)}))


def test_numbers_only_when_only_numbers_were_asked_for():
    with pytest.raises(MessageRefused, match="expected numbers only"):
        Inbox(round=2, sites=["a"], like=None).check("a", message())


def test_only_the_kind_that_the_round_exchanges_is_taken():
    inbox = Inbox(round=2, sites=["a"], like=lambda site: weights(), kind=Kind.WEIGHTS)
    with pytest.raises(MessageRefused, match="message: expected weights, which this round exchanges, found prototypes"):
        inbox.check("a", message(kind=Kind.PROTOTYPES))
    inbox.check("a", message())
