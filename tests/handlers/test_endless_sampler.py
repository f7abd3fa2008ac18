"""The order of images."""

from __future__ import annotations

from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.handlers import EndlessSampler


@given(st.integers(1, 20), st.integers(0, 2**31 - 1), st.integers(1, 60))
def test_every_image_comes_equally_often_and_a_seed_replays_its_order(count: int, seed: int, length: int) -> None:
    sampler = EndlessSampler(range(count))
    sampler.set_random_state(seed)
    order = list(islice(sampler, length))
    assert order == list(islice(sampler, length))
    times = [order.count(index) for index in range(count)]
    assert max(times) - min(times) <= 1


def test_no_image_no_order() -> None:
    assert list(EndlessSampler([])) == []
