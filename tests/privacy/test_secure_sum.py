"""The sum of masked vectors: what comes out, what a single one tells, who may be missing, what is refused."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.privacy.secure_aggregation import (
    KEYS,
    SEALED,
    SECRET,
    SHARE,
    Member,
    as_vector,
    joined,
    require_cryptography,
    require_keys,
    split,
    stream,
    unmasked,
)
from samfed_monai.protocol import MessageRefused

pytest.importorskip("cryptography", reason="keys and ciphers are an extra")


@given(secret=st.binary(min_size=SECRET, max_size=SECRET), data=st.data())
@settings(max_examples=30)
def test_any_shares_as_many_as_the_threshold_give_the_secret_back(secret, data):
    holders = data.draw(st.lists(st.integers(0, 200), min_size=1, max_size=8, unique=True))
    threshold = data.draw(st.integers(1, len(holders)))
    shares = split(secret, holders, threshold)
    assert all(len(share) == SHARE for share in shares.values())
    chosen = data.draw(st.permutations(holders))[: data.draw(st.integers(threshold, len(holders)))]
    assert joined({holder: shares[holder] for holder in chosen}) == secret


def test_fewer_shares_give_nothing_and_a_changed_one_is_refused():
    shares = split(b"s" * SECRET, range(5), 3)
    with pytest.raises(MessageRefused, match="expected shares of one secret, as many as the threshold, found shares"):
        joined({0: shares[0], 1: shares[1]})
    changed = bytes(SHARE - 1) + b"\x01"
    with pytest.raises(MessageRefused, match="shares that do not belong together"):
        joined({**shares, 2: changed})
    again = split(b"s" * SECRET, range(5), 3)
    assert all(shares[holder] != again[holder] for holder in range(5))


def test_the_stream_is_chacha20():
    """RFC 8439, appendix A.1, test vector 1: key, nonce and counter of zeros."""
    start = "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
    assert stream(bytes(SECRET), 4).tobytes().hex() == start


def test_numbers_are_rounded_weighed_and_refused_where_the_sum_might_not_fit():
    tensors = {"b": torch.tensor([[0.5, -0.25], [3.0, 0.3]]), "a": torch.tensor(7)}
    assert as_vector(tensors, weight=3, fraction_bits=2, members=4).tolist() == [21, 6, -3, 36, 3]
    match = (
        r"expected at most 2.1\S*e\+08, for the sum to fit in 64 bits, found a number of 1e\+09, of 1 images; a smaller"
    )
    with pytest.raises(MessageRefused, match=match):
        as_vector({"a": torch.tensor([-1e9, 1.0])}, weight=1, fraction_bits=32, members=5)


def played(values, threshold, *, silent=(), late=()):
    """What a server sees and what it makes of it, where ``silent`` members never seal and ``late`` ones never add."""
    members = {number: Member(number, threshold) for number in range(len(values))}
    keys = {number: member.keys() for number, member in members.items()}
    sealed = {number: member.shares(keys) for number, member in members.items() if number not in silent}
    vectors = {}
    for number in sealed:
        mail = {sender: rows[number] for sender, rows in sealed.items() if sender != number}
        vectors[number] = members[number].masked(values[number], mail)
    inside = sorted(sealed.keys() - set(late))
    shares = {number: members[number].unmask(inside) for number in inside}
    total = sum((vectors[number] for number in inside), start=np.zeros_like(values[0]))
    return vectors, unmasked(total, survivors=inside, shares=shares, keys=keys)


VALUES = [np.array([1, -2, 3]), np.array([10, 20, -30]), np.array([100, 200, 300]), np.array([0, 0, 7])]


@pytest.mark.parametrize(
    ("silent", "late", "total"),
    [((), (), [111, 218, 280]), ((1,), (), [101, 198, 310]), ((), (0,), [110, 220, 277]), ((3,), (2,), [11, 18, -27])],
    ids=["all", "one without shares", "one after the keys", "one of each"],
)
def test_the_sum_is_of_those_who_went_through_all_steps(silent, late, total):
    vectors, found = played(VALUES, 2, silent=silent, late=late)
    assert found.tolist() == total
    assert all(not np.array_equal(vectors[number], VALUES[number]) for number in vectors)


@given(st.lists(st.lists(st.integers(-(2**60), 2**60), min_size=3, max_size=3), min_size=3, max_size=6), st.data())
@settings(max_examples=20)
def test_the_sum_equals_that_of_plain_numbers_whoever_is_missing(values, data):
    values = [np.array(row) for row in values]
    threshold = len(values) // 2 + 1
    missing = data.draw(st.lists(st.integers(0, len(values) - 1), max_size=len(values) - threshold, unique=True))
    cut = data.draw(st.integers(0, len(missing)))
    _, found = played(values, threshold, silent=missing[:cut], late=missing[cut:])
    plain = sum((row for number, row in enumerate(values) if number not in missing), start=np.zeros(3, dtype=np.int64))
    assert found.tolist() == plain.tolist()


def test_a_single_masked_vector_is_uniform_and_never_the_same():
    """Of zeros: each bit is one half of the time 1, and two rounds have nothing in common.

    65,536 bits of a place stray from one half by less than six standard deviations (0.5 / 256 each).
    """
    zeros = [np.zeros(65536, dtype=np.int64)] * 3
    (one, _), (again, _) = played(zeros, 2), played(zeros, 2)
    bits = np.unpackbits(one[0].view(np.uint8).reshape(-1, 8), axis=1)
    assert np.abs(bits.mean(axis=0) - 0.5).max() < 6 * 0.5 / 256
    assert not (one[0] == again[0]).any()
    assert np.abs(np.corrcoef(one[0], one[1])[0, 1]) < 6 / 256


def test_self_masks_hide_a_vector_that_comes_after_others_have_given_its_masking_key_away():
    """A late vector: the server can take the masks of pairs off, and still sees nothing."""
    values = [np.zeros(4096, dtype=np.int64)] * 3
    members = {number: Member(number, 2) for number in range(3)}
    keys = {number: member.keys() for number, member in members.items()}
    sealed = {number: member.shares(keys) for number, member in members.items()}
    mail = {number: {sender: rows[number] for sender, rows in sealed.items() if sender != number} for number in sealed}
    late = members[2].masked(values[2], mail[2])
    for number in (0, 1):
        members[number].masked(values[number], mail[number])
    shares = {number: members[number].unmask([0, 1]) for number in (0, 1)}
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

    from samfed_monai.privacy.secure_aggregation import _pair_mask

    masking = X25519PrivateKey.from_private_bytes(joined({number: own[2] for number, own in shares.items()}))
    for other in (0, 1):
        late = late - _pair_mask(masking, 2, keys[other], other, 4096)
    assert not (late == 0).any(), "its own seed was not given away"
    assert np.array_equal(late, stream(members[2]._seed, 4096))


def test_what_is_out_of_order_is_refused():
    members = [Member(number, 2) for number in range(3)]
    keys = {number: member.keys() for number, member in enumerate(members)}
    assert {len(key) for key in keys.values()} == {KEYS}
    with pytest.raises(
        MessageRefused, match="expected at least 2, the threshold, so that no update is alone, found 1 mem"
    ):
        members[0].shares({0: keys[0]})
    for wrong in ({**keys, 0: keys[1]}, {**keys, 2: keys[1]}, {1: keys[1], 2: keys[2]}):
        with pytest.raises(MessageRefused, match="a list of keys that is not in order"):
            members[0].shares(wrong)
    sealed = [member.shares(keys) for member in members]
    assert {len(row) for rows in sealed for row in rows.values()} == {SEALED}
    for wrong in ({0: sealed[1][0], 1: sealed[1][0]}, {1: sealed[1][0], 7: sealed[2][0]}):
        with pytest.raises(MessageRefused, match="shares of another sender"):
            members[0].masked(np.zeros(2, dtype=np.int64), wrong)
    mail = {1: sealed[1][0], 2: sealed[2][0]}
    changed = sealed[0][1][:-1] + bytes([sealed[0][1][-1] ^ 1])
    with pytest.raises(MessageRefused, match="shares that were changed on their way"):
        members[1].masked(np.zeros(2, dtype=np.int64), {0: changed})
    with pytest.raises(MessageRefused, match="changed on their way"):
        members[2].masked(np.zeros(2, dtype=np.int64), {1: sealed[2][1]})  # its own, sent back
    members[0].masked(np.zeros(2, dtype=np.int64), mail)
    with pytest.raises(MessageRefused, match="expected at least 2, the threshold"):
        members[0].unmask([0])
    with pytest.raises(MessageRefused, match="members whose shares are not here"):
        members[1].unmask([1, 7])
    members[0].unmask([0, 1])
    with pytest.raises(MessageRefused, match="members whose shares are not here"):
        members[0].unmask([0, 2])  # the other kind of share of 1 and of 2


def test_a_masking_key_that_is_not_the_one_that_was_shown_is_refused():
    members = {number: Member(number, 2) for number in range(3)}
    keys = {number: member.keys() for number, member in members.items()}
    other = split(b"o" * SECRET, range(3), 2)
    seeds = {number: split(members[number]._seed, range(3), 2) for number in range(2)}
    shares = {holder: {0: seeds[0][holder], 1: seeds[1][holder], 2: other[holder]} for holder in range(2)}
    with pytest.raises(MessageRefused, match="shares of another key"):
        unmasked(np.zeros(2, dtype=np.int64), survivors=[0, 1], shares=shares, keys=keys)


def test_without_the_package_a_run_is_refused_with_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(Refused, match=r"found no cryptography; pip install 'samfed-monai\[privacy\]'"):
        require_cryptography("privacy#secure_aggregation")


@pytest.mark.parametrize("point", [bytes(32), (1).to_bytes(32, "little"), (2**255 - 20).to_bytes(32, "little")])
@pytest.mark.parametrize("at", [0, 1])
def test_fault_95_a_key_with_which_no_secret_can_be_agreed_is_refused(point, at):
    own = Member(0, 2).keys()
    keys = own[:SECRET] + point if at else point + own[SECRET:]
    with pytest.raises(MessageRefused, match="expected two public keys of X25519, found a key with which no secret"):
        require_keys(keys, [])
    require_keys(own, [Member(1, 2).keys()])


def test_fault_95_the_keys_of_another_member_are_refused():
    own = Member(0, 2).keys()
    with pytest.raises(MessageRefused, match="expected keys of its own, found the keys of another member"):
        require_keys(own, [Member(1, 2).keys(), own])
