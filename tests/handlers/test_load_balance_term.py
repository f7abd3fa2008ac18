from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.handlers import TermLogger
from samfed_monai.methods.pfedsam import DecoupledStages, LoadBalanceTerm
from samfed_monai.networks.sam.experts import Routing
from samfed_monai.networks.sam.network import SamOutputs, SamPath
from tests.handlers.sam_toy import sam_trainer
from tests.networks.sam.tiny import tiny_network


def engine_of(routing: Routing | None) -> Any:
    prediction: Any = torch.zeros(1, 1, 2, 2)
    prediction.sam_outputs = SamOutputs(SamPath.PERSONAL, routing)
    output = {"pred": prediction, "loss": torch.tensor(2.0)}
    return SimpleNamespace(state=SimpleNamespace(round=0, rounds=1, iteration=1, output=output))


def test_it_adds_a_hundredth_of_the_mean_over_the_layers():
    share = torch.tensor([[0.5, 0.5, 0, 0], [0.25, 0.25, 0.25, 0.25]])
    engine = engine_of(Routing(share, share, (8, 8)))
    LoadBalanceTerm()(engine)
    assert engine.state.terms["load_balance"] == 1.5  # 4 x 0.5 and 4 x 0.25
    assert engine.state.output["loss"] == pytest.approx(2.015)


def test_on_the_global_path_it_leaves_no_trace():
    engine = engine_of(None)
    LoadBalanceTerm()(engine)
    assert engine.state.output["loss"] == 2
    assert not hasattr(engine.state, "terms")


def test_its_mean_is_that_of_stage_l_alone():
    trainer = sam_trainer([DecoupledStages(), LoadBalanceTerm(), TermLogger()], steps=4)
    trainer.run()
    assert 1 <= trainer.state.term_means["load_balance"] <= 2  # a zero of stage G would pull it below


def test_a_network_without_experts_is_refused():
    with pytest.raises(Refused, match=r"terms#load_balance: expected one with experts"):
        sam_trainer([LoadBalanceTerm()], network=tiny_network(experts=0)).run()
