from __future__ import annotations

import pytest

from samfed_monai.errors import Refused, Stopped
from samfed_monai.io import sha256_bytes
from samfed_monai.networks.sam import weights as room
from samfed_monai.networks.sam.weights import Weights, find_checkpoint, install_weights, weights_folder

CONTENT = b"not really a network"


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "weights"))
    official = Weights("mobile_sam.pt", sha256_bytes(CONTENT), ("mobile_sam", "vit_t"))
    by_prefix = Weights("sam_vit_b_01ec64.pth", sha256_bytes(CONTENT)[:6], ("sam_vit_b", "vit_b"))
    monkeypatch.setattr(room, "CHECKPOINTS", {"vit_t": official, "vit_b": by_prefix})
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
    with pytest.raises(Refused, match=r"weights: expected one of \['mobile_sam', 'sam_vit_b'\], found 'sam2'"):
        install_weights("sam2", tmp_path)
    with pytest.raises(Refused, match="the registry carries only mobile_sam"):
        install_weights("vit_b", "registry")


def test_a_download_that_fails_stops(tmp_path):
    with pytest.raises(Stopped, match=r"(?s)downloading file:.*check the connection and repeat the command"):
        install_weights("mobile_sam", (tmp_path / "gone.pt").as_uri())
