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
def test_network_runs_in_given_precision_and_returns_float32(enabled, inside):
    network = Witness(2, 3)
    output = AutocastInferer(enabled)(torch.rand(4, 2), network)
    assert network.seen == inside
    output.sum().backward()
    assert output.dtype == network.weight.grad.dtype == torch.float32


def test_auto_precision_follows_processor(monkeypatch):
    network = Witness(2, 3)
    for gains, inside in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr("samfed_monai.networks.inferer.bf16_gains", lambda device, answer=gains: answer)
        AutocastInferer("auto")(torch.rand(4, 2), network)
        assert network.seen == inside


@pytest.mark.parametrize("gains", [True, False])
@pytest.mark.parametrize("enabled", [True, "auto", False])
def test_teacher_uses_bfloat16_only_where_supported(monkeypatch, caplog, gains, enabled):
    monkeypatch.setattr(room, "bf16_gains", lambda device: gains)
    room._warn_float32.cache_clear()
    with caplog.at_level(logging.WARNING, "samfed_monai"):
        assert [room.bf16_possible(enabled, "cpu") for _ in range(3)] == [gains and enabled is not False] * 3
    warning = ["bf16 is true, but the cpu of this machine does not support bfloat16: continuing in float32"]
    expected = warning if enabled is True and not gains else []
    assert [record.getMessage().partition(" (")[0] for record in caplog.records] == expected


def test_bf16_support_is_read_from_processor(monkeypatch):
    bf16_gains.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False, raising=False)
    assert not bf16_gains("cpu")
    bf16_gains.cache_clear()
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    assert bf16_gains("cpu") == torch.backends.mkldnn.is_available()
    bf16_gains.cache_clear()
    assert not bf16_gains("meta")


@pytest.mark.parametrize("count", sorted(VIEWS))
def test_views_are_distinct_and_undone_exactly(count):
    image = torch.arange(12.0).view(1, 1, 3, 4)
    seen = [view.apply(image) for view in VIEWS[count]]
    assert len({str(view.tolist()) for view in seen}) == count
    assert all(torch.equal(view.undo(new), image) for view, new in zip(VIEWS[count], seen, strict=True))
    assert torch.equal(seen[0], image)


def test_quarter_turn_matches_hand_computed_values():
    view = next(view for view in VIEWS[8] if not view.mirror and view.turns == 1)
    assert view.apply(torch.tensor([[1, 2], [3, 4]])).tolist() == [[2, 4], [1, 3]]


LEFT = torch.tensor([[0.8, 0.2], [0.4, 0.2]])
"""Probabilities of a network wherever its image is turned: no symmetry at all."""


def predict_left(batch: torch.Tensor) -> torch.Tensor:
    return torch.logit(LEFT).expand(len(batch), 1, 2, 2)


@pytest.mark.parametrize(
    ("views", "mean"), [(1, [[0.8, 0.2], [0.4, 0.2]]), (2, [[0.5, 0.5], [0.3, 0.3]]), (4, [[0.4, 0.4], [0.4, 0.4]])]
)
def test_views_are_undone_before_averaging(views, mean):
    images = torch.zeros(1, 3, 2, 2)
    torch.testing.assert_close(mean_of_views(images, predict_left, views)[0, 0], torch.tensor(mean))
    logits = AutocastInferer(False, views=views)(images, predict_left)
    torch.testing.assert_close(logits.sigmoid()[0, 0], torch.tensor(mean))


@given(st.integers(0, 2**16), st.integers(1, 3), st.sampled_from(sorted(VIEWS)))
def test_logits_and_probabilities_are_inverse(seed, channels, views):
    torch.manual_seed(seed)
    chances = torch.randn(2, channels, 3, 5)
    chances = chances.sigmoid() if channels == 1 else chances.softmax(dim=1)
    logits = logits_of(chances)
    back = logits.sigmoid() if channels == 1 else logits.softmax(dim=1)
    torch.testing.assert_close(back, chances, rtol=1e-4, atol=1e-6)


def test_certain_pixels_have_finite_logits():
    assert logits_of(torch.tensor([[[[0.0, 1.0]]]])).isfinite().all()
    assert logits_of(torch.tensor([0.0, 1.0]).view(1, 2, 1, 1)).isfinite().all()


@pytest.mark.parametrize("views", [0, 3, 2.0, True, "4"])
def test_invalid_options_are_refused_together(views):
    enabled = r"(?s)-> enabled: expected true, false or 'auto', found 'on'.*"
    with pytest.raises(Refused, match=enabled + r"-> views: expected one of \[1, 2, 4, 8\], f"):
        AutocastInferer("on", views=views)  # type: ignore[arg-type]
