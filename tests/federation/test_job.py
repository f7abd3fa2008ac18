"""The whole job on two small synthetic sites, and what it would refuse before there is an image."""

from __future__ import annotations

import csv
import json
import logging
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import find_bundle
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.data import DataList, Item, Site
from samfed_monai.federation import FederatedJob, RoundController, site
from samfed_monai.federation.job import check_job, check_training
from samfed_monai.reports import RunData
from samfed_monai.reports.html import run_summary
from samfed_monai.results import validate_results
from tests.methods import needs, present

CLIENT = {"image_size": 32, "batch_size": 2, "local_steps": 2, "network_name": "basic_unet", "amp": False}

UNLIKE = {"public_steps": 1, "mixed_networks": ["basic_unet", "flexible_unet_resnet18"], "server_network": "basic_unet"}


def job(federation: Path, output: Path, **options: Any) -> FederatedJob:
    settings: dict[str, Any] = {
        "bundle_root": find_bundle("samfed_skin"),
        "datalist": federation / "list.json",
        "data_root": federation,
        "output_dir": output,
        "rounds": 2,
        "variant": "no_sam",
        "warm_start_steps": 2,
        "train": CLIENT,
        "privacy": {"least_images": 1},
    }
    return FederatedJob(**{**settings, **options})


@pytest.fixture
def again(monkeypatch) -> dict[str, Any]:
    """Gets the sites' scores of a run's models, by name, as computed anew whatever its rounds have scored."""
    scores_of, again = RoundController.scores_of, {}

    def both(self, name, round, known=None):
        again[name] = scores_of(self, name, round)["sites"]
        return scores_of(self, name, round, known)

    monkeypatch.setattr(RoundController, "scores_of", both)
    return again


def test_run_writes_results_tables_and_models(small_federation, tmp_path, caplog, again):
    with caplog.at_level(logging.INFO, "samfed_monai"):
        results = job(small_federation, tmp_path / "run").run()
    logged = (tmp_path / "run" / "run.log").read_text()
    assert logged.count("INFO    round 1 of 2: validation Dice") == logged.count("INFO    round 2 of 2:") == 1
    assert validate_results(results) == []
    assert read_json(tmp_path / "run" / "results.json") == results
    assert results["teacher"] is None
    assert {site: entry["test"]["n"] for site, entry in results["sites"].items()} == {"site-1": 2, "site-2": 2}
    assert results["traffic"]["up_bytes"] > 0
    assert again == {name: results["models"][name]["sites"] for name in again}
    rows = list(csv.DictReader((tmp_path / "run" / "federation.csv").open()))
    assert [(row["round"], row["site"]) for row in rows] == [(r, s) for r in "01" for s in ("site-1", "site-2")]
    assert all(float(row["term_pseudo_label"]) >= 0 for row in rows)
    assert (tmp_path / "run" / "rounds" / "001" / "global.safetensors").is_file()
    assert len(list((tmp_path / "run" / "evaluation" / "best" / "site-1" / "test" / "masks").iterdir())) == 2


@pytest.mark.parametrize("place", [".", "site-1", "site-1/images/run"])
def test_output_folder_with_listed_images_is_refused(small_federation, tmp_path, place):
    before = sorted(small_federation.rglob("*"))
    message = (
        r"2 problems\n.*cache_dir: expected a folder, found the file .*\n.*output_dir: expected a folder without lis"
    )
    with pytest.raises(Refused, match=message):
        job(small_federation, small_federation / place, cache_dir=small_federation / "list.json").run()
    assert sorted(small_federation.rglob("*")) == before, "nothing was written"
    own_root = {"data_root": tmp_path, "sites": {"site-2": {"data_root": str(small_federation)}}}
    with pytest.raises(Refused, match="output_dir: expected a folder without listed images"):
        job(small_federation, small_federation / place, **own_root).run()


