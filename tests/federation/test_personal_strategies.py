"""Federations whose sites personalise, on the toy bundle: through the filter, resumed to the bit, undone on failure."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from samfed_monai.core.io import read_json, safe_load
from samfed_monai.federation import SiteWorker
from samfed_monai.methods.apple import Apple
from samfed_monai.methods.fca import ClientTailored
from samfed_monai.methods.fedavg import PersonalFedAvg
from samfed_monai.protocol import Envelope, Kind, Task
from tests.federation.personal import personal_algo, run_personal
from tests.federation.toys import run_toy, toy_weights

STRATEGIES = {"ditto": PersonalFedAvg, "fedicra": PersonalFedAvg, "apple": Apple}


def files(path: Path, round: int) -> dict[str, str]:
    return read_json(path / "rounds" / f"{round:03d}" / "round.json")["files"]


def cut(whole: Path, to: Path) -> None:
    """The same run as it was before its last round of three."""
    shutil.copytree(whole, to)
    shutil.rmtree(to / "rounds" / "002")


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_run_that_was_cut_goes_on_to_the_same_bits(tmp_path, name):
    result, _, _ = run_personal(tmp_path / "whole", name, STRATEGIES[name]())
    assert [record["sites"]["site-1"]["status"] for record in result.records] == ["ok"] * 3
    cut(tmp_path / "whole", tmp_path / "cut")
    run_personal(tmp_path / "cut", name, STRATEGIES[name]())
    assert files(tmp_path / "cut", 2) == files(tmp_path / "whole", 2)
    states = [safe_load(tmp_path / f"whole/rounds/002/clients/site-{site}.safetensors") for site in (1, 2)]
    assert any(not torch.equal(states[0][n], states[1][n]) for n in states[0] if n.startswith("network."))
    assert any(n.startswith("sharing.") for n in states[0])


def test_what_leaves_is_the_networks_own_names_and_nothing_of_a_sharings_state(tmp_path):
    for name, strategy in STRATEGIES.items():
        path = tmp_path / name
        run_personal(path, name, strategy(), rounds=2)
        lines = [line for line in (path / "sites/site-1/audit.jsonl").read_text().splitlines() if '"train"' in line]
        assert len(lines) == 2
        assert all(f'"tensors": {len(toy_weights())}' in line and '"sent"' in line for line in lines)


def test_ditto_sends_what_fedavg_sends(tmp_path):
    plain = run_toy(tmp_path / "plain", rounds=2)
    personal, _, _ = run_personal(tmp_path / "ditto", "ditto", PersonalFedAvg(), rounds=2)
    up = [
        {site: entry["up_bytes"] for site, entry in r["sites"].items()} for r in (plain.records[1], personal.records[1])
    ]
    assert up[0].keys() == up[1].keys()
    assert all(abs(up[0][site] - up[1][site]) < 500 for site in up[0]), "a few more numbers in the header"


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_round_that_fails_leaves_a_site_as_it_was(name):
    algo = personal_algo("site-1", name, fail_in_round=1)
    worker = SiteWorker("site-1", algo)
    message = {"tensors": toy_weights(1), "extra": {"purpose": "distil"}}
    worker.answer(Task.TRAIN, Envelope(Kind.WEIGHTS, "site-1", 0, 2, **message))
    before = {n: t.clone() for n, t in algo.state_dict().items() if not n[0].isdigit() and n != "plain"}
    with pytest.raises(FileNotFoundError):
        worker.answer(Task.TRAIN, Envelope(Kind.WEIGHTS, "site-1", 1, 2, **message))
    after = algo.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {n for n in after if n.startswith("sharing.")} == {n for n in before if n.startswith("sharing.")}


def test_fca_scores_every_site_on_its_own_model_and_goes_on_to_the_same_bits(tmp_path):
    run_toy(tmp_path / "whole", rounds=3, strategy=ClientTailored(mask="smooth", threshold=0.99))
    cut(tmp_path / "whole", tmp_path / "cut")
    run_toy(tmp_path / "cut", rounds=3, strategy=ClientTailored(mask="smooth", threshold=0.99))
    assert files(tmp_path / "cut", 2) == files(tmp_path / "whole", 2)
    server = safe_load(tmp_path / "whole/rounds/002/server.safetensors")
    assert server.keys() == {f"{place}.{name}" for place in (0, 1) for name in toy_weights()}
    assert any(not torch.equal(server[f"0.{name}"], server[f"1.{name}"]) for name in toy_weights())
