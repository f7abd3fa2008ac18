"""The related systems, all of which keep or send more than weights: real images in one process and on a wire."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import DataList
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.federation.run import Run
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from tests.federation.wired import Homes
from tests.flare.carried import hashes, run_here
from tests.flare.test_equality import OPTIONS
from tests.methods import present
from tests.polyps import few_polyps

pytestmark = pytest.mark.slow

SITES = ("site-1", "site-2")
SMALL = {**OPTIONS, "local_steps": 1, "warm_start_steps": 1, "privacy#least_images": 1}
SURE = {"agreement#tau": 0.5}
REFINED = {
    "network_def#feature_groups": [],
    **{
        f"terms#see#{name}": value
        for name, value in {"base": "vit_b", "sam_size": 64, "views": 1, "absolute": 1.0, "relative": 1.0}.items()
    },
}
#: Variant to what makes it do something in two short rounds, and a number of the second that is above 0 if it does.
RELATED: dict[str, tuple[dict[str, Any], str]] = {
    "cpss": (SURE, "style_swap"),
    "drflm": ({**SURE, "strategy#step": 5.0}, "local_mixup"),
    "elcfs": ({"privacy#least_images": 2}, "episode"),
    "fedca": ({**SURE, "terms#contrast#rounds": 1}, "pseudo_label"),
    "fedda": ({"terms#domain#weight": 1.0}, "domain"),
    "fedda_cyclic": ({"terms#domain#weight": 1.0}, "domain"),
    "fedgin_own_norm": (SURE, "pseudo_label"),
    "fedicra": (
        {
            **{"sharing#after": 0, "sharing#batches": 1, "sharing#first_batches": 2},
            **{"before#parts#share": 0.5, "local_steps": 2},
        },
        "tree",
    ),
    "fedsemidg": ({"after#gap#batches": 1, "strategy#step": 5.0}, "generalisation_gap"),
    "see": (REFINED, "see_labelled"),
    "clustered_sites": ({**SURE, "strategy#least": 1}, "pseudo_label"),
}
#: Those whose sites keep a part of the network, or a file of pseudo-labels.
PARTS, PSEUDO_LABELS = ("fedgin_own_norm", "fedicra"), ("see",)


@pytest.fixture(scope="module", autouse=True)
def small_sam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of weights in which ViT-B is a small SAM, here as in the processes that train."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        small = {"width": 16, "depth": 2, "heads": 2, "global_blocks": (1,)}
        patch.setitem(SAM_BUILDERS._entries, "vit_b", lambda size: vit_encoder(size, **small))
        patch.setenv("SAMFED_WEIGHTS", str(folder))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(build_sam("vit_b", None, 64).state_dict(), folder / "sam_vit_b_01ec64.pth")
        yield folder


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites of real polyps where ``SAMFED_DATA`` is set, else drawn ones; ``weak.json`` has points for labels."""
    if os.environ.get("SAMFED_DATA"):
        folder, data = tmp_path_factory.mktemp("polyps"), request.getfixturevalue("samfed_data") / "data"
        listed = few_polyps(data, folder, dict(zip(SITES, (("cvc_clinicdb", 0), ("kvasir_seg", 0)), strict=True)))
        listed.save(folder / "list.json")
    else:
        folder = request.getfixturevalue("two_sites")
    kinds = dict.fromkeys(SITES, "points")
    weaken_list(DataList.load(folder / "list.json"), folder, kinds).save(folder / "weak.json")
    return folder


@pytest.mark.parametrize("variant", present(*RELATED))
def test_on_a_wire_and_in_one_process_it_comes_to_the_same(images, tmp_path, variant):
    """The models of all rounds, what server and sites go on from, what sites said of their work, and the scores."""
    local, apart = tmp_path / "local", tmp_path / "apart"
    run = run_here(images, local, apart, {**SMALL, **RELATED[variant][0], "variant": variant}, listed="weak.json")
    homes = Homes(images, tmp_path / "homes", listed="weak.json")
    Run(run.plan, replace(run.places, datalist=homes.lists["server"])).run(homes)
    assert list(hashes(local)) == ["000", "001"]
    assert hashes(local) == hashes(apart)
    records = [read_json(folder / "rounds" / "001" / "round.json") for folder in (local, apart)]
    kept = [record["files"].get("server.safetensors") for record in records]
    assert kept[0] == kept[1]
    for site in SITES:
        terms = [record["sites"][site]["terms"] for record in records]
        assert terms[0] == terms[1]
        assert terms[0][RELATED[variant][1]] > 0
        if variant in PARTS:
            there = safe_load(tmp_path / "homes" / site / "states" / "001.safetensors")
            here = safe_load(local / "rounds" / "001" / "clients" / f"{site}.safetensors")
            assert there.keys() == here.keys()
            assert [name for name in here if not torch.equal(there[name], here[name])] == []
        if variant in PSEUDO_LABELS:
            labels = [run / "pseudo_labels" / site / "0001.safetensors" for run in (local, tmp_path / "homes" / site)]
            assert labels[0].read_bytes() == labels[1].read_bytes()
    scores = [read_json(folder / "results.json")["models"]["last"]["sites"] for folder in (local, apart)]
    assert scores[0] == scores[1]
