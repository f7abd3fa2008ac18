"""``samfed`` as an executable file whose processes are forked from one that has torch and MONAI."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from tests.forking import Passed, start

_EXECUTABLE = """#!{python} -SE
import json, os, socket, sys
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
socket.send_fds(link, [b"x"], [0, 1, 2])
link.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ)]).encode())
link.shutdown(socket.SHUT_WR)
sys.exit(int(link.recv(9)))
"""


@contextlib.contextmanager
def forked_samfed() -> Iterator[Path]:
    """A folder, for ``PATH``, with an executable ``samfed`` that lives as long as this context.

    It has the arguments, folder, environment and streams of whoever calls it, and so have the runs that it starts.
    """
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address, command = str(Path(folder) / "socket"), Path(folder) / "samfed"
        command.write_text(_EXECUTABLE.format(python=sys.executable, address=address), encoding="utf-8")
        command.chmod(0o755)
        server.bind(address)
        server.listen()
        threading.Thread(target=_serve, args=(server,), daemon=True).start()
        yield Path(folder)
        server.shutdown(socket.SHUT_RDWR)


def _serve(server: socket.socket) -> None:
    with contextlib.suppress(OSError):  # the context has ended
        while True:
            link, _ = server.accept()
            threading.Thread(target=_answer, args=(link,), daemon=True).start()


def _answer(link: socket.socket) -> None:
    with link:
        _, descriptors, *_ = socket.recv_fds(link, 1, 3)
        process = start(_called, *json.loads(link.makefile(encoding="utf-8").read()), *map(Passed, descriptors))
        for descriptor in descriptors:
            os.close(descriptor)
        process.join()
        link.sendall(b"%d" % (process.exitcode or 0))


def _called(words: list[str], folder: str, environment: dict[str, str], *descriptors: int) -> None:
    from samfed_monai.cli.main import main

    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.executable = words[0]  # for `python -m samfed_monai …`
    sys.exit(main(words[3:] if words[1:3] == ["-m", "samfed_monai"] else words[1:]))
