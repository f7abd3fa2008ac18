"""A job: files and no code, no place of a site, and FLARE's list of classes."""

from __future__ import annotations

import os
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.data.datalist import Item, Site
from samfed_monai.flare.controller import FederationController
from samfed_monai.flare.job import (
    ALLOW_LIST,
    NEEDED,
    PLAN,
    export_again,
    export_job,
    export_plan,
    merge_allow_list,
    planned,
)


def test_allow_list_is_merged_and_kept(tmp_path):
    write_json(tmp_path / "resources.json.default", {"class_allow_list": ["nvflare.app_x.A"], "components": [1]})
    merge_allow_list(tmp_path)
    merge_allow_list(tmp_path)
    content = read_json(tmp_path / "resources.json")
    assert content == {"class_allow_list": ["nvflare.app_x.A", *NEEDED], "components": [1]}
    assert {"class_allow_list": list(NEEDED)} == ALLOW_LIST
    assert not any(name.endswith(".") for name in NEEDED), "single classes, no prefix"
    merge_allow_list(tmp_path / "local")  # where there is no list, it starts from FLARE's own
    names = read_json(tmp_path / "local" / "resources.json")["class_allow_list"]
    assert "nvflare.app_common.workflows.fedavg.FedAvg" in names
    assert names[-2:] == list(NEEDED)


def test_exported_job_has_four_json_files_and_no_code(tmp_path):
    job = export_job(tmp_path / "job", {"rounds": 3}, run_name="first", min_clients=2)
    files = sorted(str(path.relative_to(job)) for path in job.rglob("*") if path.is_file())
    config, names = "app/config", ("config_fed_client", "config_fed_server", "samfed_plan")
    assert files == [*(f"{config}/{name}.json" for name in names), "meta.json"]
    assert read_json(job / "meta.json")["min_clients"] == 2
    assert read_json(job / config / "samfed_plan.json") == {"rounds": 3}
    paths = {read_json(job / config / "config_fed_server.json")["workflows"][0]["path"]}
    paths.add(read_json(job / config / "config_fed_client.json")["executors"][0]["executor"]["path"])
    assert paths == set(NEEDED)


@pytest.mark.parametrize("name", ["../x", "/etc/x", "..", "", "a/b", "a\\b", "a\n", "a" * 101])
def test_run_name_with_path_is_refused(tmp_path, name):
    with pytest.raises(Refused, match=r"--run-name: expected up to 100 letters, .*; submit the job with another"):
        export_job(tmp_path, {}, run_name=name)
    with pytest.raises(Refused, match=r"config_fed_server.json -> run_name: expected up to 100 letters"):
        FederationController(name)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"sites": {"site-1": {"device": "cuda:1"}}}, "sites#site-1#device"),
        ({"teacher#checkpoint": __file__}, "teacher#checkpoint"),
        ({"device": "cuda:1"}, "device"),
        ({"adapter": __file__}, "adapter"),
        ({"start_from": "samfed_skin"}, "start_from"),
        ({"cache_dir": "/cache"}, "cache_dir"),
    ],
)
def test_job_with_site_paths_is_refused(given, match):
    sites: dict[str, Any] = {"site-1": {}, "site-2": {}} | given.get("sites", {})
    with pytest.raises(Refused, match=rf"{match}.*found a path.*samfed_site\.json"):
        planned("samfed_skin", {"rounds": 1, **given, "sites": sites}, here=False)


@pytest.mark.parametrize(("name", "safe"), [("Hospital B", "Hospital_B"), ("Süd.1", "Sud_1"), ("=1", "1")])
def test_fault_69_site_name_unsupported_by_flare_is_refused(name, safe):
    message = rf"sites -> {name}: expected letters without .*; rename its folder and its entry in the list to '{safe}'"
    with pytest.raises(Refused, match=message):
        planned("samfed_skin", {"rounds": 1, "sites": {name: {}, "b-2_C": {}}}, here=False)


