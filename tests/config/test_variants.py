"""Where a variant's file is: the bundle's own before the package's."""

from __future__ import annotations

import json
import re

import pytest

from samfed_monai.cli.main import main
from samfed_monai.config import check_bundle, find_bundle, find_variant, known_variants
from samfed_monai.config.method import EXCHANGES, LABELS, LAST, LEAVES_SITE, read_method
from samfed_monai.config.targets import entry_points_of
from samfed_monai.config.variants import PACKAGED, methods, resolved_method
from samfed_monai.core.errors import Refused
from samfed_monai.federation.workflow import client_config
from study.methods_page import methods_page
from tests.methods import present


def test_packaged_and_own_variants_are_known(bundle):
    assert known_variants(bundle) == sorted([*known_variants(), "gentle"])
    assert {"samfed", "dp_only", "no_sam", "oracle"} <= set(known_variants())
    assert find_variant(bundle, "no_sam") == find_variant(None, "no_sam") == PACKAGED / "no_sam.json"


def test_own_variant_replaces_packaged_variant(bundle, rewrite):
    own = rewrite("variants/no_sam.json", json.dumps({"_note": "ours", "rate": 0.3}))
    assert find_variant(bundle, "no_sam") == own
    assert read_method(own).title == "no_sam"
    assert check_bundle(bundle, "train", variant="no_sam") == []


@pytest.mark.parametrize("name", ["no_sma", "../../train", "", None, ["no_sam"], {"no_sam": 1}])
def test_unknown_variant_is_refused_with_all_names(bundle, name):
    with pytest.raises(Refused, match=r"variant: expected one of \[.*'dp_only', .*'gentle', .*'samfed'"):
        find_variant(bundle, name)
    with pytest.raises(Refused, match="found 'no_sma'; did you mean 'no_sam'"):
        find_variant(None, "no_sma")


def test_packaged_variants_declare_method_and_exchange():
    assert methods().keys() == set(known_variants())
    for name, method in methods().items():
        assert resolved_method(None, name) == method
        assert (len(method.note) > 15, len(method.title) > 2, method.place < LAST) == (True, True, True), name
        assert (method.exchange in EXCHANGES, method.labels in LABELS) == (True, True), name
        assert set(method.leaves_site) <= set(LEAVES_SITE), name
        assert method.where.endswith(".json -> _method#leaves_site"), name


def test_declaration_is_inherited_and_may_be_replaced(rewrite):
    given = {"exchange": "predictions", "labels": "masks", "leaves_site": ["predictions", "scores"]}
    root = rewrite("variants/ground.json", json.dumps({"_method": given})).parents[2]
    rewrite("variants/upper.json", json.dumps({"_method": {"base": "ground", "title": "Upper"}}))
    rewrite("variants/top.json", json.dumps({"_method": {"base": "upper", "exchange": "none", "leaves_site": []}}))
    upper, top = resolved_method(root, "upper"), resolved_method(root, "top")
    assert (upper.exchange, upper.labels, upper.leaves_site) == ("predictions", "masks", ("predictions", "scores"))
    assert (upper.title, upper.where) == ("Upper", "ground.json -> _method#leaves_site")
    assert (top.exchange, top.labels, top.leaves_site) == ("none", "masks", ())
    assert top.where == "top.json -> _method#leaves_site"


def test_variant_without_declaration_and_misplaced_base(bundle, rewrite):
    rewrite("variants/alone.json", json.dumps({"_note": "ours"}))
    assert resolved_method(bundle, "alone").leaves_site is None
    rewrite("variants/upon.json", json.dumps({"_base": "local_only"}))
    with pytest.raises(Refused, match=r"upon\.json -> _base: expected `base` in _method, found 'local_only'"):
        resolved_method(bundle, "upon")
    rewrite("variants/upon.json", json.dumps({"_method": {"base": "local_onli"}}))
    with pytest.raises(Refused, match=r"upon\.json -> _method#base: expected .* did you mean 'local_only'"):
        resolved_method(bundle, "upon")


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({}, r"exchange: expected one of \['weights', .*'none'\], found nothing; add it, or set a base"),
        ({}, r"labels: expected one of \['none', 'masks', 'weak'\], found nothing"),
        ({}, r"leaves_site: expected one of \['weights', .*, 'graph', 'scores'\], found nothing"),
        ({"exchange": "wieghts"}, r"exchange: expected one of .*, found 'wieghts'; did you mean 'weights'"),
        ({"exchange": ["weights"]}, r"exchange: expected one of .*, found \['weights'\]"),
        ({"labels": "boxes"}, r"labels: expected one of \['none', 'masks', 'weak'\], found 'boxes'"),
        ({"leaves_site": "scores"}, "leaves_site: expected a list, found 'scores'"),
        ({"leaves_site": ["scores", "images"]}, "leaves_site#1: expected one of .*, found 'images'"),
        ({"networks": ["a"]}, r"networks: expected an object, found \['a'\]"),
        ({"networks": {"a": "b"}}, "networks#a: expected the path of its builder, `.*`, found 'b'"),
        ({"place": "first"}, "place: expected a whole number, found 'first'"),
    ],
)
def test_incomplete_or_invalid_declaration_is_refused(bundle, rewrite, block, message):
    rewrite("variants/odd.json", json.dumps({"_method": block}))
    with pytest.raises(Refused, match=f"odd.json -> _method#{message}"):
        resolved_method(bundle, "odd")


