"""``samfed evaluate``, ``infer`` and ``model`` on a run whose sites keep a part of their network."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import save_tensors, sha256_file
from samfed_monai.inference.model import TrainedModel
from tests.federation.test_job import CLIENT, job


@pytest.fixture(scope="module")
def fedper(small_federation, tmp_path_factory) -> tuple[Path, dict[str, Any]]:
    """A finished run and its results."""
    folder = tmp_path_factory.mktemp("runs") / "fedper"
    options: dict[str, Any] = {"variant": "fedper", "rounds": 1, "train": {**CLIENT, "personal": ["final_conv.*"]}}
    return folder, job(small_federation, folder, **options).run()


def evaluate(model: Path, data: Path, output: Path, *words: str) -> dict[str, Any]:
    where = ("--datalist", str(data / "list.json"), "--data-root", str(data), "--output-dir", str(output))
    assert main(["evaluate", "samfed_skin", "--model", str(model), *where, *words]) == 0
    content: dict[str, Any] = json.loads((output / "metrics.json").read_text())
    return content


def test_each_site_is_scored_on_its_own_model_as_the_run_scored_it(fedper, small_federation, tmp_path, capsys):
    run, results = fedper
    found = evaluate(run, small_federation, tmp_path / "all")
    rows = {site: {**results["sites"][site]["test"], "convention": results["convention"]} for site in results["sites"]}
    assert found["sites"] == rows
    assert sorted(rows) == ["site-1", "site-2"]
    assert found["average"] == results["average"]["test"]
    assert found["model"] == {"site-1": "site-1.safetensors", "site-2": "site-2.safetensors"}
    assert capsys.readouterr().out.splitlines()[1].split()[:2] == ["site-1", "2"]
    files = [tmp_path / "two.safetensors", tmp_path / "half.pt"]
    for file in files:
        assert main(["model", str(run), "--site", "site-2", "--output", str(file)]) == 0
    alone = evaluate(files[0], small_federation, tmp_path / "one", "--site", "site-2")
    assert alone["sites"] == {"site-2": rows["site-2"]}
    state = torch.load(
        files[1], weights_only=True
    )  # a plain state dict in half precision, which says nothing of itself
    assert {tensor.dtype for tensor in state.values()} <= {torch.float16, torch.int64}
    settings = [*(f"--{name}={CLIENT[name]}" for name in ("network_name", "image_size")), "--allow-other-size"]
    half = evaluate(files[1], small_federation, tmp_path / "half", "--site", "site-2", *settings)
    assert half["average"]["dice"] == pytest.approx(rows["site-2"]["dice"], abs=0.01)


def test_a_run_is_not_scored_at_another_size_than_it_was_trained_at(fedper, small_federation, tmp_path, capsys):
    where = ("--datalist", str(small_federation / "list.json"), "--data-root", str(small_federation))
    command = ["evaluate", "samfed_skin", "--model", str(fedper[0]), *where, "--output-dir", str(tmp_path / "out")]
    assert main([*command, "--image_size", "64"]) == 2
    message = "--image_size: expected 32, as site-1.safetensors was trained, found 64; leave it out"
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_masks_and_an_exported_program_are_those_of_the_site_that_is_named(fedper, small_federation, tmp_path, capsys):
    run, _ = fedper
    infer = ["infer", "samfed_skin", str(small_federation / "public"), "--output-dir", str(tmp_path / "masks")]
    assert main([*infer, "--model", str(run)]) == 2
    assert "found shared values only; choose a site's own with --site: site-1, site-2" in capsys.readouterr().err
    assert main([*infer, "--model", str(run / "rounds" / "000" / "global.safetensors")]) == 2
    assert "expected all tensors of this network, found 2 of them missing, first final_conv" in capsys.readouterr().err
    assert main([*infer, "--model", str(run), "--site", "site-1"]) == 0
    assert list((tmp_path / "masks").rglob("*.png"))
    program = tmp_path / "site-1.ts"
    assert main(["export", str(run), "--to", "torchscript", "--output", str(program), "--site", "site-1"]) == 0
    assert torch.jit.load(program)(torch.zeros(3, 3, 32, 32)).shape == (3, 1, 32, 32)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output", "w.pth", "--site", "site-1"], "expected a name that ends in .safetensors"),
        (["--output", "w.safetensors", "--states", "."], "expected the site whose states they are"),
        (["--output", "w.safetensors", "--site", "site-3"], "expected one of ['site-1', 'site-2'], found 'site-3'"),
        (["--output", "w.safetensors"], "found shared values only"),
    ],
)
def test_model_refuses_what_it_cannot_write(fedper, capsys, words, message):
    assert main(["model", str(fedper[0]), *words]) == 2
    assert message in capsys.readouterr().err


def test_a_sam_is_built_as_it_was_trained_and_on_the_same_checkpoint(tmp_path):
    (tmp_path / "sam.pt").write_bytes(b"a SAM")
    header = {"network_name": "sam_vit_t", "image_size": "256", "base_sam": "0" * 64}
    header["network_def"] = '{"experts": 0, "_target_": "os.system"}'
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, header)
    own = {"network_def#checkpoint": str(tmp_path / "sam.pt"), "image_size": 256}
    with pytest.raises(Refused, match=r"SAM's weights: expected 000000000000, on which w.safetensors was trained"):
        TrainedModel("samfed_skin", tmp_path / "w.safetensors").ids("inference", own)
    header["base_sam"] = sha256_file(tmp_path / "sam.pt")
    save_tensors(tmp_path / "w.safetensors", {"a": torch.zeros(1)}, header)
    for workflow in ("inference", "evaluate"):
        ids = TrainedModel("samfed_skin", tmp_path / "w.safetensors").ids(workflow, own)
        assert ids.pop("model") == str(tmp_path / "w.safetensors")
        assert ids == {"network_name": "sam_vit_t", "network_def#experts": 0, **own}
