"""``samfed new`` writes a package that installs, passes its own test and is found by its entry point."""

from __future__ import annotations

import runpy
import subprocess
import sys

import pytest

from samfed_monai.cli.main import main
from samfed_monai.cli.new import KINDS, new_package
from samfed_monai.core.errors import Refused
from tests.conftest import forget_outside


@pytest.mark.slow
def test_new_packages_install_pass_tests_and_are_found(tmp_path, monkeypatch, capsys, request):
    monkeypatch.chdir(tmp_path)
    names = dict(zip(KINDS, ("equal_share", "sure_mask", "three_layers"), strict=True))
    for kind, name in names.items():
        assert main(["new", kind, name]) == 0
    packages = [tmp_path / f"samfed-{name.replace('_', '-')}" for name in names.values()]
    assert capsys.readouterr().out.startswith(f"{packages[0]}\n  install:  pip install -e {packages[0]}\n")
    site, bundle = tmp_path / "site", tmp_path / "bundle"
    quiet = ["--quiet", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    install = [sys.executable, "-m", "pip", "install", *quiet, "--target", str(site), *map(str, packages)]
    done = subprocess.run(install, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    monkeypatch.syspath_prepend(site)
    for package in packages:
        (file,) = (package / "tests").glob("test_*.py")
        tests = [test for name, test in runpy.run_path(str(file)).items() if name.startswith("test_")]
        assert tests
        for test in tests:
            test()
    assert main(["init", "samfed_skin", str(bundle)]) == 0
    train = bundle / "configs" / "train.json"
    block = (packages[1] / "README.md").read_text().split("```json\n")[1].split("\n```")[0]
    train.write_text(train.read_text().replace('"terms": {', f'"terms": {{{block},', 1))
    options = ["--workflow", "train", "--variant", names["method"], "--network_name", names["network"]]
    request.addfinalizer(forget_outside)
    forget_outside()
    assert main(["check", str(bundle), *options]) == 0
    assert "no problems in train and the variant equal_share" in capsys.readouterr().out


@pytest.mark.parametrize("kind", KINDS)
def test_new_package_is_complete_and_never_overwrites(kind, tmp_path, capsys):
    folder = tmp_path / "a deep" / "mine"
    assert main(["new", kind, "mine", "--output-dir", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}\n  install:  pip install -e '{folder}'\n  test:")
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    expected = {"pyproject.toml", "README.md", "samfed_mine/__init__.py", "samfed_mine/mine.py", "tests/test_mine.py"}
    assert files == expected | ({"samfed_mine/mine.json"} if kind == "method" else set())
    assert [path.name for path in folder.parent.iterdir()] == ["mine"]
    for path in folder.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    with pytest.raises(Refused, match=r"--output-dir: expected a new name, found .*, which exists"):
        new_package(kind, "mine", folder)


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("method", "Equal-Share", "NAME: expected at most .*found 'Equal-Share'; type samfed new method equal_share"),
        ("term", "myTerm", "type samfed new term my_term"),
        ("term", "class", "for instance samfed new term my_term"),
        ("term", "7", "for instance samfed new term my_term"),
        ("term", "../up", "type samfed new term up"),
        ("network", "a" * 41, "expected at most 40"),
        ("method", "no_sam", "found 'no_sam', a method that is installed; for instance samfed new method my_no_sam"),
        ("network", "basic_unet", "found 'basic_unet', a network that is installed"),
        ("term", "monai", "found samfed_monai, a package that is installed"),
    ],
)
def test_invalid_package_name_is_refused_with_suggestion(kind, name, message, tmp_path):
    with pytest.raises(Refused, match=message):
        new_package(kind, name, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []
