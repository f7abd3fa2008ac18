"""One download, with a progress bar and a clear end."""

from __future__ import annotations

import ssl
import urllib.error
import urllib.request
from pathlib import Path
from typing import BinaryIO

from tqdm import tqdm

from samfed_monai.bars import progress_bar
from samfed_monai.errors import Stopped


def download(url: str, target: Path, *, cafile: str | None = None) -> None:
    """Downloads ``url`` to ``target`` with a progress bar.

    Raises:
        Stopped: no connection, an HTTP error, or fewer bytes than announced.
    """
    context = ssl.create_default_context(cafile=cafile) if url.startswith("https:") else None
    try:
        with urllib.request.urlopen(url, timeout=60, context=context) as reply, open(target, "wb") as out:
            announced = int(reply.headers.get("Content-Length") or 0)
            with progress_bar(total=announced or None, unit="B", unit_scale=True, desc=target.name, leave=False) as bar:
                received = _pump(reply, out, bar)
    except (urllib.error.URLError, OSError, ValueError) as error:
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
