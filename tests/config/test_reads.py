"""Every id of every file, given to every command: a component receives it, or it is refused; never neither."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import samfed_monai.federation
from samfed_monai.cli import export
from samfed_monai.cli.arguments import options_help
from samfed_monai.config import find_bundle, known_variants, parse
from samfed_monai.config.check import check_bundle, group_configs
from samfed_monai.config.ids import (
    SERVER_IDS,
    TEACHER_JOB_IDS,
    TEACHER_READS,
    TRAINING_READS,
    VARIANT_IDS,
    UnreadOption,
)
from samfed_monai.config.monai_parser import ConfigParser
from samfed_monai.config.options import GROUPS, JOB_IDS, MONAI_IDS, USE_OF_TEACHER
from samfed_monai.core.io import read_json
from samfed_monai.flare import job
from samfed_monai.inference import predictor
from tests.methods import present

SKIN = find_bundle("samfed_skin")
RECEIVED: list[Any] = []
OF_MONAI = frozenset({"_target_", "_disabled_", "_mode_", "_requires_", "_desc_"})


def record(**arguments: Any) -> Any:
    """Replaces every component, and records what it receives."""
    RECEIVED.append(arguments)
    return arguments


def leaves(content: Mapping[str, Any]) -> dict[str, Any]:
    """Every id with a plain value that refers to nothing."""
    every = parse.walk({name: value for name, value in content.items() if not parse.is_note(name)})
    plain = (
        (parts, value) for parts, value in every if not isinstance(value, (dict, list)) and not parse.is_code(value)
    )
    return {parse.join_id(parts): value for parts, value in plain if parts[-1] not in OF_MONAI}


def received(content: Mapping[str, Any], roots: Collection[str]) -> set[str]:
    """Ids of which MONAI itself hands the value to a component, or to whoever asks, when it resolves the roots."""

    def marked(value: Any, parts: tuple[str, ...]) -> Any:
        if isinstance(value, Mapping):
            made = {name: marked(part, (*parts, name)) for name, part in value.items() if name not in OF_MONAI}
            if "_target_" in value:
                made |= {"_target_": f"{__name__}.record", "_disabled_": value.get("_disabled_", False)}
            return made
        if isinstance(value, list):
            return [marked(part, (*parts, str(index))) for index, part in enumerate(value)]
        return value if parse.is_code(value) or value is parse.MISSING else f"<{parse.join_id(parts)}>"

    parser = ConfigParser({name: marked(value, (name,)) for name, value in content.items() if not parse.is_note(name)})
    RECEIVED.clear()
    parsed = [parser.get_parsed_content(root) for root in roots if root in parser]
    found = {text for _, text in parse.walk([parsed, RECEIVED]) if isinstance(text, str)}
    return {text[1:-1] for text in found if text.startswith("<")}


def refused(workflow: str, overrides: Mapping[str, Any], **options: Any) -> set[str]:
    problems = check_bundle(SKIN, workflow, overrides=overrides, ready=False, **options)
    return {problem.where.removeprefix("command line -> ") for problem in problems}


COMMANDS = {
    "teach": ("teacher", MONAI_IDS),
    "python -m monai.bundle run train.json": ("train", MONAI_IDS),
    "evaluate": ("evaluate", MONAI_IDS),
    "evaluate --model ADAPTER": ("evaluate", predictor.TEACHER_READ["evaluate"]),
    "infer": ("inference", MONAI_IDS),
    "infer --model ADAPTER": ("inference", predictor.TEACHER_READ["inference"]),
    "infer --model ADAPTER --teacher#": ("teacher", USE_OF_TEACHER),
    "infer --model FILE.onnx": ("inference", predictor.EXPORTED_READ),
    "export": ("inference", export._READ),
    "federate": ("federate", MONAI_IDS),
    "flare export": ("federate", job._READ),
    "flare simulate": ("federate", job._HERE),
}


assert {workflow for workflow, _ in COMMANDS.values()} == parse.WORKFLOWS.keys(), "every workflow has a command"


@pytest.mark.parametrize("command", COMMANDS)
def test_command_ids_are_received_or_refused(command):
    workflow, reads = COMMANDS[command]
    config = parse.BundleConfig(parse.workflow_files(SKIN, workflow))
    own, there = leaves(config.content), received(config.used, reads)
    if workflow == "federate":  # whose ids of train.json each variant reads in its own way
        own = {key: value for key, value in own.items() if key in leaves(read_json(SKIN / "configs" / "federate.json"))}
        there |= {"local_steps"}
    assert refused(workflow, own, reads=reads) == own.keys() - there
    assert there, "the command reads something"


@pytest.mark.parametrize("command", [name for name in COMMANDS if not name.startswith("flare")])
def test_ids_of_other_files_are_refused_unless_received(command):
    workflow, reads = COMMANDS[command]
    others = dict.fromkeys({*VARIANT_IDS, "personal", "strategy", "warm_start"}, 5)
    homes = ("teacher", "inference") if workflow == "federate" else ("train", "teacher", "federate", "inference")
    for home in homes:
        others |= leaves(parse.BundleConfig(parse.workflow_files(SKIN, home)).content)
    taken = others.keys() - refused(workflow, others, reads=reads)
    merged = parse.BundleConfig(parse.workflow_files(SKIN, workflow), {key: others[key] for key in taken}).used
    there = received(merged, reads) | (received(merged, TRAINING_READS) if workflow == "federate" else set())
    assert taken <= there


@pytest.mark.parametrize(
    ("option", "read"),
    [
        ("strategy#faulty", "known here: "),
        ("client_algorithm", "read only by these variants and variants based on them: apple"),
        ("statistics", "read only by these variants and variants based on them: clustered_sites, elcfs"),
        ("teacher#adapt", "--teacher_adapt"),
        ("sites#A#strategy", "--strategy"),
        ("sites#A#teacher_adapt", "--teacher_adapt"),
        ("sites#A#personal", "--personal"),
    ],
)
def test_hint_names_option_in_use(option, read):
    value = {"_target_": "samfed_monai.methods.fedavg.FedAvg"} if option.endswith("strategy") else "none"
    problems = check_bundle(SKIN, "federate", overrides={option: value}, ready=False)
    assert read in next(problem.hint for problem in problems if option in problem.where)


def ids_read(group: str, content: Mapping[str, Any]) -> set[str]:
    """What a federation asks for of its own ids, or of a group's, without those that it sets itself."""
    alone = {**content, "standalone": {}}
    if group == "teacher":
        return {key for key in received(content, TEACHER_READS) if key not in TEACHER_JOB_IDS}
    if group == "":
        return received(content, MONAI_IDS) | {key for key in received(alone, TRAINING_READS) if key not in JOB_IDS}
    network = {name: value for name, value in content["network_def"].items() if name != "weights"}
    there = received(alone | {"network_def": network}, TRAINING_READS - SERVER_IDS)
    return {key for key in there if key not in JOB_IDS - {"datalist", "data_root"}}


