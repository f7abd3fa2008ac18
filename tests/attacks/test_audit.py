"""The audit of a run: the command, the page, and findings of earlier calls."""

import dataclasses
import shutil
import stat
from pathlib import Path

import pytest

from samfed_monai.attacks import ATTACKS, Options
from samfed_monai.attacks.audit import as_cell, named, run_audit
from samfed_monai.attacks.target import target_of_run
from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json, write_json
from samfed_monai.data import DataList
from samfed_monai.data.weak_labels import weaken_list
from tests.attacks.toys import target
from tests.federation.test_job import job
from tests.methods import needs

QUICK = Options(images=8, steps=1, batch=1, shadow_steps=0)


def test_attack_names_are_sorted_and_all_selects_every_attack():
    assert named(["planted", "membership", "planted"]) == ["membership", "planted"]
    assert named(["all"]) == list(ATTACKS)


def test_second_audit_extends_page_and_replaces_findings(tmp_path):
    toy = target(count=8)
    page = run_audit(toy, ["membership"], QUICK, tmp_path)
    run_audit(toy, ["planted", "membership"], QUICK, tmp_path)
    content = read_json(tmp_path / "audit.json")
    assert [finding["attack"] for finding in content["findings"]] == ["membership", "planted"]
    assert content["findings"][0]["options"]["images"] == 8
    text = page.read_text()
    assert text.count("<h2>") == 2
    assert text.count("data:image/png") == len(content["findings"][1]["pictures"]) == 3
    assert "treat it as you treat the images" in text
    for path in (page, *tmp_path.glob("*.png")):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, "they show private images"


def test_findings_of_other_run_are_discarded(tmp_path):
    run_audit(target(count=8), ["planted"], QUICK, tmp_path)
    other = dataclasses.replace(target(count=8), about={"run": "<b>other</b>"})
    page = run_audit(other, ["membership"], QUICK, tmp_path)
    content = read_json(tmp_path / "audit.json")
    assert [finding["attack"] for finding in content["findings"]] == ["membership"]
    assert "&lt;b&gt;other" in page.read_text()
    assert "<b>other" not in page.read_text()
    with pytest.raises(Refused, match=r"membership: expected images of the list that .*, found no test images"):
        run_audit(dataclasses.replace(other, groups=other.groups[:2]), ["membership"], QUICK, tmp_path)


def test_table_cells_are_formatted():
    assert [as_cell(each) for each in (None, True, [0.25, 0.5], 31.24, 7, "x")] == [
        "–", "yes", "0.250 to 0.500", "31.2", "7", "x",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def run(small_federation, tmp_path_factory):
    folder = tmp_path_factory.mktemp("audit") / "run"
    job(small_federation, folder, rounds=1).run()
    return folder


@pytest.mark.slow
def test_audit_runs_from_command_line(run, small_federation, capsys):
    paths = ["--datalist", str(small_federation / "list.json"), "--data-root", str(small_federation)]
    words = [str(run), "--attack", "membership,planted"]
    assert main(["audit", *words, *paths]) == 2
    assert "run -> command: expected that of the run, found no --bundle; give --bundle" in capsys.readouterr().err
    assert main(["audit", *words, "--bundle", "samfed_skin", *paths]) == 0
    output = capsys.readouterr().out
    assert output.startswith("Membership inference by loss\n  - public: ")
    assert Path(output.splitlines()[-1]) == run / "audit" / "audit.html"
    content = read_json(run / "audit" / "audit.json")
    assert content["about"]["network"] == "basic_unet"
    assert [row["images"] for row in content["findings"][0]["rows"]] == ["public", "site-1", "site-2"]


def test_bundle_with_dataset_by_reference_can_be_attacked(run, small_federation, tmp_path):
    bundle = shutil.copytree(find_bundle("samfed_skin"), tmp_path / "mine")
    content = read_json(bundle / "configs" / "train.json")
    content["own_images"], content["train"]["dataset"] = content["train"]["dataset"], "@own_images"
    write_json(bundle / "configs" / "train.json", content)
    paths = {"datalist": small_federation / "list.json", "data_root": small_federation}
    assert [group.name for group in target_of_run(run, bundle=str(bundle), **paths).groups][:2] == ["public", "site-1"]


@needs("weak_labels")
def test_weak_labels_are_not_used_as_ground_truth(run, small_federation, tmp_path):
    """Of a run that says it was trained on labelled images alone."""
    run = shutil.copytree(run, tmp_path / "run")
    write_json(run / "results.json", {**read_json(run / "results.json"), "variant": "weak_labels"})
    listed = tmp_path / "weak.json"
    weaken_list(DataList.load(small_federation / "list.json"), small_federation, {"site-1": "points"}).save(listed)
    with pytest.raises(Refused, match="json -> hash: expected the run's, with its training images, found another"):
        target_of_run(run, bundle="samfed_skin", datalist=listed, data_root=small_federation)
    write_json(run / "results.json", {**read_json(run / "results.json"), "hashes": {}})
    found = target_of_run(run, bundle="samfed_skin", datalist=listed, data_root=small_federation)
    assert [(group.name, group.member, group.labels is not None, len(group)) for group in found.groups] == [
        ("public", True, True, 4),
        ("site-1", True, False, 4),
        ("site-1", False, True, 2),
        ("site-2", True, True, 4),
        ("site-2", False, True, 2),
    ]
