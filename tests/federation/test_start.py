"""What a federation begins with: weights that exist, and a network that is the run's model where no round is better."""

from __future__ import annotations

import logging
import shutil
from typing import Any

import pytest
import torch

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, safe_load, save_tensors, sha256_file
from samfed_monai.core.model_file import usage_of
from samfed_monai.federation.run import Run, plan_problems
from samfed_monai.federation.run_folder import START, RoundStore, expected_dice
from samfed_monai.federation.run_models import RunModels, starting_file
from samfed_monai.federation.server import RoundController
from samfed_monai.federation.start import StartingPoint
from samfed_monai.reports.html import run_summary
from samfed_monai.reports.run_data import RunData
from samfed_monai.results import validate_results
from tests.federation.fake_sam import fake_sam, fitted
from tests.federation.test_job import CLIENT, job
from tests.federation.toys import model_of, same
from tests.methods import present


def test_federation_starts_from_weights_of_earlier_run(small_federation, finished, tmp_path, caplog, monkeypatch):
    monkeypatch.chdir(finished)  # which only start_from names
    file = finished / "rounds" / "000" / "global.safetensors"
    assert starting_file(finished) == starting_file(file) == file
    unmoved = {**CLIENT, "learning_rate": 0.0}  # the round then leaves the weights as they were
    options = {"rounds": 1, "warm_start_steps": 0, "start_from": str(finished), "train": unmoved}
    with caplog.at_level(logging.INFO, "samfed_monai"):
        results = job(small_federation, tmp_path / "b", unseen=["site-2"], allow_single_site=True, **options).run()
    assert same(model_of(tmp_path / "b", 0), model_of(finished, 0))
    assert results["start"] == {"name": "first", "sha256": sha256_file(file), "warm_start_steps": 0}
    assert read_json(tmp_path / "b" / "run.json")["hashes"]["start"] == sha256_file(file)
    assert "start: the weights of first, then no steps of warm start" in caplog.text
    assert "The run in start_from trained at site-2, unseen in this run" in results["caveats"][0]
    assert sum("trained at" in caveat for caveat in results["caveats"]) == 1


def test_warm_start_continues_from_given_weights(small_federation, finished, tmp_path):
    made = job(small_federation, tmp_path / "b", start_from=str(finished), warm_start_steps=1)
    run = Run(made.plan, made.paths)
    warm, start = run._warm_weights(run.participants.server_network), model_of(finished, 0)
    assert warm.keys() == start.keys()
    # one step of Adam from there moves no weight farther than the learning rate and its decay
    assert 0 < max(float((warm[name] - start[name]).abs().max()) for name in start) < 0.0011


@pytest.mark.parametrize("variant", present("local_only", "hssf", "fedmd"))
def test_start_from_is_refused_for_own_networks(small_federation, tmp_path, variant):
    made = job(small_federation, tmp_path, variant=variant, start_from="samfed_skin")
    run = Run(made.plan, made.paths)
    found = "\n".join(map(str, plan_problems(made.plan, made.paths, run.participants, None, sites=2)))
    assert "federate.json -> start_from: expected null with " in found
    assert "found 'samfed_skin'; remove it, or use a variant with one network" in found


def test_start_from_mismatched_network_or_classes_is_refused(small_federation, finished, tmp_path):
    other = job(
        small_federation, tmp_path / "b", start_from=str(finished), train={**CLIENT, "network_name": "mobile_sam_fpn"}
    )
    expected = r"network_name: expected 'basic_unet', as global.safetensors was trained, found 'mobile_sam_fpn'"
    with pytest.raises(Refused, match=expected):
        other.run()
    assert not (tmp_path / "b").exists()
    participants = Run(other.plan, other.paths).participants
    plain = job(small_federation, tmp_path / "c")
    with pytest.raises(Refused, match=r"model.pt: expected weights of this network, found \d+ tensors that differ"):
        StartingPoint.read("samfed_skin", Run(plain.plan, plain.paths).participants)
    path = tmp_path / "two.safetensors"
    save_tensors(path, {"w": torch.zeros(1)}, {"network_name": "mobile_sam_fpn", "classes": '["disc", "cup"]'})
    expected = r"classes: expected \['disc', 'cup'\], as two.safetensors was trained, found \['foreground'\]"
    with pytest.raises(Refused, match=expected):
        StartingPoint.read(path, participants)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("folder", "folder', a folder of another kind"),
        ("net.onnx", "net.onnx, an ONNX file"),
        ("net.pt2", "net.pt2, an exported program"),
        ("net.ts", "net.ts, a traced program"),
        ("adapter.safetensors", "adapter.safetensors, a teacher's adapter"),
        ("my_bundle", "my_bundle, a bundle without weights"),
    ],
)
def test_path_without_network_weights_is_refused(tmp_path, monkeypatch, name, found):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "folder").mkdir()
    shutil.copytree(find_bundle("samfed_skin") / "configs", tmp_path / "my_bundle" / "configs")
    for file in ("net.onnx", "net.pt2", "net.ts"):
        (tmp_path / file).write_bytes(b"")
    save_tensors(tmp_path / "adapter.safetensors", {"w": torch.zeros(1)}, {"adapter": "{}"})
    with pytest.raises(Refused, match=found) as refused:
        starting_file(name)
    assert "expected a bundle with weights, a finished run's folder, or a weights file" in str(refused.value)


