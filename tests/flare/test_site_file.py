"""A site file: found, checked, its limits set before torch is there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.federation.plan import Paths
from samfed_monai.flare.local import write_site_files
from samfed_monai.flare.site_file import read_site_file
from samfed_monai.protocol import StatisticKind


def site_file(folder: Path, **content: Any) -> Path:
    (folder / "list.json").write_text("{}")
    paths = {"datalist": str(folder / "list.json"), "data_root": str(folder), "cache_dir": str(folder / "cache")}
    write_json(folder / "local" / "samfed_site.json", {**paths, "runs_dir": str(folder / "runs"), **content})
    return folder


def test_site_file_is_found_above_job_folder(tmp_path):
    inside = tmp_path / "job" / "app_site-1"
    inside.mkdir(parents=True)
    with pytest.raises(Refused, match=r"site-1: samfed_site.json.*local/samfed_site.json.*docs/deploy.md"):
        read_site_file(inside, "site-1")
    site_file(tmp_path)
    files = read_site_file(inside, "site-1")
    assert files.run_folder("first") == tmp_path / "runs" / "first"
    assert files.cache_dir == tmp_path / "cache"


def test_site_file_problems_are_reported_together(tmp_path):
    floor = {"least_images": 5, "epsilon": 1.0, "statistics": []}
    site_file(tmp_path, datalst="x", data_root=str(tmp_path / "nowhere"), threads=0, cache_dir="", runs_dir="", **floor)
    with pytest.raises(Refused) as refused:
        read_site_file(tmp_path)
    text = str(refused.value)
    assert re.search(r"datalst: expected one of \[.*'datalist'", text)
    assert "nowhere, which does not exist" in text
    assert "threads: expected at least 1" in text
    assert "cache_dir: expected a path, found nothing" in text
    for name in floor:
        assert f"{name}: expected no value: this key belongs in a site's file, found a value; remove it" in text
    assert "runs_dir" in text


def test_environment_variable_names_folder_of_site_files(tmp_path, monkeypatch):
    site_file(tmp_path)
    (tmp_path / "local" / "samfed_site.json").rename(tmp_path / "site-2.json")
    monkeypatch.setenv("SAMFED_SITE", str(tmp_path))
    assert read_site_file("/", "site-2").path == tmp_path / "site-2.json"
    with pytest.raises(Refused, match=r"site-9.json"):
        read_site_file("/", "site-9")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"least_images": 0}, "at least 1"),
        *(({"least_images": value}, "a whole number or null") for value in (2.0, True, "5")),
        ({"threads": 1.5}, "a whole number or null"),
        *(({"epsilon": value}, "above 0") for value in (0, -1.0)),
        *(({"epsilon": value}, "a number or null") for value in (float("nan"), float("inf"), "1")),
        ({"statistics": ["weights"]}, re.escape(f"one of {[kind.value for kind in StatisticKind]}")),
        ({"statistics": "spectrum"}, "a list or null"),
        *(({name: "x"}, "no value: this key belongs in the server's file") for name in ("adapter", "start_from")),
        ({"output_dir": "x"}, "no value: this key belongs in files that `samfed flare poc` and `simulate` write"),
    ],
)
def test_invalid_site_settings_are_refused(tmp_path, change, expected):
    site_file(tmp_path)
    path = tmp_path / "local" / "samfed_site.json"
    path.write_text(json.dumps({**read_json(path), **change}))
    with pytest.raises(Refused, match=f"samfed_site.json -> {next(iter(change))}(#0)?: expected {expected}"):
        read_site_file(tmp_path, "site-1")


SCRIPT = """
import os, resource, sys
from pathlib import Path
from samfed_monai.flare.site_file import SiteFile, apply_limits

apply_limits(SiteFile(*[Path()] * 4, **eval(sys.argv[1])))
found = map(os.environ.get, ("SAMFED_WEIGHTS", "SAMFED_DEVICE"))
print(*found, resource.getrlimit(resource.RLIMIT_DATA)[0], "torch" in sys.modules)
"""


@pytest.mark.parametrize(
    ("content", "printed"),
    [
        ("{}", "None cpu -1 False"),
        ("{'weights': Path('/w'), 'memory_limit_gib': 1.5, 'device': 'cuda:1'}", f"/w cuda:1 {3 * 2**29} False"),
    ],
)
def test_memory_device_and_weights_are_set_without_torch(content, printed, monkeypatch):
    monkeypatch.delenv("SAMFED_WEIGHTS", raising=False)
    monkeypatch.setenv("SAMFED_DEVICE", "cpu")
    done = subprocess.run([sys.executable, "-c", SCRIPT, content], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == printed


def test_relative_paths_are_resolved_from_site_file(tmp_path, monkeypatch):
    local, app = tmp_path / "local", tmp_path / "job" / "app"
    for folder in (local, app):
        folder.mkdir(parents=True)
        (folder / "list.json").write_text("{}")
    given = {"datalist": "list.json", "data_root": ".", "cache_dir": "cache", "runs_dir": "runs"}
    write_json(local / "samfed_site.json", given)
    monkeypatch.chdir(app)
    files = read_site_file(app)
    assert (files.datalist, files.cache_dir) == (local / "list.json", local / "cache")
    monkeypatch.setenv("SAMFED_SITE", "../../local")
    write_json(local / "site-1.json", given)
    assert read_site_file(app, "site-1").datalist.resolve() == local / "list.json"


@pytest.mark.parametrize("given", ["samfed_skin", "runs/first"])
def test_initial_model_and_adapter_are_given_to_server_only(two_sites, tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    listed = DataList.load(two_sites / "list.json")
    models = {"start_from": given, "adapter": "own.safetensors"}
    paths = Paths(tmp_path, two_sites / "list.json", two_sites, tmp_path / "run", **models)
    monkeypatch.setenv("SAMFED_SITE", str(write_site_files(tmp_path / "files", listed, paths, ("site-1",))))
    monkeypatch.setenv("SAMFED_FLARE_MARK", "")
    assert read_site_file("/").start_from == (given if given == "samfed_skin" else str(tmp_path / given))
    assert read_site_file("/").adapter == tmp_path / "own.safetensors"
    site = read_site_file("/", "site-1")
    assert site.start_from is site.adapter is None
    server = tmp_path / "files" / "server.json"
    write_json(server, read_json(server) | {"start_from": given})
    beside = given if given == "samfed_skin" else str(tmp_path / "files" / given)
    assert read_site_file("/").start_from == beside, "a relative path starts at the file"
