"""``samfed check --strict``: both bundles pass, and what a stranger's bundle may not hold is refused."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import pytest
import torch

from samfed_monai.commands.main import main
from samfed_monai.config import packaged_bundles, strict_bundle_problems
from samfed_monai.config.strict import strict_files
from samfed_monai.core.io import save_tensors
from samfed_monai.data import DataList, Item, Site

from .conftest import Write


def told(bundle: Path) -> list[str]:
    return [str(problem) for problem in strict_bundle_problems(bundle)]


@pytest.mark.parametrize("name", ["samfed_polyp", "samfed_skin"])
def test_the_packages_bundles_are_strict_and_hold_no_expression_at_all(name):
    root = packaged_bundles()[name]
    assert told(root) == []
    for path in root.rglob("*.json"):
        assert '"$' not in path.read_text().replace('"$schema"', ""), path
    assert main(["check", str(root), "--strict"]) == 0


def _zip() -> bytes:
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as archive:
        archive.writestr("data.pkl", pickle.dumps(1))
    return packed.getvalue()


def _torch() -> bytes:
    written = io.BytesIO()
    torch.save({"a": torch.zeros(1)}, written)
    return written.getvalue()


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("scripts/train.py", b"print(1)", "Python"),
        ("docs/notebook.ipynb", b"{}", "Python"),
        ("scripts/__pycache__/train.pyc", b"x", "Python"),
        ("models/model.pt", _torch(), "an archive (torch.save writes one with a pickle inside)"),
        ("models/model.pt", b"\x80\x02x", "a pickle"),
        ("models/old.pkl", pickle.dumps({"a": 1}), "a pickle"),
        ("models/zero.pkl", b"cos\nsystem\n", "a file that ends with '.pkl'"),
        ("models/model.ts", _zip(), "an archive (torch.save writes one with a pickle inside)"),
        ("models/lib.so", b"\x7fELF\x02", "machine code"),
        ("models/model.safetensors", pickle.dumps({"a": 1}), "no safetensors inside"),
        ("docs/README.md", pickle.dumps({"a": 1}), "a pickle"),
        ("install", b"#!/bin/sh\n", "a script"),
        ("configs/train.yaml", b"rate: 1", "a file that ends with '.yaml'"),
        ("data.tar.gz", b"\x1f\x8b\x08", "a packed file"),
        ("Makefile", b"all:", "a file without an ending"),
    ],
)
def test_fault_31_a_file_that_holds_code(bundle, name, content, found):
    path = bundle / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    [problem] = strict_files(bundle)
    assert (problem.where, problem.found) == (name, found)
    assert problem.expected == "JSON, text, pictures and safetensors alone"


def test_what_a_bundle_may_hold_beside_json(bundle):
    (bundle / "models").mkdir()
    save_tensors(bundle / "models" / "model.safetensors", {"a": torch.zeros(2)})
    (bundle / "LICENSE").write_text("free")
    (bundle / "models" / ".gitkeep").write_text("")
    (bundle / "README.md").write_text("# toy")
    assert list(strict_files(bundle)) == []


def test_a_link_is_refused_wherever_it_leads(bundle, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (bundle / "models").symlink_to(tmp_path / "elsewhere")
    (bundle / "configs" / "more.json").symlink_to(bundle / "configs" / "train.json")
    assert [problem.where for problem in strict_files(bundle)] == ["models", "configs/more.json"]


def test_every_json_file_is_looked_at_and_the_mistakes_of_all_are_told(bundle, rewrite: Write):
    rewrite("train.json", {"initialize": [], "run": ["$@train#trainer.run()"], "imports": ["$import os"]})
    rewrite("hidden.json", '{"x": "$print(1)"}')
    rewrite("variants/gentle.json", '{"loss#_target_": "os.system"}')
    rewrite("metadata.json", '{"version": "0.1.0", "note": {"a": "$print(1)"}}')
    rewrite("logging.conf", "[handler_a]\nclass=FileHandler\nargs=('x',)\n")
    assert [message.partition(":")[0] for message in told(bundle)] == [
        "logging.conf -> handler_a#class",
        "logging.conf -> handler_a#args",
        "hidden.json -> x",
        "metadata.json -> note#a",
        "train.json -> imports#0",
        "variants/gentle.json -> loss#_target_",
    ]


@pytest.mark.parametrize("name", ["configs/a.JSON", "docs/a.json", "a.Json", "configs/.json", "models/deep/a.jSoN"])
def test_fault_31_a_json_file_in_any_folder_and_letter_case_is_looked_at(bundle, name):
    before = told(bundle)
    (bundle / name).parent.mkdir(parents=True, exist_ok=True)
    (bundle / name).write_text('{"x": "$print(1)"}')
    [message] = [message for message in told(bundle) if message not in before and "without an ending" not in message]
    assert message.startswith(f"{name.removeprefix('configs/')} -> x: expected no expression, ")


def test_json_that_is_no_configuration_passes(bundle):
    before = told(bundle)
    (bundle / "docs").mkdir(exist_ok=True)
    item = Item(image="images/a.png", label="masks/a.png", sha256="0" * 64, label_sha256="1" * 64)
    DataList("list", [item], {"site-1": Site()}).save(bundle / "docs" / "list.json")
    (bundle / "docs" / "rows.json").write_text('[{"dice": 0.5}, "$5 a row"]')
    assert told(bundle) == before


def test_fault_31_the_command_refuses_with_every_problem_and_code_2(bundle, rewrite: Write, capsys):
    rewrite("train.json", {"rate": "$1/3", "loss#sigmiod": True})
    assert main(["check", str(bundle)]) == 2
    capsys.readouterr()
    assert main(["check", str(bundle), "--strict"]) == 2
    errors = capsys.readouterr().err
    assert "train.json -> rate: expected a plain value, found '$1/3'" in errors
    assert errors.count("-> rate:") == 1
    assert "train.json -> loss#sigmiod" in errors
    assert "train.json -> initialize#0: expected no expression" in errors
