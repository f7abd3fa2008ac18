"""Fault 31, strictly: JSON in which nothing is, names or could become code, in both bundles and in a stranger's."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import io
import pickle
import pkgutil
import re
import zipfile
from functools import cache
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from samfed_monai.cli.main import main
from samfed_monai.config import packaged_bundles, strict_bundle_problems, strict_problems
from samfed_monai.config.strict import FETCHING, MODULES, forbidden_argument, inventory, strict_files, strict_target
from samfed_monai.config.variants import PACKAGED
from samfed_monai.core.io import read_json, save_tensors
from samfed_monai.data import DataList, Item, Site
from tests.config.conftest import Write


def check(content: object, **arguments: bool) -> list[str]:
    return [str(problem) for problem in strict_problems(content, "plan", **arguments)]


def test_plain_values_references_and_listed_components_pass():
    content = {
        **{"image_size": 256, "learning_rate": 3e-4, "network_name": "unet", "limit": None, "oracle": False},
        "terms#sam_kd#weight": 0.5,
        "loss": {"_target_": "monai.losses.DiceLoss", "sigmoid": True},
        "strong_view": {"_target_": "samfed_monai.transforms.StrongViewd", "strength": "@strength"},
        "sites": {"site-1": {"network": "deeplabv3plus_resnet34"}},
        "encoder_weights": "efficientnet_lite0",
        "store_dir": None,
        "after#table": {"_target_": "samfed_monai.handlers.BestWeightsSaver", "path": "@output_dir"},
        "client_algorithm#plain": {"_target_": "samfed_monai.bundle.SplitDataset", "data": "@images"},
        "client_algorithm#images": 40,
        "network_def#drop_path": 0.1,
        "personal": ["<norm>", "segmentation_head.*", "encoder.data.path"],
        "unseen": ["site-2"],
    }
    assert check(content) == []


@pytest.mark.parametrize(
    "target",
    [
        *("os.system", "subprocess.run", "builtins.eval", "scripts.train.run", "$print", "my_lab.Term"),
        *("monai.utils.instantiate", "monai.utils.run_cmd", "monai.utils.optional_import", "monai.bundle.run"),
        *("torch.load", "torch.hub.load", "torch.jit.load", "torch.ops.load_library", "torch.save"),
        *("monai.handlers.CheckpointLoader", "monai.data.PersistentDataset", "monai.transforms.LoadImage"),
        *("samfed_monai.core.io.write_text", "samfed_monai.core.io.write_new", "samfed_monai.cli.main.main"),
    ],
)
def test_fault_31_target_outside_strict_allow_list_is_refused(target):
    for content, file in (({"teacher": {"loss": {"_target_": target}}}, True), ({"loss#_target_": target}, False)):
        [message] = check(content, file=file)
        assert "loss#_target_: expected a component of " in message
        assert repr(target) in message


def test_samfed_allow_admits_package(monkeypatch):
    content = {"loss": {"_target_": "tests.config.toys.Trainer"}}
    monkeypatch.delenv("SAMFED_ALLOW")
    assert len(check(content)) == 1
    monkeypatch.setenv("SAMFED_ALLOW", "tests.")
    assert check(content) == []


def test_fault_31_code_in_server_message_is_refused():
    assert check({"learning_rate": "$1/3", "seed": "%other.json#seed"}) == [
        "plan -> learning_rate: expected a plain value, found '$1/3'; '$' would run code: write the result instead",
        "plan -> seed: expected a plain value, found '%other.json#seed'; '%' would read another file",
    ]
    assert len(check({"optimizer#params": "$@network.parameters()"})) == 1  # a shape that only a file may have
    assert len(check({"a": [{"b": ["$x"]}]})) == 1


PLACE, CHOICE = "no path of a file or folder, found ", "no value that selects images, found "
REFUSED: dict[str, list[tuple[str, Any]]] = {
    "ids of a configuration, found an option of the command line; delete": [
        *((name, "x") for name in ("logging_file", "args_file", "config_file", "tracking")),
        *(("teacher#logging_file", "x"), ("sites#a#tracking", "x")),
    ],
    "no logging configuration, found 'configs/logging.conf'": [("records", "configs/logging.conf")],
    "values for ids, found steps of the workflow; delete it": [
        *((name, "x") for name in ("run", "initialize", "imports", "_meta_", "run#0", "sites#a#run")),
        ("teacher#initialize", "x"),
    ],
    f"{PLACE}'/etc'; set the path on this machine, in the site's own file": [
        *((name, "/etc") for name in ("data_root", "datalist", "store_dir", "output_dir", "encoder_weights")),
        *((f"after#a#{name}", "/etc") for name in ("path", "file", "filename", "folder", "root", "load_path")),
        ("teacher#checkpoint", "/etc"),
    ],
    PLACE: [
        *((f"after#a#{name}", ["x"]) for name in ("store", "value_store")),
        *(("after#a#path", value) for value in ("@x", "@output_dir/../x", "@#x", "@/x_path", "@images")),
        ("encoder_weights", "@x"),
    ],
    CHOICE: [
        *(("client_algorithm#plain#split", value) for value in ("test", "@x", "public")),
        *(("client_algorithm#plain#data", value) for value in ("@x", [{"image": "x"}])),
        *((name, {"_target_": "samfed_monai.bundle.SiteImages"}) for name in ("images", "test#dataset#data")),
    ],
}


@pytest.mark.parametrize("message", REFUSED)
def test_fault_31_forbidden_ids_in_server_message_are_refused(message):
    for key, value in REFUSED[message]:
        assert check({key: value})[0].startswith(f"plan -> {key}: expected {message}")


@pytest.mark.parametrize("value", ["/home/v/.bashrc", "../x", "runs/../../x", "..\\x", "C:/x", "\\\\host\\x", "~/x"])
def test_fault_31_component_path_outside_run_folder_is_refused(value):
    table = {"_target_": "samfed_monai.handlers.BestWeightsSaver", "path": value}
    message = (
        f"plan -> after#table#path: expected a path inside the run's folder, found {value!r}; "
        "refer to an option with a path, for instance @output_dir"
    )
    assert check({"imports": [], "after": {"table": table}}, file=True) == [message]
    table["path"] = "@x"
    assert check({"x": value, "imports": [], "after": {"table": table}}, file=True) == [message]


@pytest.mark.parametrize("value", ["terms.csv", "runs/x..y.csv", "@output_dir", "@x", "@after#name", "@nowhere", None])
def test_other_paths_and_options_of_file_are_accepted(value):
    content = {"output_dir": "/hospital/runs", "x": "terms.csv", "after": {"name": "a", "table": {"path": value}}}
    assert check(content, file=True) == []


def test_fault_31_debug_mode_is_refused():
    loss = {"_target_": "monai.losses.DiceLoss"}
    assert len(check({"loss": {**loss, "_mode_": "debug"}})) == 1
    assert len(check({"loss": {**loss, "_debug_": True}})) == 1
    assert check({"loss": {**loss, "_mode_": "callable"}}) == []


def test_non_json_values_and_non_objects_are_refused():
    for value in (b"bytes", object(), {1, 2}, (1,), MappingProxyType({})):
        kind = type(value).__name__
        assert check({"a": {"b": value}}) == [f"plan -> a#b: expected a JSON value, found {kind}"]
    for content in (None, [], "text", 3):
        assert check(content) == [f"plan: expected an object of ids, found {type(content).__name__}"]


def test_file_may_hold_three_kinds_of_expression():
    content = {
        "rate": 1,
        "imports": ["$import torch", "$import samfed_monai.config as c"],
        "network": "$@network_def.to(@device)",
        "params": "$@network.parameters()",
        "run": ["$@train#trainer.run()"],
    }
    assert check(content, file=True) == []


@pytest.mark.parametrize(
    "expression",
    [
        *("$__import__('os').system('x')", "$@network.parameters() or print(1)", "$@a.__class__()", "$@a.save()"),
        *("$@a.to(@b.c())", "$torch.device('cpu')", "$@a.run().b", "$@a.run()\n", "$ @a.run()", "$", "$@a.run(@b)"),
    ],
)
def test_fault_31_other_expressions_are_refused(expression):
    [message] = check({"imports": [], "x": {"y": expression}}, file=True)
    assert message.startswith("plan -> x#y: expected no expression, or $@id.parameters(), $@id.run(), $@id.to(@id), ")


IDS, ENDS = ["@a", "@a#b", "@a#b::0", "a", "@a.b", "@a()"], ["", "", ".x", "()", " ", "\n", " + @a"]
CALLS = [".run()", ".parameters()", ".to(@a)", ".to(@a#b)", ".run", ".run(1)", ".to(a)", ".to(@a.b())", ".__class__()"]


@given(st.tuples(*map(st.sampled_from, (IDS, CALLS, ENDS))).map("".join))
def test_only_listed_call_forms_are_accepted(text):
    passed = check({"imports": [], "x": {"y": f"${text}"}}, file=True) == []
    assert passed == bool(re.fullmatch(r"@a(#b)?(::0)?\.(run\(\)|parameters\(\)|to\(@a\))", text))


def test_fault_31_code_in_option_of_file_is_refused():
    [message] = check({"rate": "$@a.run()", "size": 3, "imports": [], "x": {}}, file=True)
    assert message.startswith("plan -> rate: expected a plain value, found '$@a.run()'")


@pytest.mark.parametrize("statement", ["$import os", "$from torch import hub", "$import torch, os", "$import monai;x"])
def test_fault_31_unlisted_imports_are_refused(statement):
    [message] = check({"imports": [statement]}, file=True)
    assert message.startswith("plan -> imports#0: expected `$import` of a module of torch, monai or samfed_monai, ")


def test_packaged_variants_pass():
    for path in PACKAGED.glob("*.json"):
        assert strict_problems(read_json(path), path.name, file=True) == []


ROOMS = ("ignite.metrics", "monai.inferers", "monai.losses", "monai.networks", "monai.transforms", "monai.metrics")
#: Classes of MONAI 1.6 and Ignite 0.5 whose constructors fetch, load, compile, write or import, found by reading them.
REACHING_OUT = (
    *FETCHING,
    *("monai.inferers.inferer.PatchInferer", "monai.inferers.merger.ZarrAvgMerger"),
    *("monai.networks.blocks.fcn.FCN", "monai.networks.blocks.fcn.MCFCN"),
    *("monai.networks.blocks.text_embedding.TextEncoder", "monai.networks.nets.ahnet.AHNet"),
    *("monai.networks.nets.cell_sam_wrapper.CellSamWrapper", "monai.networks.nets.flexible_unet.FlexibleUNet"),
    *(f"monai.networks.nets.densenet.DenseNet{depth}" for depth in (121, 169, 201, 264)),
    *(f"monai.networks.nets.efficientnet.EfficientNet{name}" for name in ("BN", "BNFeatures", "Encoder")),
    *("monai.networks.nets.hovernet.HoVerNet", "monai.networks.nets.milmodel.MILModel"),
    *(f"monai.networks.nets.resnet.ResNet{name}" for name in ("Encoder", "Features")),
    *(f"monai.networks.nets.senet.SE{name}" for name in ("Net154", "ResNet50", "ResNet101", "ResNet152")),
    *(f"monai.networks.nets.senet.SEResNext{depth}" for depth in (50, 101)),
    "monai.networks.nets.torchvision_fc.TorchVisionFCModel",
    "monai.transforms.post.dictionary.SaveClassificationd",
)


@cache
def spellings() -> dict[str, list[str]]:
    """The real name of every class in :data:`ROOMS` to every path by which a bundle can spell it."""
    rooms = [importlib.import_module(room) for room in ROOMS]
    names = (each.name for room in rooms for each in pkgutil.walk_packages(room.__path__, f"{room.__name__}."))
    found: dict[str, list[str]] = {}
    for module in [*rooms, *map(importlib.import_module, names)]:
        for name, value in vars(module).items():
            if inspect.isclass(value):
                found.setdefault(f"{value.__module__}.{value.__qualname__}", []).append(f"{module.__name__}.{name}")
    return found


@pytest.mark.parametrize("entry", REACHING_OUT)
def test_classes_with_external_access_are_refused_under_any_path(entry):
    names = [name for name in spellings() if (name.startswith(entry) if entry.endswith(".") else name == entry)]
    paths = [path for name in names for path in spellings()[name]]
    assert paths, "it is there, or the entry is misspelt"
    for path in paths:
        [problem] = strict_target(path, "plan -> loss#_target_")
        assert problem.expected.startswith("a component of the strict allow-list"), path
        assert path in problem.found


@pytest.mark.parametrize(
    ("path", "argument"),
    [
        ("monai.networks.nets.DenseNet121", "pretrained"),
        ("monai.data.PersistentDataset", "cache_dir"),
        ("monai.data.CSVDataset", "kwargs_read_csv"),
        ("monai.data.NPZDictItemDataset", "npzfile"),
        ("monai.inferers.PatchInferer", "merger_cls"),
        ("monai.optimizers.LearningRateFinder", "cache_dir"),
    ],
)
def test_refusal_names_offending_argument(path, argument):
    [problem] = strict_target(path, "here")
    assert problem.found.endswith(f"which takes {argument!r}")


def test_telling_argument_includes_bases_and_ignores_drop_path():
    class Base:
        def __init__(self, *, weights_url: str = "", drop_path: float = 0.1) -> None: ...

    class Network(Base):
        def __init__(self, **kwargs: object) -> None: ...

    assert forbidden_argument(Network) == "weights_url"
    assert forbidden_argument(type("Block", (), {"__init__": lambda self, drop_path: None})) == ""


def test_most_classes_of_allowed_modules_pass():
    """A rule that refused everything would pass the tests above."""
    of_modules = [paths[0] for name, paths in spellings().items() if name.startswith(MODULES)]
    assert len([path for path in of_modules if strict_target(path, "here") == []]) > 0.9 * len(of_modules) > 500


def check_files(bundle: Path) -> list[str]:
    return [str(problem) for problem in strict_bundle_problems(bundle)]


@pytest.mark.parametrize("name", ["samfed_polyp", "samfed_skin"])
def test_packaged_bundles_are_strict_without_expressions(name):
    root = packaged_bundles()[name]
    assert check_files(root) == []
    for path in root.rglob("*.json"):
        assert '"$' not in path.read_text(), path


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr(zipfile.ZipInfo("data.pkl"), pickle.dumps(1))  # no time: it is in the tests' names
    return packed.getvalue()


def _torch(**more: object) -> bytes:
    written = io.BytesIO()
    torch.save({"a": torch.zeros(1), **more}, written)
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("scripts/train.py", b"print(1)", "Python code"),
        ("docs/notebook.ipynb", b"{}", "Python code"),
        ("scripts/__pycache__/train.pyc", b"x", "Python code"),
        ("models/other.pt", _torch(), "an archive (archives of torch.save contain a pickle)"),
        ("models/model.pt", _torch(more=Path("x")), f"a pickle that builds '{type(Path()).__module__}.PosixPath'"),
        ("models/model.pt", _zip(), "a file that torch cannot inspect (RuntimeError)"),
        ("models/model.pt", b"\x80\x02x", "a pickle"),
        ("models/old.pkl", pickle.dumps({"a": 1}), "a pickle"),
        ("models/zero.pkl", b"cos\nsystem\n", "a file that ends with '.pkl'"),
        ("models/model.ts", _zip(), "an archive (archives of torch.save contain a pickle)"),
        ("models/lib.so", b"\x7fELF\x02", "machine code"),
        ("models/model.safetensors", pickle.dumps({"a": 1}), "content that is not safetensors"),
        ("docs/README.md", pickle.dumps({"a": 1}), "a pickle"),
        ("install", b"#!/bin/sh\n", "a script"),
        ("configs/train.yaml", b"rate: 1", "a file that ends with '.yaml'"),
        ("data.tar.gz", b"\x1f\x8b\x08", "a compressed file"),
        ("Makefile", b"all:", "a file without a suffix"),
    ],
)
def test_fault_31_files_with_code_are_refused(bundle, name, content, found):
    path = bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    [problem] = strict_files(bundle)
    assert (problem.where, problem.found) == (name, found)
    assert problem.expected == "only JSON, text, images, safetensors and a models/model.pt of tensors"


def test_permitted_files_beside_json_pass(bundle):
    for name, content in {
        "models/model.pt": _torch(),
        "models/.gitkeep": b"",
        "LICENSE": b"free",
        "README.md": b"# toy",
    }.items():
        (bundle / name).parent.mkdir(exist_ok=True)
        (bundle / name).write_bytes(content)
    save_tensors(bundle / "models" / "model.safetensors", {"a": torch.zeros(2)})
    assert list(strict_files(bundle)) == []


def test_links_are_refused(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (bundle / "models").symlink_to(tmp_path / "elsewhere")
    (bundle / "configs" / "more.json").symlink_to(bundle / "configs" / "train.json")
    assert [problem.where for problem in strict_files(bundle)] == ["configs/more.json", "models"]


def test_all_json_files_are_checked_and_problems_reported_together(bundle, rewrite: Write):
    rewrite("train.json", {"initialize": [], "run": ["$@train#trainer.run()"], "imports": ["$import os"]})
    rewrite("hidden.json", '{"x": "$print(1)"}')
    rewrite("variants/gentle.json", '{"loss#_target_": "os.system"}')
    rewrite("metadata.json", '{"version": "0.1.0", "note": {"a": "$print(1)"}}')
    rewrite("logging.conf", "[handler_a]\nclass=FileHandler\nargs=('x',)\n")
    assert [message.partition(":")[0] for message in check_files(bundle)] == [
        "logging.conf",
        "hidden.json -> x",
        "metadata.json -> note#a",
        "train.json -> imports#0",
        "variants/gentle.json -> loss#_target_",
    ]


@pytest.mark.parametrize("name", ["configs/a.JSON", "docs/a.json", "a.Json", "configs/.json", "models/deep/a.jSoN"])
def test_fault_31_json_in_any_folder_and_case_is_checked(bundle, name):
    before = check_files(bundle)
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_text('{"x": "$print(1)"}')
    [message] = [text for text in check_files(bundle) if text not in before and "without a suffix" not in text]
    assert message.startswith(f"{name.removeprefix('configs/')} -> x: expected no expression, ")


def test_json_without_configuration_passes(bundle):
    before = check_files(bundle)
    (bundle / "docs").mkdir()
    item = Item(image="images/a.png", label="masks/a.png", sha256="0" * 64, label_sha256="1" * 64)
    DataList("list", [item], {"site-1": Site()}).save(bundle / "docs" / "list.json")
    (bundle / "docs" / "rows.json").write_text('[{"dice": 0.5}, "$5 a row"]')
    assert check_files(bundle) == before


def test_fault_31_strict_check_reports_all_problems_with_code_2(bundle, rewrite: Write, capsys):
    rewrite("train.json", {"rate": "$1/3", "loss#sigmiod": True})
    assert main(["check", str(bundle), "--strict"]) == 2
    errors = capsys.readouterr().err
    assert "train.json -> rate: expected a plain value, found '$1/3'" in errors
    assert errors.count("-> rate:") == 1
    assert "train.json -> loss#sigmiod" in errors
    assert "train.json -> initialize#0: expected no expression" in errors


def test_inventory_lists_components_packages_files_and_licences(tmp_path: Path):
    root = tmp_path / "own"
    for name, text in {
        "configs/train.json": '{"loss": {"_target_": "monai.losses.DiceLoss"}, "all": [{"_target_": "torch.nn.ReLU"}]}',
        "models/model.safetensors": "weights",
        "docs/data_license.txt": "CC-0",
        "LICENSE": "   Apache License\n   Version 2.0, January 2004\n",
    }.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    rows = [re.split(r"  +", line) for line in inventory(root, [PACKAGED / "ditto.json"]).splitlines()]
    for row in (
        ["monai.losses.dice.", "DiceLoss"],
        ["torch.nn.modules.activation.", "ReLU"],
        ["samfed_monai.methods.ditto.", "AnchoredTerm, DittoAlgorithm"],
    ):
        assert row in rows
    assert ["torch", metadata.version("torch")] in [row[:2] for row in rows]
    digest = hashlib.sha256(b"weights").hexdigest()
    assert rows[-1] == ["models/model.safetensors", "7", digest, "Apache-2.0; data: docs/data_license.txt"]
    assert [row[0] for row in rows[-4:-1]] == ["LICENSE", "configs/train.json", "docs/data_license.txt"]
    (root / "LICENSE").unlink()
    assert inventory(root).splitlines()[-1].endswith("none stated; data: docs/data_license.txt")


def test_check_prints_inventory_of_valid_bundle(capsys):
    assert main(["check", "samfed_skin", "--workflow", "inference", "--strict", "--inventory"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"^samfed_monai\.handlers\.mask_writer\. +MaskWriter$", out, re.MULTILINE)
    assert re.search(r"^models/model\.pt +10554525 +[0-9a-f]{64} +Apache-2\.0; data: ", out, re.MULTILINE)
