"""A federation that begins with weights that exist."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, save_tensors, sha256_file
from samfed_monai.core.model_file import usage_of
from samfed_monai.federation.run import Run, plan_problems
from samfed_monai.federation.run_models import RunModels, starting_file
from samfed_monai.federation.start import StartingPoint
from tests.federation.test_job import CLIENT, job
from tests.methods import present


def model_of(folder: Path, round: int) -> dict[str, torch.Tensor]:
    return safe_load(folder / "rounds" / f"{round:03d}" / "global.safetensors")


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[name].equal(other[name]) for name in one)


@pytest.mark.parametrize("as_file", [False, True])
def test_a_federation_begins_with_the_very_weights_of_a_run_or_of_its_file(
    small_federation, finished, tmp_path, as_file, caplog
):
    source = finished / "rounds" / "000" / "global.safetensors" if as_file else finished
    unmoved = {**CLIENT, "learning_rate": 0.0}  # the round then leaves the weights as they were
    with caplog.at_level(logging.INFO, "samfed_monai"):
        results = job(
            small_federation, tmp_path / "b", rounds=1, warm_start_steps=0, start_from=str(source), train=unmoved
        ).run()
    assert equal(model_of(tmp_path / "b", 0), model_of(finished, 0))
    sha256 = sha256_file(finished / "rounds" / "000" / "global.safetensors")
    assert results["start"] == {"name": source.name, "sha256": sha256, "warm_start_steps": 0}
    assert read_json(tmp_path / "b" / "run.json")["hashes"]["start"] == sha256
    assert f"start: the weights of {source.name}, then no steps of warm start" in caplog.text


def test_the_warm_start_goes_on_from_those_weights(small_federation, finished, tmp_path):
    made = job(small_federation, tmp_path / "b", start_from=str(finished), warm_start_steps=1)
    run = Run(made.plan, made.places)
    warm, start = run._warmed(run.participants.server_network, None), model_of(finished, 0)
    assert warm.keys() == start.keys()
    # one step of Adam from there moves no weight farther than the learning rate and its decay
    assert 0 < max(float((warm[name] - start[name]).abs().max()) for name in start) < 0.0011


@pytest.mark.parametrize("variant", present("local_only", "hssf", "fedmd"))
def test_a_start_of_networks_that_are_each_sites_own_is_refused(small_federation, tmp_path, variant):
    made = job(small_federation, tmp_path, variant=variant, start_from="samfed_skin")
    run = Run(made.plan, made.places)
    found = "\n".join(map(str, plan_problems(made.plan, made.places, run.participants, None, sites=2)))
    assert "federate.json -> start_from: expected null with " in found
    assert "found 'samfed_skin'; leave it out, or take a variant with one network" in found


def test_a_start_from_another_network_or_other_classes_is_refused_before_any_work(small_federation, finished, tmp_path):
    other = job(
        small_federation, tmp_path / "b", start_from=str(finished), train={**CLIENT, "network_name": "mobile_sam_fpn"}
    )
    expected = r"network_name: expected 'basic_unet', as global.safetensors was trained, found 'mobile_sam_fpn'"
    with pytest.raises(Refused, match=expected):
        other.run()
    assert not (tmp_path / "b").exists()
    participants = Run(other.plan, other.places).participants
    with pytest.raises(Refused, match=r"model.pt: expected weights of this network, found \d+ tensors that differ"):
        StartingPoint.read(
            "samfed_skin",
            Run((same := job(small_federation, tmp_path / "c")).plan, same.places).participants,
        )
    path = tmp_path / "two.safetensors"
    save_tensors(path, {"w": torch.zeros(1)}, {"network_name": "mobile_sam_fpn", "classes": '["disc", "cup"]'})
    expected = r"classes: expected \['disc', 'cup'\], as two.safetensors was trained, found \['foreground'\]"
    with pytest.raises(Refused, match=expected):
        StartingPoint.read(path, participants)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("nothing", "'nothing', none of that name"),
        ("folder", "folder', a folder that is none of these"),
        ("net.onnx", "net.onnx, an ONNX file"),
        ("net.pt2", "net.pt2, an exported program"),
        ("net.ts", "net.ts, a traced program"),
        ("adapter.safetensors", "adapter.safetensors, a teacher's adapter"),
        ("my_bundle", "my_bundle, a bundle without weights"),
    ],
)
def test_what_holds_no_weights_of_a_network_is_refused(tmp_path, monkeypatch, name, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    shutil.copytree(find_bundle("samfed_skin") / "configs", tmp_path / "my_bundle" / "configs")
    for file in ("net.onnx", "net.pt2", "net.ts"):
        (tmp_path / file).write_bytes(b"")
    save_tensors(tmp_path / "adapter.safetensors", {"w": torch.zeros(1)}, {"adapter": "{}"})
    with pytest.raises(Refused, match=found) as refused:
        starting_file(name)
    assert "expected a bundle that has weights, a finished run's folder, or a weights file" in str(refused.value)


def test_a_run_that_is_not_finished_is_no_start(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(Refused, match=r"expected a finished run, found no results.json in it"):
        starting_file(tmp_path)


def test_the_file_of_a_run_s_model_says_how_it_is_used(finished):
    assert RunModels(finished).header()["usage"] == usage_of(32)
    assert usage_of(64, ["disc", "cup"]).endswith("; then the largest of 3 logits decides: background, disc, cup")
