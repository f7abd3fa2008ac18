"""The pages of ``docs/results`` match their records."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from study.__main__ import main

REPOSITORY = Path(__file__).resolve().parents[2]
RESULTS = REPOSITORY / "docs" / "results"
NEEDED = {
    "light": {"light-polyp-encoder": "samfed"},
    "account": {"account-polyp": "samfed_wrong_at_one", "account-polyp-imagenet": "agreed_without_global_kd"},
    "ablation": {"ablation-polyp": "rule_intersection", "ablation-skin": "rule_intersection"},
    "pfedsam": {
        "pfedsam-polyp": "pfedsam",
        "pfedsam-three": "pfedsam",
        "pfedsam-skin": "pfedsam",
        "pfedsam-no-kvasir": "pfedsam",
    },
    "related": {},
}
"""Of each page its records, and a row that each must have."""


def rows_of(record: str) -> set[str]:
    """The rows of which a record has runs."""
    path = REPOSITORY / "study" / "records" / f"{record}.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    return {json.loads(line)["about"]["row"] for line in lines}


@pytest.mark.parametrize("page", NEEDED)
def test_result_page_matches_records(page, tmp_path, monkeypatch):
    missing = [f"{row} in {record}.jsonl" for record, row in NEEDED[page].items() if row not in rows_of(record)]
    assert not missing, f"the records of {page}.md are gone"
    installed = ["--old-file", ".venv/.package"]  # whatever runs this test is installed, wherever that is
    variables = [f"BIN={Path(sys.executable).parent}", f"PAGES={tmp_path}", f"METHODS_PAGE={tmp_path / 'methods.md'}"]
    words = ["make", "--dry-run", "--silent", *installed, f"{page}-page", *variables]
    done = subprocess.run(words, cwd=REPOSITORY, check=True, capture_output=True, text=True)
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda *_, **__: None)  # pictures: test_page.py
    for command in done.stdout.replace("\\\n", "").splitlines():
        python, module, study, *arguments = shlex.split(command)
        assert (Path(python), module, study) == (Path(sys.executable).parent / "python", "-m", "study")
        assert main(arguments) == 0
    assert (tmp_path / f"{page}.md").read_text(encoding="utf-8") == (RESULTS / f"{page}.md").read_text(encoding="utf-8")
    if page == "related":  # the page of methods also uses its records
        written = (RESULTS.parent / "methods.md").read_text(encoding="utf-8")
        assert (tmp_path / "methods.md").read_text(encoding="utf-8") == written


def test_records_are_not_ignored_by_git():
    words = ["git", "check-ignore", "--quiet", "--no-index", "study/records/light-polyp.jsonl"]
    code = subprocess.run(words, cwd=REPOSITORY, check=False, capture_output=True).returncode
    if code == 128:
        pytest.skip("not a checkout: git has no rules here")
    assert code == 1, "a rule of .gitignore hides the records of runs"
