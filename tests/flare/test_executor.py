"""What FLARE starts at a site: light, nothing but our process (fault 88), and it goes on where that one is gone."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from samfed_monai.core.io import read_json, write_json
from samfed_monai.flare.executor import SiteExecutor, Trainer, pack, unpack
from samfed_monai.flare.job import NEEDED, STARTS_COMMANDS, merge_allow_list
from samfed_monai.flare.site_file import read_site_file
from tests.flare.toys import REPO, toy_site_files

#: A module that leaves a mark where it is imported.
CANARY = "import pathlib; pathlib.Path({!r}).touch()\n"


def test_fault_88_executor_takes_no_arguments_from_job():
    for name, value in {"command": ["touch", "x"], "execution_mode": "in_process", "worker": "os"}.items():
        with pytest.raises(TypeError, match=name):
            SiteExecutor(**{name: value})  # as FLARE builds what a job names


@pytest.mark.parametrize("path", STARTS_COMMANDS)
def test_fault_88_allow_list_excludes_command_executors(tmp_path, path):
    from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

    allowed = read_json(merge_allow_list(tmp_path / "local"))["class_allow_list"]
    authorizer = ComponentPathAuthorizer()
    names, _, _ = authorizer._get_policy_from_resources({"class_allow_list": allowed})
    assert any(authorizer._path_matches_prefix(NEEDED[1], name) for name in names)
    assert not any(authorizer._path_matches_prefix(path, name) for name in names)


def test_existing_unsafe_allow_list_is_kept_with_warning(tmp_path, caplog):
    write_json(tmp_path / "resources.json", {"class_allow_list": [STARTS_COMMANDS[0], "nvflare.app_common."]})
    with caplog.at_level(logging.WARNING):
        merge_allow_list(tmp_path)
    assert caplog.text.count("a job may start any command here; remove it") == 2
    assert read_json(tmp_path / "resources.json")["class_allow_list"][0] == STARTS_COMMANDS[0]


def test_flare_client_does_not_import_torch():
    heavy = "{'torch', 'monai', 'ignite', 'torchvision'}"
    code = f"import sys, samfed_monai.flare.executor; print({heavy} & {{*sys.modules}})"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout == b"set()\n"


def test_invalid_site_file_is_reported_without_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("SAMFED_SITE", str(toy_site_files(tmp_path, ("site-1",), tmp_path)))
    wrong = {"data_root": "nowhere", **dict.fromkeys("abcde", 1)}
    write_json(tmp_path / "site-1.json", read_json(tmp_path / "site-1.json") | wrong)
    workspace = SimpleNamespace(get_app_dir=lambda _: tmp_path)
    context = SimpleNamespace(get_workspace=lambda: workspace, get_job_id=str, get_identity_name=lambda: "site-1")
    _, meta = unpack(SiteExecutor().execute("train", pack(b""), context, None))
    assert meta["failure"].endswith("; site-1.json -> data_root: expected an existing path"), "after five others"


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A job's folder, in which FLARE works, with modules of names that ours import: each leaves a mark beside it."""
    folder = tmp_path / "app"
    for name in ("samfed_monai/__init__.py", "argparse.py", "numpy.py", "sitecustomize.py", "runpy.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(CANARY.format(str(tmp_path / "mark")))
    monkeypatch.chdir(folder)
    return folder


def test_fault_88_site_ignores_job_code_and_restarts_dead_child(app, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("SAMFED_SITE", str(toy_site_files(tmp_path / "sites", ("site-1",), tmp_path / "run")))
    monkeypatch.setenv("PYTHONPATH", str(REPO))  # the worker runs in the site's own folder, and is one of these tests

    def trainer() -> Trainer:
        return Trainer("site-1", read_site_file(app, "site-1"), app, worker="tests.federation.echo_worker")

    site = trainer()
    try:
        words = {"task": "train", "run": "ab12", "run_name": "first", "keep": [0, "rm -rf"]}
        assert site.answer(words, b"abc") == (b"abc", "")
        content, failure = site.answer({**words, "task": "exit"}, b"abc")
        assert (content, failure) == (b"", "the training process ended with code 3; see its log at the site")
        assert site.answer({**words, "task": "fail"}, b"abc") == (b"", "refused")
        shown = [f"{why}; details: {site.state_of('ab12')}/worker.log" for why in (failure, "refused")]
        assert [record.message for record in caplog.records] == shown
        assert site.answer(words, b"again") == (b"again", "")
        assert site.state_of("ab12") == tmp_path / "sites" / "cache" / "site-1" / "state" / "ab12" / "site-1"
        assert site.answer({**words, "run": "../../etc"}, b"")[1] == "the message has no valid run identifier"
        for name in ("../../etc/x", "/etc/x", ""):
            content, failure = site.answer({**words, "run": "cd34", "run_name": name}, b"abc")
            assert (content, failure[:52]) == (b"", "message -> run_name: expected up to 100 letters, dig")
        assert not site.state_of("cd34").exists()
        for other in ({"run": "cd34"}, {"run": "cd34", "run_name": "second"}):
            content, failure = site.answer({**words, **other}, b"abc")
            assert (content, failure[:60]) == (b"", "message -> run: expected the run that this job started with,")
        assert site.answer(words, b"abc") == (b"abc", ""), "its own run goes on"
        site.close()
        site = trainer()  # of another job
        site.files.cache_dir.joinpath("state", "cd34").write_bytes(b"")  # where a folder has to be
        for _ in range(2):
            assert site.answer({**words, "run": "cd34"}, b"abc") == (b"", "OSError (File exists)")
        site.files.cache_dir.joinpath("state", "cd34").unlink()
        assert site.answer({**words, "run": "cd34"}, b"abc") == (b"abc", "")
    finally:
        site.close()
    assert not (tmp_path / "mark").exists()
