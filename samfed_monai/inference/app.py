"""``samfed app``: drop images into a browser on this machine and see their masks.

One process with Python's own web server. It listens on 127.0.0.1 and answers only requests for that host whose path
starts with a token drawn at start, so that neither other users of the machine nor pages of other sites (DNS rebinding)
can reach it. Its pages load nothing from elsewhere (``Content-Security-Policy``). Dropped files are kept in a temporary
folder that is deleted when the process ends.
"""

from __future__ import annotations

import io
import json
import logging
import queue
import re
import secrets
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging.handlers import MemoryHandler
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from samfed_monai.core.errors import Refused, SamFedError, machine_failure, name_problems, refused
from samfed_monai.data.image_folder import DICOM, IMAGES, NIFTI, is_ignored, report_not_read, walk
from samfed_monai.inference.dicom_seg import require_highdicom
from samfed_monai.inference.forms import MaskForms, MaskPage
from samfed_monai.inference.predictor import Predictor
from samfed_monai.inference.segment import segment
from samfed_monai.reports.style import environment

logger = logging.getLogger(__name__)

ADDRESS, PORT = "127.0.0.1", 7860
MAX_FILE_SIZE = 4 * 2**30
"""Largest size of a file, in bytes."""
MAX_DROPS = 8
"""Number of drops whose images and masks are kept; older ones are deleted."""
FORMS = (
    ("masks/**/*.png", "Masks (PNG)"),
    ("masks/**/*.nii.gz", "Masks (NIfTI)"),
    ("outlines/**/*.png", "Outlines (PNG)"),
    ("outlines/**/*.mp4", "Outlines (video)"),
    ("segmentations/**/*.dcm", "DICOM segmentation"),
    ("areas.csv", "Table (CSV)"),
    ("looks.html", "This list (HTML)"),
)
"""Downloads of a drop: pattern of files in its folder, and label."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


class Drop:
    """Files that were dropped together, and their results.

    Args:
        folder: folder for the files and all output.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.images = folder, folder / "images"
        self.images.mkdir(parents=True)
        self.state = "waiting"
        self.html = ""
        #: Files to download, by their name in the URL.
        self.downloads: dict[str, Path] = {}

    def segment(self, predictor: Predictor, *, reorient: bool = False) -> None:
        """Segments the files; errors become the text that the browser shows."""
        self.state = "working"
        try:
            with _collected_warnings() as notes:
                page = self._segment_files(predictor, reorient)
            plain = [self._without_folders(note.getMessage()) for note in notes]
            shown = {"page": page, "offered": list(self._add_downloads()), "notes": plain}
            self.html, self.state = environment().get_template("app_done.html.j2").render(shown), "done"
        except Exception as error:  # the server goes on with the next drop
            known = error if isinstance(error, SamFedError) else machine_failure(error)
            if known is None:
                logger.exception("internal error")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.html = self._without_folders(str(known or "Internal error: see the terminal of `samfed app`."))
            self.state = "refused"

    def _segment_files(self, predictor: Predictor, reorient: bool) -> MaskPage:
        found = walk(self.images)
        report_not_read("left out", found, IMAGES)
        read = [path for kind in IMAGES for path in found.get(kind, ())]
        files = [str(path) for path in read or self.images.iterdir()]
        places = {"overlays": "outlines", "areas": "areas.csv", "page": "looks.html"}
        if DICOM in found and not require_highdicom():
            places["dicom_seg"] = "segmentations"
        while True:
            paths = {form: str(self.folder / place) for form, place in places.items()}
            forms = MaskForms(predictor.model.bundle, predictor.classes, **paths)
            try:
                options = {"reorient": reorient and NIFTI in found, "skip_unreadable": len(files) > 1}
                segment(predictor, files, str(self.folder / "masks"), forms, **options)
                return forms.page
            except Refused as error:
                of_segmentations = all(problem.where.startswith("--dicom-seg") for problem in error.problems)
                if not (of_segmentations and places.pop("dicom_seg", "")):
                    raise
                for problem in error.problems:
                    logger.warning("no DICOM segmentation: expected %s, found %s", problem.expected, problem.found)

    def _add_downloads(self) -> Iterator[tuple[str, str]]:
        """Offers files for download, several of a form as a ZIP; yields the name in the URL and the label of each."""
        for pattern, label in FORMS:
            files = sorted(self.folder.glob(pattern))
            if len(files) > 1:
                packed = self.folder / f"{re.sub('[^a-z]+', '-', label.lower()).strip('-')}.zip"
                with zipfile.ZipFile(packed, "w") as archive:
                    for file in files:
                        archive.write(file, file.relative_to(self.folder))
                files, label = [packed], f"{label}, {len(files)} files"
            for file in files:
                key = f"{len(self.downloads)}-{file.name}"
                self.downloads[key] = file
                yield key, label

    def _without_folders(self, text: str) -> str:
        """Removes the names of temporary folders from a message."""
        return text.replace(f"{self.images}/", "").replace(f"{self.folder}/", "")


