"""The related systems, all of which keep or send more than weights: two organs in one process, and apart.

Apart is on a wire: ``test_spy.py`` compares the simulator's bits, and ``test_faults.py`` needs what sites keep there.
``SAMFED_SIMULATOR=1`` sends all of them through it, with the real MobileSAM of ``SAMFED_DATA``.
"""

from __future__ import annotations

import os
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
from samfed_monai.flare.job import PlannedRun, export_job
from samfed_monai.flare.local import simulate, write_site_files
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam, vit_encoder
from tests.federation.wired import Homes
from tests.flare.carried import hashes, run_here
from tests.flare.test_equality import OPTIONS, SMALL_NETWORK
from tests.flare.toys import REPO
from tests.methods import present

SMALL = {**OPTIONS, "local_steps": 1, "warm_start_steps": 1, "privacy#least_images": 1}
SURE = {"agreement#tau": 0.5}


def under(place: str, **values: Any) -> dict[str, Any]:
    return {f"{place}#{name}": value for name, value in values.items()}


EVERY = bool(os.environ.get("SAMFED_SIMULATOR"))
BASE = "vit_t" if EVERY else "vit_b"
TEACHER = under("teacher", base=BASE, size=64, epochs=1, views=1)
REFINED = under("terms#see", base=BASE, sam_size=64, views=1, absolute=1.0, relative=1.0)
#: Variant to what makes it do something in two short rounds, and a number of the second that is above 0 if it does.
RELATED: dict[str, tuple[dict[str, Any], str]] = {
    "drflm": ({**SURE, "strategy#step": 5.0}, "local_mixup"),
    "elcfs": ({"privacy#least_images": 2}, "episode"),
    "fedca": ({**SURE, "terms#contrast#rounds": 1}, "pseudo_label"),
    "fedda_cyclic": ({"terms#domain#weight": 1.0}, "domain"),
    "fedicra": (
        {**under("client_algorithm", after=0, batches=1, first_batches=2), "before#parts#share": 0.5, "local_steps": 2},
        "tree",
    ),
    "fedsemidg": ({"after#gap#batches": 1, "strategy#step": 5.0}, "generalisation_gap"),
    "see": ({**REFINED, "network_def#feature_groups": []}, "see_labelled"),
    "clustered_sites": ({**SURE, "strategy#least": 1}, "pseudo_label"),
    "heterogeneous": (
        {**TEACHER, "mixed_networks": None, "server_network": "basic_unet", "client_algorithm#gate": "always"},
        "public_kd",
    ),
}
OF_SAM = {**dict.fromkeys(SMALL_NETWORK), "image_size": 64, "local_steps": 2}
if EVERY:  # and SAM itself at the sites; tests/federation/test_personal_jobs.py has it on a wire
    RELATED |= dict.fromkeys(("fca", "pfedsam", "pfedsam_two_stage"), (OF_SAM, "supervised"))
    RELATED |= dict.fromkeys(("fedgin", "fedgin_own_norm"), (SURE, "pseudo_label"))
    RELATED |= {"cpss": (SURE, "style_swap"), "fedda": RELATED["fedda_cyclic"]}
#: Those whose sites keep a network or a part of it, or a file of pseudo-labels.
PARTS, PSEUDO_LABELS = ("fedgin_own_norm", "fedicra", "heterogeneous", "pfedsam", "pfedsam_two_stage"), ("see",)


@pytest.fixture(scope="module", autouse=True)
def small_sam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of weights in which ViT-B is a small SAM, here as in the processes that train; or the real ones."""
    if EVERY and "SAMFED_DATA" not in os.environ:
        pytest.skip("SAMFED_SIMULATOR needs MobileSAM's weights: SAMFED_DATA is not set")
    folder = Path(os.environ["SAMFED_DATA"]) / "weights" if EVERY else tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        small = {"width": 16, "depth": 2, "heads": 2, "global_blocks": (1,)}
        patch.setitem(SAM_BUILDERS._entries, "vit_b", lambda size: vit_encoder(size, **small))
        patch.setenv("SAMFED_WEIGHTS", str(folder))
        if EVERY:
            yield folder
            return
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(build_sam("vit_b", None, 64).state_dict(), folder / "sam_vit_b_01ec64.pth")
        yield folder


def on_a_wire(run: PlannedRun, images: Path, folder: Path, name: str) -> Path:
    """Runs what was planned with sites in this process that have nothing in common; returns what they keep."""
    homes = Homes(images, folder, listed=name)
    Run(run.plan, replace(run.paths, datalist=homes.lists["server"])).run(homes)
    return folder


def in_the_simulator(run: PlannedRun, images: Path, folder: Path, name: str) -> Path:
    """Runs what was planned in FLARE's simulator; returns what sites keep."""
    files = write_site_files(folder / "files", run.datalist, run.paths, run.sites, threads=1)
    job = export_job(folder / "job", run.plan.to_json(), run_name="related", min_clients=len(run.sites))
    output = Path(run.paths.output_dir)
    simulate(
        job, sites=run.sites, workspace=folder / "flare", run_folder=output, site_files=files, timeout=400,
        environment={"PYTHONPATH": str(REPO)},
    )  # fmt: skip
    return output.parent


def kept(folder: Path, name: str, site: str) -> Path:
    """The one file of this name that a site keeps, in a folder of the site or of the server's run."""
    (path,) = (path for path in folder.rglob(name) if site in path.parts and "rounds" not in path.parts)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("variant", present(*RELATED))
def test_related_methods_are_equal_apart_and_in_one_process(organs, two_sites, tmp_path, variant):
    """The models of all rounds, what server and sites go on from, what sites reported of their work, and the scores."""
    local, apart, several = tmp_path / "local", tmp_path / "apart" / "run", methods()[variant].classes == "several"
    images, more = (organs, {"classes": list(CLASSES)}) if several else (two_sites, {})
    listed, name = (
        DataList.load(images / "list.json"),
        "list.json" if methods()[variant].labels == "masks" else "weak.json",
    )
    weaken_list(listed, images, dict.fromkeys(listed.sites, "points")).save(images / "weak.json")
    options = {**SMALL, **more, **RELATED[variant][0], "variant": variant}
    options = {name: value for name, value in options.items() if value is not None or name not in SMALL_NETWORK}
    run = run_here(images, local, apart, options, listed=name)
    homes = (in_the_simulator if EVERY else on_a_wire)(run, images, tmp_path / "apart", name)
    assert list(hashes(local)) == ["000", "001"]
    assert hashes(local) == hashes(apart)
    records = [read_json(folder / "rounds" / "001" / "round.json") for folder in (local, apart)]
    states = [record["files"].get("server.safetensors") for record in records]
    assert states[0] == states[1]
    for site in listed.sites:
        terms = [record["sites"][site]["terms"] for record in records]
        assert terms[0] == terms[1]
        assert terms[0][RELATED[variant][1]] > 0
        if variant in PARTS:
            there = safe_load(kept(homes, "001.safetensors", site))
            here = safe_load(local / "rounds" / "001" / "clients" / f"{site}.safetensors")
            assert there.keys() == here.keys()
            assert [name for name in here if not torch.equal(there[name], here[name])] == []
        if variant in PSEUDO_LABELS:
            labels = [kept(folder, "0001.safetensors", site) for folder in (local, homes)]
            assert labels[0].read_bytes() == labels[1].read_bytes()
    scores = [read_json(folder / "results.json")["models"]["last"]["sites"] for folder in (local, apart)]
    assert scores[0] == scores[1]
