"""Mixing element by element: exact at both ends, learned by hand, clipped."""

from __future__ import annotations

import torch

from samfed_monai.methods.fedicra import learned, mixed

LOCAL = torch.tensor([0.1, -2.0, 3.0, 0.7, 5.0, -0.3])
COMMON = torch.tensor([0.9, 2.0, 1.0, 0.7, -1.0, 0.6])


def test_ones_are_the_global_weights_and_zeros_the_sites_own_to_the_bit():
    assert torch.equal(mixed(LOCAL, COMMON, torch.ones(6)), COMMON)
    assert torch.equal(mixed(LOCAL, COMMON, torch.zeros(6)), LOCAL)


def test_a_step_is_the_gradient_through_the_mixture():
    weight = torch.tensor([0.5, 0.5, 0.5, 0.5, 0.5, 0.5], requires_grad=True)
    target = torch.tensor([1.0, 1.0, 1.0, 0.0, 2.5, 0.0])
    mixture = LOCAL + weight * (COMMON - LOCAL)
    mixture.retain_grad()
    (0.5 * (mixture - target).square().sum()).backward()
    by_autograd = (weight - 0.01 * weight.grad).detach()
    found = learned(weight.detach(), mixture.grad, LOCAL, COMMON, 0.01)
    torch.testing.assert_close(found, by_autograd)
    # of the second: mixture 0, gradient -1, times 4: 0.5 + 0.01 * 4
    assert found[1].item() == torch.tensor(0.54).item()


def test_weights_are_clipped_to_zero_and_one():
    gradient = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 0.0])
    found = learned(torch.full((6,), 0.5), gradient, LOCAL, COMMON, 1.0)
    #  differences: 0.8, 4, -2, 0, -6, 0.9
    assert found.tolist() == [0.0, 1.0, 1.0, 0.5, 0.0, 0.5]
