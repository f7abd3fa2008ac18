"""The whole job over a transport that serialises: the server has the public images, each site its own list."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from samfed_monai import __version__
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import sha256_bytes, sha256_file
from samfed_monai.data import DataList
from samfed_monai.federation import FederatedJob, Plan, Site, run
from samfed_monai.federation.teacher import TeacherStage
from samfed_monai.results import validate_results
from tests.federation.test_job import job
from tests.federation.wired import Homes

SITES = ("site-1", "site-2", "site-3")


def timeless(teacher: dict[str, Any]) -> dict[str, Any]:
    """What results say of a teacher, without what depends on the clock."""
    assert teacher["milliseconds"] > 0
    return {name: value for name, value in teacher.items() if name != "milliseconds"}


def at_server(federation: Path, homes: Homes, output: Path, **knobs: Any) -> FederatedJob:
    """The same job with the server's own list and a folder without a site's images."""
    public = output.parent / "public"
    for item in DataList.load(federation / "list.json").public:
        for name in filter(None, (item.image, item.label)):
            (public / name).parent.mkdir(parents=True, exist_ok=True)
            (public / name).write_bytes((federation / name).read_bytes())
    named = {"sites": {"site-1": {}, "site-2": {}}, "unseen": ["site-3"], "privacy": {"least_images": 1}}
    return job(public, output, datalist=homes.lists["server"], **{**named, **knobs})


def test_the_server_sends_the_adapter_and_sites_make_their_own_masks(three_sites, tmp_path, given):
    ours, loaded = given.options, given.loaded
    together = job(three_sites, tmp_path / "together", **ours).run()
    assert len(loaded) == 1, "one process loads its teacher once"
    homes = Homes(three_sites, tmp_path / "homes")
    apart = at_server(three_sites, homes, tmp_path / "apart", **ours).run(homes)
    assert loaded == [sha256_file(tmp_path / "given.safetensors")] * 5, "and then the server and every site"
    assert validate_results(apart) == []
    assert apart["hashes"]["model_last"] == together["hashes"]["model_last"]
    assert timeless(apart["teacher"]) == timeless(together["teacher"])
    everywhere = apart["teacher"]["sites"] | apart["teacher"]["unseen"]
    assert {site: entry["test"]["n"] for site, entry in everywhere.items()} == dict.fromkeys(SITES, 2)
    assert apart["teacher"]["average"]["test"]["n"] == 2 * len(apart["sites"]) < 2 * len(SITES)
    assert 0 < apart["teacher"]["average"]["test"]["dice"] < 1
    assert not (tmp_path / "apart" / "cache" / "soft_masks").exists(), "private masks stay at their sites"
    assert (tmp_path / "homes" / "site-1" / "cache" / "soft_masks" / "site-1").is_dir()
    before = [results["traffic"]["down_bytes_before"] for results in (together, apart)]
    assert 3 * 64 < before[0] - before[1] < 3 * 96, "a server without the list cannot ask for the hash of a part"


def refusal(federation: Path, tmp_path: Path, change: Any, **knobs: Any) -> str:
    homes = Homes(federation, tmp_path / "homes")

    def changed(plan: Plan):
        transport = homes(plan)
        change(homes, plan)
        return transport

    with pytest.raises(Refused) as caught:
        at_server(federation, homes, tmp_path / "run", **knobs).run(changed)
    assert not (tmp_path / "run" / "cache" / "warm_start").exists(), "before anything was trained"
    assert not (tmp_path / "run" / "rounds").exists()
    return str(caught.value)


def test_everything_that_differs_at_a_site_is_refused_at_once_before_any_work(three_sites, tmp_path, monkeypatch):
    def change(homes: Homes, plan: Plan) -> None:
        listed = DataList.load(homes.lists["site-2"])
        listed.public.reverse()
        listed.save(homes.lists["site-2"])
        homes.nodes["site-2"] = homes.node("site-2", dataclasses.replace(plan, seed=1))

    fingerprints = run.own_fingerprints
    monkeypatch.setattr(run, "own_fingerprints", lambda *given: fingerprints(*given) | {"version": "9.9"})
    text = refusal(three_sites, tmp_path, change)
    assert "site-2: expected a site that can take part, found plan and bundle: expected the server's" in text
    assert (
        f"samfed-monai: expected the server's 9.9, found {__version__}; install the same version at both ends" in text
    )
    assert "public part of the data list: expected the server's" in text
    assert "site-3" in text, "every site's differences"


def test_a_site_whose_sam_is_not_the_adapters_is_refused_with_both_hashes(three_sites, tmp_path, given, monkeypatch):
    (tmp_path / "other.pt").write_bytes(b"another sam")

    def checkpoint(stage: TeacherStage) -> Path:
        return tmp_path / ("other.pt" if "site-2" in stage.cache_dir.parts else "sam.pt")

    monkeypatch.setattr(TeacherStage, "checkpoint", checkpoint)
    homes = Homes(three_sites, tmp_path / "homes")
    with pytest.raises(Refused, match=r"site-2: .*SAM checkpoint: expected the server's SAM") as caught:
        at_server(three_sites, homes, tmp_path / "run", **given.options).run(homes)
    told = str(caught.value)
    assert f"{sha256_bytes(b'sam')}, found SHA-256 {sha256_bytes(b'another sam')}" in told
    assert "give this site the server's checkpoint of vit_t" in told
    assert str(tmp_path) not in told, "no path of a site travels"
    assert not (tmp_path / "run" / "rounds").exists()


def test_a_server_that_knows_the_whole_list_sees_that_a_sites_part_differs(three_sites, tmp_path):
    homes = Homes(three_sites, tmp_path / "homes")

    def changed(plan: Plan):
        transport, listed = homes(plan), DataList.load(homes.lists["site-1"])
        del listed.sites["site-1"].unlabelled[0]
        listed.save(homes.lists["site-1"])
        homes.nodes["site-1"] = homes.node("site-1", plan)
        return transport

    with pytest.raises(Refused, match=r"site-1: .*this site's part of the data list: expected the server's .*split"):
        job(three_sites, tmp_path / "run").run(changed)


def test_an_image_that_changed_at_a_site_is_refused_without_its_name(three_sites, tmp_path):
    images = tmp_path / "images"

    def change(homes: Homes, plan: Plan) -> None:
        shutil.copytree(three_sites, images)
        item = DataList.load(homes.lists["site-1"]).sites["site-1"].test[0]
        (images / item.image).write_bytes(b"")
        there = dataclasses.replace(homes.nodes["site-1"].places, data_root=images)
        homes.nodes["site-1"] = Site("site-1", plan, there)

    text = refusal(three_sites, tmp_path, change)
    assert "site-1: expected a site that can take part, found images: expected images and masks as they were" in text
    assert "found 2 problems; this site's log names each of them" in text
    assert ".png" not in text
    assert ".jpg" not in text


def test_a_client_that_is_missing_and_one_that_nobody_named_are_refused(three_sites, tmp_path):
    homes = Homes(three_sites, tmp_path / "homes")

    def renamed(plan: Plan):
        transport = homes(plan)
        transport._sites = ("site-1", "site-3", "site-9")
        return transport

    with pytest.raises(Refused) as caught:
        at_server(three_sites, homes, tmp_path / "run").run(renamed)
    assert "site site-2: expected a client that the transport can reach, found none of that name" in str(caught.value)
    assert "site site-9: expected a site of the plan, found a client that the plan does not name" in str(caught.value)


def test_a_run_goes_on_while_a_site_is_away_and_ends_as_the_quorum_allows(three_sites, tmp_path):
    named = {"sites": {"site-1": {}, "site-2": {}}, "allow_single_site": True, "quorum": 1}
    homes = Homes(three_sites, tmp_path / "homes")
    at_server(three_sites, homes, tmp_path / "run", **named).run(homes)
    (tmp_path / "run" / "results.json").unlink()

    def away(plan: Plan):
        transport = homes(plan)
        homes.away.add("site-2")
        return transport

    results = at_server(three_sites, homes, tmp_path / "run", **named).run(away)
    assert results["models"]["last"]["round"] == 1


def test_nobody_is_named_without_a_list_of_sites(three_sites, tmp_path):
    homes = Homes(three_sites, tmp_path / "homes")
    with pytest.raises(Refused, match=r"federate\.json -> sites: expected the name of every site that trains"):
        at_server(three_sites, homes, tmp_path / "run", sites={}, unseen=[]).run(homes)


def test_where_a_site_keeps_things_is_not_the_servers_to_say(three_sites, tmp_path):
    homes = Homes(three_sites, tmp_path / "homes")
    sites = {"site-1": {"data_root": "/elsewhere"}, "site-2": {}}
    with pytest.raises(Refused, match=r"sites#site-1#data_root: expected nothing: .*; set it at the site"):
        at_server(three_sites, homes, tmp_path / "run", sites=sites).run(homes)
