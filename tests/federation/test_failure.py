"""What may be said about a failure."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from samfed_monai.core.errors import Problem, Refused, Stopped
from samfed_monai.protocol import MessageRefused, scrub
from samfed_monai.protocol.transport import is_out_of_memory

SECRET = "/data/Jane Doe/lesion 7.png"


def caught(function) -> BaseException:
    with pytest.raises(Exception) as info:
        function()
    return info.value


def test_fault_58_paths_and_names_stay_behind():
    class JaneDoeError(Exception):
        pass

    for error in (
        RuntimeError(SECRET),
        FileNotFoundError(2, "No such file", SECRET),
        Refused([Problem(SECRET, found="nothing", expected="an image")]),
        JaneDoeError(SECRET),
        KeyError("Jane Doe"),
    ):
        assert "Jane" not in scrub(error)
        assert "/" not in scrub(error)


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(12, "Cannot allocate memory", SECRET),
        RuntimeError("[enforce fail] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes."),
        RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"),
    ],
)
def test_fault_50_out_of_memory_is_told_in_plain_words(error):
    assert is_out_of_memory(error)
    assert scrub(error) == "out of memory"


@pytest.mark.parametrize("error", [OSError(28, "No space left"), RuntimeError(SECRET), Stopped("out of memory")])
def test_other_errors_are_not_taken_for_it(error):
    assert not is_out_of_memory(error)


def test_the_systems_own_words_are_kept():
    error = caught(lambda: Path(SECRET).read_bytes())
    assert scrub(error) == "FileNotFoundError (No such file or directory)"


def test_the_place_in_public_code_is_kept():
    assert "RuntimeError in torch." in scrub(caught(lambda: torch.nn.Conv2d(1, 1, 1)(torch.ones(1, 2, 3, 3))))


def test_refused_messages_keep_their_reason():
    problems = [Problem(f"message -> {name}", found="NaN", expected="finite values") for name in "abcdefg"]
    assert scrub(MessageRefused(problems)).startswith("message -> a: expected finite values, found NaN; message -> b")
    assert scrub(MessageRefused(problems)).endswith("; and 2 more")
