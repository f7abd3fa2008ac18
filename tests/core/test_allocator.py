"""Memory that the allocator of C gives back to the system."""

from __future__ import annotations

import ctypes
import platform
import subprocess
import sys

import pytest

from samfed_monai.core.allocator import keep_freed_memory

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
    kept = "from samfed_monai.core.allocator import keep_freed_memory, peak_memory; assert keep_freed_memory()"
    assert faults("") > 10
    assert faults(kept) == 0


@pytest.mark.parametrize("name", ["GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"])
def test_what_the_user_chose_is_left_alone(monkeypatch, name):
    monkeypatch.setenv(name, "")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("the allocator was touched"))
    assert not keep_freed_memory()


@pytest.mark.parametrize(
    "error", [OSError("no such library"), TypeError("a name is needed"), AttributeError("mallopt")]
)
def test_other_c_libraries_are_left_alone(monkeypatch, error):
    def missing(name):
        raise error

    for variable in ("GLIBC_TUNABLES", "LD_PRELOAD", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert not keep_freed_memory()


@pytest.mark.skipif(platform.system() != "Linux", reason="told by /proc")
def test_the_most_memory_of_the_process_is_told_also_after_it_was_freed():
    script = (
        "from samfed_monai.core.allocator import peak_memory\n"
        "before = peak_memory()\nblock = bytearray(64 << 20)\ndel block\nprint(before, peak_memory())"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    before, after = map(int, done.stdout.split())  # of a process of its own: this one may have had more long ago
    assert before > 1 << 20
    assert 60 << 20 < after - before < 90 << 20
