"""The distillation of condensation and fusion, on a batch known by heart."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.losses import distillation_kl
from samfed_monai.methods.heterogeneous import PublicDistillationTerm


class Engine:
    """What a term sees of a trainer."""

    class state:
        iteration = 1

    def __init__(self, **batch) -> None:
        self.state.batch, self.state.terms = batch, {}
        self.state.terms_iteration = None
        self.state.output = {"loss": torch.tensor(2.0), "pred": torch.zeros(2, 1, 2, 2)}


def test_images_with_a_closed_gate_count_as_zero_in_the_mean():
    target = torch.full((2, 1, 2, 2), 0.9)
    engine = Engine(target=target, target_gate=torch.tensor([1.0, 0.0]))
    PublicDistillationTerm(weight=3.0, temperature=2.0)(engine)
    single = distillation_kl(torch.zeros(1, 1, 2, 2), target[:1], 2.0).item()
    assert engine.state.terms["public_kd"].item() == pytest.approx(single / 2)
    assert engine.state.terms["public_kd_gate"].item() == 0.5
    assert engine.state.output["loss"].item() == pytest.approx(2 + 3 * single / 2)
    assert engine.state.terms["supervised"].item() == 2.0


def test_a_batch_without_targets_adds_nothing():
    engine = Engine()
    PublicDistillationTerm()(engine)
    assert engine.state.output["loss"].item() == 2.0
    assert engine.state.terms.keys() == {"supervised"}


def test_bad_options_are_refused_together():
    with pytest.raises(Refused, match=r"public_kd#weight: expected a number >= 0(.|\n)*public_kd#temperature"):
        PublicDistillationTerm(weight=-1.0, temperature=0.0)
