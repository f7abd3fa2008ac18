"""The related systems, all of which keep or send more than weights: real images in one process and FLARE's simulator.

One job of the simulator holds all of them (:mod:`tests.flare.many_plans`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.core.io import read_json, safe_load, write_json
from samfed_monai.data import DataList
from samfed_monai.data.weak_labels import weaken_list
from samfed_monai.flare.job import Planned, export_job
from samfed_monai.flare.local import simulate, write_site_files
from samfed_monai.flare.site_file import PLAN
from samfed_monai.networks.sam.build import SAM_BUILDERS, build_sam
from tests.flare.carried import hashes, in_both, run_here
from tests.flare.executors import ManyExecutor
from tests.flare.many_plans import ManyController
from tests.flare.test_personal import SITES, SMALL
from tests.flare.tiny_sam import encoder
from tests.flare.toys import REPO
from tests.methods import present
from tests.polyps import few_polyps

pytestmark = pytest.mark.slow

SURE = {"agreement#tau": 0.5}
REFINED = {
    f"terms#see#{name}": value
    for name, value in {"base": "vit_b", "sam_size": 64, "views": 1, "absolute": 1.0, "relative": 1.0}.items()
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
    "see_few": (REFINED, "see_labelled"),
    "spp_fgc": ({**SURE, "strategy#least": 1}, "pseudo_label"),
}
#: Those whose sites keep a part of the network, or a file of pseudo-labels.
PARTS, PSEUDO_LABELS = ("fedgin_own_norm", "fedicra"), ("see", "see_few")


@pytest.fixture(scope="module", autouse=True)
def small_sam(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of weights in which ViT-B is a small SAM, here as in the processes that train."""
    folder = tmp_path_factory.mktemp("weights")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(SAM_BUILDERS._entries, "vit_b", encoder)
        patch.setenv("SAMFED_WEIGHTS", str(folder))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            torch.save(build_sam("vit_b", None, 64).state_dict(), folder / "sam_vit_b_01ec64.pth")
        yield folder


@pytest.fixture(scope="module")
def images(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two sites of real polyps where ``SAMFED_DATA`` is set, else drawn ones; with points for labels in ``weak.json``.

    One of the two, since a job of FLARE with all the variants takes minutes.
    """
    if os.environ.get("SAMFED_DATA"):
        folder, data = tmp_path_factory.mktemp("polyps"), request.getfixturevalue("samfed_data") / "data"
        listed = few_polyps(data, folder, dict(zip(SITES, (("cvc_clinicdb", 0), ("kvasir_seg", 0)), strict=True)))
        listed.save(folder / "list.json")
    else:
        folder = request.getfixturevalue("two_sites")
    kinds = dict.fromkeys(SITES, "points")
    weaken_list(DataList.load(folder / "list.json"), folder, kinds, progress=False).save(folder / "weak.json")
    return folder


Here = Callable[[str], tuple[Planned, Path]]


@pytest.fixture(scope="module")
def here(images: Path, tmp_path_factory: pytest.TempPathFactory) -> Here:
    """Of a variant the plan, and the folder of its run in this process."""
    folder = tmp_path_factory.mktemp("here")

    @cache
    def run(variant: str) -> tuple[Planned, Path]:
        options = {**SMALL, **RELATED[variant][0], "variant": variant}
        there = folder / "there"
        return run_here(images, folder / variant, there, options, listed="weak.json"), folder / variant

    return run


def assert_same(local: Path, other: Path, cache: Path, variant: str) -> None:
    """The models of all rounds, what server and sites go on from, what sites said of their work, and the scores."""
    assert list(hashes(local)) == ["000", "001"]
    assert hashes(local) == hashes(other)
    records = [read_json(run / "rounds" / "001" / "round.json") for run in (local, other)]
    kept = [record["files"].get("server.safetensors") for record in records]
    assert kept[0] == kept[1]
    for site in SITES:
        terms = [record["sites"][site]["terms"] for record in records]
        assert terms[0] == terms[1]
        assert terms[0][RELATED[variant][1]] > 0
        if variant in PARTS:
            state = cache / "sites" / site / "state" / read_json(other / "flare.run.json")["run"] / site
            there = safe_load(state / "001.safetensors")
            here = safe_load(local / "rounds" / "001" / "clients" / f"{site}.safetensors")
            assert there.keys() == here.keys()
            assert [name for name in here if not torch.equal(there[name], here[name])] == []
        if variant in PSEUDO_LABELS:
            labels = [run / "pseudo_labels" / site / "0001.safetensors" for run in (local, other)]
            assert labels[0].read_bytes() == labels[1].read_bytes()
    scores = [read_json(run / "results.json")["models"]["last"]["sites"] for run in (local, other)]
    assert scores[0] == scores[1]


@pytest.mark.skipif(not present("elcfs_labelled"), reason="the method is not here")
def test_episodes_on_the_sites_own_masks_have_the_same_bits_in_one_process_and_carried(images, tmp_path):
    runs = in_both(images, tmp_path, {**SMALL, "variant": "elcfs_labelled", "privacy#least_images": 2})
    records = [read_json(run / "rounds" / "001" / "round.json") for run in runs]
    for site in SITES:
        terms = [record["sites"][site]["terms"] for record in records]
        assert terms[0] == terms[1]
        assert terms[0]["episode"] > 0


@pytest.mark.skipif(not present(*RELATED), reason="none of these methods is here")
def test_one_process_and_the_simulator_have_the_same_bits(here, small_sam, tmp_path):
    runs, plans = tmp_path / "runs", {variant: here(variant)[0] for variant in present(*RELATED)}
    first = next(iter(plans.values()))
    assert first.datalist is not None
    files = write_site_files(
        tmp_path / "files", first.datalist, replace(first.places, output_dir=runs), SITES, threads=1
    )
    for site in SITES:
        content = read_json(files / f"{site}.json")
        content |= {"runs_dir": content.pop("output_dir"), "weights": str(small_sam)}
        write_json(files / f"{site}.json", content)
    classes: dict[str, Any] = {"controller": ManyController, "executor": ManyExecutor}
    job = export_job(tmp_path / "job", first.plan.to_json(), run_name="all", min_clients=2, **classes)
    config = job / "app" / "config"
    for variant, run in plans.items():
        write_json(config / variant / PLAN, run.plan.to_json())
    server = config / "config_fed_server.json"
    write_json(server, {**read_json(server), "server": {"task_request_interval": 0.05}})  # of many short tasks
    simulate(
        job,
        sites=SITES,
        workspace=tmp_path / "workspace",
        run_folder=runs,
        site_files=files,
        timeout=900,
        more_classes=["tests."],
        environment={"PYTHONPATH": str(REPO), "OMP_NUM_THREADS": "1"},
    )
    for variant in plans:
        assert_same(here(variant)[1], runs / variant, runs / "cache", variant)
