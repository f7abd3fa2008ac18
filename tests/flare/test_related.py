"""The related systems, all of which keep or send more than weights: two organs in one process and on a wire."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.config.variants import methods
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import DataList
from samfed_monai.data.synthetic import CLASSES
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.federation.run import Run
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from tests.federation.wired import Homes
from tests.flare.carried import hashes, run_here
from tests.flare.test_equality import OPTIONS
from tests.methods import present

SMALL = {**OPTIONS, "local_steps": 1, "warm_start_steps": 1, "privacy#least_images": 1}
SURE = {"agreement#tau": 0.5}


def under(place: str, **values: Any) -> dict[str, Any]:
    return {f"{place}#{name}": value for name, value in values.items()}


TEACHER = under("teacher", base="vit_b", size=64, epochs=1, views=1)
REFINED = under("terms#see", base="vit_b", sam_size=64, views=1, absolute=1.0, relative=1.0)
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
        {**under("sharing", after=0, batches=1, first_batches=2), "before#parts#share": 0.5, "local_steps": 2},
        "tree",
    ),
    "fedsemidg": ({"after#gap#batches": 1, "strategy#step": 5.0}, "generalisation_gap"),
    "see": ({**REFINED, "network_def#feature_groups": []}, "see_labelled"),
    "clustered_sites": ({**SURE, "strategy#least": 1}, "pseudo_label"),
    "heterogeneous": (
        {**TEACHER, "mixed_networks": None, "server_network": "basic_unet", "sharing#gate": "always"},
        "public_kd",
    ),
}
#: Those whose sites keep a network or a part of it, or a file of pseudo-labels; and that in every run of the tests.
PARTS, PSEUDO_LABELS, FAST = ("fedgin_own_norm", "fedicra", "heterogeneous"), ("see",), ("fedgin_own_norm",)


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


@pytest.mark.parametrize(
    "variant", [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in present(*RELATED)]
)
def test_on_a_wire_and_in_one_process_it_comes_to_the_same(organs, two_sites, tmp_path, variant):
    """The models of all rounds, what server and sites go on from, what sites said of their work, and the scores."""
    local, apart, several = tmp_path / "local", tmp_path / "apart", methods()[variant].classes == "several"
    images, more = (organs, {"classes": list(CLASSES)}) if several else (two_sites, {})
    listed = DataList.load(images / "list.json")
    weaken_list(listed, images, dict.fromkeys(listed.sites, "points")).save(images / "weak.json")
    options = {**SMALL, **more, **RELATED[variant][0], "variant": variant}
    run = run_here(images, local, apart, options, listed="weak.json")
    homes = Homes(images, tmp_path / "homes", listed="weak.json")
    Run(run.plan, replace(run.places, datalist=homes.lists["server"])).run(homes)
    assert list(hashes(local)) == ["000", "001"]
    assert hashes(local) == hashes(apart)
    records = [read_json(folder / "rounds" / "001" / "round.json") for folder in (local, apart)]
    kept = [record["files"].get("server.safetensors") for record in records]
    assert kept[0] == kept[1]
    for site in listed.sites:
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
