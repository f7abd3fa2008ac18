"""The four ways of ``samfed flare``."""

from __future__ import annotations


def test_without_flare_every_way_says_how_to_install_it(monkeypatch, capsys):
    from samfed_monai.cli.main import main
    from samfed_monai.flare import needs

    monkeypatch.setattr(needs, "find_spec", lambda name: None)
    words = ["--datalist", "l", "--data-root", "d", "--rounds", "1", "--output-dir", "o"]
    assert main(["flare", "simulate", "samfed_skin", *words]) == 2
    assert "pip install 'samfed-monai[flare]'" in capsys.readouterr().err


def test_options_beside_a_job_s_folder_are_refused(tmp_path, capsys):
    from samfed_monai.cli.main import main

    (tmp_path / "meta.json").write_text("{}")
    words = ["flare", "submit", str(tmp_path), "--kit", "kit", "--output-dir", str(tmp_path / "out")]
    assert main([*words, "--rounds", "3", "--run-name", "b", "--job#quorum", "2"]) == 2
    said = capsys.readouterr().err
    for name in ("--rounds", "--run-name", "--job#quorum"):
        assert f"{name}: expected nothing: the job has it, found beside the job" in said
    assert "--output-dir" not in said