@contextmanager
def _collected_warnings() -> Iterator[list[logging.LogRecord]]:
    """Collects the warnings of this package inside the block."""
    handler, package = MemoryHandler(sys.maxsize, sys.maxsize), logging.getLogger("samfed_monai")
    handler.setLevel(logging.WARNING)
    package.addHandler(handler)
    try:
        yield handler.buffer
    finally:
        package.removeHandler(handler)


class App:
    """The server and its drops, which are processed one after the other.

    Args:
        predictor: the predictor.
        port: port to listen on; 0 takes a free one.
        reorient: whether to reorient NIfTI volumes to RAS+ before cutting them into slices.

    Raises:
        Refused: the port is in use or not allowed.
    """

    def __init__(self, predictor: Predictor, *, port: int = PORT, reorient: bool = False) -> None:
        self.predictor, self.reorient = predictor, reorient
        try:
            self.server = _Server((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            hint = "stop the program that uses it, or use --port 0, which takes a free port"
            raise refused("--port", f"{port} ({error})", "a free port on this machine", hint) from None
        self.server.app = self
        self.token = secrets.token_urlsafe(16)
        self.address = f"http://{ADDRESS}:{self.server.server_port}/{self.token}/"
        self.drops: dict[str, Drop] = {}
        self._lock = threading.Lock()
        #: Drops to segment; ``None`` lets :meth:`run` return.
        self.queued: queue.Queue[Drop | None] = queue.Queue()

    def run(self) -> None:
        """Serves until stopped or interrupted; masks are computed in this thread, one drop after the other."""
        with tempfile.TemporaryDirectory(prefix="samfed-app-") as folder:
            self.folder = Path(folder)
            threading.Thread(target=self.server.serve_forever, daemon=True).start()
            try:
                self.predictor([np.full((64, 64, 3), 128, np.uint8)])  # fails now if the model does not work
                logger.info("open %s in a browser on this machine; press Ctrl+C to stop", self.address)
                for drop in iter(self.queued.get, None):
                    drop.segment(self.predictor, reorient=self.reorient)
            except KeyboardInterrupt:  # the usual way to end it
                logger.info("stopped; all dropped files are deleted")
            finally:
                self.server.shutdown()
                self.server.server_close()

    def drop(self, key: str) -> Drop:
        """Returns the drop with this key; creates it if needed."""
        with self._lock:
            if key not in self.drops:
                finished = [old for old, drop in self.drops.items() if drop.state in ("done", "refused")]
                for old in finished[: max(0, len(self.drops) + 1 - MAX_DROPS)]:
                    shutil.rmtree(self.drops.pop(old).folder, ignore_errors=True)
                self.drops[key] = Drop(self.folder / key)
            return self.drops[key]

    def discard(self, key: str) -> None:
        """Deletes the files of a drop that is not segmented yet."""
        with self._lock:
            if key in self.drops and self.drops[key].state == "waiting":
                shutil.rmtree(self.drops.pop(key).folder, ignore_errors=True)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False
    app: App

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exc_info()[1], ConnectionError):  # a browser may go away at any time
            super().handle_error(request, client_address)


class _Refusal(Exception):
    """A refused request: the HTTP status and a text."""


class _Handler(BaseHTTPRequestHandler):
    """``GET /TOKEN/`` is the page. The files of a drop are sent by ``PUT`` to ``/TOKEN/KEY/NAME``; ``POST`` to
    ``/TOKEN/KEY`` starts it, ``GET`` there returns its state; its results are below ``/TOKEN/KEY/``."""

    server: _Server
    server_version, sys_version = "samfed", ""

    def do_GET(self) -> None:
        app = self.server.app
        try:
            match [self.command, *self._parts()]:
                case ["GET", ""]:
                    page = environment().get_template("app.html.j2").render(model=app.predictor.model)
                    self._reply(page, "text/html; charset=utf-8")
                case ["GET", key] if drop := app.drops.get(key):
                    self._reply(json.dumps({"state": drop.state, "html": drop.html}))
                case ["GET", key, name] if (drop := app.drops.get(key)) and name in drop.downloads:
                    self._reply(drop.downloads[name], "application/octet-stream", name=name.partition("-")[2])
                case ["PUT", key, name] if re.fullmatch("[0-9a-f]{16}", key):
                    self._receive(key, name)
                    self._reply("{}")
                case ["POST", key] if (drop := app.drops.get(key)) and drop.state == "waiting":
                    drop.state = "queued"
                    app.queued.put(drop)
                    self._reply("{}", status=HTTPStatus.ACCEPTED)
                case _:
                    raise _Refusal(HTTPStatus.NOT_FOUND, "no such page")
        except _Refusal as refusal:
            status, text = refusal.args
            self._reply(text, "text/plain; charset=utf-8", status)

    do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """Logs nothing: lines of requests would contain the names of images."""

    def _parts(self) -> list[str]:
        """Returns the decoded parts of the path after the token; refuses a wrong token or host."""
        port = self.server.server_port
        first, *rest = [unquote(part) for part in self.path.partition("?")[0].removeprefix("/").split("/")]
        known = secrets.compare_digest(first.encode(), self.server.app.token.encode())
        if not (known and rest and self.headers.get("Host") in (f"{ADDRESS}:{port}", f"localhost:{port}")):
            raise _Refusal(HTTPStatus.FORBIDDEN, "open the address that `samfed app` printed")
        return rest

    def _receive(self, key: str, name: str) -> None:
        drop, length = self.server.app.drop(key), self.headers.get("Content-Length", "")
        size = int(length) if length.isdecimal() else 0
        body, path, refusal = self._body(size), drop.images / name, ""
        if name != path.name or name_problems([name]) or is_ignored(name) or len(name.encode()) > 200:
            refusal = "not a valid image name"  # output files have longer ones
        elif not 0 < size <= MAX_FILE_SIZE:
            refusal = f"{size} bytes, expected 1 to {MAX_FILE_SIZE}"
        elif path.exists() or drop.state != "waiting":
            refusal = "a file of that name was sent already, or segmentation has started"
        else:
            try:
                with open(path, "wb") as stream:
                    stream.writelines(body)
            except OSError as error:
                refusal = f"not stored: {error.strerror or error}"
        for _ in body:  # browsers read no reply before they have sent all
            pass
        if refusal:
            self.server.app.discard(key)
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"{name}: {refusal}")

    def _body(self, remaining: int) -> Iterator[bytes]:
        while remaining > 0 and (block := self.rfile.read(min(remaining, 2**20))):
            remaining -= len(block)
            yield block
        if remaining > 0:
            raise ConnectionError("the upload was incomplete")

    def _reply(self, content: str | Path, kind: str = "application/json", status: int = 200, *, name: str = "") -> None:
        size = content.stat().st_size if isinstance(content, Path) else len(content.encode())
        headers = {**_HEADERS, "Content-Type": kind, "Content-Length": str(size)}
        if name:
            headers["Content-Disposition"] = f"attachment; filename*=UTF-8''{quote(name, safe='')}"
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, value)
        self.end_headers()
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content.encode()) as stream:
            shutil.copyfileobj(stream, self.wfile)
