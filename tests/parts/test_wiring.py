"""Components in place of expressions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from samfed_monai.config import run_job
from samfed_monai.errors import Refused
from samfed_monai.parts import best_device, model_path, on_device, parameters_of, part_of


def test_the_device_is_one_that_is_there():
    assert best_device().type == ("cuda" if torch.cuda.is_available() else "cpu")


def test_the_network_that_was_moved_is_the_same_object():
    network = nn.Linear(2, 1)
    assert on_device(network=network, device="cpu") is network


def test_parameters_come_in_the_networks_order():
    network = nn.Linear(2, 1)
    first, second = parameters_of(network=network)
    assert first is network.weight
    assert second is network.bias


def test_a_part_is_a_public_attribute():
    assert part_of(of=SimpleNamespace(train=[1]), name="train") == [1]


@pytest.mark.parametrize("name", ["__class__", "_list", "train.append", "trian", ""])
def test_anything_else_is_no_part(name):
    with pytest.raises(Refused, match="expected the name of a public attribute of SimpleNamespace"):
        part_of(of=SimpleNamespace(train=[1], _list=2), name=name)


def test_a_model_that_was_named_then_safetensors_then_monais_name(tmp_path):
    assert model_path(model="m.pt", bundle_root=tmp_path) == "m.pt"
    assert model_path(model=None, bundle_root=tmp_path) == str(tmp_path / "models" / "model.pt")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.safetensors").write_bytes(b"")
    assert model_path(model=None, bundle_root=tmp_path) == str(tmp_path / "models" / "model.safetensors")


def test_a_job_is_run_or_written_and_nothing_else():
    job = SimpleNamespace(run=lambda: 3, write=lambda: 4, erase=lambda: 5)
    assert run_job(job=job) == 3
    assert run_job(job=job, method="write") == 4
    with pytest.raises(Refused, match="expected 'run' or 'write', found 'erase'"):
        run_job(job=job, method="erase")