def test_model_file_header_describes_usage(finished):
    assert RunModels(finished).header()["usage"] == usage_of(32)
    assert usage_of(64, ["disc", "cup"]).endswith("; then the largest of 3 logits decides: background, disc, cup")


@pytest.fixture(scope="module")
def misled(small_federation, tmp_path_factory):
    """A job whose sites learn from masks of the left half of every image, whatever it shows; and its results."""
    folder, logger = tmp_path_factory.mktemp("misled"), logging.getLogger("samfed_monai")
    strongly = {"agreement#rule": "teacher", "terms#pseudo_label#weight": 4.0}
    train = {**CLIENT, "local_steps": 8, "learning_rate": 0.003, **strongly}
    (folder / "a.safetensors").write_bytes(fitted())
    options: dict[str, Any] = {"rounds": 3, "variant": "samfed", "warm_start_steps": 40}
    made = job(small_federation, folder / "run", train=train, adapter=str(folder / "a.safetensors"), **options)
    with pytest.MonkeyPatch.context() as patch:
        fake_sam(folder, patch)
        level = logger.level
        logger.setLevel(logging.INFO)
        results = made.run()
        logger.setLevel(level)
    return made, results


def test_misleading_teacher_falls_back_to_start_model(misled):
    made, results = misled
    folder = made.paths.output_dir
    start, rounds = (results["against_start"][name] for name in ("start", "rounds"))
    assert start > rounds
    assert results["models"]["best"]["round"] == START
    assert results["average"]["validation"]["dice"] == start, "scored once, before round 0"
    assert results["models"]["last"]["round"] == 2
    assert results["models"]["last"]["average"]["validation"]["dice"] < start
    assert results["average"]["test"]["n"] == 4
    assert validate_results(results) == []
    log = (folder / "run.log").read_text()
    assert [log.count(f"round {number} of 3: validation Dice") for number in range(4)] == [1, 1, 1, 1]
    assert log.count("3 rounds in a row score lower than the initial network") == 1
    assert f"(validation Dice {start:.3f}, in the best round {rounds:.3f})" in results["caveats"][0]
    text = run_summary(RunData.read(folder))[1]
    assert f"the network that the run began with, as no round is better (validation Dice {start:.3f}, in the " in text


def test_run_models_return_start_after_fallback(misled, tmp_path):
    made, results = misled
    folder = made.paths.output_dir
    (warm,) = (folder / "cache" / "warm_start").glob("*.safetensors")
    models = RunModels(folder)
    assert models.round == START
    assert same(models.tensors(), safe_load(warm))
    assert same(safe_load(models.write(tmp_path / "model.safetensors")), safe_load(warm))
    assert (
        sha256_file(models.server)
        == results["hashes"]["model_best"]
        == read_json(models.server.parent / "round.json")["files"]["global.safetensors"]
    )
    assert not same(model_of(folder, 2), safe_load(warm))


def test_expected_dice_also_prefers_start(misled):
    made, _ = misled
    store = RoundStore(made.paths.output_dir / "rounds")
    promised = [expected_dice(store.record(number)) for number in (START, 0, 1, 2)]
    assert max(promised[1:]) < promised[0], "without labels the run would have fallen back as well"


def test_resumed_run_does_not_score_start_again(misled, monkeypatch):
    made, results = misled
    monkeypatch.setattr(RoundController, "_score_start", None)
    fake_sam(made.paths.output_dir.parent, monkeypatch)
    again = made.run()
    assert again["models"] == results["models"]
    assert again["against_start"] == results["against_start"]


def test_untrained_start_is_not_scored(finished):
    assert "against_start" not in read_json(finished / "results.json")
    assert not (finished / "rounds" / "start").exists()
