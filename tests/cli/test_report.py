"""``samfed report``: of one run, of several, and what it refuses."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import pytest

from samfed_monai.cli import report as command
from samfed_monai.cli.main import build_parser
from samfed_monai.cli.report import watch
from samfed_monai.core.errors import Refused
from samfed_monai.core.io import write_json
from samfed_monai.federation.run_folder import RunFolder
from samfed_monai.reports import Report
from tests.federation.test_progress import record


def report(*words: object) -> None:
    args = build_parser().parse_args(["report", *map(str, words)])
    args.run(args)


def test_single_run_gets_report(run_folder, tmp_path, capsys):
    shutil.copytree(run_folder, tmp_path / "R")
    report(tmp_path / "R" / "results.json", "--no-overlays")
    assert capsys.readouterr().out == f"{tmp_path / 'R' / 'report.html'}\n"


def test_several_runs_are_compared(runs, tmp_path, capsys):
    report(*runs, "--output-dir", tmp_path / "C", "--title", "Skin")
    out = capsys.readouterr().out
    assert "0.860 ± 0.020" in out
    assert out.endswith(f"{tmp_path / 'C' / 'comparison.html'}\n")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["R", "--output-dir", "C", "--title", "T"], r"--output-dir: .* report of one run, which is in (.|\n)*--title"),
        (["R", "--no-overlays", "--data-root", "D"], "--data-root: expected an option .*, found it with --no-overlays"),
        (["R", "S", "--no-overlays"], "--no-overlays: expected an option of this report, found it with a comparison"),
        (["R", "--datalist", "no/L"], "--datalist: expected that of the run, found no/L, which does not exist"),
        (["no/such/R", "--watch"], "R: expected the folder of a run in progress, found no such folder"),
    ],
)
def test_unused_options_and_missing_run_are_refused(words, message):
    with pytest.raises(Refused, match=message):
        report(*words)


def store(folder, count, *, scored=True):
    """A run of three rounds of which ``count`` are stored."""
    records = [record(number, scored=scored) for number in range(count)]
    for number, content in enumerate(records):
        write_json(folder / "rounds" / f"{number:03d}" / "round.json", {**content, "files": {}})
    write_json(folder / "run.json", {"config": {"variant": "samfed", "rounds": 3}, "seeds": {"seed": 7}})
    RunFolder(folder).write_table(records)


@pytest.fixture
def sleeps(monkeypatch):
    """What happens to a run between two looks; then Ctrl-C."""
    events = []

    def sleep(seconds):
        if not events:
            raise KeyboardInterrupt
        events.pop(0)()

    monkeypatch.setattr(command, "time", SimpleNamespace(sleep=sleep))  # of this module alone: other threads sleep, too
    return events


def test_watch_updates_report_after_each_round(tmp_path, sleeps, capsys):
    pages = []

    def keep_page():
        pages.append((tmp_path / "report.html").read_text(encoding="utf-8"))

    sleeps += [lambda: store(tmp_path, 1), keep_page, lambda: store(tmp_path, 2), keep_page]
    watch(Report(tmp_path, unfinished=True))
    page = tmp_path / "report.html"
    assert capsys.readouterr().out.splitlines() == [f"1 round: {page}", f"2 rounds: {page}"]
    assert all('<meta http-equiv="refresh" content="10">' in each for each in pages)
    assert "1 of 3 rounds so far, about 10 s left · seed 7" in pages[0]
    assert "2 of 3 rounds so far" in pages[1]
    best = ("Best Dice so far", "0.825", "round 2, 4 validation images")  # (0.6 + 3 * 0.9) / 4
    for text in (*best, "The run is not finished: 2 of 3 rounds are stored"):
        assert text in pages[1]
    assert "No overlays for" not in pages[1]
    assert not (tmp_path / "run.log").exists(), "that is the run's own"


def test_watch_ends_with_report_of_finished_run(run_folder, tmp_path, sleeps, capsys):
    shutil.copytree(run_folder, tmp_path / "R")
    watch(Report(tmp_path / "R", unfinished=True, overlays=False))
    assert capsys.readouterr().out == f"finished: {tmp_path / 'R' / 'report.html'}\n"
    page = (tmp_path / "R" / "report.html").read_text(encoding="utf-8")
    assert "so far" not in page
    assert "http-equiv" not in page


def test_watch_supports_sites_without_masks(tmp_path, sleeps):
    store(tmp_path, 2, scored=False)
    watch(Report(tmp_path, unfinished=True))
    assert "–" in (tmp_path / "report.html").read_text(encoding="utf-8")
