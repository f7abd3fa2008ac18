"""The four ways of ``samfed flare``."""

from __future__ import annotations

import os

import pytest

from samfed_monai.flare.local import Processes
from samfed_monai.flare.site_file import read_site_file


@pytest.mark.parametrize("way", ["simulate", "poc"])
def test_paths_of_the_command_line_are_those_of_its_folder(two_sites, tmp_path, monkeypatch, way):
    from samfed_monai.cli.main import main

    def started(job, *, site_files, sites, **_):
        monkeypatch.setenv("SAMFED_SITE", str(site_files))
        for name in (*sites, "server"):
            files = read_site_file(tmp_path, name)
            caches = tmp_path / "cache" / "sites" / name if name in sites else tmp_path / "cache"
            assert (files.cache_dir, files.data_root, files.output_dir) == (caches, two_sites, tmp_path / "run")
            assert files.bundle_root == tmp_path / "mine"
        raise KeyboardInterrupt  # nothing is run

    monkeypatch.setattr(f"samfed_monai.flare.local.{'simulate' if way == 'simulate' else 'run_poc'}", started)
    monkeypatch.chdir(tmp_path)
    assert main(["init", "samfed_skin", "mine"]) == 0
    here = os.path.relpath(two_sites)
    words = ["--datalist", f"{here}/list.json", "--data-root", here, "--output-dir", "run", "--cache-dir", "cache"]
    words += ["--workspace", "space", "--variant", "no_sam", "--network_name", "basic_unet"]
    words += ["--privacy#least_images", "1"]
    assert main(["flare", way, "./mine", *words]) == 130
    assert (tmp_path / "space").is_dir(), "a folder that was named is kept"


def test_relative_folders_of_the_environment_are_those_of_the_command(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["lib", "/opt/lib", ""]))
    monkeypatch.setenv("SAMFED_WEIGHTS", "weights")
    code = "import os; print(os.environ['PYTHONPATH'], os.environ['SAMFED_WEIGHTS'])"
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "shown.py").write_text(code)
    with Processes() as processes:
        processes.start("one", "shown", cwd=tmp_path / "elsewhere", log=tmp_path / "log").wait()
    imports = os.pathsep.join([f"{tmp_path}/lib", "/opt/lib", str(tmp_path)])
    assert (tmp_path / "log").read_text() == f"{imports} {tmp_path}/weights\n"


def test_without_flare_every_way_says_how_to_install_it(monkeypatch, capsys):
    from samfed_monai.cli.main import main

    monkeypatch.setattr("samfed_monai.cli.flare.find_spec", lambda name: None)
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
