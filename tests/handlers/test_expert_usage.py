from __future__ import annotations

import json
import stat
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from samfed_monai.core.errors import Refused
from samfed_monai.methods.pfedsam import DecoupledStages, ExpertUsage
from samfed_monai.networks.sam.experts import Routing
from samfed_monai.networks.sam.network import SamOutputs, SamPath
from tests.handlers.sam_toy import sam_trainer
from tests.handlers.toy import next_round
from tests.networks.sam.tiny import tiny_network


def test_shares_are_weighed_by_tokens():
    usage, network = ExpertUsage(), SimpleNamespace(expert_layers=["a", "b"])
    engine: Any = SimpleNamespace(network=network, state=SimpleNamespace())
    passes = [([[0.5, 0.5], [1, 0]], (30, 10)), (None, ()), ([[0.1, 0.9], [0, 1]], (10, 10))]
    for share, tokens in passes:
        prediction: Any = torch.zeros(1)
        routing = None if share is None else Routing(torch.tensor(share), torch.tensor(share), tokens)
        prediction.sam_outputs = SamOutputs(SamPath.PERSONAL, routing)
        engine.state.output = {"pred": prediction}
        usage(engine)
    usage._epoch_completed(engine)
    assert engine.state.expert_usage == {
        "a": {"share": pytest.approx([0.4, 0.6]), "tokens": 40},
        "b": {"share": [0.5, 0.5], "tokens": 20},
    }


def test_a_round_counts_the_tokens_of_stage_l_and_the_next_one_starts_anew():
    trainer = sam_trainer([DecoupledStages(), ExpertUsage()], steps=3)
    for round in range(2):
        next_round(trainer, round, 2)
        usage = trainer.state.expert_usage
        assert list(usage) == trainer.network.expert_layers
        for layer in usage.values():
            assert layer["tokens"] == 1 * 4 * 16  # one step of stage L, four images, 4 x 4 tokens
            assert sum(layer["share"]) == pytest.approx(1)
            assert len(layer["share"]) == 4


def test_every_round_is_a_line_that_its_owner_alone_can_read(tmp_path):
    trainer = sam_trainer([DecoupledStages(), ExpertUsage(output_dir=tmp_path, site="a")], steps=2)
    for round in range(2):
        next_round(trainer, round, 2)
    path = tmp_path / "sites" / "a" / "expert_usage.jsonl"
    first, second = map(json.loads, path.read_text().splitlines())
    assert (first["round"], second["round"]) == (0, 1)
    assert second["layers"] == trainer.state.expert_usage
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_trainer_without_rounds_counts_each_epoch():
    trainer = sam_trainer([ExpertUsage()], steps=2, epochs=2)
    trainer.run()
    assert {layer["tokens"] for layer in trainer.state.expert_usage.values()} == {2 * 4 * 16}


def test_without_stage_l_there_is_nothing_to_tell():
    trainer = sam_trainer([DecoupledStages(share=1.0), ExpertUsage()], steps=1)
    trainer.run()
    assert trainer.state.expert_usage == {}


def test_a_network_without_experts_is_refused():
    with pytest.raises(Refused, match=r"after#expert_usage \(ExpertUsage\): expected one with experts"):
        sam_trainer([ExpertUsage()], network=tiny_network(experts=0)).run()
