"""Components in place of expressions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from samfed_monai.bundle import best_device, model_path, on_device, parameters_of, part_of
from samfed_monai.config import run_job
from samfed_monai.core.errors import Refused


def test_best_device_is_available():
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_on_device_returns_same_network_and_ordered_parameters():
    network = nn.Linear(2, 1)
    assert on_device(network=network, device="cpu") is network
    first, second = parameters_of(network=network)
    assert first is network.weight
    assert second is network.bias


def two_layers() -> nn.Module:
    return nn.ModuleDict({"encoder": nn.Linear(2, 1), "head": nn.Linear(1, 1)})


def test_parameter_group_has_own_options():
    network = two_layers()
    groups = parameters_of(network=network, groups=[{"params": ["head.*"], "lr": 0.01, "weight_decay": 0.0}])
    first, second = torch.optim.AdamW(groups, lr=0.001, weight_decay=0.02).param_groups
    for group, part, options in ((first, "encoder", (0.001, 0.02)), (second, "head", (0.01, 0.0))):
        assert (group["lr"], group["weight_decay"]) == options
        assert list(map(id, group["params"])) == list(map(id, network[part].parameters()))


def test_first_matching_group_wins_and_rest_may_be_empty():
    groups = parameters_of(network=two_layers(), groups=[{"params": ["*.bias"], "lr": 0.2}, {"params": ["*"]}])
    assert [(len(group["params"]), group.get("lr")) for group in groups] == [(2, 0.2), (2, None)]


def test_invalid_parameter_groups_are_reported_together():
    bad = [{"params": ["tail.*"], "lr": 0.1}, {"params": ["head.*"], "lr": 0}, {"params": "encoder.*"}, {"lr": 0.1}]
    bad += [{"params": ["head.weight"]}, 1]  # an earlier group took it; no group
    with pytest.raises(Refused) as refused:
        parameters_of(network=two_layers(), groups=bad)
    assert [(problem.where, problem.found, problem.expected) for problem in refused.value.problems] == [
        ("optimizer#params#groups#0#params", "no parameter like 'tail.*'", "at least one"),
        ("optimizer#params#groups#1#lr", "0", "a learning rate > 0"),
        ("optimizer#params#groups#2#params", "'encoder.*'", "a list of patterns"),
        ("optimizer#params#groups#3#params", "None", "a list of patterns"),
        ("optimizer#params#groups#4#params", "no parameter like 'head.weight'", "at least one"),
        ("optimizer#params#groups#5#params", "None", "a list of patterns"),
    ]
    assert refused.value.problems[0].hint.endswith("names begin with encoder, head")


def test_pretrained_encoder_has_own_learning_rate():
    network = two_layers()
    assert parameters_of(network=network, encoder_learning_rate=0.1) == list(network.parameters())  # a random start
    network.pretrained = "encoder"
    rest, encoder = parameters_of(network=network, encoder_learning_rate=0.1)
    assert (rest["params"], "lr" in rest) == (list(network["head"].parameters()), False)
    assert (encoder["params"], encoder["lr"]) == (list(network["encoder"].parameters()), 0.1)
    assert parameters_of(network=network) == list(network.parameters())


def test_encoder_group_excludes_parameters_of_named_groups():
    network = two_layers()
    network.pretrained = "encoder"
    own = [{"params": ["encoder.weight"], "lr": 0.2}]
    groups = parameters_of(network=network, groups=own, encoder_learning_rate=0.1)
    assert [(len(group["params"]), group.get("lr")) for group in groups] == [(2, None), (1, 0.2), (1, 0.1)]


@pytest.mark.parametrize("rate", [0, -1.0, "0.1", True])
def test_invalid_encoder_learning_rate_is_refused(rate):
    with pytest.raises(Refused, match="encoder_learning_rate: expected a learning rate > 0"):
        parameters_of(network=two_layers(), encoder_learning_rate=rate)


def test_part_of_accepts_only_public_attributes():
    whole = SimpleNamespace(train=[1], _list=2)
    assert part_of(of=whole, name="train") == [1]
    for name in ("__class__", "_list", "train.append", "trian", ""):
        with pytest.raises(Refused, match="expected the name of a public attribute of SimpleNamespace"):
            part_of(of=whole, name=name)


def test_model_path_prefers_given_then_safetensors_then_default(tmp_path):
    assert model_path(model="m.pt", bundle_root=tmp_path) == "m.pt"
    assert model_path(model=None, bundle_root=tmp_path) == str(tmp_path / "models" / "model.pt")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").write_bytes(b"")
    assert model_path(model=None, bundle_root=tmp_path) == str(tmp_path / "models" / "model.safetensors")


def test_run_job_accepts_only_run_and_write():
    job = SimpleNamespace(run=lambda: 3, write=lambda: 4, erase=lambda: 5)
    assert run_job(job=job) == 3
    assert run_job(job=job, method="write") == 4
    with pytest.raises(Refused, match=r"expected one of \['run', 'write'\], found 'erase'"):
        run_job(job=job, method="erase")
