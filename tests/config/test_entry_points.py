"""What other installed packages bring by entry points is used by name, and reported with its owner when broken."""

from __future__ import annotations

import pytest
import torch

from samfed_monai.cli.main import main
from samfed_monai.config import check_bundle, find_bundle
from samfed_monai.config.strict import strict_target
from samfed_monai.config.targets import entry_points_of, not_installed, resolve_target
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import read_json
from samfed_monai.networks import CLIENT_NETWORKS, client_network
from tests.data.making import disc, picture, save
from tests.inference.models import small_model

NETWORK = """
from torch import nn

def tiny(in_channels, out_channels):
    return nn.Conv2d(in_channels, out_channels, 1)
"""
TERM = """
from samfed_monai.handlers import Term

class Nothing(Term):
    def value(self, guidance, engine):
        return guidance.student.sum() * 0
"""
SOURCE = """
from samfed_monai.data.folders import Found

def archive(root):
    return [Found(f"{number}.jpg", f"{number}_lesion.png", origin="archive") for number in range(12)]

def nothing(root):
    return []
"""
EXPORTER = """
import torch

def script(network, path, images):
    torch.jit.trace(network, images).save(path)
    return torch.jit.load(path)

def wrong(network, path, images):
    path.write_text("")
    return lambda images: network(images) + 1

def idle(network, path, images):
    return network
"""


def test_network_of_other_package_is_found_by_name(lab):
    lab({"samfed_test_lab_net.py": NETWORK}, "tiny_lab = samfed_test_lab_net:tiny", kind="networks")
    assert "tiny_lab" in CLIENT_NETWORKS
    assert client_network("tiny_lab")(torch.zeros(1, 3, 4, 4)).shape == (1, 1, 4, 4)
    with pytest.raises(Refused, match=r"network_name: .* found 'tiny_lba'; did you mean 'tiny_lab'"):
        client_network("tiny_lba")


def test_broken_network_entry_point_names_package(lab):
    made = {"gone_net": "samfed_test_lab_gone:net", "bad_net": "samfed_test_lab_bad:net", "none": "samfed_test_lab_bad"}
    points = "\n".join(f"{name} = {place}" for name, place in made.items())
    lab({"samfed_test_lab_bad.py": "1 / 0"}, points, kind="networks")
    assert "gone_net" not in CLIENT_NETWORKS
    with pytest.raises(Refused, match=r"my-lab 1\.0 -> entry point gone_net = .*the other networks work without it"):
        client_network("gone_net")
    with pytest.raises(Refused, match=r"an object of my-lab 1\.0, .* ZeroDivisionError.*; update or uninstall my-lab$"):
        client_network("bad_net")
    assert "expected package.module:name" in entry_points_of("networks").broken["none"].found


def test_term_of_installed_package_is_resolved(lab, monkeypatch):
    monkeypatch.delenv("SAMFED_ALLOW")
    target = "samfed_test_lab_term.Nothing"
    with pytest.raises(Refused, match="SAMFED_ALLOW"):
        resolve_target(target, "terms#nothing")
    files = {"samfed_test_lab_term.py": TERM, "samfed_test_lab_bad.py": "1 / 0"}
    lab(files, "nothing = samfed_test_lab_term:Nothing\nbad = samfed_test_lab_bad:Bad", kind="terms")
    assert resolve_target(target, "").__name__ == "Nothing"
    assert strict_target(target, "") == []
    with pytest.raises(Refused, match=r"found ZeroDivisionError: .*; update or uninstall my-lab, which provides it"):
        resolve_target("samfed_test_lab_bad.Bad", "terms#bad")


def test_source_of_other_package_is_prepared_as_list(lab, tmp_path, capsys):
    images = tmp_path / "images"
    for number in range(12):
        save(images / f"{number}.jpg", picture(number))
        save(images / f"{number}_lesion.png", disc())
    points = "\n".join(f"{name} = samfed_test_lab_source:{name}" for name in ("archive", "nothing"))
    lab({"samfed_test_lab_source.py": SOURCE}, points, kind="sources")
    out = ["--output", str(tmp_path / "list.json"), "--no-report"]
    for name, message in {
        "nothing": "nothing: expected a list of samfed_monai.data.folders.Found, found no image",
        "archve": "source: expected one of ['archive', 'nothing'], found 'archve'; did you mean 'archive'?",
    }.items():
        assert main(["prepare", "source", name, str(images), *out]) == 2
        assert message in capsys.readouterr().err
    assert not (tmp_path / "list.json").exists()
    assert main(["prepare", "source", "archive", str(images), "--sites", "2", *out]) == 0
    content = read_json(tmp_path / "list.json")
    assert (len(content["public"]), len(content["sites"])) == (3, 2)


def test_exporter_of_other_package_is_verified(lab, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    points = "\n".join(f"{name} = samfed_test_lab_export:{name}" for name in ("script", "wrong", "idle"))
    lab({"samfed_test_lab_export.py": EXPORTER}, points, kind="exporters")
    small_model(tmp_path / "small.safetensors")
    assert main(["export", "small.safetensors", "--to", "script"]) == 0
    assert capsys.readouterr().out.splitlines()[3].startswith("script, float32 ")
    assert torch.jit.load(tmp_path / "small.script")(torch.zeros(1, 3, 32, 32)).shape == (1, 1, 32, 32)
    for name, message in {
        "wrong": "--to wrong: expected at most",
        "idle": "--to idle: expected an exporter that writes the file",
        "scrpt": "--to: expected one of ['bundle', 'idle', 'onnx', 'pt2', 'script', 'torchscript', 'wrong'], "
        "found 'scrpt'; did you mean 'script'?",
    }.items():
        assert main(["export", "small.safetensors", "--to", name]) == 2
        assert message in capsys.readouterr().err
    assert sorted(path.suffix for path in tmp_path.glob("small.*")) == [".safetensors", ".script"]


def test_package_in_current_folder_is_reported_with_pythonpath_hint(tmp_path, monkeypatch):
    (tmp_path / "samfed_test_lab_here").mkdir()
    monkeypatch.chdir(tmp_path)
    typed = "type PYTHONPATH=. SAMFED_ALLOW=samfed_test_lab_here before the command"
    target = {"_target_": "samfed_test_lab_here.terms.Mine"}
    for allowed in ("", "samfed_test_lab_here"):
        monkeypatch.setenv("SAMFED_ALLOW", allowed)
        problems = check_bundle(find_bundle("samfed_skin"), "train", overrides={"terms#mine": target}, ready=False)
        assert any(problem.hint.endswith(typed) for problem in problems), problems
    assert not_installed("samfed_test_lab_nowhere.terms.Mine") == ""