@pytest.mark.slow
@needs("hssf")
def test_round_scores_match_final_scores_of_own_networks(small_federation, tmp_path, again):
    options = {"variant": "hssf", "train": {**CLIENT, **UNLIKE}, "warm_start_steps": 0}
    results = job(small_federation, tmp_path / "run", **options).run()
    assert again == {name: results["models"][name]["sites"] for name in again}
    assert again["best"].keys() == {"site-1", "site-2"}


@needs("mean_teacher")
def test_variants_of_one_seed_share_warm_start(small_federation, tmp_path):
    term = {"_target_": "samfed_monai.methods.mean_teacher.ConsistencyTerm", "guide": "weak"}
    added = {"dp_only": {"terms#consistency": term}, "no_sam": {"terms#consistency": term, "guides#ema#decay": 0.9}}
    for variant, more in added.items():
        options = {"variant": variant, "train": {**CLIENT, **more}, "cache_dir": tmp_path / "cache"}
        job(small_federation, tmp_path / variant, rounds=1, **options).run()
    assert len(list((tmp_path / "cache" / "warm_start").glob("*.safetensors"))) == 1
    rows = list(csv.DictReader((tmp_path / "no_sam" / "federation.csv").open()))
    assert all(float(row["term_consistency"]) > 0 for row in rows)
    (row, *_) = csv.DictReader((tmp_path / "dp_only" / "federation.csv").open())
    assert {name for name in row if name.startswith("term_")} == {"term_supervised"}, "sites have the public set alone"


def test_missing_final_scores_are_caveat_until_resumed(small_federation, tmp_path, monkeypatch):
    evaluate = site.Site._evaluate

    def away(self, message):
        if self.site == "site-2" and message.extra["model"] != "current":
            raise TimeoutError(110, "at /data/Jane Doe")
        return evaluate(self, message)

    oracle = job(small_federation, tmp_path, variant="oracle", rounds=1, quorum=1, allow_single_site=True)
    monkeypatch.setattr(site.Site, "_evaluate", away)
    results = oracle.run()
    (reason,) = results["unscored"].values()
    assert reason.startswith("TimeoutError (Connection timed out) in samfed_monai.federation.site, line ")
    assert results["caveats"][0].startswith(f"site-2 sent no scores of the final models, or not all ({reason}); av")
    assert (results["average"]["test"]["n"], results["average"]["validation"]["n"]) == (2, 4), "by the round's record"
    assert run_summary(RunData.read(tmp_path))[0].endswith("images at site-1; site-2 sent no score)")
    monkeypatch.undo()
    results = oracle.run()
    assert (results["average"]["test"]["n"], results["caveats"], results.keys() & {"unscored"}) == (4, [], set())
    assert validate_results(results) == []


def test_changed_configuration_in_same_folder_is_refused(small_federation, finished, monkeypatch):
    monkeypatch.setattr("samfed_monai.federation.run.evaluation_changes", lambda _: {"label_resize": "nearest"})
    logged = (finished / "run.log").read_text()
    changed = {"train": {**CLIENT, "learning_rate": 0.1}, "update_guard": {"limit": 0.5}}
    with pytest.raises(Refused) as caught:
        job(small_federation, finished, rounds=1, warm_start_steps=0, **changed).run()
    where = [problem.where.partition(" -> ")[2] for problem in caught.value.problems]
    assert where == ["config#learning_rate", "config#evaluate#label_resize", "config#update_guard#limit"]
    assert (finished / "run.log").read_text() == logged, "it is the other run's"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"unseen": ["site-2"]}, r"sites: expected at least 2, .*--allow_single_site true"),
        ({"sites": {"site-1": {"device": "cuda:99"}}}, r"sites#site-1#device: expected a device of this machine: cpu"),
        ({"train": {**CLIENT, "device": "gpu"}}, r"- device: expected a device of this machine: cpu"),
        (
            {"train": {"loca_steps": 1}, "teacher": {"epochz": 1}},
            r"(?s)FederatedJob -> loca_st.* FederatedJob -> epochz:",
        ),
        ({"sites": {"site-1": {"terms#no#weight": 1}}}, r"FederatedJob -> terms#no#weight: .* an unknown id"),
        ({"quorum": 3, "train": {**CLIENT, "personal": ["haed.*"]}}, r"(?s)2 problems.*quorum: .* from 1 to 2.*'haed"),
        ({"variant": "samfed", "teacher": {"size": 300}}, r"teacher -> size: expected a multiple of 16"),
        ({"compression": "int4"}, r"plan -> compression: expected 'float32' or 'bfloat16' or 'int8' or a whole number"),
        ({"compression": 0}, r"plan -> compression"),
        (
            {"compression": 4, "privacy": {"least_images": 1, "secure_aggregation": {"threshold": 2}}},
            r"federate\.json -> compression: expected updates that the server can read",
        ),
    ],
)
def test_invalid_options_are_refused_before_run(small_federation, tmp_path, options, message):
    with pytest.raises(Refused, match=message):
        job(small_federation, tmp_path / "run", **options).run()
    assert not (tmp_path / "run").exists()


