"""``samfed app``: images are dropped into the browser of this machine, and masks are shown there.

One process, Python's own web server: it listens to 127.0.0.1, answers addresses that begin with a token drawn at its
start, and only requests for that host, so that neither other users of the machine nor pages of other sites (DNS
rebinding) reach it. Its pages load nothing from anywhere (``Content-Security-Policy``). What was dropped is in a
temporary folder that ends with the process.
"""

from __future__ import annotations

import io
import json
import logging
import os
import queue
import re
import secrets
import shutil
import sys
import tempfile
import threading
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from logging.handlers import MemoryHandler
from pathlib import Path
from types import MappingProxyType
from typing import Any
from urllib.parse import quote, unquote

import numpy as np

from samfed_monai.core.errors import Refused, SamFedError, name_problems, refused
from samfed_monai.data.image_folder import DICOM, IMAGES, NIFTI, is_left_out, report_not_read, walk
from samfed_monai.inference.dicom_seg import require_highdicom
from samfed_monai.inference.forms import LooksPage, MaskForms
from samfed_monai.inference.predictor import Predictor
from samfed_monai.inference.segment import segment
from samfed_monai.reports.style import environment

logger = logging.getLogger(__name__)

ADDRESS, PORT = "127.0.0.1", 7860
LARGEST = 4 * 2**30
"""Bytes of one file."""
KEPT = 8
"""Drops whose images and masks are kept; older ones are deleted."""
FORMS = (
    ("masks/**/*.png", "Masks (PNG)"),
    ("masks/**/*.nii.gz", "Masks (NIfTI)"),
    ("outlines/**/*.png", "Outlines (PNG)"),
    ("outlines/**/*.mp4", "Outlines (video)"),
    ("segmentations/**/*.dcm", "DICOM segmentation"),
    ("areas.csv", "Table (CSV)"),
    ("looks.html", "This list (HTML)"),
)
"""What is offered of a drop: files of its folder, and what they are called."""
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_DROP = re.compile(r"[0-9a-f]{16}")
_LONGEST_NAME = 200  # bytes; what is written of it has a longer one


