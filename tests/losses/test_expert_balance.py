from __future__ import annotations

import torch

from samfed_monai.methods.pfedsam import load_balance


def test_hand_computed_and_averaged_over_layers():
    share = torch.tensor([[0.5, 0.25, 0.25, 0.0], [0.25, 0.25, 0.25, 0.25]])
    probability = torch.tensor([[0.4, 0.3, 0.2, 0.1], [0.7, 0.1, 0.1, 0.1]])
    # 4 (0.2 + 0.075 + 0.05 + 0) = 1.3; even use is 1 whatever the probabilities
    torch.testing.assert_close(load_balance(share, probability), torch.tensor((1.3 + 1.0) / 2))


def test_all_tokens_at_the_same_two_of_four_is_two():
    assert load_balance(torch.tensor([0.5, 0.5, 0, 0]), torch.tensor([0.9, 0.1, 0, 0])) == 2


def test_the_gradient_flows_through_the_probabilities_alone():
    share = torch.tensor([[0.75, 0.25]], requires_grad=True)
    probability = torch.tensor([[0.6, 0.4]], requires_grad=True)
    load_balance(share, probability).backward()
    assert share.grad is None
    torch.testing.assert_close(probability.grad, torch.tensor([[1.5, 0.5]]))