def test_list_unsuitable_for_method_is_refused_early(tmp_path):
    item = Item("a.png", "0" * 64, "a_label.png", "1" * 64, label_kind="box")
    sites = {"site-1": Site([item]), "site-2": Site([replace(item, image="b.png", label="b_label.png")])}
    DataList("own", [], sites).save(tmp_path / "list.json")
    given = {"rounds": 1, "datalist": str(tmp_path / "list.json"), "data_root": str(tmp_path)}
    with pytest.raises(Refused, match=r"(?s)own -> site-1 -> unlabelled: .*own -> site-2 -> unlabelled: .*\(box\)"):
        planned("samfed_skin", {**given, "variant": "supervised"}, here=False)
    assert planned("samfed_skin", {**given, "variant": "weak_labels"}, here=False).sites == ("site-1", "site-2")


def test_unrunnable_job_is_refused_early():
    given = {"rounds": 2, "sites": {"site-1": {}, "site-2": {}}}
    with pytest.raises(Refused, match=r"(?s)threshold: expected from 2 to 2.*quorum: expected .*from 1 to 2"):
        planned("samfed_skin", {**given, "job#quorum": 9, "privacy#secure_aggregation": {"threshold": 5}}, here=False)
    with pytest.raises(Refused, match=r"sites: expected at least 2"):
        planned("samfed_skin", {"rounds": 2, "sites": {"site-1": {}}}, here=False)
    with pytest.raises(Refused, match=r"(?s)image height: .*found 65.*learning rate of 7"):  # what only a site builds
        planned("samfed_skin", {**given, "image_size": 65, "optimizer#lr": 7}, here=False)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A job as `samfed flare export` leaves it."""
    run = planned("samfed_skin", {"rounds": 2, "sites": {"site-1": {}, "site-2": {}}, "seed": 3}, here=False)
    return export_plan(tmp_path_factory.mktemp("jobs") / "first", run.plan, run_name="first")


@pytest.fixture
def job(exported, tmp_path):
    return Path(shutil.copytree(exported, tmp_path / "first"))


def test_fault_81_full_disk_leaves_no_part_of_job(tmp_path, monkeypatch, capsys):
    words = [word for site in ("a", "b") for word in (f"--sites#{site}", "{}")]
    command = ["flare", "export", "samfed_skin", "--rounds", "2", *words, "--job", str(tmp_path / "job")]
    for place, named in (
        ("cli.flare.write_json", f"{tmp_path}/job"),
        ("flare.job.FedJob.export_job", ".*/samfed-job-"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(f"samfed_monai.{place}", Mock(side_effect=OSError(28, "No space left on device")))
            assert main(command) == 3
        assert re.search(rf"the disk is full \({named}", capsys.readouterr().err)
        assert list(tmp_path.iterdir()) == []


def test_exported_job_is_submitted_unchanged(job, tmp_path):
    (tmp_path / "link").symlink_to(job)
    again, plan = export_again(tmp_path / "link", tmp_path / "again")
    assert again == tmp_path / "again" / "first"
    written = [{path.relative_to(root): path.read_bytes() for path in root.rglob("*.json")} for root in (again, job)]
    assert written[0] == written[1]
    assert plan.seed == 3


def at(job: Path, name: str) -> Path:
    return job / ("" if name == "meta.json" else "app/config") / name


SERVER, CLIENT = "config_fed_server.json", "config_fed_client.json"
CHANGED = "expected an unchanged export of its plan, found changed content in .*{}; a job contains no code"


@pytest.mark.parametrize(
    ("name", "change", "match"),
    [
        (CLIENT, {"executors#0#executor#path": "evil.Evil"}, CHANGED.format(CLIENT)),
        (CLIENT, {"format_version": 2.0}, CHANGED.format(CLIENT)),
        (SERVER, {"workflows#0#args#run_name": "other"}, CHANGED.format(SERVER)),
        ("meta.json", {"deploy_map": {"app": ["@ALL"], "evil": ["site-1"]}}, CHANGED.format("meta.json")),
        ("meta.json", {"min_clients": True}, CHANGED.format("meta.json")),
        ("meta.json", {"name": "../up"}, "meta.json -> name: expected up to 100 letters"),
        ("meta.json", {"name": 5}, "found changed content in meta.json"),
        (PLAN, {"train": {"loss": {"_target_": "os.system"}}}, "os.system"),
        (PLAN, {"quorum": 3}, CHANGED.format("meta.json")),
    ],
)
def test_modified_job_is_refused(job, tmp_path, name, change, match):
    content = read_json(at(job, name))
    for where, value in change.items():
        *parts, last = where.split("#")
        inner = content
        for part in parts:
            inner = inner[int(part) if part.isdigit() else part]
        inner[last] = value
    write_json(at(job, name), content)
    with pytest.raises(Refused, match=match):
        export_again(job, tmp_path / "again")


@pytest.mark.parametrize(
    ("part", "found"),
    [
        ("app/custom/evil.py", r"first: expected only the four files .*, found app/custom, .*; a job contains no code"),
        ("app/CUSTOM/", "found app/CUSTOM"),
        ("app/config/config_fed_server.conf", "found app/config/config_fed_server.conf"),
        ("app/config/CONFIG_FED_CLIENT.json", "found app/config/CONFIG_FED_CLIENT.json"),
        (".hidden", r"found \.hidden"),
        ("meta.json ", "found meta.json ;"),
    ],
)
def test_job_with_extra_files_is_refused(job, tmp_path, part, found):
    path = job / part
    path.mkdir(parents=True) if part.endswith("/") else path.parent.mkdir(parents=True, exist_ok=True)
    if not part.endswith("/"):
        path.touch()
    with pytest.raises(Refused, match=found):
        export_again(job, tmp_path / "again")


def test_job_with_links_pipes_missing_or_many_files_is_refused(job, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    shutil.move(job / "app", elsewhere)
    (job / "app").symlink_to(elsewhere)
    with pytest.raises(Refused, match=r"found no app/config, .* app;"):
        export_again(job, tmp_path / "again")
    (job / "app").unlink()
    with pytest.raises(Refused, match=r"found no app, no app/config, no app/config/config_fed_server.json, "):
        export_again(job, tmp_path / "again")
    shutil.move(elsewhere, job / "app")
    (job / "app" / "config" / PLAN).unlink()
    os.mkfifo(job / "app" / "config" / PLAN)
    with pytest.raises(Refused, match=r"found app/config/samfed_plan\.json;"):
        export_again(job, tmp_path / "again")
    for number in range(9):
        (job / f"{number}.py").touch()
    with pytest.raises(Refused, match=r"found 0\.py, .*, 4\.py and 5 more; a job contains no code"):
        export_again(job, tmp_path / "again")


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"name": "first", "name": "first"}', "the same key twice"),
        ('{"name": "first", "x": NaN}', "changed content in meta.json"),
        ("[]", "changed content in meta.json"),
    ],
)
def test_job_files_are_parsed_strictly(job, tmp_path, text, match):
    (job / "meta.json").write_text(text)
    with pytest.raises(Refused, match=match):
        export_again(job, tmp_path / "again")


def test_unused_options_are_refused_and_unused_settings_logged(caplog, tmp_path):
    given = {"rounds": 1, "sites": {"site-1": {}, "site-2": {}}}
    unused = {"workers": 2, "job#verify": True, "overlays": False}
    with pytest.raises(Refused) as caught:
        planned("samfed_skin", {**given, **unused}, here=False)
    assert [problem.where for problem in caught.value.problems] == [f"command line -> {name}" for name in unused]
    bundle = shutil.copytree(find_bundle("samfed_skin"), tmp_path / "own")
    content = read_json(bundle / "configs" / "federate.json")
    content["job"] |= {"verify": True, "workers": 2}
    write_json(bundle / "configs" / "federate.json", content)
    planned(bundle, given, here=False)
    assert [record.message for record in caplog.records] == ["not used on FLARE: verify, workers (docs/deploy.md)"]


def test_impossible_numbers_and_times_are_refused(capsys):
    poc = "flare poc samfed_skin --datalist l --data-root d --output-dir r --stop-after nan --threads 0 --port 65536"
    submit = "flare submit samfed_skin --kit k --output-dir r --stop-after 5 --no-wait"
    assert [main(words.split()) for words in (poc, submit)] == [2, 2]
    found = capsys.readouterr().err
    assert "--stop-after: expected a number of seconds > 0, found nan" in found
    assert "--threads: expected a whole number >= 1, found 0" in found
    assert "--port: expected a whole number in [1, 65535], found 65536" in found
    assert "--stop-after: expected a command that waits, found it with --no-wait; give it to `samfed f" in found