def check(datalist: DataList | None = None, **overrides) -> list[str]:
    return [str(problem) for problem in check_job(find_bundle("samfed_skin"), overrides, datalist).problems]


def test_check_of_valid_bundle_reports_and_writes_nothing(small_list, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check(output_dir=str(tmp_path / "run")) == []
    assert list(tmp_path.iterdir()) == []
    assert check(small_list, variant="heterogeneous") == []
    assert check(variant="pfedsam") == [], "SAM itself is not built: its weights need not be here"
    assert check(teacher_adapt="off", variant="dp_only", teacher={"size": 300}) == [], "a teacher that is not there"


@needs("drflm")
def test_rule_for_unsent_statistic_is_noted(small_list, tmp_path, caplog, capsys):
    rule = {"least_images": 1, "statistics": {"spectrum": {"clip": 1.0}}}
    note = "federate.json -> privacy#statistics#spectrum: expected no rule, as drflm sends no statistics, found a rule"
    small_list.save(tmp_path / "list.json")
    run = job(tmp_path, tmp_path / "run", variant="drflm", privacy=rule, quorum=9)  # refused after the notes
    with caplog.at_level(logging.WARNING), pytest.raises(Refused, match="quorum"):
        run.run()
    assert any(message.startswith(note) for message in caplog.messages)
    root = tmp_path / "mine"
    shutil.copytree(find_bundle("samfed_skin"), root)
    path = root / "configs" / "federate.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "privacy": rule}))
    assert main(["check", str(root), "--workflow", "federate", "--variant", "drflm"]) == 0
    assert f"  note: {note}" in capsys.readouterr().out
    assert [str(each).startswith(note) for each in check_job(root, {"variant": "drflm"}, small_list).notes] == [True]
    assert check_job(find_bundle("samfed_skin"), {"variant": "drflm"}, None) == ([], [])


def test_check_refuses_labels_and_classes_unfit_for_variant():
    item = Item("a.png", "0" * 64)
    bare = DataList("own", [Item("p.png", "1" * 64, "m.png", "2" * 64)], {"bare": Site(unlabelled=[item] * 5)})
    alone = {"allow_single_site": True, "quorum": 1}
    (labels,) = check(bare, variant="weak_labels", **alone)
    learns, found = "(this variant learns from them), found", "of this site's 5 images with a label; add labels with"
    assert labels.startswith(f"own -> bare -> labels: expected labels {learns} 0 {found}")
    part = replace(bare, sites={"bare": Site(unlabelled=[replace(bare.public[0], image="a.png"), *[item] * 4])})
    assert check(part, variant="weak_labels", **alone) == []
    (unread,) = check(part, variant="oracle", **alone)
    assert unread.startswith(f"own -> bare -> labels: expected labels of all images {learns} 1 {found}")
    (public,) = check(replace(bare, public=[]), variant="samfed", **alone)
    assert public.startswith("own -> public: expected public images with masks")
    (classes,) = check(bare, **alone, classes=["kidney", "spleen"])
    assert classes.startswith("own -> classes: expected ['kidney', 'spleen'], the classes of this run, found binary")
    (adapt,) = check(teacher_adapt="none", classes=["kidney", "spleen"])
    assert adapt.startswith("train.json -> teacher_adapt: expected an adapted SAM")


def test_privacy_network_and_teacher_problems_are_reported_together():
    names = {"teacher_adapt": "LoRA", "network_name": "deeplabv3_resnet18"}
    rules = {"privacy": {"least_image": 3}, "job#update_guard#action": "cut"}
    found = check(**rules, teacher={"base": "mobile_sam", "size": 300}, **names)
    starts = (
        "UpdateGuard#action: expected one of ['clip', 'skip'], found 'cut'",
        "federate.json -> privacy#least_image: expected one of",
        "network of a site: expected one of",
        "teacher -> adapt: expected one of",
        "teacher -> base: expected one of",
        "teacher -> size: expected a multiple of 16 from 64 to 1024 pixels, found 300; the nearest is 304",
    )
    assert all(any(problem.startswith(start) for problem in found) for start in starts), found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"agreement#rule": "averag"}, r"terms#pseudo_label#rule: .*'averag'; did you mean 'average'"),
        ({"teacher_adapt": "off"}, r"teacher_adapt: expected a teacher, .*, found 'off', with guides#sam; remove"),
        ({"agreement#tau": 1.4}, r"terms#pseudo_label#tau: expected a number in \[0, 1\], found 1.4"),
        ({"agreement#delta": 0.3}, r"label#delta: expected 0.1, as the rule trusted_average does not use it, found 0"),
        (
            {"variant": "no_sam", "guides#ema#_disabled_": False},
            r"^guides#ema#_disabled_: expected one of \['weak'\], found a guide that no term reads; leave it out$",
        ),
        ({"agreement#student": "globl"}, r"terms#pseudo_label: .* the guide 'globl'; did you mean 'global'"),
        ({"terms#sam_kd#teacher": "ema"}, r"terms#sam_kd: .* the guide 'ema'; add or enable a guide of that name"),
        ({"variant": "drflm", "strategy#number": "local_mixpu"}, r"strategy#number: .*; did you mean 'local_mixup'"),
        ({"variant": "drflm", "terms#local_mixup#_disabled_": True}, r"strategy#number: .*; enable that term"),
        ({"variant": "drflm", "terms#local_mixup#name": "mine"}, r"strategy#number: .* one of \['mine', "),
        ({"variant": "fedsam", "network_name": "basic_unet"}, r"network_def: expected arguments that basic_unet takes"),
        (
            {"variant": "heterogeneous", "mixed_networks": ["lite0_fpn", "basicunet"], "server_network": "lite0_fpn"},
            r"mixed_networks#1: expected one of .*; did you mean 'basic_unet'",
        ),
        (
            {"variant": "hssf", "exchange": "weights", "mixed_networks": ["sam_vit_t"]},
            "json -> exchange: expected predictions, .*, found weights, with sam_vit_t at a site; remove exchange",
        ),
        ({"variant": "heterogeneous", "mixed_networks": True}, "mixed_networks: expected a list of networks, or null"),
    ],
)
def test_check_reports_refusals_of_components(given, message):
    found = check_job(find_bundle("samfed_skin"), given, None).problems
    assert any(re.search(message, str(problem)) for problem in found), found


@pytest.mark.parametrize(
    "given",
    [
        {"guides#ema#_disabled_": False, "agreement#student": "ema"},
        {"agreement#student": "weak"},
        {"variant": "drflm", "strategy#number": "supervised"},
        {"variant": "drflm", "strategy#number": "pseudo_label"},
    ],
)
def test_enabled_guide_or_term_is_accepted(given):
    assert check(**given) == []


MASKS = "expected masks, the only labels that this method uses"


@pytest.mark.parametrize("variant", ["supervised", "oracle"])
def test_weak_labels_are_refused_where_masks_are_required(weak, variant, tmp_path):
    listed = DataList.load(weak / "list.json")
    [first, second] = check(listed, variant=variant)
    assert first.startswith(f"synthetic-0 -> site-1 -> unlabelled: {MASKS}, found 2 weak labels (box); use a method")
    assert second.startswith(f"synthetic-0 -> site-2 -> unlabelled: {MASKS}, found 2 weak labels (points); use a")
    with pytest.raises(Refused) as caught:
        job(weak, tmp_path / "run", variant=variant).run()
    assert [str(problem) for problem in caught.value.problems] == [first, second]
    assert not (tmp_path / "run").exists()
    alone = {"unseen": ["site-2"], "job#allow_single_site": True}
    assert check(listed, variant=variant, **alone) == [first], "the other site does not train"


