from __future__ import annotations

import logging

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import AutocastInferer, bf16_gains
from samfed_monai.networks import inferer as room
from samfed_monai.networks.inferer import VIEWS, logits_of, mean_of_views


class Witness(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        self.seen = output.dtype
        return output


@pytest.mark.parametrize(("enabled", "inside"), [(True, torch.bfloat16), (False, torch.float32)])
def test_the_network_runs_in_the_asked_precision_and_float32_comes_back(enabled, inside):
    network = Witness(2, 3)
    output = AutocastInferer(enabled)(torch.rand(4, 2), network)
    assert network.seen == inside
    assert output.dtype == torch.float32


def test_auto_follows_the_processor(monkeypatch):
    network = Witness(2, 3)
    for gains, inside in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("samfed_monai.networks.inferer.bf16_gains", lambda device, answer=gains: answer)
        AutocastInferer("auto")(torch.rand(4, 2), network)
        assert network.seen == inside


@pytest.mark.parametrize(
    ("gains", "enabled", "used"),
    [
        (True, True, True),
        (True, "auto", True),
        (True, False, False),
        (False, True, False),
        (False, "auto", False),
        (False, False, False),
    ],
)
def test_a_teacher_computes_in_bfloat16_only_where_the_processor_does(monkeypatch, caplog, gains, enabled, used):
    monkeypatch.setattr(room, "bf16_gains", lambda device: gains)
    room._warn_float32.cache_clear()
    with caplog.at_level(logging.WARNING, "samfed_monai"):
        assert [room.bf16_possible(enabled, "cpu") for _ in range(3)] == [used] * 3
    told = ["bf16 is true, but the cpu of this machine does not compute bfloat16: going on in float32"]
    expected = told if enabled is True and not gains else []
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == expected


def test_gradients_pass_through():
    network = Witness(2, 1)
    AutocastInferer(True)(torch.rand(4, 2), network).sum().backward()
    assert network.weight.grad is not None
    assert network.weight.grad.dtype == torch.float32


def test_the_processor_is_asked(monkeypatch):
    bf16_gains.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not bf16_gains("cpu")
    bf16_gains.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert bf16_gains("cpu") == torch.backends.mkldnn.is_available()
    bf16_gains.cache_clear()
    assert not bf16_gains("meta")


def test_a_wrong_switch_is_refused():
    with pytest.raises(Refused, match=r"AutocastInferer -> enabled: expected true, false or 'auto', found 'on'"):
        AutocastInferer("on")  # type: ignore[arg-type]


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
