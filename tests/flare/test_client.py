"""What FLARE starts at a site stays light, and goes on where the process that trains is gone."""

from __future__ import annotations

import subprocess
import sys

from samfed_monai.flare.executor import Trainer
from samfed_monai.flare.site_file import read_site_file
from tests.flare.toys import REPO, toy_site_files

ECHO = "tests.federation.echo_worker"


def test_the_flare_client_never_imports_torch():
    code = (
        "import sys, numpy, samfed_monai.flare.executor\n"
        "heavy = {'torch', 'monai', 'ignite', 'torchvision'} & set(sys.modules)\n"
        "sys.exit(' '.join(heavy) or 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_site_answers_reports_a_dead_child_and_starts_another(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_SITE", str(toy_site_files(tmp_path / "sites", ("site-1",), tmp_path / "run")))
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # the worker runs in the site's own folder, and is one of these tests
    site = Trainer("site-1", read_site_file(tmp_path, "site-1"), tmp_path, worker=ECHO)
    try:
        words = {"task": "train", "run": "ab12", "run_name": "first", "keep": [0, "rm -rf"]}
        assert site.answer(words, b"abc") == (b"abc", "")
        content, failure = site.answer({**words, "task": "exit"}, b"abc")
        assert (content, failure) == (b"", "the process that trains ended with code 3; see its log at the site")
        assert site.answer(words, b"again") == (b"again", "")
        assert site.state_of("ab12") == tmp_path / "sites" / "cache" / "site-1" / "state" / "ab12" / "site-1"
        assert site.answer({**words, "run": "../../etc"}, b"")[1] == "the message names no run"
        for name in ("../../etc/x", "/etc/x", ""):
            content, failure = site.answer({**words, "run": "cd34", "run_name": name}, b"abc")
            assert (content, failure[:52]) == (b"", "message -> run_name: expected up to 100 letters, dig")
        assert not site.state_of("cd34").exists()
        for other in ({"run": "cd34"}, {"run": "cd34", "run_name": "second"}):
            content, failure = site.answer({**words, **other}, b"abc")
            assert (content, failure[:70]) == (
                b"",
                "message -> run: expected the one that this job began with, found anoth",
            )
        assert site.answer(words, b"abc") == (b"abc", ""), "its own run goes on"
        site.close()
        site = Trainer("site-1", read_site_file(tmp_path, "site-1"), tmp_path, worker=ECHO)  # another job
        site.files.cache_dir.joinpath("state", "cd34").write_bytes(b"")  # where a folder has to be
        for _ in range(2):
            assert site.answer({**words, "run": "cd34"}, b"abc") == (b"", "OSError (File exists)")
        site.files.cache_dir.joinpath("state", "cd34").unlink()
        assert site.answer({**words, "run": "cd34"}, b"abc") == (b"abc", "")
    finally:
        site.close()