@pytest.mark.parametrize("variant", known_variants())
def test_federation_ids_are_received_or_refused(variant):
    config = parse.BundleConfig.of_workflow(SKIN, "federate", {"variant": variant, "sites": {"A": {}}})
    parts = {parse.join_id(part.group): part for part in (config, *group_configs(config, SKIN))}
    groups = ("", "sites#A", *(("teacher",) if variant in ("samfed", "no_sam") else ()))
    own = {f"{group}#" if group else "": leaves(parts[group].content) for group in groups}
    own[""] = {key: value for key, value in own[""].items() if parse.split_id(key)[0] not in ("variant", *GROUPS)}
    given = {f"{group}{key}": value for group, pairs in own.items() for key, value in pairs.items()}
    problems = check_bundle(SKIN, "federate", overrides={"variant": variant, **given}, ready=False)
    found = {problem.where.removeprefix("command line -> "): problem for problem in problems}
    for group, pairs in own.items():
        there = ids_read(group.removesuffix("#"), parts[group.removesuffix("#")].used)
        read = {key for key in pairs if key in there}
        taken = {key for key in pairs if f"{group}{key}" not in found}
        assert taken <= read, "neither read nor refused"
        wrongly = {key for key in read - taken if isinstance(found[f"{group}{key}"], UnreadOption)}
        conditional = {"guides#global#name", "network_name", "encoder_learning_rate", "score", "views"}
        assert wrongly <= conditional, "read and refused"


