"""``samfed`` and ``python`` as executables; their processes are forked from one that has imported torch and MONAI."""

from __future__ import annotations

import contextlib
import fcntl
import json
import multiprocessing
import os
import runpy
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from multiprocessing.connection import wait
from pathlib import Path

import psutil

from tests.forking import Passed, start

_EXECUTABLE = """#!{python} -SE
import json, os, socket, sys
numbers = [number for number in map(int, os.listdir("/dev/fd")) if os.path.exists(f"/dev/fd/{{number}}")]
link = socket.socket(socket.AF_UNIX)
link.connect({address!r})
socket.send_fds(link, [b"x"], numbers)
link.sendall(json.dumps([sys.argv, os.getcwd(), dict(os.environ), numbers]).encode() + b"\\n")
sys.exit(int(link.recv(9)))
"""


@contextlib.contextmanager
def forked_commands() -> Iterator[Path]:
    """Yields a folder with ``samfed``, for ``PATH``, and ``python``, for ``sys.executable``.

    They use the arguments, folder, environment and open files of the caller, and so do processes that they start by
    ``sys.executable``. If one is killed, its forked process and all children of that are killed, too.
    """
    multiprocessing.set_executable(sys.executable)
    start(int).join()  # imports torch and MONAI before the first command
    with tempfile.TemporaryDirectory() as folder, socket.socket(socket.AF_UNIX) as server:
        address = str(Path(folder) / "socket")
        for name in ("samfed", "python"):
            command = Path(folder) / name
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
        _, descriptors, *_ = socket.recv_fds(link, 1, 64)
        call = json.loads(link.makefile(encoding="utf-8").readline())
        process = start(_called, *call, *map(Passed, descriptors), daemon=False)
        for descriptor in descriptors:
            os.close(descriptor)
        if process.sentinel in wait([process.sentinel, link]):
            process.join()
            link.sendall(b"%d" % (process.exitcode or 0))
            return
    with contextlib.suppress(psutil.NoSuchProcess):  # it was killed
        forked = psutil.Process(process.pid)
        for each in (forked, *forked.children(recursive=True)):
            each.kill()


def _called(words: list[str], folder: str, environment: dict[str, str], numbers: list[int], *descriptors: int) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    apart = [fcntl.fcntl(descriptor, fcntl.F_DUPFD, 512) for descriptor in descriptors]
    for number, descriptor in zip(numbers, apart, strict=True):
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", 1, closefd=False) for number in (1, 2))
    sys.path[:0] = environment.get("PYTHONPATH", "").split(os.pathsep)
    sys.executable = words[0]
    multiprocessing.set_executable(words[0])
    if Path(words[0]).name == "samfed" and words[1:3] != ["-m", "samfed_monai"]:
        from samfed_monai.cli.main import main

        sys.exit(main(words[1:]))
    words = words[2:] if words[1] == "-u" else words[1:]
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    elif words[0] == "-c":
        sys.argv = words[:1] + words[2:]
        exec(words[1], {"__name__": "__main__"})
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
