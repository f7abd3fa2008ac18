"""Two related systems on a few real polyps of ClinicDB and of Kvasir-SEG, by the commands that a user types."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.config.workflow import run_workflow
from samfed_monai.core.io import read_json, safe_load
from samfed_monai.data import DataList
from tests.methods import needs, present
from tests.polyps import few_polyps

pytestmark = [pytest.mark.slow, pytest.mark.data]

SITES = ("cvc_clinicdb", "kvasir_seg")
NEW = "another_clinic"
SMALL = {
    **{"image_size": 64, "batch_size": 2, "local_steps": 1, "rounds": 1, "warm_start_steps": 1, "workers": 1},
    **{"network_name": "basic_unet", "amp": False, "overlays": False, "privacy#least_images": 2},
}
REFINED = {"terms#see#sam_size": 256, "terms#see#views": 1, "network_def#feature_groups": []}
#: Variant to what makes it do something in one round, and a number that sites report: the one that a new site goes on
#: from, and the one that asks SAM. Others are in ``test_matrix.py``, on rendered images.
VARIANTS: dict[str, tuple[dict[str, Any], str]] = {
    "cpss": ({}, "style_swap"),
    "see": (REFINED, "see_labelled"),
}


@pytest.fixture(scope="module")
def polyps(samfed_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with ``list.json`` of two sites, ``weak.json`` with their scribbles, and ``new.json`` of a third one."""
    folder = tmp_path_factory.mktemp("polyps")
    of = {**{site: (site, 0) for site in SITES}, NEW: ("kvasir_seg", 100)}
    listed = few_polyps(samfed_data / "data", folder, of)
    for name, sites in (("list", SITES), ("new", (NEW,))):
        chosen = {site: listed.sites[site] for site in sites}
        DataList(name, listed.public, chosen, listed.mask_threshold).save(folder / f"{name}.json")
    weak = ["--data-root", str(folder), "--kind", "scribble", "--no-report", "--output", str(folder / "weak.json")]
    assert main(["prepare", "weak", str(folder / "list.json"), *weak]) == 0
    return folder


Ran = Callable[[str], tuple[int, Path]]


@pytest.fixture(scope="module")
def federated(samfed_data: Path, polyps: Path, tmp_path_factory: pytest.TempPathFactory) -> Ran:
    """Of a variant the exit code of ``samfed federate``, and the run's folder."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def run(variant: str) -> tuple[int, Path]:
        listed = polyps / ("weak.json" if variant == "see" else "list.json")
        places = {"datalist": listed, "data_root": polyps, "output_dir": folder / variant, "variant": variant}
        given = {**SMALL, **VARIANTS[variant][0], **places}
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("SAMFED_WEIGHTS", str(samfed_data / "weights"))
            return main(["federate", "samfed_skin", *(f"--{name}={value}" for name, value in given.items())]), folder

    return run


@pytest.mark.parametrize("variant", present(*VARIANTS))
def test_a_federation_of_real_images_comes_to_its_results(federated, variant, capsys):
    code, folder = federated(variant)
    assert code == 0
    run = folder / variant
    results = read_json(run / "results.json")
    for site in SITES:
        assert math.isfinite(results["models"]["last"]["sites"][site]["test"]["dice"])
    last = read_json(max((run / "rounds").glob("[0-9]*/round.json")))
    for site in SITES:
        assert VARIANTS[variant][1] in last["sites"][site]["terms"]


@needs("cpss", "cpss_adapt")
def test_a_new_site_goes_on_from_the_model_of_a_finished_federation(federated, polyps, tmp_path):
    code, folder = federated("cpss")
    assert code == 0
    model = tmp_path / "model.safetensors"
    assert main(["model", str(folder / "cpss"), "--output", str(model)]) == 0
    places = {"datalist": polyps / "new.json", "data_root": polyps, "output_dir": tmp_path / "adapted", "model": model}
    sizes = {"image_size": 64, "batch_size": 2, "epochs": 1, "local_steps": 2, "amp": False, "site": NEW}
    given = {**sizes, **{name: str(place) for name, place in places.items()}, "network_name": "basic_unet"}
    run_workflow("samfed_skin", "train", given, variant="cpss_adapt")
    before, after = safe_load(model), safe_load(tmp_path / "adapted" / "best.safetensors")
    assert before.keys() == after.keys()
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved
    assert all(bool(after[name].isfinite().all()) for name in moved)
    steps = [(after[name].float() - before[name].float()).abs().max() for name in moved]
    assert max(steps) < 0.1, "two steps away from where it began"
