"""What a client reads from a call, and what it derives from that."""

from __future__ import annotations

import pytest

from samfed_monai.core.seeds import derive_seed
from samfed_monai.federation.exchange import Call
from samfed_monai.protocol.message import Kind


def test_later_words_go_before_earlier_ones():
    call = Call.of("a", {"split": "test", "round": 1}, None, {"round": 2})
    assert call.words == {"split": "test", "round": 2}
    assert call.round == 2


def test_seeds_are_of_seed_site_round_and_purpose():
    call = Call.of("a", {"round": 3, "seed": 7})
    assert call.derive_seed("train") == derive_seed(7, "a", 3, "train")
    assert call.derive_seed() == derive_seed(7, "a", 3)
    assert Call.of("a", {"seed": 7}).derive_seed("train") is None, "an FL system that counts no rounds"


@pytest.mark.parametrize(
    ("words", "keeps"),
    [({}, False), ({"purpose": "replace"}, False), ({"purpose": "distil"}, True), ({"purpose": "keep"}, True)],
)
def test_which_purposes_leave_a_network_in_place(words, keeps):
    assert Call.of("a", words).keeps_network is keeps


def test_the_header_of_an_answer_says_what_the_call_did_not():
    header = Call.of("a", {"round": 1, "rounds": 4, "seed": 7}).header(Kind.WEIGHTS, n=5)
    assert {name: header[name] for name in ("site", "round", "rounds", "seed", "n", "kind")} == {
        "site": "a",
        "round": 1,
        "rounds": 4,
        "seed": 7,
        "n": 5,
        "kind": "weights",
    }
    header = Call.of(None).header(Kind.METRICS, n=0)
    assert (header["site"], header["round"], header["rounds"], header["seed"]) == ("None", 0, 1, 0)
