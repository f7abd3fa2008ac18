from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.core.errors import Refused
from samfed_monai.networks import AutocastInferer
from samfed_monai.networks.views import VIEWS, logits_of, mean_of_views


@pytest.mark.parametrize("count", sorted(VIEWS))
def test_views_are_distinct_and_undone_exactly(count):
    image = torch.arange(12.0).view(1, 1, 3, 4)
    seen = [view.apply(image) for view in VIEWS[count]]
    assert len({str(view.tolist()) for view in seen}) == count
    assert all(torch.equal(view.undo(new), image) for view, new in zip(VIEWS[count], seen, strict=True))
    assert torch.equal(seen[0], image)


def test_a_quarter_turn_by_hand():
    view = next(view for view in VIEWS[8] if not view.mirror and view.turns == 1)
    assert view.apply(torch.tensor([[1, 2], [3, 4]])).tolist() == [[2, 4], [1, 3]]


def test_views_are_undone_before_they_are_averaged():
    images = torch.zeros(1, 3, 2, 2)
    left = torch.logit(torch.tensor([[0.8, 0.2], [0.4, 0.2]]))  # wherever the image is turned: no symmetry at all

    def network(batch: torch.Tensor) -> torch.Tensor:
        return left.expand(len(batch), 1, 2, 2)

    torch.testing.assert_close(mean_of_views(images, network, 1)[0, 0], torch.tensor([[0.8, 0.2], [0.4, 0.2]]))
    torch.testing.assert_close(mean_of_views(images, network, 2)[0, 0], torch.tensor([[0.5, 0.5], [0.3, 0.3]]))
    torch.testing.assert_close(mean_of_views(images, network, 4)[0, 0], torch.full((2, 2), 0.4))


def test_views_of_a_network_that_follows_the_image_change_nothing():
    images = torch.arange(12.0).reshape(1, 3, 2, 2) / 12
    same = mean_of_views(images, lambda batch: batch[:, :1], 8)
    torch.testing.assert_close(same, images[:, :1].sigmoid())


@given(st.integers(0, 2**16), st.integers(1, 3), st.sampled_from(sorted(VIEWS)))
def test_logits_of_probabilities_give_them_back(seed, channels, views):
    torch.manual_seed(seed)
    chances = torch.randn(2, channels, 3, 5)
    chances = chances.sigmoid() if channels == 1 else chances.softmax(dim=1)
    logits = logits_of(chances)
    back = logits.sigmoid() if channels == 1 else logits.softmax(dim=1)
    torch.testing.assert_close(back, chances, rtol=1e-4, atol=1e-6)


def test_sure_pixels_have_finite_logits():
    assert logits_of(torch.tensor([[[[0.0, 1.0]]]])).isfinite().all()
    assert logits_of(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)).isfinite().all()


def test_an_inferer_with_views_gives_logits_of_the_mean_probability():
    images = torch.zeros(1, 3, 2, 2)
    left = torch.logit(torch.tensor([[0.8, 0.2], [0.4, 0.2]]))
    seen = AutocastInferer(False, views=2)(images, lambda batch: left.expand(len(batch), 1, 2, 2))
    torch.testing.assert_close(seen.sigmoid()[0, 0], torch.tensor([[0.5, 0.5], [0.3, 0.3]]))
    once = AutocastInferer(False)(images, lambda batch: left.expand(len(batch), 1, 2, 2))
    assert torch.equal(once[0, 0], left)


@pytest.mark.parametrize("views", [0, 3, 2.0, True, "4"])
def test_other_numbers_of_views_are_refused(views):
    with pytest.raises(Refused, match=r"AutocastInferer -> views: expected one of \[1, 2, 4, 8\], found"):
        AutocastInferer(views=views)