ID_READ = re.compile(
    r'(?:\.(?:value|values|optional|optional_id|get_parsed_content)\(|parsed\([^,()]+(?:\([^()]*\))?, )"([\w#]+)"'
)


def test_federation_reads_only_declared_ids():
    sources = Path(samfed_monai.federation.__file__).parent.rglob("*.py")
    read = {name.partition("#")[0] for path in sources for name in ID_READ.findall(path.read_text())}
    assert read > {"teacher_adapt", "personal", "strategy", "validate", "batch_size", "fit"}
    of_train = received(parse.BundleConfig(parse.workflow_files(SKIN, "train")).content, TRAINING_READS)
    on_top = {name.partition("#")[0] for name in of_train}
    tried = {"loss", "terms", "optimizer", "images", "job", "initialize", "device", "soft_mask"}
    assert read <= TRAINING_READS | TEACHER_READS | on_top | tried


@pytest.mark.parametrize(
    ("workflow", "files"),
    [
        ("federate", ("federate.json", "train.json")),
        ("teacher", ("teacher.json",)),
        ("evaluate", ("evaluate.json",)),
        ("inference", ("inference.json",)),
    ],
)
def test_options_in_help_are_read(workflow, files):
    known = {"train.json": ["--epochs", "--site"], "evaluate.json": ["--encoder_weights"]}  # which their commands omit
    shown = [options_help(file, without=known.get(file, ())) for file in files]
    names = {name for text in shown for name in re.findall(r"^  --([\w#]+)", text, re.MULTILINE)}
    paths = [path for file in files for path in parse.workflow_files(SKIN, file.removesuffix(".json"))]
    given = {name: parse.lookup(parse.BundleConfig(paths).content, parse.split_id(name)) for name in names}
    problems = check_bundle(SKIN, workflow, overrides=given, ready=False)
    assert not [problem for problem in problems if isinstance(problem, UnreadOption)]
    assert len(given) >= 2


FIT = {"epochs": 3, "batch_size": 2, "public_limit": 8, "rank": 16, "lora_learning_rate": 0.1, "cached_views": 2}
UNET, ALL = {"network_name": "basic_unet"}, {*FIT, "base", "size"}
HSSF, SEMIFL, ALONE = ({"variant": name} for name in ("hssf", "semifl", "local_only"))
RAMP, NOTHING = {"terms#pseudo_label#schedule": "gaussian_ramp"}, "leave it out: nothing in this run reads it"
NO_SAM, GIVEN_ADAPTER = {"variant": "no_sam"}, {"adapter": "a.safetensors"}
RANDOM, OWN = {"encoder_weights": None}, {"network_def": {"_target_": "monai.networks.nets.BasicUNet"}}


@pytest.mark.parametrize(
    ("given", "read", "hint"),
    [
        ({"adapt": "decoder"}, ALL - {"rank", "lora_learning_rate"}, "adapt decoder does not use it"),
        ({"adapt": "lora"}, ALL - {"cached_views"}, "adapt lora does not use it"),
        ({"adapt": "none"}, {"public_limit", "base", "size"}, "adapt none does not use it"),
        ({"teacher_adapt": "none"}, {"base", "size"}, "this run uses SAM without further training"),
        ({"adapter": "a.safetensors"}, {"base", "size"}, "this run uses the given adapter without further training"),
        ({"masks_from": "RUN", **UNET}, {"size"}, "masks_from makes the masks"),
        ({"masks_from": "RUN"}, ALL - {"cached_views"}, "adapt lora does not use it"),
        ({"variant": "no_sam"}, ALL, ""),
        ({"variant": "no_sam", "start_from": "RUN"}, set(), "this run has no teacher"),
    ],
)
def test_unread_teacher_options_are_refused(given, read, hint):
    group, options = "" if "adapt" in given else "teacher#", FIT | {"base": "vit_b", "size": 448}
    overrides = given | {f"{group}{name}": value for name, value in options.items()}
    found = check_bundle(SKIN, "federate" if group else "teacher", overrides=overrides, ready=False)
    hints = {
        each.where.removeprefix(f"command line -> {group}"): each.hint
        for each in found
        if isinstance(each, UnreadOption)
    }
    assert (hints.keys(), {*hints.values()}) == (options.keys() - read, {f"leave it out: {hint}"} if hint else set())


