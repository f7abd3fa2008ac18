"""``samfed weights``: what is known, what lies where, what is fetched."""

from __future__ import annotations

import argparse

import pytest

from samfed_monai.cli.teach import add_weights_parser
from samfed_monai.core.errors import Refused


def run(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_weights_parser(parser.add_subparsers())
    arguments = parser.parse_args(["weights", *words])
    return arguments.run(arguments)


def test_without_a_source_it_finds_and_downloads_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    with pytest.raises(Refused, match="samfed weights mobile_sam --from"):
        run("mobile_sam")
    (tmp_path / "mobile_sam.pt").write_bytes(b"x")
    assert run("mobile_sam") == 0
    assert capsys.readouterr().out == f"{tmp_path / 'mobile_sam.pt'}\n"


def test_fault_29_a_wrong_file_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path / "weights"))
    (tmp_path / "wrong.pt").write_bytes(b"x")
    with pytest.raises(Refused, match=r"expected SHA-256 6dbb90523a35330f"):
        run("mobile_sam", "--from", str(tmp_path / "wrong.pt"))


def test_the_real_checkpoint_is_installed(samfed_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_WEIGHTS", str(tmp_path))
    assert run("mobile_sam", "--from", str(samfed_data / "weights" / "mobile_sam.pt")) == 0
    assert (tmp_path / "mobile_sam.pt").stat().st_size == 40_728_226
