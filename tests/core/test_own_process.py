"""A process of our own: how long its waiting threads spin, and when Python's collector looks around."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from typing import Any

import pytest

from samfed_monai.core.own_process import keep_freed_memory, spin_briefly

CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
ALLOCATOR = ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


@pytest.mark.parametrize("chosen", [{}, *({name: "7"} for name in CHOICES)])
def test_a_thousand_spins_also_of_processes_that_this_one_starts_unless_the_user_chose(monkeypatch, chosen):
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES} | chosen
    monkeypatch.setattr(os, "environ", environment.copy())
    assert spin_briefly() is not bool(chosen)
    assert os.environ == environment | (chosen or {"GOMP_SPINCOUNT": "1000"})


@pytest.mark.parametrize(
    ("started", "asked"),
    [
        ("from samfed_monai.cli.main import main; main()", ["--help"]),
        ("from samfed_monai.flare.worker import serve; serve(None)", ["0", "1"]),
    ],
)
def test_a_process_of_ours_spins_briefly_before_it_imports_torch(started, asked):
    code = (
        "import atexit, os, sys\n"
        "def told():\n"
        "    sys.stderr.write(f\"\\n{os.environ.get('GOMP_SPINCOUNT')} {'torch' in sys.modules}\")\n"
        f"atexit.register(told)\n{started}\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in CHOICES}
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "check": False}
    done = subprocess.run([sys.executable, "-c", code, *asked], env=environment, **options)
    assert done.stderr.splitlines()[-1] == "1000 False"


# minor page faults of asking for 64 MiB, writing to all of it and freeing it, for the third time
_FAULTS = """
import ctypes, resource
{setup}
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
def once(size=64 << 20):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(size)
    ctypes.memset(block, 1, size)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print([once() for _ in range(3)][-1])
"""


def faults(setup: str, **environment: str) -> int:
    done = subprocess.run(
        [sys.executable, "-c", _FAULTS.format(setup=setup)],
        env={"PYTHONPATH": ":".join(filter(None, sys.path)), **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return int(done.stdout)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc has these thresholds")
def test_a_freed_block_is_used_again_without_new_pages():
    kept = "from samfed_monai.core.own_process import keep_freed_memory, peak_memory; assert keep_freed_memory()"
    assert faults("") > 10
    assert faults(kept) == 0


@pytest.mark.parametrize("name", ALLOCATOR)
def test_the_allocator_that_the_user_chose_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the allocator was touched"))
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    "error", [OSError("no such library"), TypeError("a name is needed"), AttributeError("mallopt")]
)
def test_other_c_libraries_are_left_alone(monkeypatch, error):
    def missing(name):
        raise error

    for variable in ALLOCATOR:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.system() != "Linux", reason="read from /proc")
def test_the_most_memory_of_the_process_is_known_also_after_it_was_freed():
    script = (
        "from samfed_monai.core.own_process import peak_memory\n"
        "before = peak_memory()\nblock = bytearray(64 << 20)\ndel block\nprint(before, peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())  # of a process of its own: this one may have had more long ago
    assert before > 1 << 20
    assert 60 << 20 < after - before < 90 << 20