@pytest.mark.parametrize(
    ("option", "value", "reads", "others", "hint"),
    [
        ("oracle", True, [{"variant": "oracle"}], [{"variant": "no_sam"}], "this run learns from these labels"),
        ("sites#A#oracle", True, [{"variant": "oracle"}], [{"variant": "no_sam"}], "from these labels"),
        ("adapter", "a.safetensors", [UNET, {"variant": "no_sam"}], [{"variant": "no_sam", **UNET}], "has no teacher"),
        ("adapter", "a.safetensors", [], [{"variant": "unadapted_sam"}], "SAM without an adapter"),
        ("encoder_weights", "teacher", [{}], [{"start_from": "RUN"}], "start_from sets all weights of the network"),
        ("encoder_learning_rate", 0.1, [{}, OWN | RANDOM], [UNET, RANDOM], "set learning_rate"),
        ("encoder_learning_rate", 0.1, [{"variant": "hssf"}], [{"variant": "fedsam"}], "set learning_rate"),
        ("encoder_learning_rate", 0.1, [{"sites#A#network": "lite0_fpn", **UNET}], [], "set learning_rate"),
        ("exchange", "predictions", [HSSF, {"variant": "fedmd"}], [SEMIFL, ALONE, {"variant": "fedproto"}], NOTHING),
        ("client_algorithm#gate", "always", [HSSF], [SEMIFL, ALONE, {"variant": "fedproto"}], NOTHING),
        ("client_algorithm#passes", 2, [HSSF], [{**HSSF, "public_steps": 3}], "steps 3 does not use it"),
        ("learning_rate", 0.1, [{"variant": "local_sam"}], [{"variant": "zero_shot"}], NOTHING),
        ("job#update_guard#limit", 2, [SEMIFL], [HSSF, ALONE, {"variant": "fedproto"}], NOTHING),
        ("job#warm_start_held_out", 0.2, [{}], [{"warm_start_steps": 0}], "warm_start_steps 0 does not use it"),
        ("teacher#evaluate_limit", 2, [{"teacher#evaluate_on": "test"}], [{}], "evaluate_on null does not use it"),
        ("teacher#score", False, [{}], [NO_SAM], NOTHING),
        ("teacher#views", 2, [{}, {**NO_SAM, "teacher#evaluate_on": "test"}], [NO_SAM], NOTHING),
        ("teacher#size", 448, [GIVEN_ADAPTER], [GIVEN_ADAPTER | NO_SAM], "the given adapter without further"),
        ("terms#pseudo_label#fraction", 0.2, [RAMP, {"variant": "elcfs"}], [{}], "schedule constant does not use it"),
        ("sites#A#terms#pseudo_label#fraction", 0.2, [RAMP], [{}], "schedule constant does not use it"),
        ("terms#sam_kd#weight", 0.5, [{}], [{"variant": "no_sam"}], "; --terms#sam_kd#_disabled_ false enables it"),
        ("terms#crf#fraction", 0.2, [], [{"variant": "weak_labels"}], "schedule constant does not use it"),
        ("network_name", "lite0_fpn", [{}, SEMIFL], [{"variant": "fedmd"}], "set --mixed_networks \"['lite0_fpn']\""),
    ],
)
def test_option_without_effect_is_refused(option, value, reads, others, hint):
    for given in (each for each in (*reads, *others) if present(each.get("variant", "samfed"))):
        problems = check_bundle(SKIN, "federate", overrides={**given, option: value}, ready=False)
        problems = [each for each in problems if not each.found.startswith("no file")]
        found = [each.where == f"command line -> {option}" and hint in each.hint for each in problems]
        assert found == [True] * (given in others), given


def test_store_of_soft_masks_without_guide_is_refused():
    masks, found = {"store_dir": "masks", "teacher_sha256": "f00"}, partial(check_bundle, SKIN, "train", ready=False)
    assert found(overrides=masks) == []
    (store,) = found(overrides=masks, variant="no_sam")
    (sha256,) = found(overrides={"teacher_sha256": "f00"})
    assert store.hint == "leave it out: masks_for @guides#sam does not use it"
    assert sha256.hint == "leave it out: store null does not use it"
