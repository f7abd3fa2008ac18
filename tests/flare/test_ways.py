"""The four ways of ``samfed flare``."""

from __future__ import annotations


def test_without_flare_every_way_says_how_to_install_it(monkeypatch, capsys):
    from samfed_monai.cli.main import main
    from samfed_monai.flare import needs

    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    words = ["--datalist", "l", "--data-root", "d", "--rounds", "1", "--output-dir", "o"]
    assert main(["flare", "simulate", "samfed_skin", *words]) == 2
    assert "pip install samfed-monai[flare]" in capsys.readouterr().err
