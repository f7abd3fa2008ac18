"""A job: files and no code, no place of a site, and FLARE's list of classes."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from typing import Any

import pytest

from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.data.datalist import Item, Site
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.job import NEEDED, allow_list_snippet, export_job, merge_allow_list, planned


def test_flares_list_of_classes_is_added_to_and_nothing_is_lost(tmp_path):
    write_json(tmp_path / "resources.json.default", {"class_allow_list": ["nvflare.app_x.A"], "components": [1]})
    merge_allow_list(tmp_path, ["tests."])
    merge_allow_list(tmp_path)
    content = read_json(tmp_path / "resources.json")
    assert content == {"class_allow_list": ["nvflare.app_x.A", *NEEDED, "tests."], "components": [1]}
    assert json.loads(allow_list_snippet()) == {"class_allow_list": list(NEEDED)}
    assert not any(name.endswith(".") for name in NEEDED), "single classes, no prefix"


def test_a_workspace_without_a_list_starts_from_flares_own(tmp_path):
    merge_allow_list(tmp_path / "local")
    names = read_json(tmp_path / "local" / "resources.json")["class_allow_list"]
    assert "nvflare.app_common.workflows.fedavg.FedAvg" in names
    assert names[-2:] == list(NEEDED)


def test_a_job_is_four_json_files_and_no_code(tmp_path):
    job = export_job(tmp_path / "job", {"rounds": 3}, run_name="first", min_clients=2)
    files = sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file())
    config = "app/config"
    assert files == [
        f"{config}/config_fed_client.json",
        f"{config}/config_fed_server.json",
        f"{config}/samfed_plan.json",
        "meta.json",
    ]
    assert read_json(job / "meta.json")["min_clients"] == 2
    assert read_json(job / config / "samfed_plan.json") == {"rounds": 3}
    paths = {read_json(job / config / "config_fed_server.json")["workflows"][0]["path"]}
    paths.add(read_json(job / config / "config_fed_client.json")["executors"][0]["executor"]["path"])
    assert paths == set(NEEDED)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "", "a/b", "a\\b", "a\n", "a" * 101])
def test_a_run_name_that_is_a_path_is_refused(tmp_path, name):
    with pytest.raises(Refused, match=r"--run-name: expected up to 100 letters, .*; submit the job with another"):
        export_job(tmp_path, {}, run_name=name)
    with pytest.raises(Refused, match=r"config_fed_server.json -> run_name: expected up to 100 letters"):
        FederationController(name)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sites": {"site-1": {"device": "cuda:1"}}}, "sites#site-1#device"),
        ({"teacher#checkpoint": __file__}, "teacher#checkpoint"),
        ({"client#device": "cuda:1"}, "client#device"),
        ({"adapter": __file__}, "adapter"),
        ({"cache_dir": "/cache"}, "cache_dir"),
    ],
)
def test_a_job_names_no_place_of_a_site(given, match):
    sites: dict[str, Any] = {"site-1": {}, "site-2": {}} | given.get("sites", {})
    with pytest.raises(Refused, match=rf"{match}.*found a place.*samfed_site\.json"):
        planned("samfed_skin", {"rounds": 1, **given, "sites": sites}, here=False)


@pytest.mark.parametrize(("name", "safe"), [("Hospital B", "Hospital_B"), ("Süd.1", "Sud_1"), ("=1", "1")])
def test_fault_69_a_name_that_flare_cannot_carry_is_refused_with_one_that_it_can(name, safe):
    told = (
        rf"sites -> {name}: expected letters without accents, .*; call its folder, and the site in the list, '{safe}'"
    )
    with pytest.raises(Refused, match=told):
        planned("samfed_skin", {"rounds": 1, "sites": {name: {}, "b-2_C": {}}}, here=False)


def test_a_list_that_the_method_cannot_use_is_refused_before_flare_starts(tmp_path):
    item = Item("a.png", "0" * 64, "a_label.png", "1" * 64, label_kind="box")
    sites = {"site-1": Site([item]), "site-2": Site([replace(item, image="b.png")])}
    DataList("own", [], sites).save(tmp_path / "list.json")
    given = {"rounds": 1, "datalist": str(tmp_path / "list.json"), "data_root": str(tmp_path)}
    with pytest.raises(Refused, match=r"(?s)own -> site-1 -> unlabelled: .*own -> site-2 -> unlabelled: .*\(box\)"):
        planned("samfed_skin", {**given, "variant": "supervised"}, here=False)
    assert planned("samfed_skin", {**given, "variant": "weak_labels"}, here=False).sites == ("site-1", "site-2")


def test_a_job_that_could_never_run_is_refused_before_flare_starts():
    given = {"rounds": 2, "sites": {"site-1": {}, "site-2": {}}}
    with pytest.raises(Refused, match=r"(?s)renewal#after: expected .*rounds below 2.*quorum: expected .*from 1 to 2"):
        planned("samfed_skin", {**given, "job#quorum": 9, "renewal#after": [5]}, here=False)
    with pytest.raises(Refused, match=r"sites: expected at least 2"):
        planned("samfed_skin", {"rounds": 2, "sites": {"site-1": {}}}, here=False)


def test_what_a_job_does_not_heed_is_refused_as_an_option_and_reported_of_a_file(caplog, tmp_path):
    given = {"rounds": 1, "sites": {"site-1": {}, "site-2": {}}}
    asked = {"mlflow": True, "workers": 2, "job#verify": True, "overlays": False}
    with pytest.raises(Refused) as caught:
        planned("samfed_skin", {**given, **asked}, here=False)
    assert [problem.where for problem in caught.value.problems] == [f"command line -> {name}" for name in asked]
    bundle = shutil.copytree(find_bundle("samfed_skin"), tmp_path / "own")
    content = read_json(bundle / "configs" / "federate.json")
    content["job"] |= {"verify": True, "workers": 2, "mlflow": True}
    write_json(bundle / "configs" / "federate.json", content)
    planned(bundle, given, here=False)
    assert [record.message for record in caplog.records] == [
        "not heeded on FLARE: mlflow, verify, workers (docs/deploy.md)"
    ]
