"""`samfed teach` and `samfed weights`: the bundle runs with the arguments; what is missing is refused first."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from samfed_monai.cli.main import build_parser
from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList, render_synthetic
from samfed_monai.networks.sam.adapter import read_header
from tests.networks.fakes import fake_checkpoint

BUNDLE = Path(__file__).parents[2] / "bundles" / "samfed_skin"


def run(*words: str) -> None:
    arguments, arguments.extra = build_parser().parse_known_args(words)
    arguments.run(arguments)


@pytest.fixture
def listed(tmp_path, monkeypatch):
    """A small synthetic list whose sites have labels, and random weights in the weights folder."""
    monkeypatch.setenv("SAMFED_WEIGHTS", str(fake_checkpoint(tmp_path / "mobile_sam.pt").parent))
    datalist = render_synthetic(tmp_path / "images", sites=1, images_per_site=4, public=3, size=(64, 80))
    datalist.save(tmp_path / "list.json")
    return ["--datalist", str(tmp_path / "list.json"), "--data-root", str(tmp_path / "images")]


def test_teach_passes_unknown_options_as_overrides(listed, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.chdir(tmp_path)
    words = [str(BUNDLE), *listed, "--output=-a b.safetensors", "--size", "64", "--epochs", "1"]
    words += ["--evaluate-on", "validation", "--rank", "2", "--evaluate_limit", "1", "--held_out_fraction", "0.4"]
    run("teach", *words)
    assert " --adapter './-a b.safetensors' '--teacher#size' 64 --output-dir RUN" in caplog.messages[-1]
    header = read_header(tmp_path / "-a b.safetensors")
    assert (header.adapt.value, header.rank, header.size) == ("lora", 2, 64)
    assert "held_out" in read_json(tmp_path / "-a b.fit.json")["after"]


def test_teach_on_list_of_server_names_its_site_file(listed, tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("samfed_monai.config.workflow.run_workflow", lambda *_: None)
    DataList.load(listed[1]).for_server().save(tmp_path / "server.json")
    words = ["--datalist", str(tmp_path / "server.json"), *listed[2:], "--output", str(tmp_path / "a.safetensors")]
    run("teach", str(BUNDLE), *words, "--checkpoint", "c.pt", "--size", "64")
    job = f"`samfed flare submit {BUNDLE} '--teacher#size' 64 …`"
    place = f'"adapter" to {tmp_path / "a.safetensors"} in samfed_site.json of the server'
    assert caplog.messages == [f"next: set {place}, then {job} (docs/deploy.md)"]


def test_teach_uses_configured_handlers_and_loss(listed, tmp_path):
    words = [str(BUNDLE), *listed, "--output", str(tmp_path / "a.safetensors"), "--adapt", "decoder", "--size", "64"]
    words += ["--epochs", "2", "--optimizer#weight_decay", "1e30", "--loss", '{"_target_": "monai.losses.DiceLoss"}']
    guard = '[{"_target_": "samfed_monai.handlers.DivergenceGuard", "site": "server"}]'
    with pytest.raises(Stopped, match=r"site 'server', round \d of 2, step \d: the (loss is|weights have) NaN"):
        run("teach", *words, "--train#handlers", guard)


def test_fault_28_missing_weights_and_list_are_refused(listed, tmp_path, monkeypatch):
    words = [str(BUNDLE), *listed[2:], "--output", str(tmp_path / "a.safetensors"), "--datalist"]
    with pytest.raises(Refused, match=r"no\.json"):
        run("teach", *words, str(tmp_path / "no.json"))
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "nowhere"))
    with pytest.raises(Refused, match="samfed weights mobile_sam"):
        run("teach", *words, listed[1])


def test_weights_are_found_and_not_downloaded(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    with pytest.raises(Refused, match="samfed weights mobile_sam --from"):
        run("weights", "mobile_sam")
    (tmp_path / "mobile_sam.pt").write_bytes(b"x")
    run("weights", "mobile_sam")
    assert capsys.readouterr().out == f"{tmp_path / 'mobile_sam.pt'}\n"


def test_fault_29_wrong_weights_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "wrong.pt").write_bytes(b"x")
    with pytest.raises(Refused, match=r"expected SHA-256 6dbb90523a35330f"):
        run("weights", "mobile_sam", "--from", str(tmp_path / "wrong.pt"))


def test_real_checkpoint_is_installed(samfed_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    run("weights", "mobile_sam", "--from", str(samfed_data / "weights" / "mobile_sam.pt"))
    assert (tmp_path / "mobile_sam.pt").stat().st_size == 40_728_226
