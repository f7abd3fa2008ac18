"""The built wheel is complete: installed and run elsewhere, it has its bundles and templates."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
SOURCES = [
    "samfed_monai",
    "bundles",
    "study",
    *("setup.py", "setup.cfg", "pyproject.toml", "MANIFEST.in", "LICENSE", "README.md"),
]
WEIGHTS = {".pt", ".pth", ".safetensors"}
SHIPPED = REPOSITORY / "bundles" / "samfed_skin" / "models" / "model.pt"

pytestmark = pytest.mark.slow


def run(*command: object, **kwargs) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, **kwargs)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of a copy of the sources that also contains a weights file, as after `samfed weights`."""
    copy = tmp_path_factory.mktemp("sources")
    for name in SOURCES:
        source = REPOSITORY / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", *(f"*{suffix}" for suffix in WEIGHTS))
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)
    for bundle in ("samfed_skin", "samfed_polyp"):
        models = copy / "bundles" / bundle / "models"
        models.mkdir(exist_ok=True)
        shutil.copy(REPOSITORY / "bundles" / bundle / "models" / "model.pt", models)
    (models / "stray.pt").write_bytes(b"other weights never travel in a wheel")
    done = run(sys.executable, "-m", "build", "--no-isolation", "--wheel", "--outdir", copy / "dist", copy)
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (copy / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with only the installed wheel; its dependencies come from the environment of the tests."""
    folder = tmp_path_factory.mktemp("site")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    done = run(*pip, "install", "--no-deps", "--no-index", "--target", folder, wheel)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture
def samfed(site: Path, tmp_path: Path):
    """Runs the wheel's own `samfed` in an empty folder."""
    folder = tmp_path / "empty folder"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SAMFED_")}
    environment |= {"PYTHONPATH": str(site), "SAMFED_WEIGHTS": str(tmp_path / "no weights")}
    folder.mkdir()

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        return run(site / "bin" / "samfed", *arguments, cwd=folder, env=environment)

    call.folder = folder
    call.environment = environment
    return call


def tracked(folder: Path) -> set[str]:
    """Relative paths of files in a folder that git tracks or would track."""
    done = run("git", "ls-files", "--cached", "--others", "--exclude-standard", ".", cwd=folder)
    if done.returncode:
        pytest.skip("not a git checkout: the repository's files and what runs left there look alike")
    return {name for name in done.stdout.splitlines() if (folder / name).is_file()}


def test_wheel_has_bundle_files_and_only_shipped_weights(wheel: Path):
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in tracked(REPOSITORY / "bundles"):
        assert f"samfed_monai/bundles/{name}" in names
    shipped = {f"samfed_monai/bundles/samfed_{name}/models/model.pt" for name in ("skin", "polyp")}
    assert {name for name in names if Path(name).suffix in WEIGHTS} == shipped


def test_wheel_has_exactly_package_files(wheel: Path):
    names = {name for name in zipfile.ZipFile(wheel).namelist() if not name.startswith("samfed_monai/bundles/")}
    expected = {f"samfed_monai/{name}" for name in tracked(REPOSITORY / "samfed_monai")}
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_installed_wheel_is_imported(samfed, site: Path):
    code = "import samfed_monai as s, samfed_monai.config as c; print(s.__file__, c.packaged_bundle('samfed_skin'))"
    done = run(sys.executable, "-c", code, cwd=samfed.folder, env=samfed.environment)
    assert done.stdout.split() == [
        str(site / "samfed_monai" / "__init__.py"),
        str(site / "samfed_monai" / "bundles" / "samfed_skin"),
    ], done.stderr


def test_init_copies_bundle_accepted_by_check(samfed):
    """The check resolves every component in the JSON, in the wheel."""
    done = samfed("init", "samfed_skin", "my bundle")
    assert done.returncode == 0, done.stderr
    original, copied = REPOSITORY / "bundles" / "samfed_skin", samfed.folder / "my bundle"
    for name in tracked(original):
        assert (copied / name).read_bytes() == (original / name).read_bytes()
    done = samfed("check", copied)
    assert done.returncode == 0, done.stdout + done.stderr


def test_shipped_model_reaches_dice_of_model_card(samfed, samfed_data: Path):
    """Expects the card's Dice of a site, minus 0.01, on its test images, without downloads or training."""
    card = (SHIPPED.parent.parent / "docs" / "README.md").read_text()
    promised = re.search(r"\| domain2 \| (\d+) \| \*{0,2}(0\.\d{3})", card)
    assert promised, "the card has a row for domain2: test images, Dice"
    listed = json.loads((samfed_data / "data" / "splits" / "isic_hssf.json").read_text())["domain2"]["test_list"]
    skin = samfed_data / "data" / "skin" / "isic2017"
    images = [skin / "images" / name for name in listed if (skin / "images" / name).is_file()]
    assert len(images) == int(promised[1])
    done = samfed("infer", "samfed_skin", *images, "--output-dir", "masks")
    assert done.returncode == 0, done.stdout + done.stderr
    scores = []
    for image in images:
        mask, label = (
            np.asarray(Image.open(path)) > 127
            for path in (samfed.folder / "masks" / f"{image.stem}.png", skin / "masks" / f"{image.stem}.png")
        )
        scores.append(2 * (mask & label).sum() / (mask.sum() + label.sum()))
    assert np.mean(scores) >= float(promised[2]) - 0.01