def test_weak_labels_are_checked_against_variant_and_site(weak):
    listed = DataList.load(weak / "list.json")
    for variant in present("weak_labels", "fedicra", "samfed", "dp_only"):
        assert check(listed, variant=variant) == []
    [problem] = check(listed, variant="weak_labels", sites={"site-2": {"images#weak_labels": False}})
    assert problem.startswith("synthetic-0 -> site-2"), "the other site can"


def test_weak_labels_flag_alone_is_refused(weak):
    listed, flag = DataList.load(weak / "list.json"), {"images#weak_labels": True}
    for options in ({"sites": {"site-1": flag}}, flag):
        [problem] = check(listed, variant="supervised", **options)
        assert problem.startswith("train.json -> resize: expected a component that ignores unlabelled pixels (255)")


@needs("clustered_sites")
def test_too_few_sites_for_strategy_are_refused(small_list):
    [clusters] = check(small_list, variant="clustered_sites")
    assert clusters.startswith("strategy: expected 4 sites or more, for 2 clusters of at least 2, found 2; lower str")


@pytest.mark.parametrize(
    ("given", "variant", "message"),
    [
        ({"network_name": "lite_fpn"}, None, r"train\.json -> network_name: .*; did you mean 'lite0_fpn'"),
        ({"agreement#rule": "averag"}, "samfed", r"terms#pseudo_label#rule: .*; did you mean 'average'"),
        ({}, "fedsam", ""),
    ],
)
def test_check_training_reports_invalid_components(given, variant, message):
    found = check_training(find_bundle("samfed_skin"), given, variant)
    assert bool(found) is bool(message)
    assert re.search(message, "\n".join(map(str, found)))


def test_site_data_root_is_checked(small_federation, small_list, tmp_path, capsys):
    shutil.copytree(small_federation, tmp_path / "own")
    image = small_list.sites["site-2"].unlabelled[0].image
    shutil.copy(small_federation / small_list.public[0].image, tmp_path / "own" / image)
    sites = {"site-1": {}, "site-2": {"data_root": str(tmp_path / "own")}}
    with pytest.raises(Refused, match=f"1 problem\n  - {image}: expected .*, found SHA-256"):
        job(small_federation, tmp_path / "run", sites=sites).run()
    data = ["--datalist", str(small_federation / "list.json"), "--data-root", str(small_federation)]
    words = ["check", "samfed_skin", "--workflow", "federate", *data, "--sites#site-2#data_root"]
    assert [main([*words, str(root)]) for root in (tmp_path / "own", small_federation)] == [2, 0]
    assert f"{image}: expected" in capsys.readouterr().err
    (tested,) = small_list.sites["site-1"].test[:1]
    shutil.copy(small_federation / tested.image, tmp_path / "own" / "again.png")
    again = Site([*small_list.sites["site-2"].unlabelled, Item("again.png", tested.sha256)])
    replace(small_list, sites={**small_list.sites, "site-2": again}).save(tmp_path / "twice.json")
    data[1], sites["site-2"] = str(tmp_path / "twice.json"), {"data_root": str(tmp_path / "own")}
    shutil.copy(small_federation / image, tmp_path / "own" / image)
    leak = "again.png: expected images of test in no other split, found the same bytes in site-2's unlabelled"
    with pytest.raises(Refused, match=f"1 problem\n  - {leak}"):
        job(small_federation, tmp_path / "run2", datalist=data[1], sites=sites).run()
    assert main([*words[:4], *data, *words[-1:], str(tmp_path / "own")]) == 2
    assert leak in capsys.readouterr().err
