"""Federations whose sites personalise, on the toy bundle: through the filter, resumed to the bit, undone on failure."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.config.targets import resolve_target
from samfed_monai.core.io import safe_load
from samfed_monai.federation import ClientAlgoSite
from samfed_monai.protocol import Kind, Message, Task
from tests.federation.toys import toy_weights
from tests.methods import present
from tests.methods.personal import cut, files, personal_algo, run_personal

TARGETS = {
    "ditto": "samfed_monai.methods.fedavg.PersonalFedAvg",
    "fedala": "samfed_monai.methods.fedavg.PersonalFedAvg",
    "apple": "samfed_monai.methods.apple.Apple",
}
STRATEGIES = {name: resolve_target(TARGETS[name], name) for name in present(*TARGETS)}


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


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_a_round_that_fails_leaves_a_site_as_it_was(name):
    algo = personal_algo("site-1", name, fail_in_round=1)
    worker = ClientAlgoSite("site-1", algo)
    message = {"tensors": toy_weights(1), "extra": {"purpose": "distil"}}
    worker.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 0, 2, **message))
    before = {n: t.clone() for n, t in algo.state_dict().items() if not n[0].isdigit() and n != "plain"}
    with pytest.raises(FileNotFoundError):
        worker.answer(Task.TRAIN, Message(Kind.WEIGHTS, "site-1", 1, 2, **message))
    after = algo.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    assert {n for n in after if n.startswith("sharing.")} == {n for n in before if n.startswith("sharing.")}
