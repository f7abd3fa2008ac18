from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.networks.sam.experts import ExpertSwitch, Routed, joined, route, routed


def test_the_two_likeliest_share_the_token():
    gates, probability, chosen = route(torch.tensor([[0.6, 0.1, 0.3, 0.0]]).log(), 2)
    torch.testing.assert_close(probability, torch.tensor([[0.6, 0.1, 0.3, 0.0]]))
    assert chosen.tolist() == [[0, 2]]
    torch.testing.assert_close(gates, torch.tensor([[2 / 3, 0, 1 / 3, 0]]))


def test_equals_are_still_exactly_two():
    gates, _, _ = route(torch.zeros(3, 4), 2)
    assert (gates > 0).sum(dim=-1).tolist() == [2, 2, 2]


def test_all_experts_are_the_softmax_and_one_has_no_gradient_through_its_gate():
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(route(logits, 4)[0], logits.softmax(-1))
    assert route(logits, 1)[0].max(dim=-1).values.tolist() == [1] * 5


@given(st.integers(1, 6), st.integers(1, 20), st.integers(0, 1000), st.data())
def test_gates_sum_to_one_and_shares_too(experts, tokens, seed, data):
    top = data.draw(st.integers(1, experts))
    logits = 3 * torch.randn(tokens, experts, generator=torch.Generator().manual_seed(seed))
    gates, probability, chosen = route(logits, top)
    torch.testing.assert_close(gates.sum(-1), torch.ones(tokens))
    assert ((gates > 0).sum(-1) <= top).all()
    filed = routed(probability, chosen)
    torch.testing.assert_close(filed.share.sum(), torch.tensor(1.0))
    torch.testing.assert_close(filed.probability.sum(), torch.tensor(1.0))
    assert filed.tokens == tokens


def test_what_is_filed_is_hand_computed():
    probability = torch.tensor([[0.5, 0.3, 0.2], [0.1, 0.3, 0.6]])
    filed = routed(probability, torch.tensor([[0, 1], [2, 1]]))
    assert filed.share.tolist() == [0.25, 0.5, 0.25]
    torch.testing.assert_close(filed.probability, torch.tensor([0.3, 0.3, 0.4]))
    assert filed.tokens == 2


def test_a_switch_is_as_it_was_after_a_pass_even_one_that_fails():
    switch = ExpertSwitch()
    with switch.during(on=False, measure=True) as records:
        assert (switch.on, switch.records) == (False, records)
        try:
            with switch.during(on=True, measure=False) as inner:
                assert (switch.on, switch.records) == (True, None)
                raise RuntimeError
        except RuntimeError:
            assert inner == []
        assert (switch.on, switch.records is records) == (False, True)
    assert (switch.on, switch.records) == (True, None)


def test_layers_are_joined_in_order():
    first, second = (Routed(torch.tensor([a, 1 - a]), torch.tensor([0.5, 0.5]), t) for a, t in ((0.25, 8), (0.5, 2)))
    found = joined([first, second])
    assert found is not None
    assert found.share.tolist() == [[0.25, 0.75], [0.5, 0.5]]
    assert found.tokens == (8, 2)
    assert joined([]) is None
