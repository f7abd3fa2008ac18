"""Statistics of images: rules, clipping and noise by hand, and their collection at the server."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.config.method import LEAVES_SITE
from samfed_monai.protocol import CollectedStatistics, Kind, Message, MessageRefused, StatisticKind, StatisticRule
from samfed_monai.protocol.message import EXTRA_WORDS, STATISTICS
from samfed_monai.protocol.statistics import limited, with_statistics

WEIGHTS = {"w": torch.tensor([1.0, 2.0])}
LIKE = {"windows": torch.zeros(2, 3)}


def ones(count: int) -> np.ndarray:
    return np.ones(count)


def test_statistic_kinds_are_declared_and_rules_described():
    assert {kind.value for kind in StatisticKind} <= LEAVES_SITE.keys()
    requestable = {kind for kind in StatisticKind if EXTRA_WORDS[STATISTICS].fullmatch(kind.value)}
    assert requestable == set(StatisticKind) - {StatisticKind.PROTOTYPES}
    words = "each of at least 7 images, clipped to a norm of 1, noise multiplier 2"
    assert StatisticRule(1.0, 2.0, 7).describe() == words
    assert StatisticRule().describe() == "each of at least 1 images, not clipped, without noise"


def test_clipping_and_noise_match_hand_calculation():
    tensors = {"a": torch.tensor([[3.0, 4.0], [0.3, 0.4]]), "b": torch.tensor([[[0.0], [2.0]]])}
    assert all(limited(tensors, StatisticRule(), noise=ones)[0][name] is tensors[name] for name in tensors)
    clipped, deviation = limited(tensors, StatisticRule(clip=1.0), noise=ones)
    assert deviation == 0
    torch.testing.assert_close(clipped["a"], torch.tensor([[0.6, 0.8], [0.3, 0.4]]))
    assert clipped["b"].flatten().tolist() == [0.0, 1.0]
    noisy, deviation = limited(tensors, StatisticRule(clip=1.0, noise_multiplier=0.5), noise=ones)
    assert deviation == pytest.approx(2 * 1.0 * 3**0.5 * 0.5)  # three entries
    torch.testing.assert_close(noisy["b"].flatten(), torch.tensor([0.0, 1.0]) + deviation)
    _, half = limited(tensors, StatisticRule(clip=0.5, noise_multiplier=0.5), noise=ones)
    assert half == pytest.approx(deviation / 2)


@given(st.floats(0.01, 100), st.integers(0, 1000))
def test_entries_are_clipped_and_short_entries_unchanged(clip, seed):
    own = torch.randn(4, 3, 2, generator=torch.Generator().manual_seed(seed)) * 10
    found = limited({"a": own}, StatisticRule(clip=clip), noise=ones)[0]["a"]
    lengths = own.flatten(1).norm(dim=1)
    assert found.flatten(1).norm(dim=1).max() <= clip * (1 + 1e-5)
    torch.testing.assert_close(found[lengths <= clip], own[lengths <= clip])


def test_counts_are_unchanged_and_noise_on_counts_is_refused():
    counts = {"counts": torch.tensor([300.0, 400.0])}
    assert limited(counts, StatisticRule(clip=1.0), noise=ones)[0]["counts"] is counts["counts"]
    with pytest.raises(MessageRefused, match=r"tensors of two or more axes \(counts get no noise\), found counts"):
        limited(counts, StatisticRule(clip=1.0, noise_multiplier=1.0), noise=ones)
    with pytest.raises(MessageRefused, match="finite values, found NaN or infinity"):
        limited({"a": torch.tensor([[float("nan")]])}, StatisticRule(), noise=ones)


def message(site: str, **tensors) -> Message:
    return Message(Kind.WEIGHTS, site, 0, 3, n=9, tensors=with_statistics(WEIGHTS, tensors))


def test_statistics_are_requested_until_received_and_restored():
    collected = CollectedStatistics(StatisticKind.SPECTRUM, LIKE)
    messages = {site: message(site) for site in ("a", "b@b")}
    requests = collected.with_requests(messages)
    assert {site: each.extra for site, each in requests.items()} == {s: {"statistics": "spectrum"} for s in messages}
    assert set(collected.expected("a", WEIGHTS)) == {"w", "statistics.windows"}
    assert set(collected.taken("a", message("a", windows=torch.ones(2, 3))).tensors) == {"w"}
    requests = collected.with_requests(messages)
    assert [site for site, each in requests.items() if each.extra] == ["b@b"]
    assert collected.expected("a", WEIGHTS) is WEIGHTS
    collected.taken("b@b", message("b@b", windows=torch.zeros(2, 3)))
    again = CollectedStatistics(StatisticKind.SPECTRUM, LIKE)
    again.load_state_dict({**collected.state_dict(), "other": torch.zeros(1)})
    assert {site: own["windows"].sum().item() for site, own in again.by_site.items()} == {"a": 6.0, "b@b": 0.0}
    assert collected.with_requests(messages, again=True)["a"].extra
    plain = message("a")
    assert collected.taken("a", plain) is plain
