"""Whole jobs by their variants' names: over a transport that serialises and in one process, to the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.io import read_json, safe_load
from samfed_monai.core.own_process import device_name
from samfed_monai.results import validate_results
from tests.federation.test_job import CLIENT, UNLIKE, job
from tests.federation.test_wired_jobs import at_server
from tests.federation.wired import Homes
from tests.methods import present

WIRED = present("no_sam", "hssf", "apple", "ditto", "fedala", "fedicra", "fedbn", "fedper", "fedrep", "fedprox")
SMALL = {**CLIENT, "local_steps": 1}
SIZES: dict[str, dict[str, Any]] = {
    "hssf": UNLIKE,
    "fedala": {"sharing#batches": 1, "sharing#first_batches": 1},
    "fedicra": {
        **{"sharing#after": 0, "sharing#batches": 1, "sharing#first_batches": 1},
        **{"local_steps": 2, "before#parts#share": 0.5},
    },
    "fedper": {"personal": ["final_conv.*"]},
    "fedrep": {"local_steps": 2, "personal": ["final_conv.*"]},
    "fedprox": {"local_steps": 2},  # at the first step of a round it is 0
}
#: A part of the network that no message has.
KEPT = {"fedbn": ".adn.N.", "fedper": "final_conv.", "fedrep": "final_conv."}
#: What a site's state has beside it.
STATE = {"apple": "sharing.shares", "ditto": "network.", "fedicra": "sharing.", "hssf": "network."}


def options(variant: str) -> dict[str, Any]:
    client = {**SMALL, **SIZES.get(variant, {})}
    return {"variant": variant, "train": client, "rounds": 2, "privacy": {"least_images": 1}}


@pytest.mark.parametrize("variant", [*WIRED[:1], *(pytest.param(v, marks=pytest.mark.slow) for v in WIRED[1:])])
def test_on_a_wire_and_in_one_process_it_comes_to_the_same(three_sites, tmp_path, variant):
    together = job(three_sites, tmp_path / "together", **options(variant)).run()
    homes = Homes(three_sites, tmp_path / "homes")
    apart = at_server(three_sites, homes, tmp_path / "apart", **options(variant)).run(homes)
    assert validate_results(apart) == []
    for part in ("sites", "average", "unseen", "networks", "exchange", "skipped"):
        assert apart[part] == together[part], part
    assert apart["hashes"]["model_last"] == together["hashes"]["model_last"]
    assert apart["traffic"]["down_bytes"] == together["traffic"]["down_bytes"]
    assert together["models"]["last"]["unseen"]["site-3"]["test"]["n"] == 2
    assert (together["process"]["device"], "device" in apart["process"]) == (device_name(), False), "sites compute"
    assert not (tmp_path / "apart" / "evaluation").exists(), "tables of images are at the sites"
    assert (tmp_path / "homes/site-3/evaluation/best/site-3/test/scores.csv").is_file()
    asked = homes.asked
    assert asked[:6] == [(task, f"site-{n}") for task in ("check", "prepare") for n in (1, 2, 3)]
    record = read_json(tmp_path / "together/rounds/001/round.json")
    if variant == "apple":
        assert {"share_0", "share_1"} <= record["sites"]["site-1"]["terms"].keys()
    if variant == "fedprox":
        assert all(entry["terms"]["proximal"] > 0 for entry in record["sites"].values())
    if variant in KEPT | STATE:
        assert_kept(tmp_path, (KEPT | STATE)[variant])
    if variant in KEPT:
        own = [safe_load(state_of(tmp_path, site)) for site in ("site-1", "site-2")]
        names = [name for name in own[0] if KEPT[variant] in name]
        assert any(not torch.equal(own[0][name], own[1][name]) for name in names)


def state_of(folder: Path, site: str) -> Path:
    """What a site on the wire kept of the second round."""
    return folder / "homes" / site / "states" / "001.safetensors"


def assert_kept(folder: Path, part: str) -> None:
    """Both ways a site keeps the same tensors; some belong to ``part``, and nothing that is shared does."""
    for site in ("site-1", "site-2"):
        state = safe_load(state_of(folder, site))
        wanted = safe_load(folder / f"together/rounds/001/clients/{site}.safetensors")
        assert state.keys() == wanted.keys()
        assert [name for name in wanted if not torch.equal(state[name], wanted[name])] == []
        assert any(part in name for name in state), sorted(state)
    assert not [name for name in safe_load(folder / "apart/rounds/001/global.safetensors") if part in name]
