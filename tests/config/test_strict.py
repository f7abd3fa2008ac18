"""Fault 31, strictly: JSON in which nothing is, names or could become code."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.config import strict_problems
from samfed_monai.config.variants import PACKAGED
from samfed_monai.core.io import read_json


def told(content: object, **arguments: bool) -> list[str]:
    return [str(problem) for problem in strict_problems(content, "plan", **arguments)]


def test_plain_values_references_and_listed_components_pass():
    content = {
        "client": {"image_size": 256, "learning_rate": 3e-4, "network_name": "unet", "limit": None, "oracle": False},
        "client#terms#sam_kd#weight": 0.5,
        "client#loss": {"_target_": "monai.losses.DiceLoss", "sigmoid": True},
        "client#strong_view": {"_target_": "samfed_monai.transforms.StrongViewd", "strength": "@strength"},
        "sites": {"site-1": {"network": "deeplabv3plus_resnet34"}},
        "client#encoder_weights": "efficientnet_lite0",
        "client#store_dir": None,
        "client#after#table": {"_target_": "samfed_monai.handlers.TermTable", "path": "@output_dir"},
        "client#sharing#plain": {"_target_": "samfed_monai.parts.SplitDataset", "data": "@images"},
        "client#sharing#images": 40,
        "client#network_def#drop_path": 0.1,
        "client#personal": ["<norm>", "segmentation_head.*", "encoder.data.path"],
        "unseen": ["site-2"],
    }
    assert told(content) == []


@pytest.mark.parametrize("file", [False, True])
@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "builtins.eval", "scripts.train.run", "$print", "my_lab.Term"),
        *("monai.utils.instantiate", "monai.utils.run_cmd", "monai.utils.optional_import", "monai.bundle.run"),
        *("torch.load", "torch.hub.load", "torch.jit.load", "torch.ops.load_library", "torch.save"),
        *("monai.handlers.CheckpointLoader", "monai.data.PersistentDataset", "monai.transforms.LoadImage"),
        *(
            "samfed_monai.core.io.write_text",
            "samfed_monai.data.sources.found.unpack",
            "samfed_monai.commands.main.main",
        ),
    ],
)
def test_fault_31_target_outside_the_strict_allow_list(target, file):
    for content in ({"client": {"loss": {"_target_": target}}}, {"client#loss#_target_": target}):
        [message] = told(content, file=file)
        assert message.startswith("plan -> client#loss#_target_: expected a component of ")
        assert repr(target) in message


def test_whoever_starts_the_command_may_allow_a_package(monkeypatch):
    content = {"loss": {"_target_": "tests.config.toys.Trainer"}}
    monkeypatch.delenv("SAMFED_ALLOW")
    assert len(told(content)) == 1
    monkeypatch.setenv("SAMFED_ALLOW", "tests.")
    assert told(content) == []


def test_fault_31_code_in_what_a_server_sends():
    assert told({"client": {"learning_rate": "$1/3", "seed": "%other.json#seed"}}) == [
        "plan -> client#learning_rate: expected a plain value, found '$1/3'; '$' would run code: write its result",
        "plan -> client#seed: expected a plain value, found '%other.json#seed'; '%' would read another file",
    ]
    assert len(told({"client#optimizer#params": "$@network.parameters()"})) == 1  # a shape that only a file may have
    assert len(told({"a": [{"b": ["$x"]}]})) == 1


@pytest.mark.parametrize(
    "key",
    [
        "logging_file",
        "args_file",
        "config_file",
        "tracking",
        "client#logging_file",
        "client#tracking",
        "sites#a#tracking",
    ],
)
def test_fault_31_the_server_may_not_set_options_of_the_command(key):
    [message] = told({key: "x"})
    assert message.startswith(f"plan -> {key}: expected ids of a configuration, found an option of the command; delete")


def test_fault_31_a_logging_configuration_by_any_name():
    [message] = told({"records": "configs/logging.conf"})
    assert message.startswith("plan -> records: expected no logging configuration, found 'configs/logging.conf'")


@pytest.mark.parametrize(
    "key", ["run", "initialize", "client#imports", "client#run#0", "sites#a#run", "teacher#initialize", "_meta_"]
)
def test_fault_31_the_server_may_not_say_what_to_do(key):
    [message] = told({key: "x"})
    assert message.startswith(f"plan -> {key}: expected values for ids, found what to do; delete it")


@pytest.mark.parametrize(
    "key", ["data_root", "client#datalist", "client#store_dir", "teacher#checkpoint", "output_dir", "bundle_root"]
)
def test_fault_31_the_server_may_not_name_places_on_the_sites_machine(key):
    assert told({key: "/etc"}) == [
        f"plan -> {key}: expected nothing that says where files lie, found '/etc'; "
        "set it on this machine, in the site's own file"
    ]
    assert told({"client#encoder_weights": "/etc/passwd"}) != []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *((f"client#after#logger#{name}", "/home/v/.bashrc") for name in ("path", "file", "filename", "progress_file")),
        *(
            (f"client#after#logger#{name}", "x")
            for name in ("folder", "run_folder", "root", "dataset_dir", "load_path")
        ),
        *((f"client#after#logger#{name}", ["x"]) for name in ("store", "value_store", "some_path")),
        *(("client#after#logger#path", value) for value in ("@x", "@output_dir/../x", "@#x", "@/x_path", "@images")),
        ("client#encoder_weights", "@x"),
    ],
)
def test_fault_31_a_component_that_was_sent_may_not_name_places_either(key, value):
    [message] = told({key: value})
    assert message.startswith(f"plan -> {key}: expected nothing that says where files lie, found ")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("client#sharing#plain#split", value) for value in ("test", "@x", "public")),
        *(("client#sharing#plain#data", value) for value in ("@x", [{"image": "x"}])),
        *(
            (f"client#{name}", {"_target_": "samfed_monai.parts.SiteImages"})
            for name in ("images", "test#dataset#data")
        ),
    ],
)
def test_a_server_may_not_say_which_images_a_data_set_holds(key, value):
    assert told({key: value})[0].startswith(f"plan -> {key}: expected nothing that says which images are read, found ")


@pytest.mark.parametrize("value", ["/home/v/.bashrc", "../x", "runs/../../x", "..\\x", "C:/x", "\\\\host\\x", "~/x"])
def test_fault_31_a_component_of_a_file_stays_below_the_folder_of_the_run(value):
    table = {"_target_": "samfed_monai.handlers.TermTable", "path": value}
    message = (
        f"plan -> after#table#path: expected a path below the folder of the run, found {value!r}; "
        "refer to a knob for places, for instance @output_dir"
    )
    assert told({"imports": [], "after": {"table": table}}, file=True) == [message]
    table["path"] = "@x"
    assert told({"x": value, "imports": [], "after": {"table": table}}, file=True) == [message]


@pytest.mark.parametrize("value", ["terms.csv", "runs/x..y.csv", "@output_dir", "@x", "@after#name", "@nowhere", None])
def test_other_places_of_a_file_pass_and_so_do_its_knobs(value):
    content = {"output_dir": "/hospital/runs", "x": "terms.csv", "after": {"name": "a", "table": {"path": value}}}
    assert told(content, file=True) == []


def test_fault_31_the_debugger_is_a_prompt():
    loss = {"_target_": "monai.losses.DiceLoss"}
    assert len(told({"loss": {**loss, "_mode_": "debug"}})) == 1
    assert len(told({"loss": {**loss, "_debug_": True}})) == 1
    assert told({"loss": {**loss, "_mode_": "callable"}}) == []


@pytest.mark.parametrize("value", [b"bytes", object(), {1, 2}, (1,)])
def test_values_that_json_does_not_have(value):
    [message] = told({"a": {"b": value}})
    assert message == f"plan -> a#b: expected a value that JSON has, found {type(value).__name__}"


def test_values_without_end_are_refused_and_not_followed():
    content: dict = {}
    for _ in range(5000):
        content = {"a": content}
    [message] = told(content)
    assert message.endswith("expected at most 32 levels, found values inside values without end")


@pytest.mark.parametrize("content", [None, [], "text", 3])
def test_what_is_no_object_is_refused(content):
    assert told(content) == [f"plan: expected an object of ids, found {type(content).__name__}"]


def test_a_file_may_hold_three_shapes_of_expression_below_its_knobs():
    content = {
        "rate": 1,
        "imports": ["$import torch", "$import samfed_monai.config as c"],
        "network": "$@network_def.to(@device)",
        "params": "$@network.parameters()",
        "run": ["$@train#trainer.run()"],
    }
    assert told(content, file=True) == []


@pytest.mark.parametrize(
    "expression",
    [
        *("$__import__('os').system('x')", "$@network.parameters() or print(1)", "$@a.__class__()", "$@a.save()"),
        *("$@a.to(@b.c())", "$torch.device('cpu')", "$@a.run().b", "$@a.run()\n", "$ @a.run()", "$", "$@a.run(@b)"),
    ],
)
def test_fault_31_every_other_expression_is_refused(expression):
    [message] = told({"imports": [], "x": {"y": expression}}, file=True)
    assert message.startswith("plan -> x#y: expected no expression, or $@id.parameters(), $@id.run(), $@id.to(@id), ")


@given(st.text(alphabet=string.ascii_letters + "@#.()_' +", max_size=30))
def test_no_other_call_has_one_of_the_shapes(text):
    passed = told({"imports": [], "x": {"y": f"${text}"}}, file=True) == []
    assert not passed or text.endswith((".parameters()", ".run()")) or ".to(@" in text
    assert not passed or "__" not in text.rpartition(".")[2]


def test_fault_31_code_in_a_knob_of_a_file_even_of_an_allowed_shape():
    [message] = told({"rate": "$@a.run()", "size": 3, "imports": [], "x": {}}, file=True)
    assert message.startswith("plan -> rate: expected a plain value, found '$@a.run()'")


@pytest.mark.parametrize("statement", ["$import os", "$from torch import hub", "$import torch, os", "$import monai;x"])
def test_fault_31_imports_beyond_the_allowed_ones(statement):
    [message] = told({"imports": [statement]}, file=True)
    assert message.startswith("plan -> imports#0: expected `$import` of a module of torch, monai or samfed_monai, ")


def test_the_packages_variants_pass():
    for path in PACKAGED.glob("*.json"):
        assert strict_problems(read_json(path), path.name, file=True) == []
