"""``samfed app``: who may ask it, what becomes of what is dropped, and how it is used with a browser and its keys."""

from __future__ import annotations

import csv
import errno
import html
import http.client
import io
import json
import os
import re
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import nibabel
import numpy as np
import pytest
from PIL import Image

from samfed_monai.cli.main import main
from samfed_monai.inference import Predictor
from samfed_monai.inference import app as room
from samfed_monai.inference.app import App
from tests.browser import WIDTHS, is_too_wide, opened

AFFINE = np.diag([0.5, 0.5, 2.0, 1.0])


def png(grey: int = 180) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), grey, np.uint8)).save(stream, "PNG")
    return stream.getvalue()


@pytest.fixture(scope="module")
def app() -> Iterator[App]:
    made = App(Predictor("samfed_skin"), port=0, reorient=True)
    running = threading.Thread(target=made.run)
    running.start()
    yield made
    made.queued.put(None)
    running.join(120)
    assert not running.is_alive()
    assert not made.folder.exists(), "what was dropped is deleted"


def send(app: App, method: str, path: str, body: bytes = b"", **headers: str) -> tuple[int, bytes, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", app.server.server_port, timeout=120)
    connection.request(method, path, body, headers)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    return answer.status, content, dict(answer.getheaders())


def drop(app: App, key: str, files: dict[str, bytes]) -> dict[str, str]:
    """What the page is answered in the end."""
    for name, content in files.items():
        assert send(app, "PUT", f"/{app.token}/{key}/{quote(name, safe='')}", content)[0] == 200
    assert send(app, "POST", f"/{app.token}/{key}")[0] == 202
    while True:
        found = json.loads(send(app, "GET", f"/{app.token}/{key}")[1])
        if found["state"] in ("done", "refused"):
            return found
        time.sleep(0.05)


def offered(app: App, key: str, found: dict[str, str]) -> dict[str, bytes]:
    """Files to download by what they are called."""
    links = re.findall(r'<a href="([^"]+)" download>([^<]+)</a>', found["html"])
    return {label: send(app, "GET", f"/{app.token}/{key}/{quote(html.unescape(name))}")[1] for name, label in links}


def test_photo_returns_mask_outline_table_and_list(app: App) -> None:
    found = drop(app, "a" * 16, {"<i>mole é.png": png()})
    assert found["state"] == "done"
    assert "<i>" not in found["html"]
    assert "&lt;i&gt;mole é" in found["html"]
    files = offered(app, "a" * 16, found)
    assert list(files) == ["Masks (PNG)", "Outlines (PNG)", "Table (CSV)", "This list (HTML)"]
    mask = np.array(Image.open(io.BytesIO(files["Masks (PNG)"])))
    assert (mask.shape, set(np.unique(mask)) <= {0, 255}) == ((48, 64), True)
    (row,) = csv.DictReader(io.StringIO(files["Table (CSV)"].decode()))
    assert int(row["foreground_pixels"]) == (mask > 0).sum()
    assert f"{float(row['expected_dice']):.2f}</b> expected Dice" in found["html"]
    _, _, headers = send(app, "GET", f"/{app.token}/{'a' * 16}/0-" + quote("<i>mole é.png"))
    assert headers["Content-Disposition"] == "attachment; filename*=UTF-8''%3Ci%3Emole%20%C3%A9.png"


def test_volume_returns_nifti_and_pictures_return_zip(app: App, tmp_path: Path) -> None:
    volume = np.random.default_rng(0).integers(0, 256, (32, 24, 2), dtype=np.uint8)
    nibabel.save(nibabel.Nifti1Image(volume, AFFINE), tmp_path / "scan.nii.gz")
    given = {"scan.nii.gz": (tmp_path / "scan.nii.gz").read_bytes(), "a.png": png(), "b.png": png(90)}
    files = offered(app, "b" * 16, drop(app, "b" * 16, given))
    (tmp_path / "mask.nii.gz").write_bytes(files["Masks (NIfTI)"])
    mask = nibabel.load(tmp_path / "mask.nii.gz")
    assert (mask.shape, np.array_equal(mask.affine, AFFINE)) == ((32, 24, 2), True)
    with zipfile.ZipFile(io.BytesIO(files["Masks (PNG), 2 files"])) as archive:
        assert archive.namelist() == ["masks/a.png", "masks/b.png"]


def test_dicom_returns_segmentation_or_reason(app: App, tmp_path: Path) -> None:
    pydicom = pytest.importorskip("pydicom", reason="pydicom is not installed: pip install samfed-monai[dicom]")
    pytest.importorskip("highdicom", reason="highdicom is not installed: pip install samfed-monai[dicom]")
    source = pydicom.dcmread(pydicom.data.get_testdata_file("CT_small.dcm"))
    source.save_as(tmp_path / "ct.dcm")
    files = offered(app, "c" * 16, drop(app, "c" * 16, {"ct.dcm": (tmp_path / "ct.dcm").read_bytes()}))
    made = pydicom.dcmread(io.BytesIO(files["DICOM segmentation"]))
    assert (made.Modality, made.StudyInstanceUID) == ("SEG", source.StudyInstanceUID)
    del source.PatientName
    source.save_as(tmp_path / "ct.dcm")
    found = drop(app, "d" * 16, {"ct.dcm": (tmp_path / "ct.dcm").read_bytes()})
    assert "DICOM segmentation" not in offered(app, "d" * 16, found)
    assert "no DICOM segmentation: expected an object that a segmentation can refer to" in found["html"]
    assert "Masks (PNG)" in offered(app, "d" * 16, found)


def test_damaged_files_are_refused_or_skipped(app: App) -> None:
    found = drop(app, "1" * 16, {"broken.png": png()[:60]})
    assert found["state"] == "refused"
    expected = "refused: 1 problem\n  - broken.png: expected an intact image, found a damaged file"
    assert found["html"].startswith(expected)
    assert str(app.folder) not in found["html"]
    found = drop(app, "2" * 16, {"broken.png": png()[:60], "a.png": png()})
    assert found["state"] == "done"
    assert "left out: broken.png: expected an intact image" in found["html"]
    found = drop(app, "3" * 16, {"notes.txt": b"no image"})
    assert "notes.txt: expected a folder of images" in found["html"]
    found = drop(app, "6" * 16, {"notes.txt": b"no image", "a.png": png()})
    assert "left out: not read: 1 text (notes.txt)" in found["html"]
    assert "1 mask, " in found["html"]


@pytest.mark.parametrize(
    ("method", "path", "host", "status"),
    [
        ("GET", "/", "", 403),
        ("GET", "/wrong/", "", 403),
        ("GET", "TOKEN", "", 403),
        ("GET", "TOKEN/", "images.example:80", 403),
        ("PUT", f"TOKEN/{'e' * 16}/a.png", "images.example", 403),
        ("GET", "TOKEN/", "", 200),
        ("GET", f"TOKEN/{'9' * 16}", "", 404),
        ("GET", "TOKEN/../../etc/passwd", "", 404),
        ("POST", f"TOKEN/{'9' * 16}", "", 404),
        ("PUT", "TOKEN/short/a.png", "", 404),
        ("PUT", f"TOKEN/{'e' * 16}/%2e%2e%2fa.png", "", 400),
        ("PUT", f"TOKEN/{'e' * 16}/..", "", 400),
        ("PUT", f"TOKEN/{'e' * 16}/.hidden", "", 400),
        ("PUT", f"TOKEN/{'e' * 16}/a%00.png", "", 400),
        ("PUT", f"TOKEN/{'e' * 16}/at%203.04%E2%80%AFPM%C2%A0.png", "", 200),
        ("PUT", f"TOKEN/{'e' * 16}/{'a' * 200}", "", 200),
        ("PUT", f"TOKEN/{'e' * 16}/{'a' * 201}", "", 400),
    ],
)
def test_only_local_authorised_requests_are_answered(app: App, method: str, path: str, host: str, status: int) -> None:
    hosts = {"Host": host} if host else {}
    answer = send(app, method, path.replace("TOKEN", f"/{app.token}"), b"x" if method == "PUT" else b"", **hosts)
    assert answer[0] == status
    assert "default-src 'none'" in answer[2]["Content-Security-Policy"]


def test_app_listens_locally_without_external_links(app: App) -> None:
    assert app.server.server_address[0] == "127.0.0.1"
    assert re.findall(r"https?:|//[a-z]|@import|@font-face", send(app, "GET", f"/{app.token}/")[1].decode()) == []


def test_uploaded_file_is_not_replaced(app: App) -> None:
    address = f"/{app.token}/{'f' * 16}/a.png"
    assert [send(app, "PUT", address, content)[0] for content in (b"", png(), png(90))] == [400, 200, 400]
    assert send(app, "PUT", address, **{"Content-Length": "1e9"})[:2] == (
        400,
        b"a.png: 0 bytes, expected 1 to 4294967296",
    )


def test_full_disk_is_reported_and_upload_deleted(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), f"{app.folder}/{'8' * 16}/masks/a.png")

    monkeypatch.setattr(room, "open", full, raising=False)
    answer = send(app, "PUT", f"/{app.token}/{'7' * 16}/a.png", bytes(2**22))[:2]
    assert answer == (400, b"a.png: not stored: No space left on device")
    monkeypatch.undo()
    monkeypatch.setattr(room, "segment", full)
    assert drop(app, "8" * 16, {"a.png": png()})["html"].startswith("stopped: the disk is full (masks/a.png)")
    assert not list(app.folder.glob("[78]*"))


