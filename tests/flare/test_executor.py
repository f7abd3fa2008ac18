"""Fault 88: a job whose command is not ours does not run at a site, and what lies in a job's folder is no code."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from samfed_monai.core.io import read_json, write_json
from samfed_monai.flare.executor import SiteExecutor, Trainer
from samfed_monai.flare.job import NEEDED, STARTS_COMMANDS, merge_allow_list
from samfed_monai.flare.site_file import read_site_file
from tests.flare.toys import REPO, toy_site_files

#: A module that leaves a mark where it is imported.
CANARY = "import pathlib; pathlib.Path({!r}).touch()\n"


def planted(folder: Path) -> Path:
    """Puts modules of names that ours import into a job's folder; the mark that any of them would leave."""
    mark = folder.with_name("mark")
    for name in ("samfed_monai/__init__.py", "argparse.py", "numpy.py", "sitecustomize.py", "runpy.py"):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(CANARY.format(str(mark)))
    return mark


def test_fault_88_a_job_cannot_give_the_executor_anything():
    for name, value in {"command": ["touch", "x"], "execution_mode": "in_process", "worker": "os"}.items():
        with pytest.raises(TypeError, match=name):
            SiteExecutor(**{name: value})  # as FLARE builds what a job names


def test_fault_88_modules_in_a_jobs_folder_are_not_imported_by_the_process_that_trains(tmp_path, monkeypatch):
    mark = planted(tmp_path / "app")
    monkeypatch.setenv("SAMFED_SITE", str(toy_site_files(tmp_path / "sites", ("site-1",), tmp_path / "run")))
    monkeypatch.setenv("PYTHONPATH", str(REPO))
    monkeypatch.chdir(tmp_path / "app")
    app = Path.cwd()
    site = Trainer("site-1", read_site_file(app, "site-1"), app, worker="tests.federation.echo_worker")
    try:
        words = {"task": "train", "run": "ab12", "run_name": "first"}
        assert site.answer(words, b"abc") == (b"abc", "")
    finally:
        site.close()
    assert not mark.exists()


@pytest.mark.parametrize("path", STARTS_COMMANDS)
def test_fault_88_the_list_that_is_written_allows_no_class_that_starts_a_jobs_command(tmp_path, path):
    from nvflare.app_common.widgets.component_path_authorizer import ComponentPathAuthorizer

    allowed = read_json(merge_allow_list(tmp_path / "local"))["class_allow_list"]
    authorizer = ComponentPathAuthorizer()
    names, _, _ = authorizer._get_policy_from_resources({"class_allow_list": allowed})
    assert any(authorizer._path_matches_prefix(NEEDED[1], name) for name in names)
    assert not any(authorizer._path_matches_prefix(path, name) for name in names)


def test_a_list_that_allows_a_jobs_command_is_told_of_and_kept(tmp_path, caplog):
    write_json(tmp_path / "resources.json", {"class_allow_list": [STARTS_COMMANDS[0], "nvflare.app_common."]})
    with caplog.at_level(logging.WARNING):
        merge_allow_list(tmp_path)
    assert caplog.text.count("a job may start any command here; take it out") == 2
    assert read_json(tmp_path / "resources.json")["class_allow_list"][0] == STARTS_COMMANDS[0]