def test_exchanged_data_must_be_in_leaves_site(bundle, rewrite):
    rewrite("variants/odd.json", json.dumps({"_method": {"base": "local_only", "exchange": "prototypes"}}))
    message = (
        r"local_only.json -> _method#leaves_site: expected a list with 'prototypes', which the method exchanges, "
        r"found \['scores'\]; add it, or change exchange of odd"
    )
    with pytest.raises(Refused, match=message):
        resolved_method(bundle, "odd")


def test_published_methods_declare_inferred_parts():
    assert all(method.inferred for method in methods().values() if method.source)


@pytest.mark.parametrize("name", present("cpss", "drflm", "fedda", "fedda_cyclic", "pfedsam", "pfedsam_two_stage"))
def test_methods_without_public_text_declare_published_and_left_out(name):
    method = resolved_method(None, name)
    assert all((method.published, method.inferred, method.left_out))
    section = methods_page([method])
    assert f"*As published*: {method.published}." in section
    assert f"*Left out*: {method.left_out}." in section


def test_variants_command_shows_or_lists_variants(bundle, rewrite, capsys):
    assert main(["variants", "local_only"]) == 0
    output = capsys.readouterr().out
    assert output.startswith("local_only  nothing is exchanged: every site trains its own network")
    assert "\n            exchange: none; labels: none; leaves a site: scores; several classes\n\n{\n" in output
    assert output.endswith((PACKAGED / "local_only.json").read_text(encoding="utf-8"))
    block = {"note": "A softer start.", "exchange": "none", "labels": "none", "leaves_site": []}
    own = rewrite("variants/gentle.json", json.dumps({"_method": block}))
    assert main(["variants", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == known_variants(bundle)
    assert any(line.split(maxsplit=1) == ["gentle", "A softer start."] for line in lines)
    for words, path in (([str(bundle), "--path", "gentle"], own), (["--path", "oracle"], PACKAGED / "oracle.json")):
        assert main(["variants", *words]) == 0
        assert capsys.readouterr().out == f"{path}\n"


@pytest.mark.parametrize("words", [["fedavg"], ["--path", "fedavg"]])
def test_variants_command_explains_fedavg(words, capsys):
    assert main(["variants", *words]) == 2
    message = r"variant: expected one of \[.*\], found 'fedavg'; every variant without a strategy averages"
    assert re.search(message, capsys.readouterr().err)


def test_check_covers_own_variants_and_named_variant(bundle, capsys):
    assert main(["check", str(bundle)]) == 0
    assert "toy: no problems in train and the variant gentle\n" in capsys.readouterr().out
    assert main(["check", str(bundle), "--variant", "no_sam"]) == 2
    assert "no_sam.json -> teacher_adapt: expected an id of this workflow" in capsys.readouterr().err


@pytest.mark.parametrize("variant", known_variants())
def test_options_reach_optimizer_and_batches_of_every_variant(variant):
    """A variant sets an option, not the id that refers to it, so that the command line overrides it."""
    parser = client_config(find_bundle("samfed_skin"), variant, {"learning_rate": 0.5, "batch_size": 7}).parser()
    assert parser.get_parsed_content("optimizer#lr") == 0.5
    readers = ["train#dataloader", "unlabelled#dataloader", "validate#dataloader", "test#dataloader", "steps"]
    for place in [*readers, *(["client_algorithm"] if "client_algorithm#batch_size" in parser else [])]:
        assert parser.get_parsed_content(f"{place}#batch_size") == 7, place


LAB = {"samfed_test_lab/__init__.py": "", "samfed_test_lab/bad.py": ""}


@pytest.mark.parametrize(
    ("files", "module", "found"),
    [
        ({}, "samfed_test_lab_none", "ModuleNotFoundError: No module named 'samfed_test_lab_none'"),
        ({"samfed_test_lab/__init__.py": ""}, "samfed_test_lab", "ModuleNotFoundError: no module samfed_test_lab.bad"),
        ({**LAB, "samfed_test_lab/__init__.py": "1 / 0"}, "samfed_test_lab", "ZeroDivisionError: division by zero"),
        (LAB, "samfed_test_lab", "bad.json: expected a readable file, found No such file"),
        (
            {**LAB, "samfed_test_lab/bad.json": '{"_method": {"kind": "mehtod"}}'},
            "samfed_test_lab",
            "bad.json -> _method#kind",
        ),
    ],
)
def test_broken_method_entry_point_is_reported_and_others_work(lab, capsys, files, module, found):
    good = {"samfed_test_lab_good.py": "", "good.json": '{"_method": {"note": "a good one", "base": "no_sam"}}'}
    lab({**files, **good}, f"bad = {module}.bad\ngood = samfed_test_lab_good:Strategy")
    assert {"good"} == {"bad", "good"} & set(known_variants())
    assert resolved_method(None, "good").note == "a good one"
    problem = entry_points_of("methods").broken["bad"]
    assert problem.where == f"my-lab 1.0 -> entry point bad = {module}.bad of samfed_monai.methods"
    assert found in problem.found
    assert problem.hint == "update or uninstall my-lab; the other methods work without it"
    with pytest.raises(Refused, match=r"my-lab 1\.0 -> entry point bad = .* expected a module with bad\.json"):
        find_variant(None, "bad")
    if not files:
        assert main(["variants"]) == 0
        assert "bad cannot be used: my-lab 1.0 -> entry point" in capsys.readouterr().err
        assert check_bundle(find_bundle("samfed_skin"), "train", variant="good", ready=False) == []
