"""What each site keeps has the same bits in one process and on FLARE.

One method is enough: ``tests/federation/test_personal_strategy_jobs.py`` compares each on a wire.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samfed_monai.core.io import read_json, safe_load
from tests.flare import tiny_sam
from tests.flare.carried import hashes, in_both
from tests.flare.test_equality import SMALL_NETWORK

pytestmark = pytest.mark.slow

SITES = ("site-1", "site-2")
SMALL = {
    "rounds": 2,
    "image_size": 32,
    "batch_size": 2,
    "local_steps": 1,
    **SMALL_NETWORK,
    "warm_start_steps": 1,
    "amp": False,
    "privacy#least_images": 1,
}


def test_a_sam_whose_lora_alone_travels_is_the_same_in_one_process_and_carried(two_sites, tmp_path, monkeypatch):
    for entries, builder in tiny_sam.catalogues():
        monkeypatch.setitem(entries, tiny_sam.NAME, builder)
    small = {name: value for name, value in SMALL.items() if name not in SMALL_NETWORK}
    options = {
        **small,
        "batch_size": 1,
        "local_steps": 2,
        "variant": "pfedsam_two_stage",
        "network_name": tiny_sam.NAME,
    }
    here, there = in_both(two_sites, tmp_path, options, worker="tests.flare.tiny_sam")
    assert_same(here, there, "mlp.experts.up")
    shared = safe_load(there / "rounds" / "001" / "global.safetensors")
    assert {name.rpartition(".")[2] for name in shared} == {"query_a", "query_b", "value_a", "value_b"}


def assert_same(here: Path, there: Path, kept: str) -> None:
    """Every round's shared weights, the last round's state of each site, and the scores; ``kept`` is in no message."""
    assert hashes(here) == hashes(there) != {}
    for site in SITES:
        (path,) = (there / "cache" / "sites" / site / "state").glob(f"*/{site}/001.safetensors")
        state, wanted = safe_load(path), safe_load(here / "rounds" / "001" / "clients" / f"{site}.safetensors")
        assert state.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
        assert any(kept in name for name in wanted), sorted(wanted)
    assert not [name for name in safe_load(there / "rounds" / "001" / "global.safetensors") if kept in name]
    results = [read_json(run / "results.json") for run in (here, there)]
    assert results[0]["models"]["last"]["sites"] == results[1]["models"]["last"]["sites"]
    sent = [result["traffic"]["up_bytes"] for result in results]
    assert sent[0] == pytest.approx(sent[1], abs=200), "seconds have more digits or less, nothing else"