class Drop:
    """Files that were dropped together, and what became of them.

    Args:
        folder: for the files, and for all that is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.given = folder, folder / "images"
        self.given.mkdir(parents=True)
        self.state = "waiting"
        self.html = ""
        #: Files to download, by the name in their address.
        self.downloads: dict[str, Path] = {}

    def segment(self, predictor: Predictor, *, reorient: bool = False) -> None:
        """Segments the files; whatever keeps it from that becomes the text that the browser shows."""
        self.state = "working"
        try:
            with _warnings() as notes:
                page = self._segmented(predictor, reorient)
            offered = [self._offered(*form) for form in FORMS]
            shown = {
                "offered": list(filter(None, offered)),
                "notes": [self._plain(note.getMessage()) for note in notes],
                "page": page,
            }
            self.html, self.state = environment().get_template("app_done.html.j2").render(shown), "done"
        except SamFedError as error:
            self.html, self.state = self._plain(str(error)), "refused"
        except Exception:  # the next drop may be sound
            logger.exception("a mistake of this program")
            self.html, self.state = "This program made a mistake; its terminal shows which.", "refused"

    def _segmented(self, predictor: Predictor, reorient: bool) -> LooksPage:
        found = walk(self.given)
        report_not_read("left out", found, IMAGES)
        read = [path for kind in IMAGES for path in found.get(kind, ())]
        paths = [str(path) for path in read or self.given.iterdir()]
        places = {"overlays": "outlines", "areas": "areas.csv", "page": "looks.html"}
        if DICOM in found and not require_highdicom():
            places["dicom_seg"] = "segmentations"
        while True:
            forms = {form: str(self.folder / place) for form, place in places.items()}
            also = MaskForms(predictor.model.bundle, predictor.classes, **forms)
            try:
                options = {"reorient": reorient and NIFTI in found, "skip_unreadable": len(paths) > 1}
                segment(predictor, paths, str(self.folder / "masks"), also, **options)
                return also.page
            except Refused as error:
                of_segmentations = all(problem.where.startswith("--dicom-seg") for problem in error.problems)
                if not (of_segmentations and places.pop("dicom_seg", "")):
                    raise
                for problem in error.problems:
                    logger.warning("no DICOM segmentation: expected %s, found %s", problem.expected, problem.found)

    def _offered(self, pattern: str, label: str) -> tuple[str, str] | None:
        """Makes files downloadable: the only one, or a ZIP of several; its name in the address and what it is."""
        files = sorted(self.folder.glob(pattern))
        if not files:
            return None
        offered = files[0]
        if len(files) > 1:
            offered = self.folder / f"{re.sub('[^a-z]+', '-', label.lower()).strip('-')}.zip"
            with zipfile.ZipFile(offered, "w") as archive:
                for file in files:
                    archive.write(file, file.relative_to(self.folder))
            label = f"{label}, {len(files)} files"
        key = f"{len(self.downloads)}-{offered.name}"
        self.downloads[key] = offered
        return key, label

    def _plain(self, text: str) -> str:
        """A message without the names of temporary folders."""
        return text.replace(f"{self.given}/", "").replace(f"{self.folder}/", "")


@contextmanager
def _warnings() -> Iterator[list[logging.LogRecord]]:
    """What this package warns of inside the block."""
    kept, package = MemoryHandler(sys.maxsize, sys.maxsize), logging.getLogger("samfed_monai")
    kept.setLevel(logging.WARNING)
    package.addHandler(kept)
    try:
        yield kept.buffer
    finally:
        package.removeHandler(kept)


class App:
    """The server and the drops that it works on, one after the other.

    Args:
        predictor: what segments.
        port: to listen to; 0 takes a free one.
        reorient: whether NIfTI volumes are turned to RAS+ before they are cut into slices.

    Raises:
        Refused: the port is in use or not allowed.
    """

    def __init__(self, predictor: Predictor, *, port: int = PORT, reorient: bool = False) -> None:
        self.predictor, self.reorient = predictor, reorient
        try:
            self.server = _Server((ADDRESS, port), _Handler)
        except (OSError, OverflowError) as error:
            hint = "end the program that uses it, or try --port 0, which takes a free one"
            raise refused("--port", f"{port} ({error})", "a free port of this machine", hint) from None
        self.server.app = self
        self.token = secrets.token_urlsafe(16)
        self.address = f"http://{ADDRESS}:{self.server.server_port}/{self.token}/"
        self.drops: dict[str, Drop] = {}
        self._lock = threading.Lock()
        self._asked: queue.Queue[Drop | None] = queue.Queue()

    def begin(self, drop: Drop) -> None:
        """Asks for the masks of a drop."""
        drop.state = "queued"
        self._asked.put(drop)

    def stop(self) -> None:
        """Lets :meth:`run` return after the drops that it was asked for."""
        self._asked.put(None)

    def run(self) -> None:
        """Answers until it is stopped or interrupted; masks are computed in this thread, one drop after the other."""
        with tempfile.TemporaryDirectory(prefix="samfed-app-") as folder:
            self.folder = Path(folder)
            threading.Thread(target=self.server.serve_forever, daemon=True).start()
            try:
                self.predictor([np.full((64, 64, 3), 128, np.uint8)])  # what is wrong with the model is refused here
                logger.info("open %s in a browser of this machine; Ctrl+C ends it", self.address)
                for drop in iter(self._asked.get, None):
                    drop.segment(self.predictor, reorient=self.reorient)
            except KeyboardInterrupt:  # how it is ended
                logger.info("ended; what was dropped is deleted")
            finally:
                self.server.shutdown()
                self.server.server_close()

    def drop(self, key: str) -> Drop:
        """The drop of that key, which is made if it is not there."""
        with self._lock:
            if key not in self.drops:
                finished = [old for old, drop in self.drops.items() if drop.state in ("done", "refused")]
                for old in finished[: max(0, len(self.drops) + 1 - KEPT)]:
                    shutil.rmtree(self.drops.pop(old).folder, ignore_errors=True)
                self.drops[key] = Drop(self.folder / key)
            return self.drops[key]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = False
    app: App


class _Refusal(Exception):
    """A request that is not answered: the HTTP status, and a text."""


class _Handler(BaseHTTPRequestHandler):
    """``GET /TOKEN/`` is the page; a drop is ``PUT``, file by file, to ``/TOKEN/KEY/NAME``, begun by ``POST`` to
    ``/TOKEN/KEY``, and asked after by ``GET``; its files are below ``/TOKEN/KEY/``."""

    server: _Server
    server_version, sys_version = "samfed", ""

    def do_GET(self) -> None:
        app = self.server.app
        try:
            match [self.command, *self._parts()]:
                case ["GET", ""]:
                    page = environment().get_template("app.html.j2").render(model=app.predictor.model)
                    self._answer(page, "text/html; charset=utf-8")
                case ["GET", key] if drop := app.drops.get(key):
                    self._answer(json.dumps({"state": drop.state, "html": drop.html}))
                case ["GET", key, name] if (drop := app.drops.get(key)) and name in drop.downloads:
                    called = f"attachment; filename*=UTF-8''{quote(name.partition('-')[2], safe='')}"
                    kind = "application/octet-stream"
                    self._answer(drop.downloads[name], kind, headers={"Content-Disposition": called})
                case ["PUT", key, name] if _DROP.fullmatch(key):
                    self._take(app.drop(key), name)
                    self._answer("{}")
                case ["POST", key] if (drop := app.drops.get(key)) and drop.state == "waiting":
                    app.begin(drop)
                    self._answer("{}", status=HTTPStatus.ACCEPTED)
                case _:
                    raise _Refusal(HTTPStatus.NOT_FOUND, "no such page")
        except _Refusal as refusal:
            status, text = refusal.args
            self._answer(text, "text/plain; charset=utf-8", status)

    do_PUT = do_POST = do_GET

    def log_message(self, format: str, *args: Any) -> None:
        """No line of every request, which would have the names of images."""

    def _parts(self) -> list[str]:
        """The path behind the token, decoded; a request of someone else is refused."""
        port = self.server.server_port
        first, *rest = [unquote(part) for part in self.path.partition("?")[0].removeprefix("/").split("/")]
        known = secrets.compare_digest(first.encode(), self.server.app.token.encode())
        if not (known and rest and self.headers.get("Host") in (f"{ADDRESS}:{port}", f"localhost:{port}")):
            raise _Refusal(HTTPStatus.FORBIDDEN, "open the address that `samfed app` printed")
        return rest

    def _take(self, drop: Drop, name: str) -> None:
        left, place, refusal = int(self.headers.get("Content-Length") or 0), drop.given / name, ""
        if name != place.name or name_problems([name]) or is_left_out(name) or len(name.encode()) > _LONGEST_NAME:
            refusal = "not the name of an image"
        elif not 0 < left <= LARGEST:
            refusal = f"{left} bytes, expected 1 to {LARGEST}"
        elif place.exists() or drop.state != "waiting":
            refusal = "there is one of that name already"
        with open(os.devnull if refusal else place, "wb") as stream:  # a browser takes no answer before it has sent all
            while left and (block := self.rfile.read(min(left, 2**20))):
                stream.write(block)
                left -= len(block)
        if left and not refusal:
            place.unlink()
            refusal = "it did not arrive whole"
        if refusal:
            raise _Refusal(HTTPStatus.BAD_REQUEST, f"{name}: {refusal}")

    def _answer(
        self,
        content: str | Path,
        kind: str = "application/json",
        status: HTTPStatus = HTTPStatus.OK,
        headers: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        size = content.stat().st_size if isinstance(content, Path) else len(content.encode())
        self.send_response(status)
        for name, value in {**_HEADERS, "Content-Type": kind, "Content-Length": str(size), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        with content.open("rb") if isinstance(content, Path) else io.BytesIO(content.encode()) as stream:
            shutil.copyfileobj(stream, self.wfile)
