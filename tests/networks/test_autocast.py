from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from samfed_monai.core.errors import Refused
from samfed_monai.networks import AutocastInferer, bf16_gains
from samfed_monai.networks import autocast as room


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
        monkeypatch.setattr("samfed_monai.networks.autocast.bf16_gains", lambda device, answer=gains: answer)
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
