"""A site's part of a run on FLARE: the plan that came with the job is data."""

from __future__ import annotations

import os
from dataclasses import replace
from multiprocessing.connection import Pipe
from typing import Any

import pytest

from samfed_monai.config.bundles import packaged_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from samfed_monai.data import DataList
from samfed_monai.federation.plan import Plan
from samfed_monai.federation.site import Site
from samfed_monai.flare.site_file import read_plan, read_site_file
from samfed_monai.flare.worker import federated_site, serve
from samfed_monai.privacy.accounting import PrivacyLedger
from samfed_monai.protocol.message import MessageRefused
from tests.flare.test_site_file import site_file

PLAN = {"bundle": "samfed_skin", "rounds": 2, "sites": {"site-1": {}, "site-2": {}}}


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"train": {"learning_rate": "$__import__('os')"}}, "learning_rate"),
        ({"train": {"loss": {"_target_": "os.system"}}}, r"os\.system"),
        ({"sites": {"site-1": {"loss#_target_": "subprocess.run"}}}, r"subprocess\.run"),
        ({"teacher": {"checkpoint": "/etc/passwd"}}, "checkpoint"),
        *(({"bundle": path}, "a bundle's name, not a path") for path in ("tmp/evil", "..", "a\\b")),
        ({"privacy": {"filter": {"_target_": "os.system"}}}, r"privacy#filter.*os\.system"),
        ({"update_guard": {"x": "$1"}}, "update_guard#x"),
        ({"round": 1}, "unknown key"),
    ],
)
def test_fault_31_plan_with_code_is_refused_at_site(tmp_path, change, match):
    write_json(tmp_path / "plan.json", {**PLAN, **change})
    with pytest.raises(Refused, match=match):
        read_plan(tmp_path / "plan.json")


def test_job_folder_does_not_replace_installed_bundle(tmp_path, monkeypatch):
    write_json(tmp_path / "samfed_skin" / "configs" / "metadata.json", {})
    write_json(tmp_path / "mine" / "configs" / "metadata.json", {})
    monkeypatch.chdir(tmp_path)
    plan = Plan.from_json(PLAN)
    files = read_site_file(site_file(tmp_path))
    assert files.paths(plan, tmp_path).bundle_root == packaged_bundle("samfed_skin")
    own = read_site_file(site_file(tmp_path, bundle_root=str(tmp_path / "mine")))
    assert own.paths(plan, tmp_path).bundle_root == tmp_path / "mine"
    with pytest.raises(MessageRefused, match=r"bundle: expected one of .*, found 'mine'; set bundle_root in samfed_s"):
        files.paths(Plan.from_json({**PLAN, "bundle": "mine"}), tmp_path)


@pytest.fixture
def begun(two_sites, tmp_path):
    """Builds what answers at site-1, in a run called ab12; its site file may change, and images leave its list."""
    whole = DataList.load(two_sites / "list.json").for_site("site-1")
    where = {"plan": "plan.json", "run_folder": "first", "state": "cache/state/ab12/site-1"}
    settings = {"site": "site-1", **{name: str(tmp_path / path) for name, path in where.items()}}
    write_json(tmp_path / "plan.json", {**PLAN, "privacy": {"differential_privacy": {"noise_multiplier": 2.0}}})

    def begin(less: int = 0, **change: Any) -> Site:
        files = read_site_file(site_file(tmp_path, **change), "site-1")
        part = whole.sites["site-1"]
        replace(whole, sites={"site-1": replace(part, unlabelled=part.unlabelled[less:])}).save(files.datalist)
        return federated_site(settings, files)

    return begin


def test_site_file_sets_privacy_floor(begun):
    site = begun(least_images=8, epsilon=2.5)
    assert (site.privacy.least_images, site.release.ledger.limit) == (8, 2.5)
    assert begun().release.ledger.limit is None


def test_site_with_changed_images_is_refused_after_training(begun, tmp_path):
    begun()
    begun(less=1)  # put right after a check that failed
    (tmp_path / "cache" / "state" / "ab12" / "site-1" / "000.safetensors").touch()
    begun(less=1)
    expected = "data list: expected the part of earlier rounds, found another part of this site; start a new run"
    with pytest.raises(MessageRefused, match=expected):
        begun()


def test_releases_are_counted_without_audit_file(begun, tmp_path):
    for run in ("ab12", "cd34", "ab12"):
        ledger = PrivacyLedger(tmp_path / "cache", "site-1", None, run=run)
        ledger.enter(2.0, 1e-5)
    ledger.path.open("a").write('{"run": "ab')
    assert begun().release.releases == {2.0: 2}


def test_worker_process_is_set_up(monkeypatch):
    set_up = []
    monkeypatch.setattr("samfed_monai.flare.worker.set_up_process", lambda: set_up.append(True))
    ours, theirs = Pipe()
    monkeypatch.setattr("sys.argv", ["worker", str(os.dup(theirs.fileno()))])
    theirs.close()
    ours.close()
    with pytest.raises(EOFError):
        serve(federated_site)
    assert set_up == [True]