def test_closed_browser_ends_upload_silently(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    folder, host = app.folder / ("a1" * 8), ("127.0.0.1", app.server.server_port)
    with socket.create_connection(host) as browser:
        headers = f"Host: {host[0]}:{host[1]}\r\nContent-Length: 9\r\n\r\n"
        browser.sendall(f"PUT /{app.token}/{folder.name}/a.png HTTP/1.0\r\n{headers}half".encode())
        while not (folder / "images" / "a.png").exists():
            time.sleep(0.05)
        browser.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # closing resets it
    while any("process_request" in thread.name for thread in threading.enumerate()):
        time.sleep(0.05)
    assert not folder.exists()
    assert "Traceback" not in capsys.readouterr().err


def test_old_uploads_are_deleted(app: App, monkeypatch: pytest.MonkeyPatch) -> None:
    drop(app, "4" * 16, {"a.png": png()})
    folder = app.drops["4" * 16].folder
    monkeypatch.setattr(room, "MAX_DROPS", 1)
    drop(app, "5" * 16, {"a.png": png()})
    assert send(app, "GET", f"/{app.token}/{'4' * 16}")[0] == 404
    assert not folder.exists()


def test_used_and_invalid_ports_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        for given in (taken.getsockname()[1], 70000):
            assert main(["app", "--port", str(given)]) == 2
            error = capsys.readouterr().err
            assert f"--port: expected a free port on this machine, found {given} (" in error
            assert "); stop the program that uses it, or use --port 0" in error


@pytest.mark.parametrize("width", WIDTHS)
def test_app_works_in_browser_with_keyboard_only(app: App, tmp_path: Path, width: int) -> None:
    for name, content in {"a.png": png(), "b.png": png(90), "broken.png": png()[:60]}.items():
        (tmp_path / name).write_bytes(content)
    with opened(app.address, width) as browser:
        from selenium.webdriver.common.keys import Keys
        from selenium.webdriver.support.ui import WebDriverWait

        def tab() -> object:
            browser.switch_to.active_element.send_keys(Keys.TAB)
            return browser.switch_to.active_element

        browser.find_element("tag name", "body").send_keys(Keys.TAB)
        files = browser.switch_to.active_element
        assert files.get_attribute("id") == "files"
        assert browser.find_element("css selector", "label[for=files]").is_displayed()
        files.send_keys(str(tmp_path / "broken.png"))
        state = browser.find_element("id", "state")
        WebDriverWait(browser, 60).until(lambda _: "broken.png: expected an intact image" in state.text)
        assert not is_too_wide(browser)
        files.send_keys(f"{tmp_path / 'a.png'}\n{tmp_path / 'b.png'}")
        WebDriverWait(browser, 60).until(lambda _: browser.find_elements("id", "found"))
        assert browser.switch_to.active_element.get_attribute("id") == "found"
        assert browser.find_element("id", "found").text.startswith("2 masks, ")
        assert state.text == ""
        assert len(browser.find_elements("css selector", "#looks article")) == 2
        assert not is_too_wide(browser)
        assert tab().text == "Masks (PNG), 2 files"
        seen = [tab() for _ in range(9)]
        named = [each.get_attribute("name") for each in seen]
        assert [name for name in named if name][-3:] == ["name", "doubtful", "outlines"]
        seen[named.index("outlines")].send_keys(Keys.SPACE)
        assert not browser.find_element("css selector", ".outline").is_displayed()


def test_dropped_folder_is_read_recursively(app: App, tmp_path: Path) -> None:
    (tmp_path / "series" / "more").mkdir(parents=True)
    for name in ("a.png", "more/a.png", ".hidden.png"):
        (tmp_path / "series" / name).write_bytes(png())
    with opened(app.address, WIDTHS[0]) as browser:
        from selenium.webdriver.support.ui import WebDriverWait

        data = {"items": [], "files": [str(tmp_path / "series")], "dragOperationsMask": 1}
        for kind in ("dragEnter", "dragOver", "drop", "dragEnter"):
            browser.execute_cdp_cmd("Input.dispatchDragEvent", {"type": kind, "x": 300, "y": 300, "data": data})
        assert browser.find_element("id", "zone").get_attribute("class") == "zone", "it takes no drop meanwhile"
        WebDriverWait(browser, 60).until(lambda _: browser.find_elements("id", "found"))
        cards = browser.find_elements("css selector", "#looks article")
        assert sorted(card.get_attribute("data-name") for card in cards) == ["series-a", "series-more-a"]
