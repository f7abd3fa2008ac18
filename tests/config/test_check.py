"""Faults 23 to 31 of a bundle, each told in full, all at once; a logging file only writes to the console."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from monai.bundle import ConfigParser

from samfed_monai.config import check_bundle, find_bundle, known_variants
from samfed_monai.config.check import workflows_of
from samfed_monai.config.options import OPTIONAL
from tests.config.conftest import TRAIN


def told(bundle: Path, **arguments) -> list[str]:
    return [str(problem) for problem in check_bundle(bundle, arguments.pop("workflow", "train"), **arguments)]


def test_a_good_bundle_has_no_problems(bundle):
    assert told(bundle) == []
    assert told(bundle, variant="gentle", overrides={"rate": 1, "steps": 4, "train#trainer#amp": True}) == []
    assert workflows_of(bundle) == ["train"]
    assert told(bundle, workflow="trian")[0].endswith("found 'trian'; did you mean 'train'?")


UNKNOWN = "expected an id that this workflow has, found an unknown id"


def test_metadata_that_monai_could_not_read_is_told_with_line_and_column(bundle):
    (bundle / "configs" / "metadata.json").write_text('{\n    "version": one\n}')
    [problem] = check_bundle(bundle, "train")
    assert problem.where == "metadata.json, line 2, column 16"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("rtae", "did you mean 'rate'?"),
        ("terms#frist#rate", "did you mean 'terms#first#rate'?"),
        ("train#trainer#stesp", "did you mean 'train#trainer#steps'?"),
        ("terms#zzz", "known here: first"),
    ],
)
def test_fault_23_misspelt_id_on_the_command_line_and_in_a_variant(bundle, rewrite, key, hint):
    assert told(bundle, overrides={key: 2}) == [f"command line -> {key}: {UNKNOWN}; {hint}"]
    rewrite("variants/gentle.json", json.dumps({key: 2}))
    assert told(bundle, variant="gentle") == [f"gentle.json -> {key}: {UNKNOWN}; {hint}"]


RENAMED = json.dumps(TRAIN).replace('"rate": 0.1, "steps"', '"rtae": 0.1, "steps"')


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"loss#sigmiod": True},
            "loss#sigmiod: expected an argument of DiceLoss, found an unexpected argument; did you mean 'sigmoid'?",
        ),
        (RENAMED, "rtae: expected a known key, found a key that nothing reads; did you mean 'rate'?"),
        (
            json.dumps({"ratee": 0.3, **TRAIN}),
            "ratee: expected a known key, found a key that nothing reads; did you mean 'rate'?",
        ),
        ({"rate": "0.5"}, "rate: expected a number, found '0.5' (str); remove the quotes"),
        ({"steps": 2.0}, "steps: expected a whole number or null, found 2.0 (float); write 2"),
        ({"amp": 1}, "amp: expected true or false, found 1 (int)"),
        ({"loss#sigmoid": "yes"}, "loss#sigmoid: expected true or false, found 'yes' (str)"),
        (
            {"loss#_target_": "monai.losses.DieLoss"},
            "loss#_target_: expected a component that exists in monai.losses, found 'monai.losses.DieLoss'; "
            "did you mean 'DiceLoss'?",
        ),
        (
            {"loss": {"_target_": "torch.nn.Conv2d", "in_channels": 1, "out_channels": 1}},
            "loss: expected the argument 'kernel_size' of Conv2d, found nothing of that name",
        ),
        (
            '{"rate": 1, "rate": 2}',
            "rate: expected each key once, found the same key twice in one object; delete one (JSON would silently "
            "keep the last)",
        ),
        (
            {"rate": "$__import__('os').getpid()"},
            "rate: expected a plain value, found \"$__import__('os').getpid()\"; "
            "a value that begins with '$' would run code or read another file",
        ),
        (
            {"run": ["$@train#trainer.run("]},
            "run#0: expected a Python expression after '$', found '$@train#trainer.run('",
        ),
    ],
)
def test_faults_23_to_26_and_31_and_74_in_a_file_are_told_in_full(bundle, rewrite, change, message):
    rewrite("train.json", change)
    assert told(bundle) == [f"train.json -> {message}"]


def test_fault_23_what_a_federation_does_not_read_in_federate_json_is_told_with_what_it_reads(tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(find_bundle("samfed_skin"), root)
    path = root / "configs" / "federate.json"
    own = {"rank": 8, "epochs": 3, "client": {"local_steps": 5}}
    path.write_text(json.dumps({**own, **json.loads(path.read_text()), "teacher_adapt": "off"}))
    assert told(root, workflow="federate", ready=False) == [
        "federate.json -> rank: expected a known key, found a key that nothing reads; "
        "known in teacher.json (here: --teacher#rank)",
        "federate.json -> epochs: expected a known key, found a key that nothing reads; "
        "delete it: it counts in train.json",
        "federate.json -> client: expected a known key, found a key that nothing reads; "
        "leave it out: nothing that is run refers to it",
    ]


def test_what_of_teacher_json_a_federation_alone_reads_is_refused_where_the_teacher_is_fitted():
    skin = find_bundle("samfed_skin")
    assert told(skin, workflow="teacher", overrides={"score": False}, ready=False) == [
        "command line -> score: expected an option that this command reads, found False; "
        "`samfed federate` reads it: --teacher#score"
    ]
    assert told(skin, workflow="federate", overrides={"teacher#score": False}, ready=False) == []


def test_an_id_of_the_sites_training_is_one_of_the_federation():
    skin = find_bundle("samfed_skin")
    given = {"image_size": 32, "teacher_adapt": "off", "agreement#tau": 0.8}
    assert told(skin, workflow="federate", overrides=given, ready=False) == []
    (message,) = told(skin, workflow="federate", overrides={"views": 2}, ready=False)
    assert "found an unknown id; known in teacher.json (here: --teacher#views) and " in message


def test_a_variant_declares_what_it_needs_and_no_file_parks_it_as_null(bundle, rewrite):
    rewrite("variants/gentle.json", json.dumps({"personal": ["head.*"], "own": 3, "train#trainer#steps": "@own"}))
    assert told(bundle, variant="gentle") == []
    rewrite("variants/gentle.json", json.dumps({"persnal": ["head.*"], "rate": 0.1}))
    (message,) = told(bundle, variant="gentle")
    assert message.startswith("gentle.json -> persnal: expected an id that this workflow has, found an unknown id")
    (message,) = told(bundle, overrides={"personal": ["head.*"]})
    assert message.endswith("found ['head.*']; `samfed federate` reads it: --personal")
    for packaged in ("samfed_skin", "samfed_polyp"):
        on_top = json.loads((find_bundle(packaged) / "configs" / "train.json").read_text())
        assert not OPTIONAL - {"strategy"} & on_top.keys()


def test_an_id_of_some_variants_alone_is_refused_with_those_that_have_it():
    skin, given = find_bundle("samfed_skin"), {"server_network": "basic_unet"}
    (message,) = told(skin, workflow="federate", variant="no_sam", overrides=given, ready=False)
    assert message.startswith("command line -> server_network: expected an id that this workflow has, found")
    assert "variants that read it, and those that build on them: heterogeneous" in message
    assert told(skin, workflow="federate", variant="hssf", overrides=given, ready=False) == []


def test_fault_23_unknown_variant(bundle):
    [message] = told(bundle, variant="gentel")
    assert message.startswith(f"variant: expected one of {known_variants(bundle)}, ")
    assert message.endswith("found 'gentel'; did you mean 'gentle'?")


def test_a_variant_may_add_a_component_to_a_group_or_change_one_with_its_arguments(bundle, rewrite):
    term, target = {"_target_": "tests.config.toys.Trainer"}, {"loss#_target_": "monai.losses.TverskyLoss"}
    for right in ({"terms#second": term, "loss#batch": True}, {**target, "loss#alpha": 0.3}):
        rewrite("variants/gentle.json", json.dumps(right))
        assert told(bundle, variant="gentle") == []
    rewrite("variants/gentle.json", json.dumps({**target, "loss#alhpa": 0.3}))
    (message,) = told(bundle, variant="gentle")
    assert message.startswith(f"gentle.json -> loss#alhpa: {UNKNOWN}")


@pytest.mark.parametrize(
    ("value", "found"), [(224.5, "224.5 (float)"), (224.0, "224.0 (float); write 224"), ("128", "'128' (str); remove")]
)
def test_fault_24_a_size_is_a_whole_number_although_a_transform_would_take_another(tmp_path, value, found):
    (message,) = told(edited(tmp_path, image_size=value), ready=False)
    assert message.startswith(f"train.json -> image_size: expected a whole number, found {found}")


def test_a_knob_that_was_renamed_is_told_once_whoever_reads_it(tmp_path):
    root = edited(tmp_path, gone="batch_size", bs=4)
    for workflow in ("train", "evaluate"):
        assert told(root, workflow=workflow, ready=False) == [
            "train.json -> train#dataloader#batch_size: expected a reference to an id of this workflow, "
            "found @batch_size, which does not exist; add batch_size to train.json"
        ]
    (message,) = told(edited(tmp_path / "other", file="federate.json", gone="rounds"), workflow="federate", ready=False)
    assert message == (
        "federate.json -> job#rounds: expected a reference to an id of this workflow, "
        "found @rounds, which does not exist; add rounds to federate.json"
    )


def edited(folder: Path, *, file: str = "train.json", gone: str = "", **knobs: Any) -> Path:
    """A copy of the skin bundle with these knobs of a file, and one that is gone."""
    root = folder / "mine"
    shutil.copytree(find_bundle("samfed_skin"), root)
    path = root / "configs" / file
    content = {**json.loads(path.read_text()), **knobs}
    path.write_text(json.dumps({name: value for name, value in content.items() if name != gone}))
    return root


def test_fault_24_wrong_type_on_the_command_line(bundle):
    assert told(bundle, overrides={"rate": "fast", "amp": "true", "spare": 3}) == [
        "command line -> rate: expected a number, found 'fast' (str)",
        "command line -> amp: expected true or false, found 'true' (str); "
        "write true without quotes (True or False on MONAI's own command line)",
        "command line -> spare: expected a text or null, found 3 (int); put it in quotes",
    ]


MISSING = (
    "expected a module that Python finds, found my_labb, which it does not; correct its name, or install the package"
)


def test_fault_24_a_name_where_a_list_of_names_belongs_is_shown_as_it_is_typed():
    (message,) = told(find_bundle("samfed_skin"), workflow="federate", overrides={"unseen": "a, b"}, ready=False)
    assert message.endswith("""found 'a, b' (str); write --unseen '["a", "b"]'""")


def test_packages_of_imports_are_looked_for_and_not_imported(tmp_path, monkeypatch):
    (tmp_path / "my_lab").mkdir()
    (tmp_path / "my_lab" / "__init__.py").write_text("raise SystemExit('it was run')\n")
    monkeypatch.syspath_prepend(tmp_path)
    there = ["$import my_lab.networks as mine", "$from my_lab import networks", "$import os.path", 3]
    root = edited(tmp_path / "bundle", imports=[*there, "$import math, os", "$import my_labb"])
    several, missing = (problem for problem in told(root, ready=False) if "imports#" in problem)
    assert several.startswith("train.json -> imports#4: expected one import, found '$import math, os'; MONAI takes the")
    assert missing.startswith(f"train.json -> imports#5: {MISSING}")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    (problem,) = told(edited(tmp_path / "other", imports=["$import my_lab"]), ready=False)
    assert problem.endswith("type PYTHONPATH=. SAMFED_ALLOW=my_lab before the command")


def test_modules_of_imports_that_cannot_be_imported_are_refused_where_they_are_about_to_be(tmp_path, monkeypatch):
    lab = tmp_path / "broken_lab"
    lab.mkdir()
    (lab / "__init__.py").touch()
    (lab / "sound.py").write_text("there = 1\n")
    (lab / "losses.py").write_text("import torch\n\ntorch.round_about(3)\n")
    monkeypatch.syspath_prepend(tmp_path)
    sound = ["$import broken_lab.sound", "$from broken_lab.sound import there"]
    root = edited(tmp_path / "b", imports=[*sound, "$import broken_lab.losses", "$from broken_lab.sound import gone"])
    expected, hint = "expected a module that can be imported, found", "correct it: MONAI would go on without it"
    ends = "which ends in AttributeError: module 'torch' has no attribute 'round_about'"
    mine = [
        f"train.json -> imports#2: {expected} broken_lab.losses, {ends}; {hint}",
        f"train.json -> imports#3: {expected} broken_lab.sound, which has no 'gone'; {hint}",
    ]
    for workflow in ("train", "federate"):
        assert [text for text in told(root, workflow=workflow, ready=True) if "imports#" in text] == mine
        assert not [text for text in told(root, workflow=workflow, ready=False) if "imports#" in text]


def test_fault_25_short_names_are_looked_up_in_monai(bundle, rewrite):
    rewrite("train.json", {"loss#_target_": "DiceLoss"})
    assert told(bundle) == []
    rewrite("train.json", {"loss#_target_": "DieLoss"})
    assert told(bundle)[0].endswith("a component that exists in MONAI, found 'DieLoss'; did you mean 'DiceLoss'?")


def test_fault_27_trailing_comma_is_told_with_its_line(bundle, rewrite):
    rewrite("train.json", '{\n "rate": 1,\n}')
    [message] = told(bundle)
    assert message.startswith("train.json, line ")
    assert "look for a trailing comma" in message


def test_fault_27_a_byte_order_mark_which_monai_cannot_read(bundle):
    for name in ("train.json", "variants/gentle.json"):
        path = bundle / "configs" / name
        path.write_text(path.read_text(encoding="utf-8"), encoding="utf-8-sig")
    with pytest.raises(ValueError, match="BOM"):
        ConfigParser.load_config_file(str(bundle / "configs" / "train.json"))
    [message] = told(bundle)
    assert message == (
        "train.json: expected no byte order mark, as MONAI reads no file with one, found one at its beginning; "
        "save it as UTF-8 without BOM"
    )
    assert any(message.startswith("gentle.json: ") for message in told(bundle, variant="gentle"))


def test_fault_28_weights_missing(bundle, rewrite, tmp_path):
    rewrite("train.json", json.dumps({"_note": "why", "weights": str(tmp_path / "none.pt"), **TRAIN}))
    assert told(bundle) == [
        f"train.json -> weights: expected a weights file, found no file '{tmp_path}/none.pt'; check the path"
    ]


def test_fault_28_encoder_weights_may_be_a_known_name(bundle, rewrite, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    rewrite("train.json", json.dumps({"encoder_weights": "efficientnet_lite0", **TRAIN}))
    [message] = told(bundle)
    assert "run `samfed weights efficientnet_lite0 --from FILE|URL|registry`" in message
    (tmp_path / "efficientnet_lite0.safetensors").write_bytes(b"weights")
    assert told(bundle) == []


def test_fault_29_weights_of_another_hash(bundle, rewrite, tmp_path):
    (tmp_path / "w.pt").write_bytes(b"weights")
    right = hashlib.sha256(b"weights").hexdigest()
    knobs = {"weights": str(tmp_path / "w.pt"), "weights_sha256": right}
    rewrite("train.json", json.dumps({**knobs, **TRAIN}))
    assert told(bundle) == []
    rewrite("train.json", json.dumps({**knobs, "weights_sha256": "0" * 64, **TRAIN}))
    [message] = told(bundle)
    assert message.startswith(f"train.json -> weights_sha256: expected SHA-256 {'0' * 64}, found {right} in ")


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "torch.os.system", "torch.hub.load", "torch.load", "$print", "scripts.run"),
        # allowed packages have doors to everything else: any target by its name, any command, any library
        *("monai.utils.instantiate", "monai.utils.run_cmd", "monai.utils.optional_import", "torch.ops.load_library"),
    ],
)
def test_fault_31_target_outside_the_allow_list(bundle, rewrite, target):
    rewrite("train.json", {"loss": {"_target_": target}})
    [message] = told(bundle)
    assert message.startswith("train.json -> loss#_target_: expected a component of samfed_monai, monai, torch, ignite")
    assert repr(target) in message


def test_fault_31_target_outside_the_allow_list_is_not_even_imported(bundle, rewrite, tmp_path, monkeypatch):
    (tmp_path / "canary.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(str(tmp_path))
    rewrite("train.json", {"loss": {"_target_": "canary.Loss"}})
    assert len(told(bundle)) == 1


@pytest.mark.parametrize(
    ("name", "value", "where"),
    [
        ("local_steps", "$__import__('os').getpid()", "local_steps"),  # below `imports` in the packaged bundles
        ("personal", ["encoder.*", "$print(1)"], "personal#1"),
    ],
)
def test_fault_31_code_in_a_knob_that_is_rarely_turned(bundle, rewrite, name, value, where):
    rewrite("train.json", {name: value})
    code = value if isinstance(value, str) else value[1]
    assert f"train.json -> {where}: expected a plain value, found {code!r}" in [
        message.partition(";")[0] for message in told(bundle)
    ]


@pytest.mark.parametrize("value", ["$print(1)", "%other.json#x"])
def test_fault_31_code_on_the_command_line_and_in_a_variants_option(bundle, rewrite, value):
    said = f"expected a plain value, found {value!r}; a value that"
    (message,) = told(bundle, overrides={"train#trainer#rate": value})
    assert message.startswith(f"command line -> train#trainer#rate: {said}")
    rewrite("variants/gentle.json", json.dumps({"rate": value}))
    assert told(bundle, variant="gentle")[0].startswith(f"gentle.json -> rate: {said}")


def test_everything_is_told_at_once(bundle, rewrite):
    rewrite("train.json", {"loss#sigmiod": True, "rate": "0.5", "terms#first#_target_": "os.system"})
    messages = told(bundle, overrides={"stesp": 1})
    assert len(messages) == 4
    for part in ("loss#sigmiod", "-> rate", "terms#first#_target_", "-> stesp"):
        assert any(part in message for message in messages)


def test_federate_checks_the_sites_training_with_its_variant(bundle, rewrite):
    rewrite(
        "federate.json",
        json.dumps({"bundle_root": ".", "rounds": 3, "variant": "samfed", "run": ["$@rounds", "$@variant"]}),
    )
    rewrite("variants/gentle.json", json.dumps({"terms#fist#_disabled_": True}))
    assert told(bundle, workflow="federate") == []
    messages = told(bundle, workflow="federate", overrides={"variant": "gentle", "ruonds": 3})
    assert [message.partition(":")[0] for message in messages] == [
        "gentle.json -> terms#fist#_disabled_",
        "command line -> ruonds",
    ]


def test_what_a_federation_hands_to_its_sites_is_checked_as_their_overrides(bundle, rewrite):
    federate = {"speed": "fast", "variant": "samfed", "rate": "@speed", "stesp": 3, "steps": 2}
    rewrite("federate.json", json.dumps(federate))
    assert told(bundle, workflow="federate") == [
        "federate.json -> stesp: expected a known key, found a key that nothing reads; did you mean 'steps'?",
        "federate.json -> speed: expected a number, found 'fast' (str)",
    ]


def test_what_a_site_changes_is_checked_as_overrides_of_its_training(bundle, rewrite):
    rewrite("federate.json", json.dumps({"variant": "samfed", "sites": {}, "run": ["$@variant", "$@sites"]}))
    right = {"sites#site-1#rate": 0.5, "sites": {"site-2": {"train": {"trainer": {"rate": 1}}}}}
    assert told(bundle, workflow="federate", overrides=right) == []
    assert told(
        bundle, workflow="federate", overrides={"sites#site-1#rtae": 0.5, "sites#b#rate": "0.5", "sites#c": 3}
    ) == [
        "command line -> sites#site-1#rtae: expected an id that this workflow has, found an unknown id; "
        "did you mean 'rate'?",
        "command line -> sites#b#rate: expected a number, found '0.5' (str); remove the quotes",
        'command line -> sites#c: expected an object, for instance {"network": "basic_unet"}, found int',
    ]


def test_fault_28_sams_weights_are_wanted_unless_the_variant_has_no_teacher(bundle, rewrite, monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "empty"))
    rewrite("teacher.json", json.dumps({"base": "vit_t", "run": ["$@base"]}))
    rewrite("federate.json", json.dumps({"variant": "samfed", "run": ["$@variant"]}))
    rewrite("train.json", json.dumps({"teacher_adapt": "lora", **TRAIN}))
    rewrite("variants/gentle.json", json.dumps({"teacher_adapt": "off"}))
    [message] = told(bundle, workflow="federate")
    assert "run `samfed weights mobile_sam --from FILE|URL|registry`" in message
    assert told(bundle, workflow="federate", ready=False) == []
    assert told(bundle, workflow="federate", overrides={"variant": "gentle"}) == []


def test_fault_73_a_rate_that_the_variant_sets_past_is_refused_with_the_id_that_has_it():
    def problems(variant: str, **overrides: object) -> list[str]:
        found = check_bundle(find_bundle("samfed_skin"), "federate", variant=variant, overrides=overrides, ready=False)
        return [str(problem) for problem in found]

    told = problems("heterogeneous", network_name="basic_unet", epochs=3)
    assert told == [
        "command line -> network_name: expected an id that the variant 'heterogeneous' reads: sites take theirs "
        "from mixed_networks, found 'basic_unet'; set --mixed_networks \"['basic_unet']\" and "
        "--server_network basic_unet",
        "command line -> epochs: expected none: the federation gives every site its own, found 3; "
        "set local_steps, the steps of a site in a round, or rounds",
    ]


@pytest.mark.parametrize("given", [True, 3, {"a": 1}])
def test_networks_that_are_no_list_are_left_to_the_federation(given):
    overrides = {"variant": "heterogeneous", "mixed_networks": given, "teacher_adapt": "off"}
    assert told(find_bundle("samfed_skin"), workflow="federate", overrides=overrides, ready=False) == []


def test_fault_73_a_rate_that_a_bundles_own_variant_replaces_is_refused(tmp_path):
    root = tmp_path / "mine"
    shutil.copytree(find_bundle("samfed_skin"), root)
    (root / "configs" / "variants").mkdir()
    (root / "configs" / "variants" / "past.json").write_text(json.dumps({"optimizer#lr": 0.0001}))
    given = {"variant": "past", "learning_rate": 0.5}
    assert told(root, workflow="federate", overrides=given, ready=False) == [
        "command line -> learning_rate: expected an option that a run of the variant 'past' reads, found 0.5; "
        "leave it out: nothing that is run refers to it"
    ]


@pytest.mark.parametrize(
    "text",
    [
        "[handler_console]\nclass=__import__('os').system\nargs=()",
        "[formatter_plain]\ndefaults={'x': __import__('os').system('id')}",
        "class=StreamHandler",
        "",
    ],
)
def test_fault_31_a_logging_configuration_of_ones_own_is_refused(bundle, text):
    path = bundle / "configs" / "logging.conf"
    path.write_bytes((find_bundle("samfed_polyp") / "configs" / "logging.conf").read_bytes())
    assert check_bundle(bundle, "train") == []
    path.write_text(text)
    [problem] = check_bundle(bundle, "train")
    assert (problem.where, problem.found) == ("logging.conf", "another logging configuration")


@pytest.mark.parametrize("workflow", ["train", "evaluate", "inference", "teacher"])
@pytest.mark.parametrize("key", ["privacy#least_images", "teacher#size", "sites#site-1#network"])
def test_fault_23_ids_of_a_federations_groups_are_unknown_elsewhere(workflow, key):
    (problem,) = check_bundle(find_bundle("samfed_skin"), workflow, overrides={key: 3}, ready=False)
    assert problem.where == f"command line -> {key}"
    assert problem.found == "an unknown id"
