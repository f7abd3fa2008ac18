"""Faults 23 to 31 of a bundle, each reported in full, all at once; a logging file only writes to the console."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from samfed_monai.config import check_bundle, find_bundle, known_variants
from samfed_monai.config.check import check_base_weights, workflows_of
from samfed_monai.config.options import OPTIONAL
from samfed_monai.core.io import read_json
from tests.config.conftest import TRAIN

SKIN = find_bundle("samfed_skin")
FIXTURES = Path(__file__).parents[1] / "fixtures"
UNKNOWN = "expected an id of this workflow, found an unknown id"
UNREAD = "expected a known key, found a key that nothing reads"


def check(bundle: Path, workflow: str = "train", **arguments) -> list[str]:
    return [str(problem) for problem in check_bundle(bundle, workflow, **arguments)]


def check_skin(workflow: str = "federate", variant: str | None = None, **overrides: Any) -> list[str]:
    return check(SKIN, workflow, variant=variant, overrides=overrides, ready=False)


def edited(folder: Path, *, file: str = "train.json", gone: str = "", **options: Any) -> Path:
    """A copy of the skin bundle with these options of a file, and one that is gone."""
    root = folder / "mine"
    shutil.copytree(SKIN, root, ignore=shutil.ignore_patterns("*.pt"))
    path = root / "configs" / file
    content = {**json.loads(path.read_text()), **options}
    path.write_text(json.dumps({name: value for name, value in content.items() if name != gone}))
    return root


def test_valid_bundle_has_no_problems(bundle, rewrite):
    assert check(bundle) == []
    rewrite("train.json", {"loss#_target_": "DiceLoss"})  # short names are looked up in MONAI
    assert check(bundle) == []
    assert check(bundle, variant="gentle", overrides={"rate": 1, "steps": 4, "train#trainer#amp": True}) == []
    assert workflows_of(bundle) == ["train"]
    assert check(bundle, "trian")[0].endswith("found 'trian'; did you mean 'train'?")


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("rtae", "did you mean 'rate'?"),
        ("terms#frist#rate", "did you mean 'terms#first#rate'?"),
        ("train#trainer#stesp", "did you mean 'train#trainer#steps'?"),
        ("terms#zzz", "known here: first"),
        ("sigmoid", "did you mean 'loss#sigmoid'?"),
    ],
)
def test_fault_23_misspelt_id_in_override_or_variant_is_reported(bundle, rewrite, key, hint):
    assert check(bundle, overrides={key: 2}) == [f"command line -> {key}: {UNKNOWN}; {hint}"]
    rewrite("variants/gentle.json", json.dumps({key: 2}))
    assert check(bundle, variant="gentle") == [f"gentle.json -> {key}: {UNKNOWN}; {hint}"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        *(tuple(row.values()) for row in read_json(FIXTURES / "mistakes.json")["toy"]),
        (
            json.dumps(TRAIN).replace('"rate": 0.1, "steps"', '"rtae": 0.1, "steps"'),
            f"rtae: {UNREAD}; did you mean 'rate'?",
        ),
        (json.dumps({"ratee": 0.3, **TRAIN}), f"ratee: {UNREAD}; did you mean 'rate'?"),
    ],
)
def test_faults_23_to_28_and_31_and_74_problems_in_file_are_reported(bundle, rewrite, change, message):
    rewrite("train.json", change)
    assert check(bundle) == [f"train.json -> {message}"]


def test_all_problems_are_reported_together(bundle, rewrite):
    rewrite("train.json", {"loss#sigmiod": True, "rate": "0.5", "terms#first#_target_": "os.system"})
    messages = check(bundle, overrides={"stesp": 1})
    assert len(messages) == 4
    for part in ("loss#sigmiod", "-> rate", "terms#first#_target_", "-> stesp"):
        assert any(part in message for message in messages)


@pytest.mark.parametrize("workflow", ["train", "federate", "evaluate", "teacher"])
def test_resize_must_equal_declared_image_size(workflow):
    place, name = ("pad", "size") if workflow == "teacher" else ("resize", "image_size")
    (refusal,) = check_skin(workflow, **{f"{place}#spatial_size": [64, 64]})
    assert f"{place}#spatial_size: expected 224, the {name} stored with the model, found [64, 64]" in refusal
    assert check_skin(workflow, **{f"{place}#spatial_size": [f"@{name}", 224]}) == []


def test_mask_threshold_must_equal_declared_threshold(tmp_path):
    place = "postprocessing#transforms#3#threshold"
    own = edited(tmp_path, file="inference.json", doubt=0.3)
    (refusal,) = check(own, "inference", overrides={place: "@doubt"}, ready=False)
    assert refusal.startswith("inference.json -> doubt: expected 0.5, the threshold")
    assert check_skin("inference", threshold=0.3) == check_skin("inference", **{place: 0.3, "threshold": 0.3}) == []


def test_handlers_of_other_packages_may_load_weights_and_write_masks(tmp_path):
    """The ids of an inference whose handlers are all of a package that the user allows, and then one of them."""
    handlers = json.loads((SKIN / "configs" / "inference.json").read_text())["handlers"]
    other = {"_target_": "tests.config.toys.Trainer"}
    assert check(edited(tmp_path / "a", file="inference.json", handlers=[other]), "inference", ready=False) == []
    bar = {"_target_": "samfed_monai.handlers.BatchBar", "what": "segmenting"}
    for own, missing in (([bar], "ModelLoader"), (handlers[:1], "MaskWriter")):
        (problem, *_) = check(edited(tmp_path / missing, file="inference.json", handlers=own), "inference", ready=False)
        assert problem.startswith(f"inference.json -> handlers: expected {missing} or a handler like it, found no")


def test_fault_24_wrong_types_are_reported(bundle, tmp_path):
    assert check(bundle, overrides={"rate": "fast", "amp": "true", "spare": 3}) == [
        "command line -> rate: expected a number, found 'fast' (str)",
        "command line -> amp: expected true or false, found 'true' (str); "
        "write true without quotes (True or False on MONAI's own command line)",
        "command line -> spare: expected a string or null, found 3 (int); put it in quotes",
    ]
    assert "#prob: expected at most 1, found 1.5" in check_skin("teacher", **{"quarter_turn#prob": 1.5})[0]
    assert "expected a whole number, found 224.5 (float)" in check(edited(tmp_path, image_size=224.5), ready=False)[0]


def test_fault_23_unread_keys_in_federate_json_are_reported_with_hint(tmp_path):
    own = {"rank": 8, "epochs": 3, "client": {"local_steps": 5}, "teacher_adapt": "off"}
    assert check(edited(tmp_path, file="federate.json", **own), "federate", ready=False) == [
        f"federate.json -> rank: {UNREAD}; this id belongs to teacher.json (here: --teacher#rank)",
        f"federate.json -> epochs: {UNREAD}; delete it: only train.json sets it",
        f"federate.json -> client: {UNREAD}; leave it out: nothing in this run reads it",
    ]


def test_right_options_and_components_are_accepted():
    training = {"image_size": 32, "teacher_adapt": "off", "agreement#tau": 0.8}
    for given in (training, {"teacher#score": False}, {"variant": "hssf", "server_network": "basic_unet"}):
        assert check_skin(**given) == []
    assert check_skin("train", **{"device": "cpu", "terms#sam_kd": None, "train#inferer": None}) == []


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference", "teacher"])
def test_fault_23_federation_group_ids_are_unknown_in_other_workflows(workflow):
    given = dict.fromkeys(("privacy#least_images", "teacher#size", "sites#site-1#network"), 3)
    problems = check_bundle(SKIN, workflow, overrides=given, ready=False)
    assert [problem.where for problem in problems] == [f"command line -> {key}" for key in given]
    assert {problem.found for problem in problems} == {"an unknown id"}


def test_variant_may_declare_optional_ids(bundle, rewrite):
    rewrite("variants/gentle.json", json.dumps({"personal": ["head.*"], "own": 3, "train#trainer#steps": "@own"}))
    assert check(bundle, variant="gentle") == []
    rewrite("variants/gentle.json", json.dumps({"persnal": ["head.*"], "rate": 0.1}))
    (message,) = check(bundle, variant="gentle")
    assert message.startswith(f"gentle.json -> persnal: {UNKNOWN}")
    (message,) = check(bundle, overrides={"personal": ["head.*"]})
    assert message.endswith("found ['head.*']; `samfed federate` reads it: --personal")
    for packaged in ("samfed_skin", "samfed_polyp"):
        on_top = json.loads((find_bundle(packaged) / "configs" / "train.json").read_text())
        assert not OPTIONAL - {"strategy"} & on_top.keys()


def test_fault_23_unknown_variant_is_reported(bundle):
    [message] = check(bundle, variant="gentel")
    assert message.startswith(f"variant: expected one of {known_variants(bundle)}, ")
    assert message.endswith("found 'gentel'; did you mean 'gentle'?")


def test_variant_may_add_or_replace_components(bundle, rewrite):
    term, target = {"_target_": "tests.config.toys.Trainer"}, {"loss#_target_": "monai.losses.TverskyLoss"}
    for right in ({"terms#second": term, "loss#batch": True}, {**target, "loss#alpha": 0.3}):
        rewrite("variants/gentle.json", json.dumps(right))
        assert check(bundle, variant="gentle") == []
    rewrite("variants/gentle.json", json.dumps({**target, "loss#alhpa": 0.3}))
    (message,) = check(bundle, variant="gentle")
    assert message.startswith(f"gentle.json -> loss#alhpa: {UNKNOWN}")


def test_reference_to_missing_option_is_reported_once(tmp_path):
    root = edited(tmp_path, gone="batch_size", bs=4)
    for workflow in ("train", "evaluate"):
        assert check(root, workflow, ready=False) == [
            "train.json -> train#dataloader#batch_size: expected a reference to an id of this workflow, "
            "found @batch_size, which does not exist; add batch_size to train.json"
        ]
    (message,) = check(edited(tmp_path / "other", file="federate.json", gone="rounds"), "federate", ready=False)
    assert message.endswith("found @rounds, which does not exist; add rounds to federate.json")


@pytest.mark.parametrize(("target", "accepts"), [("bundle.SiteAlone", True), ("handlers.SiteEvaluation", False)])
def test_loader_that_only_an_own_evaluation_reads_may_be_set(tmp_path, target, accepts):
    own = {"_target_": f"samfed_monai.{target}", "evaluator": "@validate#evaluator", "output_dir": "@output_dir"}
    root = edited(tmp_path, file="evaluate.json", evaluation=own)
    given = {"validate#dataloader#num_workers": 1}
    assert (check_bundle(root, "evaluate", overrides=given, ready=False) == []) == accepts


def test_imported_packages_are_located_but_not_imported(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    there = ["$import my_lab.networks as mine", "$from my_lab import networks", "$import os.path", {}]
    root = edited(tmp_path / "bundle", imports=[*there, "$import math, os", "$import my_labb"])
    several, missing = (problem for problem in check(root, ready=False) if "imports#" in problem)
    assert several.startswith("train.json -> imports#4: expected one import, found '$import math, os'; MONAI runs only")
    assert missing.startswith(
        "train.json -> imports#5: expected a module that Python can find, found no module my_labb; correct the"
    )
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (problem,) = check(edited(tmp_path / "other", imports=["$import my_lab"]), ready=False)
    assert problem.endswith("type PYTHONPATH=. SAMFED_ALLOW=my_lab before the command")


def test_failing_imports_are_reported_only_if_ready(tmp_path, monkeypatch):
    lab = tmp_path / "broken_lab"
    lab.mkdir()
    (lab / "__init__.py").touch()
    (lab / "sound.py").write_text("there = 1\n")
    (lab / "losses.py").write_text("import torch\n\ntorch.round_about(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    sound = ["$import broken_lab.sound", "$from broken_lab.sound import there"]
    root = edited(tmp_path / "b", imports=[*sound, "$import broken_lab.losses", "$from broken_lab.sound import gone"])
    expected, hint = "expected a module that can be imported, found", "correct it: MONAI would skip this import"
    ends = "which fails with AttributeError: module 'torch' has no attribute 'round_about'"
    mine = [
        f"train.json -> imports#2: {expected} broken_lab.losses, {ends}; {hint}",
        f"train.json -> imports#3: {expected} broken_lab.sound, which has no 'gone'; {hint}",
    ]
    for workflow in ("train", "federate"):
        assert [text for text in check(root, workflow, ready=True) if "imports#" in text] == mine
    assert not [text for text in check(root, ready=False) if "imports#" in text]


@pytest.mark.parametrize(
    ("file", "text", "place", "hint"),
    [
        ("metadata.json", '{\n    "version": one\n}', "metadata.json, line 2, column 16: ", ""),
        ("metadata.json", "[]", "metadata.json: expected an object, found [] (list)", ""),
        ("train.json", '{\n "rate": 1,\n}', "train.json, line ", "look for a trailing comma"),
    ],
)
def test_fault_27_invalid_json_is_reported_with_position(bundle, rewrite, file, text, place, hint):
    rewrite(file, text)
    [message] = check(bundle)
    assert message.startswith(place)
    assert hint in message


def test_fault_27_byte_order_mark_is_reported(bundle):
    for name in ("train.json", "variants/gentle.json"):
        path = bundle / "configs" / name
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="BOM"):
        ConfigParser.load_config_file(str(bundle / "configs" / "train.json"))
    [message] = check(bundle)
    assert message == (
        "train.json: expected no byte order mark (MONAI cannot read it), found one at the start of the file; "
        "save it as UTF-8 without BOM"
    )
    assert any(message.startswith("gentle.json: ") for message in check(bundle, variant="gentle"))


def test_fault_28_encoder_weights_given_by_name_must_exist(bundle, rewrite, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    rewrite("train.json", json.dumps({"encoder_weights": "efficientnet_lite0", **TRAIN}))
    [message] = check(bundle)
    assert "run `samfed weights efficientnet_lite0 --from FILE|URL|registry`" in message
    (tmp_path / "efficientnet_lite0.safetensors").write_bytes(b"weights")
    assert check(bundle) == []


def test_fault_29_weights_with_other_hash_are_reported(bundle, rewrite, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    options = {"weights": str(tmp_path / "w.pt"), "weights_sha256": right}
    rewrite("train.json", json.dumps({**options, **TRAIN}))
    assert check(bundle) == []
    rewrite("train.json", json.dumps({**options, "weights_sha256": "0" * 64, **TRAIN}))
    [message] = check(bundle)
    assert message.startswith(f"train.json -> weights_sha256: expected SHA-256 {'0' * 64}, found {right} in ")


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "torch.os.system", "torch.hub.load", "torch.load", "$print", "scripts.run"),
        # allowed packages have doors to everything else: any target by its name, any command, any library
        *("monai.utils.instantiate", "monai.utils.run_cmd", "monai.utils.optional_import", "torch.ops.load_library"),
    ],
)
def test_fault_31_target_outside_allow_list_is_reported(bundle, rewrite, target):
    rewrite("train.json", {"loss": {"_target_": target}})
    [message] = check(bundle)
    assert message.startswith("train.json -> loss#_target_: expected a component of samfed_monai, monai, torch, ignite")
    assert repr(target) in message


def test_fault_31_forbidden_target_is_not_imported(bundle, rewrite, tmp_path, monkeypatch):
    (tmp_path / "canary.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    rewrite("train.json", {"loss": {"_target_": "canary.Loss"}})
    assert len(check(bundle)) == 1


def test_fault_31_code_in_options_and_lists_is_reported(bundle, rewrite):
    rewrite("train.json", {"local_steps": "$print(2)", "personal": ["encoder.*", "$print(1)"]})
    found = [message.partition(";")[0] for message in check(bundle)]
    assert "train.json -> local_steps: expected a plain value, found '$print(2)'" in found
    assert "train.json -> personal#1: expected a plain value, found '$print(1)'" in found


@pytest.mark.parametrize("value", ["$print(1)", "%other.json#x"])
def test_fault_31_code_in_overrides_and_variants_is_reported(bundle, rewrite, value):
    expected = f"expected a plain value, found {value!r}; a value that"
    (message,) = check(bundle, overrides={"train#trainer#rate": value})
    assert message.startswith(f"command line -> train#trainer#rate: {expected}")
    rewrite("variants/gentle.json", json.dumps({"rate": value}))
    assert check(bundle, variant="gentle")[0].startswith(f"gentle.json -> rate: {expected}")


FEDERATE = {"variant": "samfed", "run": ["$@variant"]}


@pytest.mark.parametrize(
    ("federate", "overrides", "messages"),
    [
        ({"bundle_root": ".", "rounds": 3, "run": ["$@rounds", "$@variant"]}, {}, []),
        (
            {"rounds": 3, "run": ["$@rounds", "$@variant"]},
            {"variant": "gentle", "ruonds": 3},
            [f"gentle.json -> terms#fist#_disabled_: {UNKNOWN}; ", f"command line -> ruonds: {UNKNOWN}; did you mean"],
        ),
        (
            {"speed": "fast", "rate": "@speed", "stesp": 3, "steps": 2},
            {},
            [
                f"federate.json -> stesp: {UNREAD}; did you mean 'steps'?",
                "federate.json -> speed: expected a number, found 'fast' (str)",
            ],
        ),
        (
            {"sites": {}, "run": ["$@variant", "$@sites"]},
            {"sites#site-1#rate": 0.5, "sites": {"site-2": {"train": {"trainer": {"rate": 1}}}}},
            [],
        ),
        (
            {"sites": {}, "run": ["$@variant", "$@sites"]},
            {"sites#site-1#rtae": 0.5, "sites#b#rate": "0.5", "sites#c": 3},
            [
                f"command line -> sites#site-1#rtae: {UNKNOWN}; did you mean 'rate'?",
                "command line -> sites#b#rate: expected a number, found '0.5' (str); remove the quotes",
                'command line -> sites#c: expected an object, for instance {"network": "basic_unet"}, found int',
            ],
        ),
    ],
    ids=["right", "variant", "what_is_handed_to_sites", "sites_right", "sites_wrong"],
)
def test_federate_checks_training_of_sites_with_overrides(bundle, rewrite, federate, overrides, messages):
    rewrite("federate.json", json.dumps({"variant": "samfed", **federate}))
    rewrite("variants/gentle.json", json.dumps({"terms#fist#_disabled_": True}))
    found = check(bundle, "federate", overrides=overrides)
    assert len(found) == len(messages)
    assert all(map(str.startswith, found, messages)), found


def test_fault_28_sam_weights_are_required_unless_teacher_is_off(bundle, rewrite, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "empty"))
    rewrite("teacher.json", json.dumps({"base": "vit_t", "run": ["$@base"]}))
    rewrite("federate.json", json.dumps(FEDERATE))
    rewrite("train.json", json.dumps({"teacher_adapt": "lora", **TRAIN}))
    rewrite("variants/gentle.json", json.dumps({"teacher_adapt": "off"}))
    [message] = check(bundle, "federate")
    assert "run `samfed weights mobile_sam --from FILE|URL|registry`" in message
    assert check(bundle, "federate", ready=False) == []
    assert check(bundle, "federate", overrides={"variant": "gentle"}) == []
    terms = {"see": {"base": "vit_t"}, "off": {"base": "vit_b", "_disabled_": True}, "other": "@terms#see"}
    assert [problem.where for problem in check_base_weights({"terms": terms}, bundle)] == ["weights of mobile_sam"]


def test_fault_73_learning_rate_replaced_by_variant_is_refused(tmp_path):
    root = edited(tmp_path)
    (root / "configs" / "variants").mkdir()
    (root / "configs" / "variants" / "past.json").write_text(json.dumps({"optimizer#lr": 0.0001}))
    assert check(root, "federate", overrides={"variant": "past", "learning_rate": 0.5}, ready=False) == [
        "command line -> learning_rate: expected an option that a run of the variant 'past' reads, found 0.5; "
        "leave it out: nothing in this run reads it"
    ]


@pytest.mark.parametrize("text", ["[handler_console]\nclass=__import__('os').system\nargs=()", ""])
def test_fault_31_custom_logging_configuration_is_refused(bundle, text):
    path = bundle / "configs" / "logging.conf"
    path.write_bytes((SKIN / "configs" / "logging.conf").read_bytes())
    assert check(bundle) == []
    path.write_text(text)
    [problem] = check_bundle(bundle, "train")
    assert (problem.where, problem.found) == ("logging.conf", "a different logging configuration")
