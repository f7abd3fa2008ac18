"""Parts of HSSF's network, on a few numbers."""

from __future__ import annotations

import torch
from torch import nn

from samfed_monai.networks.hssf import Aspp, ConfidenceBranch, block, drawn_anew, stressed


def test_stress_by_hand() -> None:
    features = torch.tensor([[1.0, 3.0], [0.0, -1.0]]).view(1, 2, 1, 2)  # means 2 and -1/2
    assert stressed(features).flatten().tolist() == [3.0, 9.0, 0.0, -0.5]


def test_confidence_looks_at_features_and_at_logits() -> None:
    torch.manual_seed(0)
    branch = ConfidenceBranch(classes=3).eval()
    features, logits = torch.randn(2, 256, 4, 5), torch.randn(2, 3, 4, 5)
    with torch.no_grad():
        found = branch(features, logits)
        assert found.shape == (2, 1, 4, 5)
        assert not torch.allclose(branch(features, logits + 1), found)
        assert not torch.allclose(branch(features + 1, logits), found)


def test_confidence_is_what_its_sums_say() -> None:
    torch.manual_seed(0)
    branch = ConfidenceBranch(classes=2).eval()
    seen: dict[str, tuple[torch.Tensor, torch.Tensor]] = {}
    for name in ("first", "second", "third", "last"):
        part = getattr(branch, name)
        part.register_forward_hook(lambda _m, given, out, name=name: seen.update({name: (given[0], out)}))
    features, logits = torch.randn(1, 256, 3, 3), torch.randn(1, 2, 3, 3)
    with torch.no_grad():
        branch(features, logits)
    first = stressed(seen["first"][1])
    second = stressed(first + seen["second"][1])
    expected = {
        "first": (features, logits),
        "second": (first, features),
        "third": (first, second),
        "last": (second + seen["third"][1], second),
    }
    for name, maps in expected.items():
        torch.testing.assert_close(seen[name][0], torch.cat(maps, dim=1))


def test_aspp_keeps_the_size_and_joins_five_views() -> None:
    aspp = Aspp(8).eval()
    with torch.no_grad():
        assert aspp(torch.randn(2, 8, 4, 6)).shape == (2, 256, 4, 6)
    assert aspp.project[0][0].in_channels == 5 * 256


def test_convolutions_are_drawn_by_what_comes_in_and_nothing_else_is() -> None:
    torch.manual_seed(0)
    part = drawn_anew(block(64, 256, 3))
    convolution, norm = part[0], part[1]
    assert isinstance(convolution, nn.Conv2d)
    assert abs(convolution.weight.std().item() / (2 / (9 * 64)) ** 0.5 - 1) < 0.02  # of 147,456 numbers
    assert norm.weight.unique().tolist() == [1.0]
