"""The files of rows for docs/results fit the bundles."""

from pathlib import Path

import pytest

import samfed_monai.config.workflow  # noqa: F401 - imported while the check is replaced, it would keep the other one
from samfed_monai.cli.compare import _problems, read_rows
from samfed_monai.config import check as config_check
from samfed_monai.core.errors import Problems
from samfed_monai.federation.comparison_runs import all_rows

REPOSITORY = Path(__file__).resolve().parents[2]
FILES = sorted((REPOSITORY / "study" / "rows").glob("*.rows.json"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_row_files_match_bundle(monkeypatch, path):
    check = config_check.check_bundle
    monkeypatch.setattr(config_check, "check_bundle", lambda *given, **more: check(*given, **more, ready=False))
    named = Problems()
    rows = all_rows([], read_rows(path), named)
    named.refuse_if_any()
    assert _problems(REPOSITORY / "bundles" / "samfed_skin", rows, {})[0] == []
